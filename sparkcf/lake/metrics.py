"""The table of measures: figures of evaluations, and what a fit logged (protocol `fit`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pyspark.sql import functions as F

from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables


class Figure(NamedTuple):
    """A measured value, with its bounds and bootstrap replicates where it has them: columns of `metrics`."""

    system: str
    metric: str
    k: int | None
    value: float
    lower: float | None
    upper: float | None
    users: int
    segment: str | None = None
    replicates: list[float] | None = None


def write_figures(
    tables: LakeTables, run_id: str, protocol: str, settings: dict[str, Any], figures: Iterable[Figure]
) -> None:
    """Replace a run's figures of one protocol. `settings` : what decided the test, see `ranking.evaluate`."""
    told = json.dumps(settings, sort_keys=True)
    rows = [(run_id, f.system, protocol, *f[1:8], told, f.replicates) for f in figures]
    tables.replace("metrics", _frame(tables, rows), f"run_id = '{run_id}' AND protocol = '{protocol}'")


def write_fit_log(tables: LakeTables, run_id: str, logged: Iterable[tuple[str, int | None, float, str | None]]) -> None:
    """Append what a fit logged: metric, number of the sweep or epoch, value, segment."""
    rows = [
        (run_id, "model", "fit", metric, k, value, *[None] * 3, segment, None, None)
        for metric, k, value, segment in logged
    ]
    tables.append("metrics", _frame(tables, rows))


def read_figures(tables: LakeTables, run_id: str, metric: str, k: int | None) -> dict[str, dict[str, Any]]:
    """By protocol its `settings`, and `figures`: {(system, segment): Figure} of one measure of a run."""
    rows = tables.read("metrics").where(F.col("run_id") == run_id).where("protocol <> 'fit'")
    found: dict[str, dict[str, Any]] = {}
    for row in rows.where((F.col("metric") == metric) & F.col("k").eqNullSafe(F.lit(k))).collect():
        of = found.setdefault(row["protocol"], {"settings": json.loads(row["settings"] or "{}"), "figures": {}})
        of["figures"][row["system"], row["segment"]] = Figure(*(row[name] for name in Figure._fields))
    return found


def measured_protocols(tables: LakeTables, run_id: str) -> list[str]:
    """The protocols of ranked lists for known users (q2, q4) by which a run was measured, in order."""
    rows = tables.read("metrics").where(F.col("run_id") == run_id).where("protocol IN ('q2', 'q4')")
    return sorted(row["protocol"] for row in rows.select("protocol").distinct().collect())


def fit_figure(tables: LakeTables, run_id: str, metric: str) -> float | None:
    """A figure of the fit as a whole, such as the mean that predictions add; None where it was not stored."""
    of_fit = tables.read("metrics").where(F.col("run_id") == run_id).where("protocol = 'fit' AND k IS NULL")
    row = of_fit.where(F.col("metric") == metric).first()
    return None if row is None else float(row["value"])


def _frame(tables: LakeTables, rows: Sequence[tuple[Any, ...]]) -> Any:
    return tables.spark.createDataFrame(rows, TABLES["metrics"].schema).coalesce(1)
