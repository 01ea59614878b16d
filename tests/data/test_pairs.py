"""How events become the weight of a pair."""

from __future__ import annotations

import datetime as dt
import math

import pytest
from pyspark.sql import SparkSession

from sparkcf.config.load import load_config
from sparkcf.data.pairs import Reads, pairs, row_lists
from sparkcf.errors import ConfigError

AT = dt.datetime(2024, 1, 1)
SCHEMA = "user_idx int, item_idx int, event string, value double, ts timestamp, context map<string,string>"
EVENTS = [
    (0, 1, "play", 7.0, AT, None),
    (0, 1, "play", 8.0, AT + dt.timedelta(hours=1), None),
    (0, 2, "buy", 1.0, AT, None),
    (3, 1, "play", 352_698.0, AT, None),
]


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        ("{weight: one}", {(0, 1): 1, (0, 2): 1, (3, 1): 1}),
        ("{weight: value}", {(0, 1): 15, (0, 2): 1, (3, 1): 352_698}),
        ("{weight: value, max_weight: 20}", {(0, 1): 15, (0, 2): 1, (3, 1): 20}),
        ("{weight: log}", {(0, 1): math.log(16), (0, 2): math.log(2), (3, 1): math.log(352_699)}),
        ("{weight: event, positive_from: 2}", {(0, 1): 1.0, (3, 1): 0.5}),
    ],
)
def test_positives_have_the_weight_that_is_asked_for(spark: SparkSession, preference: str, expected: dict) -> None:
    given = ["ds=2024-01-31", "input.path=none", "input.events={play: 0.5, buy: 5}", f"preference={preference}"]
    rows = pairs(spark.createDataFrame(EVENTS, SCHEMA), Reads("positives"), load_config((), given)).collect()
    found = {(row["user_idx"], row["item_idx"]): row["value"] for row in rows}
    assert found == {pair: pytest.approx(weight) for pair, weight in expected.items()}


DAY = dt.date(2024, 1, 31)
END = dt.datetime(2024, 2, 1)
AGED = [  # event and days before the end of DAY
    (0, 1, "play", 3.0, 0.5),
    (0, 1, "play", 2.0, 10.0),
    (0, 2, "buy", 4.0, 1.0),
    (3, 1, "play", 5.0, 30.5),
    (3, 2, "play", 1.0, 2.0),
]


def aged(spark: SparkSession, reads: str, *settings: str) -> dict[tuple[int, int], tuple[float, ...]]:
    rows = [(*event, END - dt.timedelta(days=days), None) for *event, days in AGED]
    given = ["input.path=none", "input.events={play: 0.5, buy: 5}", f"ds={DAY}", *settings]
    found = pairs(spark.createDataFrame(rows, SCHEMA), Reads(reads), load_config((), given))  # type: ignore[arg-type]
    columns = [name for name in ("value", "weight") if name in found.columns]
    return {(row["user_idx"], row["item_idx"]): tuple(row[name] for name in columns) for row in found.collect()}


@pytest.mark.parametrize("most", ["null", "5"])
def test_the_logarithm_of_a_negative_sum_is_0(spark: SparkSession, most: str) -> None:
    events = [(0, 1, "buy", 3.0, AT, None), (0, 1, "return", -7.0, AT, None), (0, 2, "buy", 1.0, AT, None)]
    given = ["ds=2024-01-31", "input.path=none", f"preference={{weight: log, max_weight: {most}}}"]
    rows = pairs(spark.createDataFrame(events, SCHEMA), Reads("positives"), load_config((), given)).collect()
    assert {row["item_idx"]: row["value"] for row in rows} == {1: 0.0, 2: pytest.approx(math.log(2))}


def test_only_events_in_the_window_train(spark: SparkSession) -> None:
    assert aged(spark, "positives", "train.window_days=2", "preference.weight=value").keys() == {(0, 1), (0, 2), (3, 2)}
    assert aged(spark, "positives", "train.window_days=1", "preference.weight=value") == {(0, 1): (3,), (0, 2): (4,)}
    assert aged(spark, "values", "train.window_days=1") == {(0, 1): (3,), (0, 2): (4,)}


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        ("weight=one", {(0, 1): 2**-0.05, (0, 2): 2**-0.1, (3, 1): 2**-3.05, (3, 2): 2**-0.2}),
        ("weight=value", {(0, 1): 3 * 2**-0.05 + 2 * 0.5, (0, 2): 4 * 2**-0.1, (3, 1): 5 * 2**-3.05, (3, 2): 2**-0.2}),
    ],
)
def test_older_events_weigh_less(spark: SparkSession, preference: str, expected: dict) -> None:
    found = aged(spark, "positives", f"preference.{preference}", "preference.half_life_days=10")
    assert found == {pair: (pytest.approx(value),) for pair, value in expected.items()}


def test_ratings_weigh_as_their_last_event(spark: SparkSession) -> None:
    found = aged(spark, "values", "preference.half_life_days=10")
    assert found[0, 1] == (3, pytest.approx(2**-0.05)) and found[3, 1] == (5, pytest.approx(2**-3.05))
    found = aged(spark, "values", "preference.half_life_days=10", "preference.weight=event")
    assert found[0, 1] == (3, pytest.approx(0.5 * 2**-0.05)) and found[0, 2] == (4, pytest.approx(5 * 2**-0.1))


def test_a_half_life_where_rows_have_no_weights_is_refused(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"preference\.half_life_days=10: model=fm weighs every row 1 here; leave it"):
        aged(spark, "labels", "preference.half_life_days=10", "model=fm")


def test_rows_of_users_are_lists_in_the_order_of_their_items(spark: SparkSession) -> None:
    cells = [(1, 9, 2.0), (1, 3, 4.0), (0, 3, 1.0)]
    rows = row_lists(spark.createDataFrame(cells, "user_idx int, item_idx int, value double")).collect()
    found = {row["user_idx"]: (row["row_items"], row["row_values"], row["row_weights"]) for row in rows}
    assert found == {1: ([3, 9], [4.0, 2.0], [1.0, 1.0]), 0: ([3], [1.0], [1.0])}
