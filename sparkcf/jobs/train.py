"""The train and evaluate jobs: a run's factors, and its figures."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.pairs import indexed, pairs
from sparkcf.errors import ConfigError, LakeError
from sparkcf.jobs.prepare import drop_rows, snapshot_name
from sparkcf.jobs.publish import published_run
from sparkcf.lake.runs import Run, find_run, start_run
from sparkcf.lake.tables import LakeTables, sql_date
from sparkcf.lake.weights import write_state
from sparkcf.models.contract import Context, Fit
from sparkcf.models.fm.features import no_values, register_values
from sparkcf.models.registry import MODELS, rank_of
from sparkcf.progress import say, step
from sparkcf.ranking.evaluate import Evaluation, evaluate
from sparkcf.training.saved_sweeps import Snapshots

LOGGED = ("objective", "observed", "unobserved", "regularization", "loss", "kl_weight", "ndcg_at_100", "seconds")
INPUTS = ("interactions", "users", "items", "features", "published")


def train_model(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Fit `config.model` on the interactions up to `config.ds` and write its factors under a new run.

    Returns the run's id, counts and last objective. Whatever fails is written into `runs`.
    """
    tables = LakeTables(spark, config.lake.root)
    if config.model == "fm":
        register_values(tables, config)
    run = start_run(tables, "train", config, {name: tables.version(name) for name in INPUTS})
    try:
        return _train(tables, config, run)
    except BaseException as error:
        run.update("failed", reason=f"{type(error).__name__}: {error}"[:500])
        raise


def _train(tables: LakeTables, config: Config, run: Run) -> dict[str, Any]:
    events = read_events(tables, config, run)
    starts = warm_starts(tables, config) if config.train.warm_start else None
    with step(f"train {config.model}") as shown:

        def heard(entry: dict[str, Any]) -> None:
            if "note" in entry:
                say(f"  note: {entry['note']}")
                return
            shown.update(told(entry), entry.get("sweep") or entry["epoch"], rounds)

        rounds = rounds_of(config)
        sizes = (index_size(tables, run, "users"), index_size(tables, run, "items"))
        folder, snapshot = progress_folder(tables, config, run), snapshot_name(config, run)
        context = Context(starts, heard, folder, tables, snapshot, **attributes(tables, config, run))
        fitted = MODELS[config.model].fit(pairs(events, config), *sizes, config, context)
        if fitted.log:
            shown.note = told(fitted.log[-1])
    try:
        with step("write factors") as shown:
            counts = {side: write_factors(tables, side, fitted, config, run) for side in ("user", "item")}
            if fitted.state:
                write_state(tables.root, run.run_id, fitted.state)
            if fitted.features is not None:
                write_features(tables, fitted.features, config, run)
            shown.note = ", ".join(f"{n:,} {side}s" for side, n in counts.items())
    finally:
        fitted.release()
    write_log(tables, run, fitted)
    run.update("trained", counts={f"{side}s_trained": n for side, n in counts.items()})
    last = fitted.log[-1] if fitted.log else {}
    return {"run_id": run.run_id, "counts": run.counts, "objective": last.get("objective", last.get("loss"))}


def rounds_of(config: Config) -> int:
    """Sweeps or epochs of a fit, at most."""
    if config.net:
        return config.net.epochs
    if config.fed:
        return config.fm.sgd.epochs
    swept = config.fm if config.model == "fm" else config.factorization
    return swept.iterations if swept else 1


def attributes(tables: LakeTables, config: Config, run: Run) -> dict[str, DataFrame]:
    """`users` and `items` with their attributes and the `dictionary` at the run's versions, if the model has fields."""
    versions = run.row["inputs"]
    if config.model != "fm":
        return {}
    known = versions.get("features", -1)
    dictionary = tables.read("features", known) if known >= 0 else no_values(tables.spark)
    return {name: tables.read(name, versions[name]) for name in ("users", "items")} | {"dictionary": dictionary}


def told(entry: dict[str, Any]) -> str:
    """A sweep's or an epoch's log entry, for people."""
    if "sweep" in entry:
        return f"sweep {entry['sweep']}: objective {entry['objective']:,.1f}, {entry['seconds']:.2f} s"
    ndcg = f", validation NDCG@100 {entry['ndcg_at_100']:.4f}" if "ndcg_at_100" in entry else ""
    rate = entry["rows"] / max(entry["seconds"], 1e-9)
    return f"epoch {entry['epoch']}: loss {entry['loss']:,.2f}{ndcg}, {entry['seconds']:.2f} s, {rate:,.0f} rows/s"


