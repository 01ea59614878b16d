"""The table `metrics`: figures of evaluations, and the log of a fit (protocol `fit`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pyspark.sql import functions as F

from sparkcf.activity import activity
from sparkcf.lake.figures import Figure
from sparkcf.lake.frames import frame_of
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables


def write_figures(
    tables: LakeTables, run_id: str, protocol: str, settings: dict[str, Any], figures: Iterable[Figure]
) -> None:
    """Replace a run's figures of one protocol. `settings` : settings of the test, see `ranking.evaluate`."""
    settings_json, figures = json.dumps(settings, sort_keys=True), list(figures)
    rows = [(run_id, f.system, protocol, *f[1:8], settings_json, f.replicates) for f in figures]
    tables.replace("metrics", _frame(tables, rows), f"run_id = '{run_id}' AND protocol = '{protocol}'")
    activity.figures[run_id] = (protocol, figures)


def write_fit_log(tables: LakeTables, run_id: str, logged: Iterable[tuple[str, int | None, float, str | None]]) -> None:
    """Append the log of a fit: (metric, number of the sweep or epoch, value, segment) rows."""
    rows = [
        (run_id, "model", "fit", metric, k, value, *[None] * 3, segment, None, None)
        for metric, k, value, segment in logged
    ]
    tables.append("metrics", _frame(tables, rows))


def read_figures(tables: LakeTables, run_id: str, metric: str, k: int | None) -> dict[str, dict[str, Any]]:
    """One measure of a run: {protocol: {"settings": ..., "figures": {(system, segment): Figure}}}."""
    rows = tables.read("metrics").where(F.col("run_id") == run_id).where("protocol <> 'fit'")
    found: dict[str, dict[str, Any]] = {}
    for row in rows.where((F.col("metric") == metric) & F.col("k").eqNullSafe(F.lit(k))).collect():
        entry = found.setdefault(row["protocol"], {"settings": json.loads(row["settings"] or "{}"), "figures": {}})
        entry["figures"][row["system"], row["segment"]] = Figure(*(row[name] for name in Figure._fields))
    return found


def measured_protocols(tables: LakeTables, run_id: str) -> list[str]:
    """The protocols among q2 and q4 (ranked lists for known users) by which a run was measured, sorted."""
    rows = tables.read("metrics").where(F.col("run_id") == run_id).where("protocol IN ('q2', 'q4')")
    return sorted(row["protocol"] for row in rows.select("protocol").distinct().collect())


def fit_figures(tables: LakeTables, run_id: str, metrics: Sequence[str]) -> dict[str, float]:
    """Stored figures of the whole fit by name, such as the mean that predictions add."""
    of_fit = tables.read("metrics").where(F.col("run_id") == run_id).where("protocol = 'fit' AND k IS NULL")
    rows = of_fit.where(F.col("metric").isin(*metrics) & F.col("segment").isNull()).select("metric", "value").collect()
    return {row["metric"]: float(row["value"]) for row in rows}


def _frame(tables: LakeTables, rows: Sequence[tuple[Any, ...]]) -> Any:
    schema = TABLES["metrics"].schema
    return frame_of(tables.spark, (dict(zip(schema.names, row, strict=True)) for row in rows), schema)
