"""The prepare job: pack interactions into the rows that the nets read."""

from __future__ import annotations

from typing import Any

from pyspark.sql import SparkSession

from sparkcf.config.root import Config
from sparkcf.data.dictionary import register_texts
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.errors import NothingNew
from sparkcf.jobs.base import packing_of, training_data
from sparkcf.lake.runs import recorded_run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.registry import implementation, model_of


def prepare(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Pack the rows of the interactions up to `config.ds` that each of the models reads, unless they are packed.

    Returns for each model that reads packed rows its run's id, the snapshot's name and its rows by side.
    """
    tables, done = LakeTables(spark, config.lake.root), {}
    for name in packing_models(config):
        done[name] = _prepare(tables, config.model_copy(update={"model": name}))
    return {"models": done}


def packing_models(config: Config) -> list[str]:
    """Those of the configured models that read packed rows. Raises NothingNew if there is none."""
    names = config.models or (config.model,)
    if packing := [name for name in names if implementation(name).packs_rows]:
        return packing
    raise NothingNew(f"no rows to pack: {', '.join(names)} read the interactions as they are")


def _prepare(tables: LakeTables, config: Config) -> dict[str, Any]:
    model = model_of(config)
    register_texts(tables, model.reads.texts)
    with recorded_run(tables, "prepare", config, newest_versions(tables)) as run:
        inputs = Inputs(tables, run.row["inputs"])
        packing = packing_of(model, inputs, config)
        packed = model.pack(training_data(model, inputs, inputs.events(config.ds), config, packing))
        counts = {f"{side}_rows": packing.count(side) for side in packed}
        run.update("prepared", counts=counts)
    return {"run_id": run.run_id, "snapshot": packing.name, "counts": counts}
