"""Factors in the lake: what is counted is of the run alone, whoever else writes meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.lake.factors import read_factors, write_factors
from sparkcf.lake.tables import LakeTables


def test_rows_of_another_run_are_not_counted(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = LakeTables(spark, str(tmp_path / "lake"))
    factors = spark.range(3).select(
        F.col("id").cast("int").alias("idx"), F.array(F.lit(0.5)).alias("factor"), F.lit(0.0).alias("bias")
    )
    ids = spark.range(3).select(F.col("id").cast("int").alias("user_idx"), F.concat(F.lit("u"), "id").alias("user_id"))
    append = LakeTables.append

    def append_twice(self: LakeTables, name: str, rows: DataFrame) -> None:
        append(self, name, rows)
        append(self, name, rows.withColumn("run_id", F.lit("another")))  # whose commit comes before our count

    monkeypatch.setattr(LakeTables, "append", append_twice)
    assert write_factors(tables, "user", factors, ids, "als", "ours") == 3
    assert tables.read("user_factors").count() == 6
    assert read_factors(tables, "user", "als", "ours").count() == 3
