"""The train job: fit a model on the interactions up to a day and write it as a new run."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from sparkcf.config.root import Config
from sparkcf.data.dictionary import register_texts
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.errors import ConfigError
from sparkcf.jobs.base import packing_of, training_data
from sparkcf.jobs.finished import check_new
from sparkcf.lake.at_once import at_once
from sparkcf.lake.factors import SIDES, read_factors, write_factors, write_new_run
from sparkcf.lake.folder import Folder
from sparkcf.lake.metrics import write_fit_log
from sparkcf.lake.published import published_run
from sparkcf.lake.roots import absolute
from sparkcf.lake.runs import Run, recorded_run
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.weights import write_state
from sparkcf.models.contract import Model
from sparkcf.models.contract_data import FitRun, Fitted
from sparkcf.models.registry import model_of
from sparkcf.progress import Step, say, step

LONG_S = 10  # seconds left that are worth a word
LOGGED = (
    *("objective", "observed", "unobserved", "regularization", "loss", "kl_weight", "ndcg_at_100", "seconds"),
    "log_likelihood",  # of mpma
    *("active_units", "kl"),  # of nets, see training/posterior.py
    *("item_loss", "item_kl_weight", "item_active_units", "item_kl"),  # of nets with a phase of items
)


def train_model(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Fit `config.model` on the interactions up to `config.ds` and write its factors as a new run.

    Returns the run's id, counts and last objective. A failure is written into `runs`.

    Raises NothingNew if the day's published run was trained from the same.
    """
    tables, model = LakeTables(spark, config.lake.root), model_of(config)
    register_texts(tables, model.reads.texts)
    versions = newest_versions(tables)
    check_new(tables, config, versions)
    with recorded_run(tables, "train", config, versions) as run:
        inputs = Inputs(tables, run.row["inputs"])
        fitted = _fitted(model, inputs, config)
        try:
            with step("write factors") as progress:
                counts = write_fitted(inputs, model, fitted, run)
                progress.note = ", ".join(f"{n:,} {side}s" for side, n in counts.items())
        finally:
            fitted.release()
        write_log(tables, run, fitted)
        run.update("trained", counts={f"{side}s_trained": n for side, n in counts.items()})
    last = fitted.log[-1] if fitted.log else {}
    return {"run_id": run.run_id, "counts": run.counts, "objective": last.get("objective", last.get("loss"))}


def _fitted(model: Model[Any], inputs: Inputs, config: Config) -> Fitted:
    data = training_data(model, inputs, inputs.events(config.ds), config, packing_of(model, inputs, config))
    base, warm_start = _warm_start(inputs.tables, config) if config.train.warm_start else (None, None)
    with step("train", what=model.name) as progress:
        folder = progress_folder(inputs, config, base)
        fitted = model.fit(data, FitRun(warm_start, progress_of(progress, model.rounds), folder))
        if fitted.log:
            progress.note = log_line(fitted.log[-1])
    return fitted


def progress_of(progress: Step, rounds: int) -> Any:
    """A callback that shows a fit's log entries and notes, and the time left if it is long."""
    began: list[tuple[float, int]] = []  # time and number of the first entry; a resumed fit begins later

    def on_progress(entry: dict[str, Any]) -> None:
        if "note" in entry:
            say(f"  note: {entry['note']}")
            return
        number, now = entry.get("sweep") or entry["epoch"], time.monotonic()
        began.append((now, number))
        first, first_number = began[0]
        left = (now - first) / max(number - first_number, 1) * (rounds - number)
        shown = f", at most {left:,.0f} s left" if left >= LONG_S else ""
        progress.update(log_line(entry) + shown, number, rounds)

    return on_progress


def log_line(entry: dict[str, Any]) -> str:
    """A sweep's or an epoch's log entry as one line of text."""
    if "sweep" in entry:
        return f"sweep {entry['sweep']}: objective {entry['objective']:,.1f}, {entry['seconds']:.2f} s"
    ndcg = f", validation NDCG@100 {entry['ndcg_at_100']:.4f}" if "ndcg_at_100" in entry else ""
    rate = entry["rows"] / max(entry["seconds"], 1e-9)
    return f"epoch {entry['epoch']}: loss {entry['loss']:,.2f}{ndcg}, {entry['seconds']:.2f} s, {rate:,.0f} rows/s"


