"""Whether a night is done already: the day's published run has the same inputs and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.config.section import ModelSection
from sparkcf.errors import NothingNew
from sparkcf.lake.published import history
from sparkcf.lake.tables import LakeTables
from sparkcf.version import __version__

# What a night writes into the tables depends on none of these; what is loaded shows in the tables' versions.
BESIDE = (
    *("input", "clean", "lake", "models", "models_at_once", "run_id", "gate", "predict", "compare"),
    *("forget", "maintain", "spark", "log", "observe", "report", "tune"),
)


def check_new(tables: LakeTables, config: Config, versions: Mapping[str, int]) -> None:
    """Raise NothingNew if the run that was last published for the day was trained from the same, by the same code.

    Parameters
    ----------
    versions : of the input tables, as `data.inputs.newest_versions`.
    """
    if config.train.again:
        return
    of_day = [row["run_id"] for row in history(tables, config.model) if row["ds"] == config.ds]
    row = tables.read("runs").where(F.col("run_id") == of_day[-1]).first() if of_day else None
    if row is None or row["job"] != "train" or row["code_version"] != __version__:
        return
    same_inputs = _without_published(row["inputs"]) == _without_published(versions)
    if same_inputs and _settings(json.loads(row["config"]), config) == _settings(json.loads(config.to_json()), config):
        raise NothingNew(
            f"run {row['run_id']} is published for {config.ds}, of the same events and settings; "
            "to train it once more: train.again=true"
        )


def _without_published(versions: Mapping[str, int]) -> dict[str, int]:
    """Versions without those of `published`, which every night changes."""
    return {name: version for name, version in versions.items() if name != "published"}


def _settings(stored: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The settings of a stored configuration (`Config.to_json`) that a night of the model depends on."""
    others = {name for name in type(config).model_fields if isinstance(getattr(config, name), ModelSection)}
    others -= {config.model}
    kept = {name: value for name, value in stored.items() if name not in others.union(BESIDE)}
    train = {name: value for name, value in stored["train"].items() if name not in ("again", "progress")}
    return kept | {"train": train, "events": stored["input"].get("events")}
