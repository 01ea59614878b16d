"""Which runs stay in the lake, and the removal of the others' rows and files."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyspark.sql import functions as F

from sparkcf.errors import ConfigError
from sparkcf.lake.folder import Folder
from sparkcf.lake.runs import FITS
from sparkcf.lake.schemas import PER_RUN
from sparkcf.lake.tables import LakeTables, retry_conflicts

MODELS = "_models"  # the folder of runs' arrays
CHECKPOINTS = re.compile(r"[a-z][a-z0-9_]*-[0-9a-f]{16}(-.*)?|compare-.*")  # folders of a fit, of a comparison
DONE = ("failed", "expired")  # states of runs whose inputs nobody reads again


@dataclass(frozen=True)
class KeptRun:
    """What the choice needs to know of a run.

    base : the run that its users were folded into; None: it was trained.
    """

    run_id: str
    state: str
    started_at: dt.datetime
    base: str | None = None


def kept_runs(
    runs: Mapping[str, KeptRun],
    published: Mapping[str, Iterable[str]],
    young: dt.datetime,
    keep_published: int,
) -> set[str]:
    """The runs whose rows stay.

    They are the last published ones of every model, runs that began later than `young`, and the runs that these were
    folded into.

    Parameters
    ----------
    published : by model the run ids in the order in which readers followed them; an id may be repeated.
    """
    kept = {run_id for run_id, run in runs.items() if run.started_at > young}
    for order in published.values():
        newest = list(dict.fromkeys(reversed(list(order))))
        kept.update(newest[:keep_published])
    for run_id in list(kept):
        base = runs[run_id].base if run_id in runs else None
        while base is not None and base not in kept:
            kept.add(base)
            base = runs[base].base if base in runs else None
    return kept


def read_runs(tables: LakeTables) -> dict[str, KeptRun]:
    """All runs that have factors, or will have, by id."""
    started = F.unix_micros("started_at").alias("started")  # a Python datetime would be of the host's zone
    fits = tables.read("runs").where(F.col("job").isin(*FITS))
    rows = fits.select("run_id", "job", "state", "config", started).collect()
    return {row["run_id"]: _kept_run(row) for row in rows}


def _kept_run(row: Any) -> KeptRun:
    base = json.loads(row["config"]).get("run_id") if row["job"] == "fold_in" else None
    return KeptRun(row["run_id"], row["state"], dt.datetime.fromtimestamp(row["started"] / 1e6, dt.UTC), base)


def read_published(tables: LakeTables) -> dict[str, list[str]]:
    """By model the published run ids in the order in which readers followed them."""
    order: dict[str, list[str]] = {}
    for row in tables.read("published").orderBy("ds", "sequence").select("model", "run_id").collect():
        order.setdefault(row["model"], []).append(row["run_id"])
    return order


def drop_runs(tables: LakeTables, runs: Mapping[str, KeptRun], kept: Collection[str], keep_published: int) -> set[str]:
    """Mark the runs that are not kept as expired, then remove their rows and arrays; returns their ids.

    Only runs of `runs` are removed: one that has begun since stays. A run that was rolled back to meanwhile stays too.
    """
    old = {run_id for run_id in runs if run_id not in kept}
    if not old:
        return set()
    expired = {
        "state": F.lit("expired"),
        "reason": F.lit("maintain removed its rows: train again, or raise maintain.keep_published or keep_days"),
    }
    tables.update("runs", f"state NOT IN ('failed', 'expired') AND run_id IN ({_listed(sorted(old))})", expired)
    for order in read_published(tables).values():
        for run_id in list(dict.fromkeys(reversed(order)))[:keep_published]:
            if run_id in old:
                tables.update("runs", f"run_id = '{run_id}'", {"state": F.lit("published"), "reason": F.lit(None)})
                old.remove(run_id)
    dropped: set[str] = set()
    for name in PER_RUN:
        if tables.exists(name):
            partitions = tables.read(name).select("model", "run_id").distinct().collect()
            gone = sorted((row["model"], row["run_id"]) for row in partitions if row["run_id"] in old)
            for model in sorted({model for model, _ in gone}):
                ids = [run_id for of_model, run_id in gone if of_model == model]
                _delete(tables, name, f"model = '{model}' AND run_id IN ({_listed(ids)})")
            dropped.update(run_id for _, run_id in gone)
    with suppress(ConfigError):  # an address that Arrow cannot write has no arrays
        folder = Folder(f"{tables.root}/{MODELS}")
        for run_id in old.intersection(folder.names()):
            folder.delete(run_id)
            dropped.add(run_id)
    return dropped


def drop_packed_rows(tables: LakeTables, before: dt.date) -> int:
    """Remove the packed rows of days before a day; returns the number of snapshots."""
    dropped = 0
    for name in ("user_rows", "item_rows", "example_rows"):
        if tables.exists(name):
            names = [row[0] for row in tables.read(name).select("snapshot").distinct().collect()]
            if old := sorted(name for name in names if name[:10] < before.isoformat()):  # it begins with its day
                _delete(tables, name, f"snapshot IN ({_listed(old)})")
            dropped += len(old)
    return dropped


def drop_progress(root: str, before: dt.datetime) -> int:
    """Remove checkpoints that nothing has changed since a time; returns the number of fits they are of.

    The folder may hold other things too: only what has a name of ours is looked at.
    """
    folder = Folder(root)
    ours = [name for name in folder.names() if CHECKPOINTS.fullmatch(name)]
    old = [name for name in ours if (at := folder.changed_at(name)) is not None and at < before]
    for name in old:
        folder.delete(name)
    return len(old)


def hours_needed(runs: Mapping[str, KeptRun], kept: Collection[str], now: dt.datetime) -> float:
    """Hours since the start of the oldest run that may read the tables at its versions again."""
    starts = [run.started_at for run_id, run in runs.items() if run_id in kept and run.state not in DONE]
    return max(((now - start).total_seconds() / 3600 for start in starts), default=0.0)


def _delete(tables: LakeTables, name: str, where: str) -> None:
    retry_conflicts(f"delete {where} from {name}", lambda: tables.table(name).delete(where))


def _listed(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)
