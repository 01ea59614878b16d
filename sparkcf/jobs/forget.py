"""The forget job: remove users from every table and keep them out of later loads."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.fields import normalized_id
from sparkcf.data.ingest import read_listing
from sparkcf.errors import ConfigError, InputError, NothingNew
from sparkcf.jobs.train import progress_root
from sparkcf.lake.at_once import at_once
from sparkcf.lake.forgotten import Forgotten, forgotten_users, new_salt
from sparkcf.lake.frames import frame_of, kept
from sparkcf.lake.removal import (
    blank_runs,
    empty_packed_rows,
    note_sealed,
    remove_parameters,
    remove_rows,
    seal_tables,
)
from sparkcf.lake.retention import drop_progress
from sparkcf.lake.runs import Run, recorded_run, user_name
from sparkcf.lake.schemas import PER_USER, TABLES
from sparkcf.lake.tables import LakeTables, retry_conflicts
from sparkcf.lake.traces import Traces, find_traces, spelled, spellings
from sparkcf.progress import say, step


def check_request(config: Config) -> None:
    """Raise ConfigError unless the configuration names users to forget."""
    if not config.forget.users and not config.forget.path:
        raise ConfigError("no users to forget: set forget.users=[ID, …] or forget.path=TABLE with a column user_id")


def forget_users(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Remove the users of `forget.users` and `forget.path` from every table, and look for what is left of them.

    Their rows are in no new version of a table; the files of earlier versions go with `maintain`. A load keeps out
    users who are forgotten. A request that is repeated after that removes nothing and proves that no file names them.

    Returns
    -------
    dict
        `counts` of removed rows by table, and of the users `requested`; `traces` (files that still name one of them);
        `trained_with`: runs whose item vectors they had a part in.

    Raises InputError if the request names no user, and NothingNew, with the number of files that still name them, if
    they were forgotten before.
    """
    tables = LakeTables(spark, config.lake.root)
    ids = requested(spark, config)
    with kept(ids):
        users = [row["user_id"] for row in ids.collect()]
        if not users:
            raise InputError(
                "forget.users and forget.path name no user: their ids are empty or among clean.null_tokens; nothing is "
                "forgotten"
            )
        removed = _forget(tables, ids, users, config)
        with step("look for them in every file", spark) as progress:
            traces = _traces(tables, users, config)
            progress.note = traces.in_words()
    if not removed:
        raise NothingNew(f"the {len(users):,} users were forgotten before: {traces.in_words()}")
    counts, run_id = removed
    trained = _trained_with(tables)
    for line in _said(len(users), traces, trained):
        say(line)
    return {
        "run_id": run_id,
        "counts": {"requested": len(users)} | counts,
        "traces": traces.by_table,
        "trained_with": trained,
    }


def requested(spark: SparkSession, config: Config) -> DataFrame:
    """The users to forget: user_id, normalized as a load does, each once."""
    rows = frame_of(spark, [{"user_id": user} for user in config.forget.users], TABLES["users"].schema)
    ids = rows.select("user_id")
    if config.forget.path:
        ids = ids.unionByName(read_listing(spark, "forget.path", config.forget.path, ("user_id",)))
    ids = ids.select(normalized_id(F.col("user_id"), config.clean).alias("user_id"))
    return ids.where("user_id IS NOT NULL").distinct()


def _forget(tables: LakeTables, ids: DataFrame, users: list[str], config: Config) -> tuple[dict[str, int], str] | None:
    """Remove the users' rows; returns the rows removed by table and the run's id. None: there was nothing to do."""
    present = [name for name in PER_USER if tables.exists(name)]
    with step("look for the users' rows", tables.spark):
        by_user = [partial(_rows_by_user, tables, name, ids) for name in present]
        found = dict(zip(present, at_once(*by_user), strict=True))
        lines = _in_lines(tables, users, config).count()
    known = forgotten_users(tables)
    is_new = known is None or not known.without(ids).isEmpty() or known.unsealed(tables, ids)
    if not is_new and not lines and not any(found.values()):
        return None
    with recorded_run(tables, "forget", config, {name: tables.version(name) for name in present}) as run:
        salt = _register(tables, ids, found, run)  # first: from now on no load brings them back
        hashes = ids.select(Forgotten(salt, ids).hash(F.col("user_id")).alias("hash"))
        # Not those of `users`: a job that was killed after it removed the users would not find them again.
        indices = tables.read("forgotten").join(hashes, on="hash", how="left_semi").select("user_idx")
        removals: dict[str, Callable[[], int]] = {
            name: partial(remove_rows, tables, name, ids) for name in present if found[name]
        }
        removals["feature_factors"] = partial(remove_parameters, tables, indices)
        removals["runs"] = partial(blank_runs, tables, lambda named: named.intersection(users))
        if lines:
            removals["quarantine"] = partial(_blank_lines, tables, users, config)
        with step("remove them", tables.spark) as progress:
            counts = dict(zip(removals, at_once(*removals.values()), strict=True))
            progress.note = ", ".join(f"{name} {n:,}" for name, n in counts.items() if n)
        empty_packed_rows(tables)
        _drop_progress(tables, config)
        run.update("forgotten", counts=counts)
        with step("seal the tables' logs", tables.spark):
            note_sealed(tables, seal_tables(tables), hashes)
    return {name: n for name, n in counts.items() if n}, run.run_id


