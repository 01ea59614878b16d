"""Frames of the driver's values hold what was given, on every host; a frame that is kept twice is kept once."""

from __future__ import annotations

import datetime as dt
import math
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from sparkcf.config.load import load_config
from sparkcf.lake.comparisons import measured_before, write_comparison
from sparkcf.lake.frames import frame_of, kept, side_by_side
from sparkcf.lake.runs import start_run
from sparkcf.lake.tables import LakeTables

COLUMNS = (
    "text string, day date, at timestamp, whole bigint, small int, value double, listed array<double>,"
    " numbers map<string,bigint>, flag boolean"
)
FULL = {
    "text": 'ünï "quoted" \\ back\nline',
    "day": dt.date(2024, 2, 29),
    "at": dt.datetime(2024, 3, 10, 2, 30, 0, 123456),  # an hour that Los Angeles does not have
    "whole": 2**53 + 1,
    "small": -7,
    "value": 0.1,
    "listed": [1.5, math.inf, -0.0],
    "numbers": {"a b": 1, "": 2},
    "flag": False,
}


def schema(spark, columns: str = COLUMNS) -> StructType:
    return spark.createDataFrame([], columns).schema


def test_values_come_back_as_they_were_given(spark, los_angeles: None) -> None:
    given = schema(spark)
    frame = frame_of(spark, [FULL, {}], given)
    assert frame.rdd.getNumPartitions() == 1
    assert [(f.name, f.dataType) for f in frame.schema] == [(f.name, f.dataType) for f in given]
    columns = [F.date_format("at", "yyyy-MM-dd HH:mm:ss.SSSSSS").alias(n) if n == "at" else n for n in given.names]
    full, empty = frame.select(*columns).collect()
    assert full.asDict() == FULL | {"at": "2024-03-10 02:30:00.123456"}
    assert set(empty) == {None}


def test_a_time_with_a_zone_is_told_in_utc(spark) -> None:
    berlin = dt.datetime(2024, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    frame = frame_of(spark, [{"at": berlin}], schema(spark, "at timestamp"))
    assert frame.selectExpr("unix_seconds(at)").first()[0] == 1_704_067_200


def test_the_times_of_a_run_are_those_of_the_clock_wherever_the_host_is(spark, tmp_path, los_angeles: None) -> None:
    tables = LakeTables(spark, str(tmp_path / "lake"))
    start_run(tables, "train", load_config((), ["ds=2024-01-31", "input.path=none"]), {}).update("trained")
    apart = "abs(unix_seconds({}) - unix_seconds(current_timestamp())) < 3600"
    (row,) = tables.read("runs").selectExpr(apart.format("started_at"), apart.format("updated_at")).collect()
    assert tuple(row) == (True, True)


def test_a_row_that_is_read_and_written_again_keeps_its_times(spark, tmp_path, los_angeles: None) -> None:
    tables, noon = LakeTables(spark, str(tmp_path / "lake")), dt.datetime(2024, 1, 1, 12)
    texts = ("comparison_id", "name", "model", "settings", "code_version", "protocol", "metric")
    row = dict.fromkeys(texts, "x") | {"state": "measured", "snapshot": "s", "position": 1, "inputs": {}}
    row |= {"ds": noon.date(), "compared_at": noon, "measured_at": noon}
    for _ in range(3):
        write_comparison(tables, "x", [row])
        (row,) = measured_before(tables, "s")
    seconds = tables.read("comparisons").selectExpr("unix_seconds(measured_at)", "unix_seconds(compared_at)")
    assert tuple(seconds.first()) == (1_704_110_400, 1_704_110_400)


def test_a_number_that_is_none_stays_none(spark) -> None:
    frame = frame_of(spark, [{"value": math.nan}], schema(spark, "value double"))
    assert math.isnan(frame.first()["value"])


def test_no_rows_and_values_of_other_types(spark) -> None:
    assert frame_of(spark, [], schema(spark)).count() == 0
    with pytest.raises(TypeError, match="no value of a column"):
        frame_of(spark, [{"text": object()}], schema(spark))
    with pytest.raises(Exception, match=r"(?i)malformed"):
        frame_of(spark, [{"whole": "many"}], schema(spark)).collect()


def test_a_frame_stays_as_long_as_the_outermost_block(spark, tmp_path) -> None:
    path = str(tmp_path / "numbers")
    spark.range(10).write.parquet(path)
    with kept(spark.read.parquet(path).where("id > 2")):
        with kept(spark.read.parquet(path).where("id > 2")) as again:  # built anew, the same plan
            assert again.count() == 7
        assert spark.read.parquet(path).where("id > 2").storageLevel.useMemory
        assert not spark.read.parquet(path).where("id > 3").storageLevel.useMemory
    assert not spark.read.parquet(path).where("id > 2").storageLevel.useMemory


def test_partitions_are_computed_side_by_side_and_released(spark, tmp_path) -> None:
    folder = str(tmp_path)

    def meet(batches):
        """Each of two tasks waits until the other has begun."""
        for batch in batches:
            number = batch.column("id")[0].as_py()
            Path(folder, str(number)).touch()
            until = time.monotonic() + 20
            while not Path(folder, str(1 - number)).exists() and time.monotonic() < until:
                time.sleep(0.01)
            yield pa.RecordBatch.from_pydict({"met": [time.monotonic() < until]})

    frame = spark.range(0, 2, 1, 2).mapInArrow(meet, "met boolean")
    assert [row["met"] for row in side_by_side(frame)] == [True, True]
    assert not frame.storageLevel.useMemory