def progress_root(config: Config, lake: str) -> str:
    """Address of the folder of all checkpoints. `lake`: root of the lake."""
    return absolute(config.train.progress) if config.train.progress else f"{lake}/_progress"


def progress_folder(inputs: Inputs, config: Config, base: str | None = None, split: str = "") -> str | None:
    """Folder of a fit's checkpoints: the same for every run with the same parameters and inputs.

    Parameters
    ----------
    base : the run whose factors the fit starts from.
    split : name of an evaluation's split, whose checkpoints are kept apart.

    Returns None, with a note, if the lake's address is one that workers cannot write. Raises ConfigError if
    `train.progress` is such an address.
    """
    read = {name: version for name, version in inputs.versions.items() if name != "published"}
    shaping = [config.shaping(), read, str(config.ds), base]
    key = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16]
    folder = f"{progress_root(config, inputs.tables.root)}/{config.model}-{key}"
    try:
        Folder(folder)
    except ConfigError as error:
        problem = f"progress cannot be saved in {error}; set train.progress to such a place, or save_every to 0"
        if config.train.progress:
            raise ConfigError(problem) from None
        say(f"  note: {problem}")
        return None
    return f"{folder}-{split}" if split else folder


def _warm_start(tables: LakeTables, config: Config) -> tuple[str | None, dict[str, DataFrame] | None]:
    """The model's published run and its factors by side; None if there is no published run."""
    row = published_run(tables, config.model)
    if row is None:
        say(f"  note: train.warm_start: no published run of {config.model} yet, starting from random factors")
        return None, None
    say(f"  starting from the factors of run {row['run_id']}")
    return row["run_id"], {side: read_factors(tables, side, config.model, row["run_id"]) for side in SIDES}


def write_fitted(inputs: Inputs, model: Model[Any], fitted: Fitted, run: Run) -> dict[str, int]:
    """Write a fit's factors, arrays and tables to the run's lake; returns the number of factors by side."""
    tables, of_run = run.tables, (model.name, run.run_id)
    counts = dict.fromkeys(SIDES, 0)

    def write(side: str, factors: DataFrame) -> None:
        counts[side] = write_factors(tables, side, factors, inputs.read(f"{side}s"), *of_run)

    at_once(lambda: write("user", fitted.user_factors), lambda: write("item", fitted.item_factors))
    if fitted.arrays:
        write_state(tables.root, run.run_id, fitted.arrays)
    for name, frame in {**fitted.tables, **model.readable(fitted)}.items():
        for side in SIDES:
            if f"{side}_idx" in frame.columns:
                ids = inputs.read(f"{side}s").select(f"{side}_idx", f"{side}_id")
                frame = frame.join(ids, on=f"{side}_idx", how="inner")
        write_new_run(tables, name, frame, *of_run)
    return counts


def write_log(tables: LakeTables, run: Run, fitted: Fitted) -> None:
    """Write the figures of the sweeps or epochs, and the means that predictions add; warn of singular rows."""
    logged: list[tuple[str, int | None, float, str | None]] = []
    for entry in fitted.log:
        number = entry.get("sweep") or entry["epoch"]
        logged += [(name, number, float(entry[name]), None) for name in LOGGED if name in entry]
        for name in ("kl", "item_kl"):
            by_dimension = entry.get(f"{name}_by_dimension", ())
            logged += [(name, number, value, f"dimension {d}") for d, value in enumerate(by_dimension)]
    singular = sum(entry.get("singular_rows", 0) for entry in fitted.log)
    if singular:
        key = f"{run.row['model']}.regularization"
        say(f"  warning: {singular} row solves were singular and got a larger diagonal: raise {key}", "warning")
    logged += [("mean", None, fitted.mean, None), ("average", None, fitted.average, None)]
    logged += [(figure.metric, None, figure.value, figure.segment) for figure in fitted.figures]
    write_fit_log(tables, run.run_id, logged)