def progress_folder(tables: LakeTables, config: Config, run: Run) -> str | None:
    """Where sweeps are saved: the same for every run of the same parameters on the same versions of the tables.

    None where it would lie under a lake to which workers cannot write; ConfigError where the user chose the address.
    """
    parameters = config.model_dump(mode="json", exclude={"run_id", "topk", "gate", "evaluation", "spark", "input"})
    same = json.dumps([parameters, run.row["inputs"]], sort_keys=True)
    name = f"{config.model}-{hashlib.sha256(same.encode()).hexdigest()[:16]}"
    folder = f"{config.train.progress or tables.root + '/_progress'}/{name}"
    try:
        Snapshots(folder)
    except ConfigError as error:
        if config.train.progress:
            raise
        say(f"  note: {error}")
        return None
    return folder


def read_events(tables: LakeTables, config: Config, run: Run) -> DataFrame:
    """The interactions up to the logical date, at the versions that the run names, with dense indices."""
    versions = run.row["inputs"]
    frames = {}
    for name in ("interactions", "users", "items"):
        if versions.get(name, -1) < 0:
            raise LakeError(f"{tables.root} has no table {name}: run jobs/clean.py first")
        frames[name] = tables.read(name, versions[name])
    until = frames["interactions"].where(f"ds <= {sql_date(config.ds)}")
    if until.isEmpty():
        raise LakeError(f"{tables.root} has no interactions up to {config.ds}: run jobs/clean.py ds={config.ds} first")
    return indexed(until, frames["users"], frames["items"])


def index_size(tables: LakeTables, run: Run, name: str) -> int:
    """One more than the largest dense index given out at the run's version."""
    idx = "user_idx" if name == "users" else "item_idx"
    return int(tables.read(name, run.row["inputs"][name]).agg(F.max(idx)).first()[0]) + 1


def warm_starts(tables: LakeTables, config: Config) -> dict[str, DataFrame] | None:
    """The published run's factors, where there is one of this model with the same rank."""
    if config.net or config.model == "fm":
        say(f"  note: train.warm_start: {config.model} starts from its seed")
        return None
    row = published_run(tables, config.model)
    if row is None:
        say(f"  note: train.warm_start: no published run of {config.model} yet, starting from random factors")
        return None
    width = config.factorization.width if config.factorization else 1
    starts = {}
    for side in ("user", "item"):
        factors = tables.read(f"{side}_factors").where(F.col("run_id") == row["run_id"])
        biased = width > rank_of(config)
        vector = F.concat("factor", F.array("bias")) if biased else F.col("factor")
        starts[side] = factors.select(F.col(f"{side}_idx").alias("idx"), vector.alias("factor"))
        first = starts[side].first()
        if first is None or len(first["factor"]) != width:
            say(f"  note: train.warm_start: run {row['run_id']} has another rank, starting from random factors")
            return None
    say(f"  starting from the factors of run {row['run_id']}")
    return starts


def write_factors(tables: LakeTables, side: str, fitted: Fit, config: Config, run: Run) -> int:
    """Write a side's factors with their external ids; returns their number."""
    ids = tables.read(f"{side}s", run.row["inputs"][f"{side}s"]).select(f"{side}_idx", f"{side}_id")
    frame = getattr(fitted, side).withColumnRenamed("idx", f"{side}_idx")
    latent = [] if "latent" in frame.columns else [F.lit(None).alias("latent")]
    named = frame.join(ids, on=f"{side}_idx", how="inner").select(
        "*", *latent, F.lit(config.model).alias("model"), F.lit(run.run_id).alias("run_id")
    )
    tables.replace(f"{side}_factors", named, of_run(config.model, run.run_id))
    return tables.last_metrics(f"{side}_factors").get("numOutputRows", 0)


def write_features(tables: LakeTables, features: DataFrame, config: Config, run: Run) -> None:
    named = features.select("*", F.lit(config.model).alias("model"), F.lit(run.run_id).alias("run_id"))
    tables.replace("feature_factors", named, of_run(config.model, run.run_id))


def of_run(model: str, run_id: str) -> str:
    """The literal partition predicate of a run; both names are checked by the configuration."""
    return f"model = '{model}' AND run_id = '{run_id}'"


