"""The publish and rollback jobs: the gate, then one commit of one row in `published`, which readers follow."""

from __future__ import annotations

from typing import Any

from pyspark.sql import Row, SparkSession

from sparkcf.activity import activity
from sparkcf.config.root import Config
from sparkcf.errors import ConflictError, GateRefused, NotFoundError, NothingNew
from sparkcf.jobs.base import OpenRun
from sparkcf.lake.metrics import read_figures
from sparkcf.lake.published import append_published, history, sequence_at
from sparkcf.lake.runs import Run, find_run, reason_recorded
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import say, step
from sparkcf.ranking.gate import OF_BOOTSTRAP, Measured, check_lists, check_quality


def publish_run(spark: SparkSession, config: Config, opened: OpenRun | None = None) -> dict[str, Any]:
    """Publish a recommended run of the model and day, if the gate accepts it; one that it refused may be tried again.

    Raises
    ------
    GateRefused
        See `ranking.gate`. The run's row has the reason; the published run stays.
    NotFoundError
        A figure that the gate compares is missing; the run's row has the reason, its state stays.
    ConflictError
        Another run of the model and day was published since this run began.
    """
    tables = LakeTables(spark, config.lake.root)
    run = opened.run if opened else find_run(tables, config, ("recommended", "refused", "published"))
    if run.state == "published":
        raise NothingNew(f"run {run.run_id} is published already")
    with reason_recorded(run):
        return _publish(tables, run, config)


def _publish(tables: LakeTables, run: Run, config: Config) -> dict[str, Any]:
    with step("publish") as progress:
        rows = history(tables, config.model)
        if any(row["run_id"] == run.run_id for row in rows):  # a job was killed between its commit and this
            run.update("published")
            raise NothingNew(f"run {run.run_id} is published already")
        before = rows[-1] if rows else None
        today = [row for row in rows if row["ds"] == config.ds]
        begun = int(run.row["inputs"].get("published", -1))
        known = sequence_at(tables, config.model, config.ds, begun) if today else 0
        since = [row for row in today if row["sequence"] > known]
        if since:
            reason = (
                f"run {since[-1]['run_id']} of {config.model} was published for {config.ds} while "
                f"run {run.run_id} was in progress: run again, or roll back to this run by its run_id"
            )
            run.update("recommended", reason=reason)
            raise ConflictError(reason)
        try:
            check_gate(tables, run, before, config)
        except GateRefused as refusal:
            run.update("refused", reason=str(refusal))
            raise
        append_published(tables, config.model, config.ds, run.run_id, "publish", len(today) + 1)
        run.update("published")
        if today:
            progress.note = (
                f"{config.ds} was published already by run {today[-1]['run_id']}; run {run.run_id} takes its place"
            )
        else:
            progress.note = f"run {run.run_id} for {config.ds}"
    return {"run_id": run.run_id, "published": True, "replaced": today[-1]["run_id"] if today else None}


def rollback(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Publish an earlier run again: `run_id`, or the run published before the current one.

    Raises NotFoundError if there is no earlier run, NothingNew if the run is the published one.
    """
    tables = LakeTables(spark, config.lake.root)
    rows = history(tables, config.model)
    if not rows:
        raise NotFoundError(f"no run of model {config.model} is published yet: there is nothing to roll back")
    now = rows[-1]
    target = config.run_id
    if target is None:
        by_gate = [row["run_id"] for row in reversed(rows) if row["action"] == "publish"]
        earlier = [run_id for run_id in by_gate if run_id != now["run_id"]]
        if not earlier:
            raise NotFoundError(f"run {now['run_id']} is the only published one of {config.model}")
        target = earlier[0]
    find_run(tables, config.model_copy(update={"run_id": target}), ("published", "recommended"))
    if target == now["run_id"]:
        raise NothingNew(f"run {target} is the published one already")
    sequence = sum(row["ds"] == now["ds"] for row in rows) + 1
    append_published(tables, config.model, now["ds"], target, "rollback", sequence)
    say(f"rolled back {config.model}: run {target} instead of {now['run_id']}")
    return {"run_id": target, "rolled_back": now["run_id"], "ds": now["ds"].isoformat()}


def check_gate(tables: LakeTables, run: Run, before: Row | None, config: Config) -> None:
    """Raise GateRefused unless the run may be published.

    Raises NotFoundError, which is no refusal, if the run is not measured yet, or if the published run is not measured
    under the same protocol and settings.
    """
    check_lists(run.counts, config.gate)
    new, old = _to_compare(tables, run.run_id, before, config)
    compared = {system: figure.value for (system, segment), figure in new.figures.items() if segment is None}
    if old:
        compared["published"] = old.figures["model", None].value
    activity.gate[run.run_id] = new.measure, compared
    check_quality(new, old, config.gate)


def _to_compare(
    tables: LakeTables, run_id: str, before: Row | None, config: Config
) -> tuple[Measured, Measured | None]:
    """Figures of the run and of the published run; None for the latter if there is none or any fall is allowed."""
    metric, k = config.gate_measure()
    name = metric.replace("_at_k", f"@{k}")
    protocol: str = config.evaluation.protocol
    run_figures = _measured(tables, run_id, metric, k)
    published_figures = _measured(tables, before["run_id"], metric, k) if before else {}
    if protocol == "auto":  # prefer a protocol by which the published run was measured too
        protocol = max(run_figures.keys() & published_figures.keys() or run_figures, default="auto")
    if protocol not in run_figures:
        measured = f"by {', '.join(sorted(run_figures))} only" if run_figures else "by none"
        raise NotFoundError(
            f"run {run_id} has no figure {name} by evaluation.protocol={protocol}, it was measured {measured}: "
            "run jobs/evaluate.py, then publish again"
        )
    new = run_figures[protocol]
    if before is None or config.gate.max_fall >= 1:
        return new, None
    old = published_figures.get(protocol)
    if old is None or not new.tests_like(old):
        how = "was not" if old is None else f"was measured by it with {_unlike(old, new)}"
        raise NotFoundError(
            f"run {run_id} was measured by evaluation.protocol={protocol}, the published run {before['run_id']} {how}: "
            f"they cannot be compared; run jobs/evaluate.py run_id={before['run_id']} with the current settings, then "
            "publish again; or set gate.max_fall=1"
        )
    return new, old


def _measured(tables: LakeTables, run_id: str, metric: str, k: int | None) -> dict[str, Measured]:
    found = read_figures(tables, run_id, metric, k)
    return {
        protocol: Measured(run_id, protocol, entry["settings"], entry["figures"])
        for protocol, entry in found.items()
        if ("model", None) in entry["figures"]
    }


def _unlike(old: Measured, new: Measured) -> str:
    names = sorted(n for n in {*old.settings, *new.settings} if old.settings.get(n) != new.settings.get(n))
    changes = [f"{name}={old.settings.get(name)} (now {new.settings.get(name)})" for name in names]
    return ", ".join(change for change in changes if not change.startswith(OF_BOOTSTRAP))
