"""The maintain job: remove what nobody can read any more, and join small files."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.errors import ConfigError, ConflictError
from sparkcf.jobs.train import progress_root
from sparkcf.lake.forgotten import Forgotten, forgotten_users
from sparkcf.lake.removal import (
    blank_runs,
    empty_packed_rows,
    note_sealed,
    remove_parameters,
    remove_rows,
    seal_tables,
)
from sparkcf.lake.retention import (
    drop_packed_rows,
    drop_progress,
    drop_runs,
    hours_needed,
    kept_runs,
    read_published,
    read_runs,
)
from sparkcf.lake.runs import FITS, WAITING, recorded_run
from sparkcf.lake.schemas import PER_USER, TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.upkeep import COMPACTED, compact, drop_damaged, drop_log_before, stored_bytes, vacuum
from sparkcf.progress import say, step

SAFE_HOURS = 24  # no job takes longer
MOST_HOURS = 30 * 24.0  # Delta forgets removed files then (delta.deletedFileRetentionDuration)
SPARE_HOURS = 1.0  # between the start of the oldest kept run and the files that go


def maintain(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Remove runs that cannot be rolled back to, old packed rows and checkpoints; compact and vacuum every table.

    Safe beside readers and a night in progress: what they can read stays (`maintain.keep_days`, `vacuum_hours`).

    Returns
    -------
    dict
        `counts` (expired_runs, packed_rows, checkpoints, joined_files, purged_users), `bytes` before and after.

    Raises ConflictError if files of forgotten users are to go at once, or soon, and a run is in progress.
    """
    tables = LakeTables(spark, config.lake.root)
    now = dt.datetime.now(dt.UTC)
    names = [name for name in TABLES if tables.exists(name)]
    with recorded_run(tables, "maintain", config, {name: tables.version(name) for name in names}) as run:
        before = {name: stored_bytes(tables, name) for name in names}
        runs = read_runs(tables)
        young = now - dt.timedelta(days=config.maintain.keep_days)
        kept = kept_runs(runs, read_published(tables), young, config.maintain.keep_published)
        with step("remove old runs, packed rows and checkpoints", spark) as progress:
            counts = {
                "expired_runs": len(drop_runs(tables, runs, kept, config.maintain.keep_published)),
                "packed_rows": drop_packed_rows(tables, config.ds - dt.timedelta(days=config.maintain.keep_days)),
                "checkpoints": _drop_progress(tables, config, now),
            }
            progress.note = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
        with step("compact", spark) as progress:
            counts["joined_files"] = sum(compact(tables, name) for name in COMPACTED if name in names)
            progress.note = f"{counts['joined_files']:,} files fewer"
        needed = hours_needed(runs, kept, now) + SPARE_HOURS
        hours = min(max(config.maintain.vacuum_hours, needed), MOST_HOURS)
        with step("vacuum", spark) as progress:
            counts["purged_users"], purged = _purge(tables, config, run.run_id, now)
            for name in names:
                if name not in purged:
                    vacuum(tables, name, hours)
            after = {name: stored_bytes(tables, name) for name in names}
            progress.note = f"{_size(sum(before.values()))} before, {_size(sum(after.values()))} after"
        run.update("maintained", counts=counts)
    for name in sorted(names, key=lambda name: after[name] - before[name]):
        if after[name] < before[name]:
            say(f"  {name}: {_size(before[name])} to {_size(after[name])}")
    return {"run_id": run.run_id, "counts": counts, "bytes": {"before": before, "after": after}}


def _drop_progress(tables: LakeTables, config: Config, now: dt.datetime) -> int:
    try:
        return drop_progress(progress_root(config, tables.root), now - dt.timedelta(days=config.maintain.progress_days))
    except ConfigError as error:  # an address that Arrow cannot write, where there are no checkpoints either
        say(f"  note: no checkpoints removed: {error}")
        return 0


