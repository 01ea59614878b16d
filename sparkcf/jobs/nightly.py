"""The nightly pipeline: clean ▶ train ▶ evaluate ▶ recommend ▶ publish, then a report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import RATING_MEASURES, Config
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.data.split import time_cut
from sparkcf.errors import GateRefused, NothingNew, SparkcfError, first_line, interruption
from sparkcf.jobs.base import open_run
from sparkcf.jobs.checks import check_settings
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.evaluate import evaluate_run, with_protocol
from sparkcf.jobs.fold_in import fold_in_users
from sparkcf.jobs.publish import publish_run
from sparkcf.jobs.recommend import banned_items, recommend_run, wanted_users
from sparkcf.jobs.several import each_model
from sparkcf.jobs.shared import shared_frames
from sparkcf.jobs.signals import cancel
from sparkcf.jobs.train import train_model
from sparkcf.lake.frames import kept
from sparkcf.lake.roots import local_folder
from sparkcf.lake.runs import failures_recorded
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import say, say_together


def nightly(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Run the whole night. Each step reads its inputs from the lake, as the step's own job does.

    A failed step leaves the published run in place and writes the reason into `runs`. Several models are published
    independently: if one fails, the others are still published, and the job ends with the error of the first failure.

    Raises NothingNew if all models' runs of the day are published, of the same events and settings.
    """
    nights = [config.model_copy(update={"model": model}) for model in config.models or (config.model,)]
    check_settings(spark, nights)
    with reported(config):
        return _whole_night(spark, config, nights)


def _whole_night(spark: SparkSession, config: Config, nights: list[Config]) -> dict[str, Any]:
    cleaned = clean_day(spark, config)
    tables = LakeTables(spark, config.lake.root)
    inputs = Inputs(tables, newest_versions(tables))
    with kept(inputs.events(config.ds)) as events:  # every step of every model reads them
        nights = settled(spark, inputs, nights)
        if not config.models:
            return _night_of_model(spark, cleaned, nights[0])
        with shared_frames(events, nights):
            return _nights_of_models(spark, config, nights, cleaned)


@contextmanager
def reported(config: Config) -> Iterator[None]:
    """Write the page `report.path` after the block, also if a run in it was refused or failed.

    Without a path a line says how to write it, unless the night failed for another reason than the gate.
    """
    try:
        yield
    except Exception as error:
        if interruption(error) is None:
            write_page(config)
        if isinstance(error, GateRefused | NothingNew):
            _say_report(config)
        raise
    write_page(config)
    _say_report(config)


def _say_report(config: Config) -> None:
    if config.report.path is None:
        say(f"A page about the night: .venv/bin/sparkcf report --lake {shlex.quote(config.lake.root)}")


def write_page(config: Config) -> None:
    """Write the page about the night; if that fails, a line says so and the night goes on."""
    if config.report.path is None:
        return
    from sparkcf.lake.query import Lake
    from sparkcf.report.page import write_report

    path = config.report.path.replace("{ds}", config.ds.isoformat())
    try:
        models = config.models or (config.model,)
        written = write_report(Lake(config.lake.root), path, (), config.ds, models, config.report.users)
    except Exception as error:  # whatever a table, a chart or a file system does: the night is as it is
        say(f"  note: report.path={path}: no report was written: {first_line(error)}", "warning")
        return
    say(f"Report: {written.path} ({written.size / 1000:,.0f} kB)")


def _nights_of_models(
    spark: SparkSession, config: Config, nights: list[Config], cleaned: dict[str, Any]
) -> dict[str, Any]:
    group = spark.sparkContext.getLocalProperty("spark.jobGroup.id") or ""
    outcomes = each_model(
        partial(_night_of_model, spark, cleaned), nights, config.models_at_once, partial(cancel, spark, group)
    )
    done, failed, unchanged = outcomes.done, outcomes.failed, outcomes.unchanged
    if failed:
        first = next(iter(failed.values()))
        published = f"published: {', '.join([*done, *unchanged]) or 'none'}"
        kind = type(first) if isinstance(first, SparkcfError) else SparkcfError
        raise kind(f"models {', '.join(failed)} failed, {published}; the first error: {first_line(first)}") from first
    if not done:
        raise next(iter(unchanged.values()))
    return {"counts": cleaned["counts"], "models": done, "lake": config.lake.root}


def settled(spark: SparkSession, inputs: Inputs, nights: list[Config]) -> list[Config]:
    """Replace the protocol `auto` of each night and check settings against the day's events in the lake.

    Raises NotFoundError for users or categories of `topk` that do not exist, GateRefused if q4 cannot split the events.
    """
    events = inputs.events(nights[0].ds)
    wanted_users(inputs.read("users"), nights[0])
    banned_items(spark, inputs.read("items"), nights[0])
    nights = [with_protocol(inputs.tables, events, night) for night in nights]
    if any(night.evaluation.protocol == "q4" for night in nights):
        time_cut(events, nights[0].evaluation.holdout_share)
    return nights


