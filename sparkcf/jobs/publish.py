"""The gate and the commit: what readers see changes by one row in `published`, or not at all."""

from __future__ import annotations

import math
from typing import Any

from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config, GateConfig
from sparkcf.errors import ConflictError, GateRefused, NotFoundError, NothingNew
from sparkcf.lake.published import append_published, history, newest_first, published_run, sequence_at
from sparkcf.lake.runs import find_run
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import say, step


def publish_run(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Publish a recommended run of the model and day, if the gate lets it.

    Raises
    ------
    GateRefused
        See `check_gate`. The run's row says why; what was published stays.
    ConflictError
        Another run of the model and day was published since this one began.
    """
    tables = LakeTables(spark, config.lake.root)
    run = find_run(tables, config, ("recommended", "published"))
    if run.state == "published":
        raise NothingNew(f"run {run.run_id} is published already")
    before = published_run(tables, config.model)
    with step("publish") as shown:
        try:
            check_gate(run.counts, _figures(tables, run.run_id), _figures_of(tables, before), config.gate)
        except GateRefused as refusal:
            run.update("refused", reason=str(refusal))
            raise
        today = history(tables, config.model, config.ds)
        begun = int(run.row["inputs"].get("published", -1))
        since = [r for r in today if r["sequence"] > sequence_at(tables, config.model, config.ds, begun)]
        if since:
            reason = (
                f"run {since[-1]['run_id']} of {config.model} was published for {config.ds} while "
                f"run {run.run_id} worked: run again, or roll back to this one by its run_id"
            )
            run.update("recommended", reason=reason)
            raise ConflictError(reason)
        append_published(tables, config.model, config.ds, run.run_id, "publish", len(today) + 1)
        run.update("published")
        if today:
            shown.note = (
                f"{config.ds} was published already by run {today[-1]['run_id']}; run {run.run_id} takes its place"
            )
        else:
            shown.note = f"run {run.run_id} for {config.ds}"
    return {"run_id": run.run_id, "published": True, "replaced": today[-1]["run_id"] if today else None}


def rollback(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Serve an earlier run again: `run_id`, or the one published before the present one.

    Raises NotFoundError where there is no earlier run, NothingNew where it is served already.
    """
    tables = LakeTables(spark, config.lake.root)
    now = published_run(tables, config.model)
    if now is None:
        raise NotFoundError(f"nothing of model {config.model} is published yet: there is nothing to roll back")
    if config.run_id:
        target = find_run(tables, config, ("published", "recommended")).run_id
    else:
        earlier = [r["run_id"] for r in newest_first(tables, config.model) if r["run_id"] != now["run_id"]]
        if not earlier:
            raise NotFoundError(f"run {now['run_id']} is the only published one of {config.model}")
        target = earlier[0]
    if target == now["run_id"]:
        raise NothingNew(f"run {target} is the published one already")
    sequence = len(history(tables, config.model, now["ds"])) + 1
    append_published(tables, config.model, now["ds"], target, "rollback", sequence)
    say(f"rolled back {config.model}: run {target} instead of {now['run_id']}")
    return {"run_id": target, "rolled_back": now["run_id"], "ds": now["ds"].isoformat()}


def check_gate(
    counts: dict[str, int],
    figures: dict[tuple[str, int | None], float],
    before: dict[Any, float] | None,
    gate: GateConfig,
) -> None:
    """Raise GateRefused unless the run may be published.

    Parameters
    ----------
    counts : of the recommend job: users, users_model, users_fallback, nan_scores.
    figures, before : (metric, k) -> value of the run and of the published run; None: nothing is published.
    """
    key = (gate.metric, gate.at)
    name = f"{gate.metric}, k={gate.at}" if gate.at else gate.metric
    if counts.get("nan_scores"):
        raise GateRefused(f"{counts['nan_scores']:,} scores are NaN")
    users = counts.get("users", 0)
    coverage = counts.get("users_model", 0) / users if users else 0.0
    if coverage < gate.min_user_coverage:
        raise GateRefused(
            f"the model has recommendations for {coverage:.1%} of {users:,} users, "
            f"gate.min_user_coverage is {gate.min_user_coverage:.1%}"
        )
    fallback = counts.get("users_fallback", 0) / users if users else 0.0
    if fallback > gate.max_fallback_share:
        raise GateRefused(
            f"{fallback:.1%} of users have the fallback, gate.max_fallback_share is {gate.max_fallback_share:.1%}"
        )
    value = figures.get(key)
    if value is None:
        raise GateRefused(f"the run has no figure {name}: run jobs/evaluate.py first")
    if not math.isfinite(value):
        raise GateRefused(f"{name} is {value}")
    if before and key in before:
        error = gate.metric in ("rmse", "mae")  # smaller is better
        fall = (value - before[key] if error else before[key] - value) / abs(before[key] or 1.0)
        if fall > gate.max_fall:
            raise GateRefused(
                f"{name} is {value:.4f}, {fall:.1%} worse than the published {before[key]:.4f}; "
                f"gate.max_fall is {gate.max_fall:.1%}"
            )


def _figures(tables: LakeTables, run_id: str) -> dict[tuple[str, int | None], float]:
    rows = tables.read("metrics").where(
        (F.col("run_id") == run_id) & (F.col("system") == "model") & (F.col("protocol") != "fit")
    )
    return {(r["metric"], r["k"]): r["value"] for r in rows.collect()}


def _figures_of(tables: LakeTables, published: Row | None) -> dict[tuple[str, int | None], float] | None:
    return _figures(tables, published["run_id"]) if published else None
