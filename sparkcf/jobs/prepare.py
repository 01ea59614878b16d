"""The prepare job: pack interactions into one row per user and one row per item."""

from __future__ import annotations

from typing import Any

from pyspark.sql import SparkSession

from sparkcf.config.root import Config
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.data.packing import SIDES
from sparkcf.data.pairs import pairs
from sparkcf.jobs.base import packing_of
from sparkcf.lake.runs import recorded_run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.registry import model_of


def prepare(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Write `user_rows` and `item_rows` of the interactions up to `config.ds`, unless the snapshot exists.

    Returns the run's id, the snapshot's name and its rows by side.
    """
    tables, model = LakeTables(spark, config.lake.root), model_of(config)
    with recorded_run(tables, "prepare", config, newest_versions(tables)) as run:
        inputs = Inputs(tables, run.row["inputs"])
        packing = packing_of(model, inputs, config)
        packed = pairs(inputs.events(config.ds), model.reads, config)
        counts = {}
        for side in SIDES:
            packing.rows(packed, side, model.validation_share if side == "user" else 0.0)
            counts[f"{side}_rows"] = packing.count(side)
        run.update("prepared", counts=counts)
    return {"run_id": run.run_id, "snapshot": packing.name, "counts": counts}