def _rows_by_user(tables: LakeTables, name: str, ids: DataFrame) -> dict[str, int]:
    rows = tables.read(name).join(F.broadcast(ids), on="user_id", how="left_semi")
    return {row["user_id"]: row["count"] for row in rows.groupBy("user_id").count().collect()}


def _in_lines(tables: LakeTables, users: list[str], config: Config) -> DataFrame:
    """Quarantined rows whose line has a user's id as a word, however it is spelled."""
    words = [{"user_id": word} for word in spellings(users)]
    listed = frame_of(tables.spark, words, TABLES["users"].schema).select(F.col("user_id").alias("word"))
    rows = tables.read("quarantine").where("raw IS NOT NULL")
    has = F.expr(spelled("raw", "word", config.clean.fold_case))
    return rows.join(F.broadcast(listed), on=has, how="left_semi")


def _blank_lines(tables: LakeTables, users: list[str], config: Config) -> int:
    """Remove the lines of those rows; the rows stay, so that a day's counts still add up."""
    found = _in_lines(tables, users, config).select("ds", "source", "raw").distinct()
    same = "t.ds = s.ds AND t.source = s.source AND t.raw = s.raw"
    clause = "WHEN MATCHED THEN UPDATE SET raw = NULL, raw_bytes = NULL"
    return retry_conflicts("blank quarantine", lambda: tables.merge("quarantine", found, same, clause)["updated"])


def _register(tables: LakeTables, ids: DataFrame, found: dict[str, dict[str, int]], run: Run) -> str:
    """Write the users' hashes, indices and counts into `forgotten`; returns the lake's salt.

    A user who is there already may have been given another index since, by a load that ran beside the forget.
    """
    counts: dict[str, dict[str, int]] = {}
    for name, by_user in found.items():
        for user, n in by_user.items():
            counts.setdefault(user, {})[name] = n
    of_user = F.from_json(F.lit(json.dumps(counts)), "map<string,map<string,bigint>>")
    none = F.from_json(F.lit("{}"), "map<string,bigint>")

    def merge() -> str:
        tables.create("forgotten")
        known = forgotten_users(tables)  # read again in every try: another job may have drawn the salt
        salt = known.salt if known else new_salt()
        indexed = tables.read("users").select("user_id", "user_idx")
        rows = ids.join(indexed, on="user_id", how="left").select(
            Forgotten(salt, ids).hash(F.col("user_id")).alias("hash"),
            F.lit(salt).alias("salt"),
            "user_idx",
            F.lit(f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%S}Z").cast("timestamp").alias("forgotten_at"),
            F.lit(user_name()).alias("forgotten_by"),
            F.lit(run.run_id).alias("run_id"),
            F.coalesce(of_user[F.col("user_id")], none).alias("counts"),
            F.lit(None).cast("map<string,bigint>").alias("sealed"),
            F.lit(None).cast("timestamp").alias("sealed_at"),
            F.lit(None).cast("timestamp").alias("purged_at"),
        )
        known_again = "WHEN MATCHED THEN UPDATE SET user_idx = greatest(t.user_idx, s.user_idx), sealed_at = NULL"
        tables.merge("forgotten", rows, "t.hash = s.hash", known_again, "WHEN NOT MATCHED THEN INSERT *")
        return salt

    return retry_conflicts("register forgotten users", merge)


def _drop_progress(tables: LakeTables, config: Config) -> None:
    """Checkpoints hold vectors of the users by their indices; a training in progress saves again."""
    try:
        drop_progress(progress_root(config, tables.root), dt.datetime.now(dt.UTC))
    except ConfigError as error:  # an address that Arrow cannot write, where there are no checkpoints either
        say(f"  note: no checkpoints removed: {error}")


def _traces(tables: LakeTables, users: list[str], config: Config) -> Traces:
    try:
        return find_traces(tables, users, config.clean.fold_case)
    except ConfigError as error:  # an address that Arrow cannot read
        say(f"  note: files are not searched: {error}", "warning")
        return Traces(users, searched=False)


def _trained_with(tables: LakeTables) -> list[str]:
    """Runs whose rows are in the lake: the users' events had a part in their item vectors and weights."""
    if not tables.exists("item_factors"):
        return []
    return sorted(row[0] for row in tables.read("item_factors").select("run_id").distinct().collect())


def _said(n: int, traces: Traces, trained: list[str]) -> list[str]:
    lines = [f"{n:,} users are forgotten: no new version of a table has a row of theirs, and later loads keep them out"]
    if traces.by_table:
        lines.append("files of earlier versions name them until jobs/maintain.py removes those (maintain.purge_hours)")
    if trained:
        lines.append(
            f"item vectors and weights of {len(trained)} runs were trained with their events, without their ids; the "
            f"next training replaces the published ones, maintain removes the others: {', '.join(trained[-5:])}"
        )
    return lines
