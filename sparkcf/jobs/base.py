"""What several jobs need: the base run, a model's training data, and a stored fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.inputs import Inputs
from sparkcf.data.packing import Packing, snapshot_name
from sparkcf.data.pairs import pairs
from sparkcf.errors import ConfigError, LakeError, NotFoundError
from sparkcf.lake.factors import read_factors, read_of_run
from sparkcf.lake.frames import one_row
from sparkcf.lake.metrics import fit_figures
from sparkcf.lake.published import published_run
from sparkcf.lake.runs import Run, find_run, trained_run
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.weights import read_state
from sparkcf.models.contract import Model
from sparkcf.models.contract_data import Fitted, TrainingData

STATES = ("trained", "evaluated", "recommended", "refused", "published")  # states of a run that has factors


@dataclass(frozen=True)
class OpenRun:
    """A run and its inputs, opened once for all steps of a night."""

    run: Run
    inputs: Inputs


def open_run(tables: LakeTables, config: Config, states: tuple[str, ...]) -> OpenRun:
    """Open the run that `find_run` finds, with the inputs at its versions."""
    run = find_run(tables, config, states)
    return OpenRun(run, Inputs(tables, run.row["inputs"]))


def training_data(
    model: Model[Any], inputs: Inputs, events: DataFrame, config: Config, packing: Packing | None = None
) -> TrainingData:
    """Build the model's training data from indexed events and the other inputs."""
    data = TrainingData(pairs(events, model.reads, config), *inputs.sizes, packing=packing)
    if not model.reads.attributes:
        return data
    users, items, dictionary = (inputs.read(name) for name in ("users", "items", "features"))
    return replace(data, users=users, items=items, dictionary=dictionary)


def packing_of(model: Model[Any], inputs: Inputs, config: Config, split: str = "") -> Packing:
    """The packing of the model's rows; its name is the same for the same inputs and parameters.

    Parameters
    ----------
    split : name of an evaluation's split, whose rows need a snapshot of their own; empty: all rows.
    """
    named = {name: inputs.versions[name] for name in ("interactions", "users", "items")}
    if model.reads.texts:
        named["features"] = inputs.versions.get("features", -1)
    shaping = config.shaping()
    kept = {name: shaping[name] for name in ("seed", "preference", "input.events", "train.window_days")}
    name = snapshot_name(config.ds, named, kept | {"reads": model.reads.pairs} | model.packed_by())
    return Packing(inputs.tables, f"{name}-{split}" if split else name, config.seed)


def base_run(tables: LakeTables, config: Config) -> Run:
    """The run named by `run_id`, else the published run.

    Raises NotFoundError if there is none, ConfigError if `ds` is before the run's.
    """
    if not config.run_id:
        row = published_run(tables, config.model)
        if row is None:
            raise NotFoundError(
                f"no run of model {config.model} is published, so there are no item factors to start from: "
                "run jobs/nightly.py or jobs/publish.py first, or name a trained run by run_id=…"
            )
        config = config.model_copy(update={"run_id": row["run_id"]})
    base = find_run(tables, config, STATES)
    if config.ds < base.row["ds"]:
        raise ConfigError(
            f"ds={config.ds} is before run {base.run_id} of {base.row['ds']}, which was trained on later events: "
            f"set ds={base.row['ds']} or later, or name an earlier run by run_id=…"
        )
    return base


def read_fitted(tables: LakeTables, model: Model[Any], run: Run, data: TrainingData, config: Config) -> Fitted:
    """Read a run's fit from the lake.

    Parameters
    ----------
    data : the run's training data. Its sizes, or those of the run that it was folded into, give the shapes of the
        stored arrays.

    Raises
    ------
    LakeError
        The item factors, the mean (of a run with biases) or the weights are missing or damaged.
    """
    users, items = (read_factors(tables, side, model.name, run.run_id) for side in ("user", "item"))
    n_items, biased = one_row(items.agg(F.count(F.lit(1)), F.max(F.col("bias") != 0)))
    if not n_items:
        raise LakeError(f"run {run.run_id} has no item factors in {tables.root}: name another by run_id=…")
    stored = fit_figures(tables, run.run_id, ("mean", "average"))
    if "mean" not in stored and biased:
        raise LakeError(f"run {run.run_id} has biases, but its mean was not stored: run jobs/train.py again")
    trained = trained_run(run)
    if trained.run_id != run.run_id:  # since then users and items may have been added
        inputs = Inputs(tables, trained.row["inputs"])
        data = training_data(model, inputs, inputs.events(trained.row["ds"]), config)
    shapes = model.shapes(data)
    return Fitted(
        users,
        items,
        mean=stored.get("mean", 0.0),
        average=stored.get("average", 0.0),
        arrays=read_state(tables.root, run.run_id, shapes) if shapes else {},
        tables={name: read_of_run(tables, name, model.name, run.run_id) for name in model.tables},
    )
