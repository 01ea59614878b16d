"""The pairs of one user are those that Spark makes of the events of all."""

from __future__ import annotations

import datetime as dt

import pytest
from pyspark.sql import SparkSession

from sparkcf.config.load import load_config
from sparkcf.data.one_user import as_of, user_pairs
from sparkcf.data.pairs import Reads, pairs

UTC = dt.UTC
EVENTS = [  # item, event, value, hours before the end of the day
    (0, "view", 3.0, 50.0),
    (0, "buy", 5.0, 1.0),
    (0, "view", 4.0, 1.0),
    (1, "view", 2.0, 200.0),
    (2, "buy", 4.0, 30.0),
    (2, "buy", 1.0, 5.0),
    (3, "other", 5.0, 700.0),
    (4, "other", -4.0, 20.0),
]
CASES = {
    "one": (Reads("positives"), []),
    "threshold": (Reads("positives"), ["preference.positive_from=4"]),
    "half-life": (Reads("positives"), ["preference.half_life_days=2"]),
    "events": (Reads("positives"), ["preference.weight=event", "input.events={view: 1, buy: 3, other: 0.5}"]),
    "log, at most 2": (Reads("positives"), ["preference.weight=log", "preference.max_weight=2"]),
    "log": (Reads("positives"), ["preference.weight=log"]),
    "window": (Reads("positives"), ["train.window_days=3"]),
    "values": (Reads("values"), []),
    "weighted values": (
        Reads("values"),
        ["preference.weight=event", "preference.half_life_days=3", "input.events={view: 1, buy: 3, other: 0.5}"],
    ),
    "labels": (Reads("labels"), ["preference.positive_from=4"]),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs_of_one_user_are_those_of_all(spark: SparkSession, name: str) -> None:
    reads, overrides = CASES[name]
    config = load_config((), ["ds=2024-05-01", "input.path=x", *overrides])
    end = dt.datetime(2024, 5, 2, tzinfo=UTC)
    rows = [(i, event, value, end - dt.timedelta(hours=hours)) for i, event, value, hours in EVENTS]
    schema = "item_idx int, event string, value double, us long"
    frame = spark.createDataFrame([(i, e, v, int(t.timestamp() * 1e6)) for i, e, v, t in rows], schema)
    frame = frame.selectExpr("0 AS user_idx", "item_idx", "event", "value", "timestamp_micros(us) AS ts")
    expected = {row["item_idx"]: row.asDict() for row in pairs(frame, reads, config).collect()}
    events = [{"item_id": str(i), "event": e, "value": v, "ts": t, "ds": config.ds} for i, e, v, t in rows]
    found = user_pairs(events, reads, config)
    assert {int(pair.item_id) for pair in found} == set(expected)
    for pair in found:
        row = expected[int(pair.item_id)]
        assert pair.value == pytest.approx(row["value"]) and pair.weight == pytest.approx(row.get("weight", 1.0))


def test_events_of_later_loads_have_the_state_of_the_day() -> None:
    day, later = dt.date(2024, 5, 1), dt.date(2024, 5, 2)
    corrected = {"item_id": "a", "value": 5.0, "ds": later, "replaced": [{"ds": day, "value": 2.0}]}
    new = {"item_id": "b", "value": 5.0, "ds": later, "replaced": None}
    kept = {"item_id": "c", "value": 1.0, "ds": day}
    assert [(e["item_id"], e["value"]) for e in as_of([corrected, new, kept], day)] == [("a", 2.0), ("c", 1.0)]
