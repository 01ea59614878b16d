"""Bots, rare users and rare items, counted without duplicates; the largest users; ids that are nearly equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.config.input import CleanConfig
from sparkcf.data.outliers import alike, find_outliers
from tests.data.inputs import clean_input, write_lines


def events(spark, rows: list[tuple[str, str, int]]) -> DataFrame:
    return spark.createDataFrame(rows, "user_id string, item_id string, `values` int").coalesce(1)


def counted(frame: DataFrame) -> DataFrame:
    return frame.groupBy("user_id").agg(F.sum("values").alias("events"))


def rejected(spark, rows: list[tuple[str, str, int]], **settings: object) -> tuple[dict, list]:
    """The ids that go with their reason, and the (user, item) that stay."""
    frame = events(spark, rows)
    found = find_outliers(frame, counted(frame), CleanConfig(**settings))
    reasons = {}
    for part in (found.users, found.items):
        reasons |= {} if part is None else {row[0]: row[1] for row in part.collect()}
    stay = sorted((r["user_id"], r["item_id"]) for r in found.keep(frame).collect())
    for part in found.kept:
        part.unpersist()
    return reasons, stay


CHAIN = [  # u3 needs b, which needs u2, who needs a, which only u1 has beside them
    *(("u1", "a", 1), ("u2", "a", 1), ("u2", "b", 1), ("u3", "b", 1), ("u3", "c", 1), ("u4", "c", 1), ("u4", "d", 1)),
    *((user, item, 1) for user in ("v1", "v2") for item in ("x", "y")),
]
CORE = [(user, item) for user in ("v1", "v2") for item in ("x", "y")]


def test_minima_are_applied_once_or_until_all_that_stay_reach_theirs(spark) -> None:
    minima = {"min_events_per_user": 2, "min_events_per_item": 2}
    reasons, stay = rejected(spark, CHAIN, **minima)
    few = {side: f"too_few_events_of_{side}" for side in ("user", "item")}
    assert reasons == {"u1": few["user"], "a": few["item"], "d": few["item"]}
    assert stay == [("u2", "b"), ("u3", "b"), ("u3", "c"), ("u4", "c"), *CORE]
    reasons, stay = rejected(spark, CHAIN, **minima, minimum="until_stable")
    assert reasons.keys() == {"u1", "u2", "u4", "a", "b", "c", "d"}  # u3 has lost all items
    assert stay == CORE


def test_the_rounds_are_bounded(spark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkcf.data.outliers.MOST_ROUNDS", 1)
    config = CleanConfig(min_events_per_user=2, min_events_per_item=2, minimum="until_stable")
    frame = events(spark, CHAIN)
    found = find_outliers(frame, counted(frame), config)
    assert "are left after 1 rounds" in found.notes[-1]


def crowd(bot: int, usual: int) -> list[tuple[str, str, int]]:
    return [("bot", "tea", bot), *((f"u{n:03}", "tea", usual) for n in range(300))]


def test_by_default_a_bot_is_a_user_far_beyond_the_others(spark) -> None:
    bot = {"bot": "too_many_events_of_user"}
    assert rejected(spark, crowd(36_850, 500))[0] == bot
    assert rejected(spark, crowd(10_001, 20))[0] == bot
    for most, usual in ((10_000, 1), (36_850, 800), (2_314, 700), (32_202, 1_200)):
        assert rejected(spark, crowd(most, usual))[0] == {}
    assert rejected(spark, crowd(501, 500), max_events_per_user=500)[0] == bot


def test_the_largest_users_are_reported(spark) -> None:
    frame = events(spark, [("ann", "tea", 6), ("bob", "tea", 3), ("cy", "tea", 1), ("dee", "tea", 2)])
    found = find_outliers(frame, counted(frame), CleanConfig())
    assert found.notes == ("users with most events: 'ann' 6 (50.0%), 'bob' 3 (25.0%), 'dee' 2 (16.7%)",)
    assert found.figures == {"largest_user_events": 6}


def test_ids_that_are_nearly_equal_are_counted(spark) -> None:
    ids = spark.createDataFrame([(name,) for name in ("Ann", "ann", "ANN", "bob", "cy")], "user_id string")
    n, note = alike(ids, "user_id", F.lower("user_id"), "clean.fold_case=true")
    assert n == 2
    assert note == (
        "2 user ids equal another id once case and unicode are folded, such as 'ANN' and 'ann': "
        "set clean.fold_case=true if they are the same"
    )
    assert alike(ids.where("user_id > 'b'"), "user_id", F.lower("user_id"), "") == (0, None)


def test_duplicates_count_neither_for_bots_nor_for_minima(spark, config, tmp_path: Path) -> None:
    lines = (
        [f"ann,i{n},2024-01-31" for n in range(3)] * 3
        + ["Bob,i0,2024-01-31"] * 3
        + ["bob,i1,2024-01-31", "bob,i2,2024-01-31"]
    )
    path = write_lines(tmp_path / "in.csv", "user_id,item_id,ts", *lines)
    limits = ("clean.max_events_per_user=3", "clean.min_events_per_user=2", "clean.max_quarantined_share=1")
    outcome = clean_input(spark, config(*limits, path=path))
    assert {row[0] for row in outcome.rows} == {"ann", "bob"}
    assert outcome.counts == {"read": 14, "clean": 5, "exact_duplicates": 6, "superseded": 0, "quarantined": 3}
    assert outcome.reasons == {"too_few_events_of_user": 3}  # every copy of a rejected user's rows
    assert outcome.notes == ("users with most events: 'ann' 3 (50.0%), 'bob' 2 (33.3%), 'Bob' 1 (16.7%)",)


def test_a_cleaned_input_tells_ids_that_differ_by_case_and_unicode_alone(spark, config, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "in.csv", "user_id,item_id,ts", *(f"{user},Tea,2024-01-31" for user in ("Ann", "ａｎｎ", "bob"))
    )
    outcome = clean_input(spark, config(path=path))
    assert outcome.figures == {"largest_user_events": 1, "user_ids_alike": 1, "item_ids_alike": 0}
    assert "set clean.fold_case=true clean.normalize_unicode=true if they are the same" in outcome.notes[-1]
    folded = clean_input(spark, config("clean.fold_case=true", "clean.normalize_unicode=true", path=path))
    assert folded.figures == {"largest_user_events": 1}