def _night_of_model(spark: SparkSession, cleaned: dict[str, Any], config: Config) -> dict[str, Any]:
    trained = fold_in_users(spark, config) if config.night == "fold_in" else train_model(spark, config)
    config = config.model_copy(update={"run_id": trained["run_id"]})
    opened = open_run(LakeTables(spark, config.lake.root), config, ("trained",))
    with failures_recorded(opened.run):
        evaluated = evaluate_run(spark, config, opened)
        recommended = recommend_run(spark, config, opened)
    published = publish_run(spark, config, opened)
    _report(spark, config, cleaned, evaluated, recommended)
    return {
        "run_id": trained["run_id"],
        "counts": cleaned["counts"] | recommended["counts"],
        "figures": evaluated["figures"],
        "replaced": published["replaced"],
        "lake": config.lake.root,
    }


def _report(
    spark: SparkSession,
    config: Config,
    cleaned: dict[str, Any],
    evaluated: dict[str, Any],
    recommended: dict[str, Any],
) -> None:
    """Print row counts, quality against the baseline, a sample user's history and list, and where the tables are."""
    counts, done = cleaned["counts"], recommended["counts"]
    folder = local_folder(config.lake.root)
    dropped = counts["exact_duplicates"] + counts["superseded"]
    lines = [
        "",
        f"Rows: {counts['read']:,} in, {counts['clean']:,} clean, {dropped:,} duplicates, "
        f"{counts['quarantined']:,} quarantined",
        *_in_words(evaluated, config.with_protocol(evaluated["protocol"])),
        f"Lists: {done['users_model']:,} users by the model, {done['users_fallback']:,} by the popularity fallback",
        *(_sample_user(folder, _some_user(spark, config), config) if folder is not None else ()),
        f"Tables: {folder or config.lake.root}/{{recommendations,similar_items,interactions,metrics,…}}",
    ]
    say_together(lines)


def _in_words(evaluated: dict[str, Any], config: Config) -> list[str]:
    """The evaluation's result as lines of plain sentences."""
    figures: dict[str, float] = evaluated["figures"]
    warm = figures.get("model:warm_users")
    known = "" if warm is None else f"; the model knows {warm:.0%} of the tested users"
    lines = [f"Quality ({evaluated['protocol']}: {evaluated['split']}{known}):"]
    recalls = sorted(k for k in config.evaluation.ks if f"model:recall_at_k@{k}" in figures)
    if recalls:
        k = next((k for k in recalls if k >= config.topk.k), recalls[-1])
        found, baseline = (figures[f"{system}:recall_at_k@{k}"] for system in ("model", "popularity"))
        lines.append(
            f"    {config.model} finds {found:.1%} of the held-out items in lists of {k}, popularity {baseline:.1%}"
        )
    metric, at = config.gate_measure()
    key = f"{metric}@{at}" if at else metric
    value, baseline = figures[f"model:{key}"], figures[f"popularity:{key}"]
    better = "less is better" if metric in RATING_MEASURES else "1 would be perfect"
    lines.append(f"    {key.replace('_at_k', '')} {value:.4f} against {baseline:.4f} of popularity ({better})")
    k = config.topk.k
    if f"reranked:ndcg_at_k@{k}" in figures:
        changes = []
        for word, name in (("NDCG", "ndcg"), ("coverage", "coverage"), ("diversity", "intra_list_diversity")):
            before, after = (figures.get(f"{system}:{name}_at_k@{k}") for system in ("plain", "reranked"))
            if before is not None and after is not None:  # lists of one item have no diversity
                changes.append(f"{word} {before:.4f} to {after:.4f}")
        lines.append(f"    re-ranking, lists of {k}: {', '.join(changes)}")
    return lines


def _some_user(spark: SparkSession, config: Config) -> str:
    """The first user, by id, with a list by the model, else with any list."""
    rows = (
        LakeTables(spark, config.lake.root)
        .read("recommendations")
        .where(F.col("run_id").eqNullSafe(config.run_id or ""))
    )
    order = F.min(F.struct(F.expr("reason <=> 'fallback'"), "user_id")).alias("first")
    return str(rows.agg(order).select("first.user_id").collect()[0][0])


def _sample_user(folder: str, user: str, config: Config) -> list[str]:
    """A user's history and published list as lines, read through `Lake` as readers do."""
    from sparkcf.lake.query import Lake

    lake = Lake(folder)
    try:
        history, listed = lake.history(user, 5), lake.recommendations(user, 5, config.model)
    except SparkcfError as error:  # the report must not fail a night that is published
        return [f"  no sample user to show: {error}"]
    model = f" --model {config.model}" if config.models else ""
    where = f"--user {shlex.quote(user)} --lake {shlex.quote(config.lake.root)}{model}"
    return [
        f"User {user} had, last:",
        *(f"    {row['value']:g}  {row['title'] or row['item_id']}" for _, row in history.iterrows()),
        "and gets:",
        *(f"    {row['position']}. {row['title'] or row['item_id']}" for _, row in listed.iterrows()),
        f"Ask for another: .venv/bin/sparkcf recommend {where}",
    ]
