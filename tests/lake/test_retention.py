"""Which runs stay, and what removes the files of the others."""

from __future__ import annotations

import datetime as dt

from sparkcf.lake.retention import KeptRun, hours_needed, kept_runs
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.upkeep import vacuum

NOW = dt.datetime(2024, 2, 1, tzinfo=dt.UTC)


def runs(**days: float) -> dict[str, KeptRun]:
    """Runs by their age in days."""
    return {name: KeptRun(name, "published", NOW - dt.timedelta(days=age)) for name, age in days.items()}


def test_the_last_published_runs_stay_and_young_ones() -> None:
    of_lake = runs(a=9, b=8, c=7, d=6, unpublished=5, young=1)
    kept = kept_runs(of_lake, {"als": ["a", "b", "c", "d"]}, NOW - dt.timedelta(days=3), 2)
    assert kept == {"c", "d", "young"}


def test_a_run_that_was_rolled_back_to_is_the_newest_again() -> None:
    assert kept_runs(runs(a=9, b=8, c=7), {"als": ["a", "b", "c", "a"]}, NOW, 2) == {"a", "c"}


def test_every_model_keeps_its_own() -> None:
    published = {"als": ["a", "b"], "hals": ["c"]}
    assert kept_runs(runs(a=9, b=8, c=90), published, NOW, 1) == {"b", "c"}


def test_the_runs_that_a_kept_one_was_folded_into_stay() -> None:
    of_lake = runs(trained=30, first=20, second=10, other=30)
    for name, base in (("first", "trained"), ("second", "first")):
        of_lake[name] = KeptRun(name, "published", of_lake[name].started_at, base)
    assert kept_runs(of_lake, {"als": ["other", "second"]}, NOW, 1) == {"second", "first", "trained"}


def test_table_versions_stay_for_the_oldest_run_that_may_read_them_again() -> None:
    of_lake = runs(a=9, b=2)
    assert hours_needed(of_lake, {"a", "b"}, NOW) == 9 * 24
    of_lake["a"] = KeptRun("a", "refused", of_lake["a"].started_at)  # it may still be published
    assert hours_needed(of_lake, {"a", "b"}, NOW) == 9 * 24
    of_lake["a"] = KeptRun("a", "failed", of_lake["a"].started_at)
    assert hours_needed(of_lake, {"a", "b"}, NOW) == 2 * 24
    assert hours_needed(of_lake, set(), NOW) == 0


def test_a_vacuum_prints_nothing_and_leaves_the_console_as_it_was(spark, tmp_path) -> None:
    tables, jvm = LakeTables(spark, str(tmp_path)), spark.sparkContext._jvm
    tables.create("published")
    console, printed = jvm.scala.Console, jvm.java.io.ByteArrayOutputStream()
    before = console.out()
    console.setOut(jvm.java.io.PrintStream(printed, True))
    try:
        vacuum(tables, "published", 0)
        console.println("after")
    finally:
        console.setOut(before)
    assert printed.toString() == "after\n"