def _purge(tables: LakeTables, config: Config, own_run: str, now: dt.datetime) -> tuple[int, set[str]]:
    """Remove the files and logs of versions that name forgotten users; returns the users and the vacuumed tables.

    A job that ran beside the forget may have written rows of theirs since: they are removed first, and the files with
    them go `purge_hours` later, as those of a new forget.
    """
    known = forgotten_users(tables)
    if known is None:
        return 0, set()
    hours = config.maintain.purge_hours
    if _remove_again(tables, known) or not tables.read("forgotten").where("sealed_at IS NULL").isEmpty():
        empty_packed_rows(tables)
        note_sealed(tables, seal_tables(tables))
    until = int(1e6 * (dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours)).timestamp())
    due = f"purged_at IS NULL AND sealed_at <= timestamp_micros({until})"  # to the microsecond, as sealed_at is
    rows = tables.read("forgotten").where(due)
    users = rows.count()
    if not users:
        return 0, set()
    _check_idle(tables, config, own_run, now)
    sealed = rows.select(F.explode("sealed").alias("name", "version")).groupBy("name").agg(F.max("version"))
    versions = {name: version for name, version in sealed.collect()}
    for name, version in sorted(versions.items()):
        vacuum(tables, name, hours)
        drop_log_before(tables, name, version)
        drop_damaged(tables, name)
    tables.update("forgotten", due, {"purged_at": F.lit(f"{now:%Y-%m-%dT%H:%M:%S}Z")})
    return users, set(versions)


def _check_idle(tables: LakeTables, config: Config, own_run: str, now: dt.datetime) -> None:
    """Raise ConflictError if a job in progress may still read or write files that would go.

    Between two jobs nobody holds a lease of a run whose next job will read them: a run that is not published counts.
    """
    if config.maintain.purge_hours >= SAFE_HOURS:
        return
    since = F.lit(f"{now - dt.timedelta(hours=SAFE_HOURS):%Y-%m-%dT%H:%M:%S}Z").cast("timestamp")
    waits = F.col("job").isin(*FITS) & F.col("state").isin(*WAITING) & (F.col("updated_at") >= since)
    busy = tables.read("runs").where((F.col("state") == "running") | waits).where(F.col("run_id") != own_run)
    if row := busy.orderBy(F.col("state") != "running", "run_id").select("run_id", "state").first():
        is_running = row["state"] == "running"
        state = "in progress" if is_running else f"{row['state']} and not published: a night may be at work on it"
        cure = "wait for its end" if is_running else "publish it, wait until it is a day old"
        raise ConflictError(
            f"run {row['run_id']} is {state}, maintain.purge_hours={config.maintain.purge_hours} would remove its "
            f"files: {cure}, or set maintain.purge_hours={SAFE_HOURS}"
        )


def _remove_again(tables: LakeTables, known: Forgotten) -> bool:
    """Remove what was written of forgotten users since; whether there was anything."""
    found = blank_runs(tables, known.ids_among) > 0
    found |= _remove_parameters(tables)  # before their indices may change
    for name in PER_USER:
        if not tables.exists(name):
            continue
        back = known.among(tables.read(name).select("user_id").distinct())
        if back.isEmpty():
            continue
        found = True
        if name == "users":  # their indices are never given again
            given = known.among(tables.read("users")).select(
                known.hash(F.col("user_id")).alias("hash"), F.col("user_idx").alias("given")
            )
            clause = "WHEN MATCHED THEN UPDATE SET user_idx = greatest(t.user_idx, s.given)"
            tables.merge("forgotten", given, "t.hash = s.hash", clause)
            _remove_parameters(tables)
        remove_rows(tables, name, back)
    return found


def _remove_parameters(tables: LakeTables) -> bool:
    return remove_parameters(tables, tables.read("forgotten").select("user_idx")) > 0


def _size(n: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:,.0f} {unit}" if unit == "bytes" else f"{n:,.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
