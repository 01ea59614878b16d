"""The newest comparison of models in a lake, read without Spark."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparkcf.errors import NotFoundError
from sparkcf.lake.figures import Figure
from sparkcf.lake.query import Lake

COSTS = ("pairs", "train_seconds", "peak_bytes", "stored_bytes", "list_users", "list_k", "list_seconds", "slots")


@dataclass(frozen=True)
class ComparedModel:
    """One model of a comparison.

    reason : why the model failed; None unless its state is failed.
    run_id : run of the measurement; None: none yet.
    costs : the columns COSTS of `comparisons`; None: not measured.
    figures : all-user figures by system ("model", "popularity"), measure and k.
    """

    name: str
    model: str
    state: str
    reason: str | None
    run_id: str | None
    heldout: str | None
    measured_at: dt.datetime | None
    costs: Mapping[str, Any]
    figures: Mapping[tuple[str, str, int | None], Figure]

    @property
    def measured(self) -> bool:
        return self.state == "measured"


@dataclass(frozen=True)
class Comparison:
    """Models compared on one snapshot, in the order of the configuration. `metric`, `at`: the measure shown first."""

    comparison_id: str
    ds: dt.date
    compared_at: dt.datetime
    protocol: str
    metric: str
    at: int | None
    code_version: str
    inputs: Mapping[str, int]
    models: tuple[ComparedModel, ...]

    @property
    def reference(self) -> ComparedModel | None:
        """The first measured model, with which the others are compared."""
        return next((one for one in self.models if one.measured), None)

    def measures(self) -> list[tuple[str, int | None]]:
        """All measures of the models, in the order in which they were stored."""
        found = (key[1:] for one in self.models for key in one.figures if key[0] == "model")
        return list(dict.fromkeys(found))


def newest_comparison(lake: Lake) -> Comparison:
    """The comparison of which the last run started last.

    Raises
    ------
    NotFoundError
        No models are compared in the lake yet.
    LakeError
        There is no lake, or one of its tables cannot be read.
    """
    rows = lake.read("comparisons").to_pylist()
    if not rows:
        raise NotFoundError(f"no models are compared in lake {lake.root} yet: run jobs/compare.py first")
    newest = max(rows, key=lambda row: (row["compared_at"], row["comparison_id"]))
    rows = sorted((r for r in rows if r["comparison_id"] == newest["comparison_id"]), key=lambda row: row["position"])
    figures = _figures(lake, [row["run_id"] for row in rows if row["state"] == "measured"])
    shared = {name: newest[name] for name in Comparison.__dataclass_fields__ if name in newest}
    shared["inputs"] = dict(newest["inputs"])
    return Comparison(**shared, models=tuple(_model(row, figures.get(row["run_id"], {})) for row in rows))


def _model(row: Mapping[str, Any], figures: Mapping[tuple[str, str, int | None], Figure]) -> ComparedModel:
    own = ("name", "model", "state", "reason", "run_id", "heldout", "measured_at")
    return ComparedModel(
        **{name: row[name] for name in own}, costs={name: row[name] for name in COSTS}, figures=figures
    )


def _figures(lake: Lake, run_ids: list[str]) -> dict[str, dict[tuple[str, str, int | None], Figure]]:
    """The figures over all tested users, by run."""
    found: dict[str, dict[tuple[str, str, int | None], Figure]] = {run_id: {} for run_id in run_ids}
    if not run_ids:
        return found
    for row in lake.read("metrics", ("run_id", run_ids)).to_pylist():
        if row["protocol"] != "fit" and row["segment"] is None:
            figure = Figure(*(row[name] for name in Figure._fields))
            found[row["run_id"]][figure.system, figure.metric, figure.k] = figure
    return found
