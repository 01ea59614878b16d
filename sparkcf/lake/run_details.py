"""All that the lake knows about one run, read without Spark."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sparkcf.errors import NotFoundError
from sparkcf.lake.query import Lake

Row = Mapping[str, Any]
MAPS = ("inputs", "counts", "seconds")
LATER: Row = {
    "ended_at": None,
    "seconds": {},
    "peak_bytes": None,
    "application_id": None,
}  # columns that older tables lack
NOT_COMPARED = ("ds", "run_id")  # keys of the configuration that name the run rather than shape it


@dataclass(frozen=True)
class RunDetails:
    """One run.

    row : the run's row of `runs`; its maps are dictionaries.
    figures : its measures over all users: protocol, system, metric, k, value, lower, upper, users.
    before : row of the run of the same job and model that started last before it; None: it is the first.
    changes : (key, value before, value now) of each setting that differs from the run before.
    """

    row: Row
    figures: tuple[Row, ...]
    before: Row | None
    changes: tuple[tuple[str, Any, Any], ...]


def read_run(lake: Lake, run_id: str) -> RunDetails:
    """Read a run.

    Raises
    ------
    NotFoundError
        There is no such run.
    LakeError
        There is no lake, or one of its tables cannot be read.
    """
    rows = [plain_row(row) for row in lake.run_rows(limit=2**31).to_pylist()]  # newest first
    row = next((row for row in rows if row["run_id"] == run_id), None)
    if row is None:
        newest = ", ".join(row["run_id"] for row in rows[:3]) or "none"
        raise NotFoundError(f"no run {run_id!r} in lake {lake.root}: the newest are {newest}")
    earlier = (other for other in rows if _alike(other, row) and other["started_at"] < row["started_at"])
    before = next(earlier, None)
    return RunDetails(row, tuple(_figures(lake, run_id)), before, tuple(changes_between(before, row)) if before else ())


def seconds_of(row: Row, now: dt.datetime) -> float | None:
    """How long a run took: its steps, or if none are stored the time up to its end; of a running one up to now.

    None: its job has died, nobody knows when.
    """
    steps = [spent for name, spent in dict(row.get("seconds") or {}).items() if "/" not in name]
    if steps and row["state"] != "running":
        return float(sum(steps))
    if row["state"] == "failed" and row.get("ended_at") is None:
        return None
    end = now if row["state"] == "running" else row.get("ended_at") or row["updated_at"]
    return float((end - row["started_at"]).total_seconds())


def plain_row(row: Row) -> Row:
    """A row of `runs` with its maps as dictionaries, and the columns that older tables lack."""
    found = {**LATER, **row}
    return {**found, **{name: dict(found[name] or {}) for name in MAPS}}


def _alike(one: Row, other: Row) -> bool:
    return (one["job"], one["model"]) == (other["job"], other["model"])


def _figures(lake: Lake, run_id: str) -> Iterator[Row]:
    if not lake.has("metrics"):
        return
    columns = ("protocol", "system", "metric", "k", "value", "lower", "upper", "users")
    rows = lake.read("metrics", ("run_id", [run_id])).to_pylist()
    rows.sort(key=lambda row: (row["protocol"], row["metric"], row["k"] or 0, row["system"]))
    for row in rows:
        if row["protocol"] != "fit" and row.get("segment") is None:
            yield {name: row[name] for name in columns}


def changes_between(before: Row, row: Row) -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of each setting in which two runs differ."""
    then, now = (dict(_flat(json.loads(one["config"] or "{}"))) for one in (before, row))
    for key in sorted({*then, *now} - set(NOT_COMPARED)):
        if then.get(key) != now.get(key):
            yield key, then.get(key), now.get(key)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a configuration."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
