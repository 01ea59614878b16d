"""The prepare job: what each model's fit reads is packed, and nothing a second time."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.errors import NothingNew
from sparkcf.jobs.base import packing_of, training_data
from sparkcf.jobs.prepare import packing_models, prepare
from sparkcf.lake.tables import LakeTables
from sparkcf.models.registry import model_of
from tests.jobs.test_fold_in import BEFORE, DAY, OLD, write


@pytest.fixture
def tables(spark: SparkSession, tmp_path: Path) -> LakeTables:
    tables = LakeTables(spark, str(tmp_path / "lake"))
    write(tables, {BEFORE: OLD})
    return tables


def given(tables: LakeTables, *more: str) -> list[str]:
    return [f"ds={DAY}", f"lake.root={tables.root}", "input.path=none", *more]


def test_the_job_packs_the_rows_of_a_model_and_a_second_time_nothing(tables: LakeTables) -> None:
    one = given(tables, "model=multvae")
    told = prepare(tables.spark, load_config((), one))["models"]["multvae"]
    assert told["counts"] == {"user_rows": len({u for u, _ in OLD})}
    version = tables.version("user_rows")
    assert prepare(tables.spark, load_config((), one))["models"]["multvae"]["snapshot"] == told["snapshot"]
    assert tables.version("user_rows") == version
    other = prepare(tables.spark, load_config((), [*one, "preference.positive_from=3"]))["models"]["multvae"]
    assert other["snapshot"] != told["snapshot"]
    assert other["counts"]["user_rows"] <= told["counts"]["user_rows"]
    states = [(row["job"], row["state"]) for row in tables.read("runs").collect()]
    assert states == [("prepare", "prepared")] * 3


def test_a_night_of_several_models_gets_the_rows_that_their_fits_pack_themselves(tables: LakeTables) -> None:
    """The item rows of bivae leave out the users that are kept for validation."""
    night = load_config((), given(tables, "models=[als, bivae, popularity]", "bivae.validation_share=0.5"))
    told = prepare(tables.spark, night)["models"]
    assert {name: sorted(done["counts"]) for name, done in told.items()} == {"bivae": ["item_rows", "user_rows"]}
    assert [row["model"] for row in tables.read("runs").collect()] == ["bivae"]

    config = night.model_copy(update={"model": "bivae"})
    model, inputs = model_of(config), Inputs(tables, newest_versions(tables))
    packing = packing_of(model, inputs, config)
    versions = [tables.version(f"{side}_rows") for side in ("user", "item")]
    model.pack(training_data(model, inputs, inputs.events(config.ds), config, packing))
    assert [tables.version(f"{side}_rows") for side in ("user", "item")] == versions
    of_users, of_items = (tables.read(f"{side}_rows") for side in ("user", "item"))
    kept = of_users.where("split = 'validation'").agg(F.sum("count")).collect()[0][0]
    assert kept and of_items.agg(F.sum("count")).collect()[0][0] == len(OLD) - kept


def test_without_a_model_that_reads_packed_rows_there_is_nothing_to_do() -> None:
    night = ["ds=2024-01-31", "input.path=none", "models=[als, popularity]"]
    with pytest.raises(NothingNew, match="als, popularity"):
        packing_models(load_config((), night))
