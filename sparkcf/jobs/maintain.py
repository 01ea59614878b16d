"""The maintain job: remove what nobody can read any more, and join small files."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.errors import ConfigError, ConflictError
from sparkcf.jobs.forget import remove
from sparkcf.jobs.train import progress_root
from sparkcf.lake.forgotten import Forgotten, forgotten_users
from sparkcf.lake.retention import (
    KeptRun,
    drop_packed_rows,
    drop_progress,
    drop_runs_except,
    hours_needed,
    kept_runs,
    read_published,
    read_runs,
)
from sparkcf.lake.runs import recorded_run
from sparkcf.lake.schemas import PER_USER, TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.upkeep import COMPACTED, compact, drop_damaged, drop_log_before, seal, stored_bytes, vacuum
from sparkcf.progress import say, step

SPARE_HOURS = 1.0  # between the start of the oldest kept run and the files that go


def maintain(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Remove runs that cannot be rolled back to, old packed rows and checkpoints; compact and vacuum every table.

    Safe beside readers and a night in progress: what they can read stays (`maintain.keep_days`, `vacuum_hours`).

    Returns
    -------
    dict
        `counts` (expired_runs, packed_rows, checkpoints, joined_files, purged_users), `bytes` before and after.

    Raises ConflictError if `maintain.purge_hours` is less than the age of a run in progress that began before a forget.
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
                "expired_runs": len(drop_runs_except(tables, kept)),
                "packed_rows": drop_packed_rows(tables, config.ds - dt.timedelta(days=config.maintain.keep_days)),
                "checkpoints": _drop_progress(tables, config, now),
            }
            progress.note = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
        with step("compact", spark) as progress:
            counts["joined_files"] = sum(compact(tables, name) for name in COMPACTED if name in names)
            progress.note = f"{counts['joined_files']:,} files fewer"
        needed = hours_needed(runs, kept, now) + SPARE_HOURS
        hours = max(config.maintain.vacuum_hours, needed)
        with step("vacuum", spark) as progress:
            counts["purged_users"], purged = _purge(tables, config, runs, now)
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


def _purge(tables: LakeTables, config: Config, runs: dict[str, KeptRun], now: dt.datetime) -> tuple[int, set[str]]:
    """Remove the files and logs of versions that name forgotten users; returns the users and the vacuumed tables.

    A night that ran beside the forget may have written rows of theirs since: they are removed first.
    """
    known = forgotten_users(tables)
    purge_hours = config.maintain.purge_hours
    until = int(now.timestamp()) - 3600 * purge_hours
    due = f"purged_at IS NULL AND forgotten_at <= timestamp_seconds({until})"
    rows = tables.read("forgotten").where(due)
    if known is None or not (users := rows.count()):
        return 0, set()
    _check_idle(config, runs, now)
    sealed = rows.select(F.explode("sealed").alias("name", "version")).groupBy("name").agg(F.max("version"))
    versions: dict[str, int] = {name: version for name, version in sealed.collect()}
    again = [name for name in PER_USER if tables.exists(name) and _remove_again(tables, name, known)]
    for name in again:
        versions[name] = seal(tables, name)
    for name, version in sorted(versions.items()):
        vacuum(tables, name, purge_hours)
        drop_log_before(tables, name, version)
        drop_damaged(tables, name)
    done = {"sealed": F.from_json(F.lit(json.dumps(versions)), "map<string,bigint>")}
    if not (again and purge_hours):  # else the files of these go the next time
        done["purged_at"] = F.lit(f"{now:%Y-%m-%dT%H:%M:%S}Z")
    tables.update("forgotten", due, done)
    return users if "purged_at" in done else 0, set(versions)


def _check_idle(config: Config, runs: dict[str, KeptRun], now: dt.datetime) -> None:
    """Raise ConflictError if a run in progress may still read or write files that would go."""
    limit = now - dt.timedelta(hours=max(config.maintain.purge_hours, 24))
    busy = [run.run_id for run in runs.values() if run.state == "running" and run.started_at > limit]
    if busy and config.maintain.purge_hours < 24:
        raise ConflictError(
            f"run {busy[0]} is in progress, maintain.purge_hours={config.maintain.purge_hours} would remove its files: "
            "wait for its end, or set maintain.purge_hours=24"
        )


def _remove_again(tables: LakeTables, name: str, known: Forgotten) -> int:
    back = known.among(tables.read(name).select("user_id").distinct())
    return 0 if back.isEmpty() else remove(tables, name, back)


def _size(n: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:,.0f} {unit}" if unit == "bytes" else f"{n:,.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
