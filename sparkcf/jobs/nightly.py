"""The nightly pipeline: clean ▶ train ▶ evaluate ▶ recommend ▶ publish, then what a person wants to read."""

from __future__ import annotations

import shlex
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.errors import SparkcfError, first_line
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.evaluate import evaluate_run
from sparkcf.jobs.publish import publish_run
from sparkcf.jobs.recommend import recommend_run
from sparkcf.jobs.train import train_model
from sparkcf.lake.roots import local_folder
from sparkcf.lake.runs import find_run
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import say


def nightly(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Run the whole night. Each step reads what the one before wrote to the lake, as if run alone.

    A step that fails leaves what was published as it was, and a row in `runs` that says why. Of several models each
    is published by itself: one that fails, for whatever reason, does not keep the others from their readers, but ends
    the job in its error.
    """
    cleaned = clean_day(spark, config)
    if not config.models:
        return _night_of_model(spark, config, cleaned)
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, Exception] = {}
    for model in config.models:
        try:
            done[model] = _night_of_model(spark, config.model_copy(update={"model": model}), cleaned)
        except Exception as error:  # a Spark or Python error of one model is no reason to give up the others
            say(f"  {model}: {first_line(error)}")
            failed[model] = error
    if failed:
        first = next(iter(failed.values()))
        published = f"published: {', '.join(done) or 'none'}"
        kind = type(first) if isinstance(first, SparkcfError) else SparkcfError
        raise kind(f"models {', '.join(failed)} failed, {published}; the first said: {first_line(first)}") from first
    return {"counts": cleaned["counts"], "models": done, "lake": config.lake.root}


def _night_of_model(spark: SparkSession, config: Config, cleaned: dict[str, Any]) -> dict[str, Any]:
    trained = train_model(spark, config)
    config = config.model_copy(update={"run_id": trained["run_id"]})
    try:
        evaluated = evaluate_run(spark, config)
        recommended = recommend_run(spark, config)
    except BaseException as error:
        _mark_failed(spark, config, error)
        raise
    published = publish_run(spark, config)
    _report(spark, config, cleaned, evaluated, recommended)
    return {
        "run_id": trained["run_id"],
        "counts": cleaned["counts"] | recommended["counts"],
        "figures": evaluated["figures"],
        "replaced": published["replaced"],
        "lake": config.lake.root,
    }


def _mark_failed(spark: SparkSession, config: Config, error: BaseException) -> None:
    states = ("trained", "evaluated", "recommended")
    run = find_run(LakeTables(spark, config.lake.root), config, states)
    run.update("failed", reason=f"{type(error).__name__}: {error}"[:500])


def _report(
    spark: SparkSession,
    config: Config,
    cleaned: dict[str, Any],
    evaluated: dict[str, Any],
    recommended: dict[str, Any],
) -> None:
    """Rows, quality against the baseline, a sample user's history and list, and where to go on."""
    counts, figures = cleaned["counts"], evaluated["figures"]
    say("")
    dropped = counts["exact_duplicates"] + counts["superseded"]
    say(
        f"Rows: {counts['read']:,} in, {counts['clean']:,} clean, {dropped:,} duplicates, "
        f"{counts['quarantined']:,} quarantined"
    )
    warm = figures.get("model:warm_users")
    known = "" if warm is None else f", {warm:.0%} of the tested users have a vector"
    say(f"Quality by {evaluated['protocol']} ({evaluated['split']}{known}): {_against_baseline(figures, config)}")
    done = recommended["counts"]
    say(f"Lists: {done['users_model']:,} users by the model, {done['users_fallback']:,} by the popularity fallback")
    folder = local_folder(config.lake.root)
    if folder is not None:
        _sample_user(folder, _some_user(spark, config), config)
    say(f"Tables: {folder or config.lake.root}/{{recommendations,similar_items,interactions,metrics,…}}")


def _against_baseline(figures: dict[str, float], config: Config) -> str:
    shown, told = [], {"20", "100", str(config.gate.at)}
    for name in sorted({key.split(":", 1)[1] for key in figures}):
        metric, _, k = name.partition("@")
        if metric in ("rmse", "mae") or (metric in ("ndcg_at_k", "recall_at_k") and k in told):
            label = metric.replace("_at_k", f"@{k}")
            shown.append(
                f"{label} {figures[f'model:{name}']:.4f} (popularity {figures.get(f'popularity:{name}', 0):.4f})"
            )
    return f"{config.model} " + ", ".join(shown)


def _some_user(spark: SparkSession, config: Config) -> str:
    """The first user, in the order of ids, with a list: one by the model where there is one."""
    rows = (
        LakeTables(spark, config.lake.root)
        .read("recommendations")
        .where(F.col("run_id").eqNullSafe(config.run_id or ""))
    )
    order = F.min(F.struct(F.expr("reason <=> 'fallback'"), "user_id")).alias("first")
    return str(rows.agg(order).select("first.user_id").collect()[0][0])


def _sample_user(folder: str, user: str, config: Config) -> None:
    """Read back what was just published, the way a reader does."""
    from sparkcf.lake.query import Lake

    lake = Lake(folder)
    try:
        history, listed = lake.history(user, 5), lake.recommendations(user, 5, config.model)
    except SparkcfError as error:  # the report must not fail a night that is published
        say(f"  no sample user to show: {error}")
        return
    say(f"User {user} had, last:")
    for _, row in history.iterrows():
        say(f"    {row['value']:g}  {row['title'] or row['item_id']}")
    say("and gets:")
    for _, row in listed.iterrows():
        say(f"    {row['position']}. {row['title'] or row['item_id']}")
    model = f" --model {config.model}" if config.models else ""
    where = f"--user {shlex.quote(user)} --lake {shlex.quote(config.lake.root)}{model}"
    say(f"Ask for another: .venv/bin/sparkcf recommend {where}")
