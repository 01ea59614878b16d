"""How `sparkcf runs` and `sparkcf run` show runs: tables that fit 80 columns, and one JSON object."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkcf.cli.show import Record
from sparkcf.lake.run_details import RunDetails, seconds_of

COLUMNS = ["run_id", "job", "state", "seconds"]
ROW = ["part", "name", "what", "value"]
SYSTEMS = ("model", "popularity")


@dataclass(frozen=True)
class Part:
    """A table with its caption."""

    caption: str
    columns: list[str]
    records: list[Record]


def listed(rows: Sequence[Mapping[str, Any]], now: dt.datetime) -> tuple[list[Record], list[str]]:
    """The rows of a table of runs, and a line for each run with a reason: it failed, was refused, or was stopped."""
    records = []
    for row in rows:
        spent = seconds_of(row, now)
        shown = "" if spent is None else f"{spent:>7,.0f}"
        records.append({name: row[name] for name in ("run_id", "job", "state")} | {"seconds": shown})
    reasons = [f"{row['run_id']}: {row['reason']}" for row in rows if row["reason"] and row["state"] != "expired"]
    return records, reasons


def parts(details: RunDetails) -> list[Part]:
    """The tables about one run; only the table of changed settings may have no rows."""
    row, before = details.row, details.before
    found = []
    spent = [{"step": name, "seconds": f"{seconds:>9,.1f}"} for name, seconds in row["seconds"].items()]
    found.append(Part("steps; outer/inner is a part of the outer step", ["step", "seconds"], spent))
    counts = [{"count": name, "rows": f"{rows:>13,}"} for name, rows in row["counts"].items()]
    found.append(Part("counts", ["count", "rows"], counts))
    config = json.loads(row["config"] or "{}")
    at = config.get("gate", {}).get("at")
    caption = f"figures in lists of {at}; `sparkcf metrics --run-id …` shows all"
    found.append(Part(caption, ["measure", *SYSTEMS], _measures(details, at)))
    if before:
        changes = [{"key": key, "before": _value(then), "now": _value(now)} for key, then, now in details.changes]
        caption = f"settings that differ from run {before['run_id']}" + ("" if changes else ": none")
        found.append(Part(caption, ["key", "before", "now"], changes))
    read = [{"table": name, "version": version} for name, version in sorted(row["inputs"].items()) if version >= 0]
    found.append(Part("tables read", ["table", "version"], read))
    return [section for section in found if section.records or "key" in section.columns]


def as_json(details: RunDetails) -> Record:
    """All about one run; the configuration is an object."""
    row = dict(details.row)
    row["config"] = json.loads(row["config"] or "{}")
    changes = [{"key": key, "before": then, "now": now} for key, then, now in details.changes]
    before = details.before["run_id"] if details.before else None
    return row | {"figures": list(details.figures), "compared_with": before, "changes": changes}


def as_rows(details: RunDetails) -> list[Record]:
    """ROW for every value of a run, unrounded: facts, steps, counts, measures, changed settings, tables read."""
    row = details.row
    facts = {name: value for name, value in row.items() if name not in ("config", "seconds", "counts", "inputs")}
    found = [("fact", name, "value", value) for name, value in facts.items() if value is not None]
    found += [("step", name, "seconds", seconds) for name, seconds in row["seconds"].items()]
    found += [("count", name, "rows", rows) for name, rows in row["counts"].items()]
    for figure in details.figures:
        name = f"{figure['protocol']} {figure['system']} {figure['metric']}" + (
            f"@{figure['k']}" if figure["k"] else ""
        )
        for what in ("value", "lower", "upper", "users"):
            if figure[what] is not None:
                found.append(("measure", name, what, figure[what]))
    for key, then, now in details.changes:
        found += [("setting", key, what, _value(value)) for what, value in (("before", then), ("now", now))]
    found += [("table", name, "version", version) for name, version in row["inputs"].items() if version >= 0]
    return [dict(zip(ROW, values, strict=True)) for values in found]


def about(details: RunDetails) -> list[str]:
    """Lines about the run as a whole."""
    row = details.row
    peak = None if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f} MiB"
    facts = {
        "run": row["run_id"],
        "job": row["job"] + (f" of {row['model']}" if row["model"] else ""),
        "day": row["ds"].isoformat(),
        "state": row["state"],
        "reason": row["reason"],
        "started": f"{row['started_at']:%Y-%m-%d %H:%M:%S} UTC",
        "ended": row["ended_at"] and f"{row['ended_at']:%Y-%m-%d %H:%M:%S} UTC",
        "peak memory": peak,
        "application": row["application_id"],
        "version": row["code_version"],
        "seed": row["seed"],
    }
    return [f"{name:<12} {value}" for name, value in facts.items() if value is not None]


def _measures(details: RunDetails, at: int | None) -> list[Record]:
    """A row a measure. `at` : length of the lists; None: all lengths."""
    wanted = [f for f in details.figures if f["system"] in SYSTEMS and (at is None or f["k"] in (None, at))]
    return side_by_side(wanted, SYSTEMS)


def side_by_side(figures: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> list[Record]:
    """A row a measure, and of a segment, with the figures of the systems beside each other.

    With more than two systems the bounds are left out: they would not fit 80 columns.
    """
    found: dict[str, Record] = {}
    for figure in figures:
        measure = figure["metric"].replace("_at_k", f"@{figure['k']}") if figure["k"] else figure["metric"]
        segment = figure.get("segment")
        name = f"{figure['protocol']} {measure}" + (f", {segment}" if segment else "")
        record = found.setdefault(name, {"measure": name} | dict.fromkeys(systems, ""))
        bounded = figure["lower"] is not None and len(systems) <= 2
        bounds = f" [{figure['lower']:.4f}, {figure['upper']:.4f}]" if bounded else ""
        record[figure["system"]] = f"{figure['value']:.4f}{bounds}"
    return list(found.values())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
