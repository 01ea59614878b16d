"""The forget job: remove users from every table and keep them out of later loads."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from sparkcf.config.root import Config
from sparkcf.data.fields import normalized_id
from sparkcf.data.ingest import read_listing
from sparkcf.errors import ConfigError, NothingNew
from sparkcf.lake.forgotten import BLANK, Forgotten, forgotten_users, new_salt
from sparkcf.lake.frames import frame_of, kept
from sparkcf.lake.runs import Run, recorded_run, user_name
from sparkcf.lake.schemas import PER_USER, TABLES
from sparkcf.lake.tables import LakeTables, retry_conflicts
from sparkcf.lake.traces import Traces, bounded, find_traces
from sparkcf.lake.upkeep import seal
from sparkcf.progress import say, step

PACKED = ("user_rows", "item_rows", "example_rows")  # they are built anew when they are needed


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
        `counts` of removed rows by table, `traces` (files that still name one of them), and `trained_with`: runs whose
        item vectors they had a part in.

    Raises NothingNew, with the number of files that still name them, if they were forgotten before.
    """
    tables = LakeTables(spark, config.lake.root)
    ids = requested(spark, config)
    with kept(ids):
        n = ids.count()
        removed = _forget(tables, ids, n, config)
        with step("look for them in every file", spark) as progress:
            traces = find_traces(tables, [row["user_id"] for row in ids.collect()])
            progress.note = traces.in_words()
    if not removed:
        raise NothingNew(f"the {n:,} users were forgotten before: {traces.in_words()}")
    counts, run_id = removed
    trained = _trained_with(tables)
    for line in _said(n, traces, trained):
        say(line)
    return {
        "run_id": run_id,
        "counts": {"users": n} | counts,
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


def _forget(tables: LakeTables, ids: DataFrame, n: int, config: Config) -> tuple[dict[str, int], str] | None:
    """Remove the users' rows; returns the rows removed by table and the run's id. None: there was nothing to do."""
    present = [name for name in PER_USER if tables.exists(name)]
    with step("look for the users' rows", tables.spark):
        found = {name: _rows_by_user(tables, name, ids) for name in present}
        lines = _in_lines(tables, ids).count()
    known = forgotten_users(tables)
    is_new = n if known is None else known.without(ids).count()
    if not is_new and not lines and not any(found.values()):
        return None
    with recorded_run(tables, "forget", config, {name: tables.version(name) for name in present}) as run:
        salt = known.salt if known else new_salt()
        _register(tables, ids, salt, found, run)  # first: from now on no load brings them back
        counts, changed = {}, []
        for name in present:
            if found[name]:
                with step(f"remove them from {name}", tables.spark) as progress:
                    counts[name] = remove(tables, name, ids)
                    progress.note = f"{counts[name]:,} rows"
                changed.append(name)
        if lines:
            counts["quarantine"] = _blank_lines(tables, ids)
            changed.append("quarantine")
        if of_runs := _blank_runs(tables, ids):
            counts["runs"] = of_runs
            changed.append("runs")
        for name in PACKED:
            if found.get("users") and tables.exists(name):
                retry_conflicts(f"empty {name}", lambda name=name: tables.table(name).delete())  # type: ignore[misc]
                changed.append(name)
        run.update("forgotten", counts=counts)
        with step("seal the tables' logs", tables.spark):
            _note_sealed(tables, ids, salt, {name: seal(tables, name) for name in changed})
    return counts, run.run_id


def remove(tables: LakeTables, name: str, ids: DataFrame) -> int:
    """Delete the rows of the users (user_id) from a table. The ids are joined: a predicate would stay in the log."""
    same = "t.user_id = s.user_id"
    return retry_conflicts(
        f"remove users from {name}", lambda: tables.merge(name, ids, same, "WHEN MATCHED THEN DELETE")["deleted"]
    )


def _rows_by_user(tables: LakeTables, name: str, ids: DataFrame) -> dict[str, int]:
    rows = tables.read(name).join(F.broadcast(ids), on="user_id", how="left_semi")
    return {row["user_id"]: row["count"] for row in rows.groupBy("user_id").count().collect()}


def _in_lines(tables: LakeTables, ids: DataFrame) -> DataFrame:
    """Quarantined rows whose line has a user's id as a word."""
    text = F.coalesce("raw", F.lit(""))
    has = F.expr("instr(text, user_id) > 0") & F.expr(f"text RLIKE {bounded('user_id')}")
    rows = tables.read("quarantine").withColumn("text", text)
    return rows.join(F.broadcast(ids), on=has, how="left_semi").drop("text")


def _blank_lines(tables: LakeTables, ids: DataFrame) -> int:
    """Remove the lines of those rows; the rows stay, so that a day's counts still add up."""
    found = _in_lines(tables, ids).select("ds", "source", "raw").distinct()
    same = "t.ds = s.ds AND t.source = s.source AND t.raw = s.raw"
    clause = "WHEN MATCHED THEN UPDATE SET raw = NULL, raw_bytes = NULL"
    return retry_conflicts("blank quarantine", lambda: tables.merge("quarantine", found, same, clause)["updated"])


def _blank_runs(tables: LakeTables, ids: DataFrame) -> int:
    """Take the users out of the settings and reasons of runs; returns the number of runs that named one."""
    users = frozenset(row["user_id"] for row in ids.collect())
    changed = []
    for row in tables.read("runs").select("run_id", "config", "reason").collect():
        config, reason = json.loads(row["config"]), row["reason"]
        listed = config.get("topk", {}).get("users", [])
        if users.intersection(listed):
            config["topk"]["users"] = [BLANK if user in users else user for user in listed]
        for user in users if reason else ():
            for quoted in (repr(user), f'"{user}"'):
                reason = reason.replace(quoted, BLANK)
        new = {"run_id": row["run_id"], "config": json.dumps(config, sort_keys=True), "reason": reason}
        if (new["config"], reason) != (row["config"], row["reason"]):
            changed.append(new)
    if changed:
        schema = StructType([TABLES["runs"].schema[name] for name in ("run_id", "config", "reason")])
        source = frame_of(tables.spark, changed, schema)
        clause = "WHEN MATCHED THEN UPDATE SET config = s.config, reason = s.reason"
        retry_conflicts("blank runs", lambda: tables.merge("runs", source, "t.run_id = s.run_id", clause))
    return len(changed)


def _register(tables: LakeTables, ids: DataFrame, salt: str, found: dict[str, dict[str, int]], run: Run) -> None:
    """Write the users' hashes, indices and counts into `forgotten`; a user who is there already stays as they are."""
    counts: dict[str, dict[str, int]] = {}
    for name, by_user in found.items():
        for user, n in by_user.items():
            counts.setdefault(user, {})[name] = n
    of_user = F.from_json(F.lit(json.dumps(counts)), "map<string,map<string,bigint>>")
    none = F.from_json(F.lit("{}"), "map<string,bigint>")
    known = tables.read("users").select("user_id", "user_idx")
    rows = ids.join(known, on="user_id", how="left").select(
        Forgotten(salt, ids).hash(F.col("user_id")).alias("hash"),
        F.lit(salt).alias("salt"),
        "user_idx",
        F.lit(f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%S}Z").cast("timestamp").alias("forgotten_at"),
        F.lit(user_name()).alias("forgotten_by"),
        F.lit(run.run_id).alias("run_id"),
        F.coalesce(of_user[F.col("user_id")], none).alias("counts"),
        F.lit(None).cast("map<string,bigint>").alias("sealed"),
        F.lit(None).cast("timestamp").alias("purged_at"),
    )

    def merge() -> None:
        tables.create("forgotten")
        tables.merge("forgotten", rows, "t.hash = s.hash", "WHEN NOT MATCHED THEN INSERT *")

    retry_conflicts("register forgotten users", merge)


def _note_sealed(tables: LakeTables, ids: DataFrame, salt: str, sealed: dict[str, int]) -> None:
    """Note from which version of each table on no row is theirs; their files are to be removed (again)."""
    hashes = ids.select(Forgotten(salt, ids).hash(F.col("user_id")).alias("hash"))
    versions = F.from_json(F.lit(json.dumps(sealed)), "map<string,bigint>")
    source = hashes.withColumn("sealed", versions)
    clause = "WHEN MATCHED THEN UPDATE SET sealed = s.sealed, purged_at = NULL"
    retry_conflicts("note the versions", lambda: tables.merge("forgotten", source, "t.hash = s.hash", clause))


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
