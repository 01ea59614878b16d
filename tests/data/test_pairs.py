"""How events become the weight of a pair."""

from __future__ import annotations

import datetime as dt
import math

import pytest
from pyspark.sql import SparkSession

from sparkcf.config.load import load_config
from sparkcf.data.pairs import Reads, pairs, row_lists

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


def test_rows_of_users_are_lists_in_the_order_of_their_items(spark: SparkSession) -> None:
    cells = [(1, 9, 2.0), (1, 3, 4.0), (0, 3, 1.0)]
    rows = row_lists(spark.createDataFrame(cells, "user_idx int, item_idx int, value double")).collect()
    found = {row["user_idx"]: (row["row_items"], row["row_values"], row["row_weights"]) for row in rows}
    assert found == {1: ([3, 9], [4.0, 2.0], [1.0, 1.0]), 0: ([3], [1.0], [1.0])}
