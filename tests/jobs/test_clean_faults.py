"""Loads that meet other writers, failing tasks and other clocks: ids stay one to one, events are never doubled."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from sparkcf.data.ingest import read_raw
from sparkcf.jobs import clean as load
from sparkcf.jobs.clean import clean_day, write_interactions
from sparkcf.lake import ids
from sparkcf.lake.ids import register
from sparkcf.lake.tables import LakeTables
from tests.data.inputs import clean_frame, write_lines

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tables(spark, tmp_path: Path) -> LakeTables:
    return LakeTables(spark, str(tmp_path / "lake"))


def users(spark, *names: str, day: int = 5) -> DataFrame:
    rows = [(name, f"2024-01-{day:02} 09:00:00") for name in names]
    frame = spark.createDataFrame(rows, "user_id string, ts string")
    return frame.selectExpr(
        "user_id",
        "timestamp(ts) AS first_seen",
        "CAST(null AS map<string,string>) AS attributes",
        "CAST(null AS map<string,double>) AS numbers",
    )


def numbers(tables: LakeTables) -> dict[str, int]:
    rows = tables.read("users").collect()
    found = {r["user_id"]: r["user_idx"] for r in rows}
    assert len(found) == len(rows), "an id stands there twice"
    assert sorted(found.values()) == list(range(len(found))), f"not one to one: {found}"
    return found


def test_ids_that_another_writer_gives_while_ours_are_counted_stay_one_to_one(
    spark, tables: LakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tables, "users", users(spark, "old"))
    numbered, calls = ids._numbered, []

    def meanwhile(*arguments):
        calls.append(arguments)
        if len(calls) == 1:  # between our reading of the last index and our merge; ann is new to both
            register(tables, "users", users(spark, "zoe", "ann", day=3))
        return numbered(*arguments)

    monkeypatch.setattr(ids, "_numbered", meanwhile)
    register(tables, "users", users(spark, "ann", "bob", "old"))
    found = numbers(tables)
    assert found.keys() == {"old", "zoe", "ann", "bob"}
    assert (found["old"], found["bob"]) == (0, 3)
    seen = {r["user_id"]: r["first_seen"].day for r in tables.read("users").collect()}
    assert seen == {"old": 5, "zoe": 3, "ann": 3, "bob": 5}


def test_ids_registered_at_once_stay_one_to_one(spark, tables: LakeTables) -> None:
    tables.create("users")
    frames = [users(spark, *(f"u{n}" for n in range(start, start + 30))) for start in (0, 15, 30)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda frame: register(tables, "users", frame), frames))
    assert numbers(tables).keys() == {f"u{n}" for n in range(60)}


def failing_once():
    """A function of text that returns it, but fails in the first attempt of every task."""

    def same(text: str) -> str:
        if TaskContext.get().attemptNumber() == 0:
            raise RuntimeError("the first attempt of every task fails")
        return text

    return F.udf(same, StringType())


def test_tasks_that_are_attempted_again_change_neither_counts_nor_ids(spark, config, tables, tmp_path: Path) -> None:
    lines = [f"u{n % 50},i{n % 7},2024-01-30T{n % 24:02}:00:00Z" for n in range(300)]
    path = write_lines(tmp_path / "in.csv", "user_id,item_id,ts", *lines, "u1,i1,never")
    settings = config(path=path)
    raw, _ = read_raw(spark, settings.input, settings.input_path)
    flaky = raw.repartition(3, "line").withColumn("user_id", failing_once()("user_id"))
    outcome = clean_frame(flaky, settings)
    assert outcome.counts["read"] == 301
    assert outcome.counts["clean"] == len(outcome.rows) == len(set(lines))
    spread = users(spark, *sorted({row[0] for row in outcome.rows})).repartition(3)
    register(tables, "users", spread.withColumn("user_id", failing_once()("user_id")))
    assert numbers(tables).keys() == {f"u{n}" for n in range(50)}


def events(spark, *rows: tuple[str, float, str]) -> DataFrame:
    frame = spark.createDataFrame(rows, "user_id string, value double, at string").coalesce(1)
    return frame.selectExpr(
        "user_id",
        "'tea' AS item_id",
        "'buy' AS event",
        "value",
        "timestamp(at) AS ts",
        "CAST(null AS map<string,string>) AS context",
        "'file:/in.csv' AS source",
    )


def loaded(tables: LakeTables) -> list[tuple]:
    rows = tables.read("interactions").selectExpr("user_id", "value", "unix_micros(ts)", "cast(ds AS string)").collect()
    return sorted(tuple(r) for r in rows)


@pytest.mark.parametrize("looked", ["_as_inserted", "_changes"])  # into a lake without rows near it, and with some
def test_an_event_that_another_day_brings_meanwhile_is_not_doubled(
    spark, config, tables: LakeTables, monkeypatch: pytest.MonkeyPatch, looked: str
) -> None:
    at = "2024-01-30T10:00:00Z"
    micros = 1706608800_000_000
    ours, theirs = events(spark, ("ann", 4.0, at), ("bob", 1.0, at)), events(spark, ("ann", 2.0, at), ("cy", 3.0, at))
    before = [("dan", 5.0, micros, "2024-01-29")] if looked == "_changes" else []
    if before:
        write_interactions(tables, events(spark, ("dan", 5.0, at)), config("ds=2024-01-29"))
    look, calls = getattr(load, looked), []

    def meanwhile(*arguments):
        found = look(*arguments).cache()
        found.count()  # what we found is from before the other's commit
        calls.append(found)
        if len(calls) == 1:
            write_interactions(tables, theirs, config("ds=2024-01-30"))
        return found

    monkeypatch.setattr(load, looked, meanwhile)
    write_interactions(tables, ours, config("ds=2024-01-31"))
    assert loaded(tables) == [
        ("ann", 4.0, micros, "2024-01-31"),  # the newer day's value, though it was not there when we first looked
        ("bob", 1.0, micros, "2024-01-31"),
        ("cy", 3.0, micros, "2024-01-30"),
        *before,
    ]
    assert calls


def test_two_days_and_one_of_them_twice_at_once_end_as_if_one_after_the_other(spark, config, tmp_path: Path) -> None:
    lines = {day: [f"u{n},i{n % 3},2024-01-{day}T{n:02}:00:00Z" for n in range(day - 15)] for day in (20, 21)}
    settings = {}
    for day, rows in lines.items():
        path = write_lines(tmp_path / f"{day}.csv", "user_id,item_id,ts", *rows, "u1,i1,never")
        settings[day] = config(f"ds=2024-01-{day}", path=path)
    tables = LakeTables(spark, settings[20].lake.root)
    for name in ("interactions", "users", "items", "quarantine", "runs"):
        tables.create(name)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda day: clean_day(spark, settings[day])["counts"], (20, 21, 21)))
    assert [r["clean"] for r in results] == [5, 6, 6]
    got = tables.read("interactions").selectExpr(
        "concat_ws(',', user_id, item_id, date_format(ts, \"yyyy-MM-dd'T'HH:mm:ss'Z'\"))", "day(ds)"
    )
    assert sorted(tuple(r) for r in got.collect()) == sorted((row, day) for day, rows in lines.items() for row in rows)
    assert numbers(tables).keys() == {f"u{n}" for n in range(6)}
    assert sorted(r["state"] for r in tables.read("runs").collect()) == ["cleaned"] * 3
    assert tables.read("quarantine").count() == 2


def test_the_hour_that_comes_twice_on_a_host_is_one_of_two_in_the_lake(
    spark, config, tables: LakeTables, los_angeles: None
) -> None:
    first, second = "2023-11-05T08:30:00Z", "2023-11-05T09:30:00Z"  # both are half past one there
    assert dt.datetime.fromtimestamp(1699173000).hour == dt.datetime.fromtimestamp(1699176600).hour == 1
    write_interactions(tables, events(spark, ("ann", 1.0, second)), config("ds=2023-11-05"))
    counts = write_interactions(tables, events(spark, ("ann", 1.0, second)), config("ds=2023-11-06"))
    assert counts == {"inserted": 0, "updated": 0, "deleted": 0, "unchanged": 1}
    write_interactions(tables, events(spark, ("ann", 1.0, first)), config("ds=2023-11-06"))
    assert [row[2:] for row in loaded(tables)] == [
        (1699173000_000_000, "2023-11-06"),
        (1699176600_000_000, "2023-11-05"),
    ]


ELSEWHERE = """
import json, sys
from sparkcf.data.clean import clean
from sparkcf.config.load import load_config
from sparkcf.data.ingest import read_raw
from sparkcf.jobs.session import open_session, stop_session
spark, _ = open_session()
config = load_config((), sys.argv[1:])
raw, _ = read_raw(spark, config.input, config.input_path)
cleaned = clean(raw, config.input, config.clean, config.ds)
rows = cleaned.interactions.selectExpr("user_id", "unix_micros(ts)").collect()
rejected = cleaned.quarantine.select("raw", "reason").collect()
print(json.dumps([sorted(map(tuple, rows)), sorted(map(tuple, rejected))]))
stop_session(spark)
"""


def test_the_rows_of_a_day_are_the_same_on_hosts_in_any_time_zone(tmp_path: Path) -> None:
    lines = [
        "wall,i,2024-01-31T23:59:59",
        "date,i,2024-01-31",
        "java,i,31/01/2024 00:30",
        "zone,i,2024-01-31T20:00:00-03:00",
    ]
    late = ["late,i,2024-02-01", "night,i,2024-01-31T22:00:00-03:00", "gap,i,1989-12-31T23:30:00"]
    path = write_lines(tmp_path / "in.csv", "user_id,item_id,ts", *lines, *late)
    given = ["ds=2024-01-31", f"input.path={path}", "input.ts_formats=[iso8601, 'dd/MM/yyyy HH:mm']"]

    def start(zone: str) -> subprocess.Popen:
        submit = "--master local[1] --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=1"
        submit += f" --conf spark.sql.session.timeZone={zone} pyspark-shell"
        environment = {**os.environ, "TZ": zone, "PYSPARK_SUBMIT_ARGS": submit, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", ELSEWHERE, *given, "clean.max_quarantined_share=1"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    hosts = {zone: start(zone) for zone in ("Asia/Tokyo", "America/Los_Angeles")}
    for zone, host in hosts.items():
        out, err = host.communicate(timeout=300)
        assert host.returncode == 0, err[-2000:]
        rows, rejected = json.loads(out.splitlines()[-1])
        assert rows == [
            ["date", 1706659200_000_000],
            ["java", 1706661000_000_000],
            ["wall", 1706745599_000_000],
            ["zone", 1706742000_000_000],
        ], zone
        assert [reason for _, reason in rejected] == ["timestamp_too_old", "future_timestamp", "future_timestamp"], zone
