"""The prepare job: both sides packed, and nothing a second time."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from sparkcf.config.load import load_config
from sparkcf.jobs.prepare import prepare
from sparkcf.lake.tables import LakeTables
from tests.jobs.test_fold_in import BEFORE, DAY, OLD, write


@pytest.fixture
def tables(spark: SparkSession, tmp_path: Path) -> LakeTables:
    return LakeTables(spark, str(tmp_path / "lake"))


def test_the_job_packs_both_sides_and_a_second_time_nothing(tables: LakeTables) -> None:
    write(tables, {BEFORE: OLD})
    given = [f"ds={DAY}", f"lake.root={tables.root}", "input.path=none", "model=multvae"]
    told = prepare(tables.spark, load_config((), given))
    assert told["counts"] == {"user_rows": len({u for u, _ in OLD}), "item_rows": len({i for _, i in OLD})}
    versions = [tables.version(name) for name in ("user_rows", "item_rows")]
    assert prepare(tables.spark, load_config((), given))["snapshot"] == told["snapshot"]
    assert [tables.version(name) for name in ("user_rows", "item_rows")] == versions
    other = prepare(tables.spark, load_config((), [*given, "preference.positive_from=3"]))
    assert other["snapshot"] != told["snapshot"]
    assert other["counts"]["user_rows"] <= told["counts"]["user_rows"]
    states = [(row["job"], row["state"]) for row in tables.read("runs").collect()]
    assert states == [("prepare", "prepared")] * 3