def write_log(tables: LakeTables, run: Run, fitted: Fit) -> None:
    """Write the figures of the sweeps or epochs, and the mean that the fit's biases stand on."""
    rows = [
        (run.run_id, "model", "fit", metric, entry.get("sweep") or entry["epoch"], float(entry[metric]), *[None] * 3)
        for entry in fitted.log
        for metric in LOGGED
        if metric in entry
    ]
    singular = sum(entry.get("singular_rows", 0) for entry in fitted.log)
    if singular:
        key = f"{run.row['model']}.regularization"
        say(f"  warning: {singular} row solves were singular and got a larger diagonal: raise {key}")
    rows.append((run.run_id, "model", "fit", "mean", None, fitted.mean, None, None, None))
    _append_metrics(tables, rows)


def fitted_mean(tables: LakeTables, run_id: str) -> float | None:
    """The mean that `write_log` wrote for the run; None for a run of a time when it was not kept."""
    row = tables.read("metrics").where(F.col("run_id") == run_id).where("protocol = 'fit' AND metric = 'mean'").first()
    return None if row is None else float(row["value"])


def evaluate_run(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Measure the run's model by `config.evaluation` on its own input versions, and write `metrics`.

    The model is fitted once more on the train part of the split: the run's own factors have seen the rest.
    """
    tables = LakeTables(spark, config.lake.root)
    run = find_run(tables, config, ("trained", "evaluated", "recommended", "refused", "published"))
    config = run.fitted_with(config)
    with step(f"evaluate {config.model} by {config.evaluation.protocol}", spark) as shown:
        events = read_events(tables, config, run)
        sizes = (index_size(tables, run, "users"), index_size(tables, run, "items"))
        if config.fed:
            result = _evaluate_fed(tables, events, sizes, config, run)
        else:
            result = evaluate(events, *sizes, config, Context(**attributes(tables, config, run)))
        shown.note = headline(result, config)
    rows = [
        (run.run_id, system, result.protocol, metric, k, value, lower, upper, users)
        for system, metric, k, value, lower, upper, users in result.figures
    ]
    _replace_metrics(tables, run, result.protocol, rows)
    if run.state == "trained":
        run.update("evaluated")
    figures = {
        f"{system}:{metric}" + (f"@{k}" if k else ""): round(value, 6)
        for system, metric, k, value, *_ in result.figures
    }
    return {"run_id": run.run_id, "protocol": result.protocol, "split": result.note, "figures": figures}


def _evaluate_fed(
    tables: LakeTables, events: DataFrame, sizes: tuple[int, int], config: Config, run: Run
) -> Evaluation:
    """Evaluate with packed rows and checkpoints of this very split: another's may have seen what is tested."""
    split = hashlib.sha256(config.evaluation.model_dump_json().encode()).hexdigest()[:12]
    name, folder = f"{snapshot_name(config, run)}-{split}", progress_folder(tables, config, run)
    try:
        saved = folder and f"{folder}-{split}"
        context = Context(saved=saved, tables=tables, snapshot=name, **attributes(tables, config, run))
        return evaluate(events, *sizes, config, context)
    finally:
        drop_rows(tables, "user" if config.net else "example", name)


def headline(result: Evaluation, config: Config) -> str:
    """The gate's measure, with its bounds, beside the baseline's."""
    metric, k = ("rmse", None) if result.protocol == "q3" else (config.gate.metric, config.gate.at)
    shown = []
    for system, name, at, value, lower, upper, _ in result.figures:
        if (name, at) == (metric, k):
            bounds = "" if lower is None else f" [{lower:.4f}, {upper:.4f}]"
            shown.append(f"{config.model if system == 'model' else system} {value:.4f}{bounds}")
    name = metric.replace("_at_k", f"@{k}") if k else metric
    return f"{result.note}; {name}: " + " against ".join(shown)


def _metrics_frame(tables: LakeTables, rows: list[tuple[Any, ...]]) -> DataFrame:
    from sparkcf.lake.schemas import TABLES

    return tables.spark.createDataFrame(rows, TABLES["metrics"].schema).coalesce(1)


def _append_metrics(tables: LakeTables, rows: list[tuple[Any, ...]]) -> None:
    tables.append("metrics", _metrics_frame(tables, rows))


def _replace_metrics(tables: LakeTables, run: Run, protocol: str, rows: list[tuple[Any, ...]]) -> None:
    where = f"run_id = '{run.run_id}' AND protocol = '{protocol}'"
    tables.replace("metrics", _metrics_frame(tables, rows), where)
