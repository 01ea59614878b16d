"""The table of measures: figures of evaluations, and what a fit logged (protocol `fit`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pyspark.sql import functions as F

from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables

Figure = tuple[str, str, int | None, float, float | None, float | None, int]  # system, metric, k, value, bounds, users


def write_figures(tables: LakeTables, run_id: str, protocol: str, figures: Iterable[Figure]) -> None:
    """Replace a run's figures of one protocol."""
    rows = [(run_id, figure[0], protocol, *figure[1:]) for figure in figures]
    tables.replace("metrics", _frame(tables, rows), f"run_id = '{run_id}' AND protocol = '{protocol}'")


def write_fit_log(tables: LakeTables, run_id: str, logged: Iterable[tuple[str, int | None, float]]) -> None:
    """Append what a fit logged: metric, number of the sweep or epoch, value."""
    rows = [(run_id, "model", "fit", metric, k, value, None, None, None) for metric, k, value in logged]
    tables.append("metrics", _frame(tables, rows))


def fit_figure(tables: LakeTables, run_id: str, metric: str) -> float | None:
    """A figure of the fit as a whole, such as the mean that its biases stand on; None where it was not kept."""
    of_fit = tables.read("metrics").where(F.col("run_id") == run_id).where("protocol = 'fit' AND k IS NULL")
    row = of_fit.where(F.col("metric") == metric).first()
    return None if row is None else float(row["value"])


def _frame(tables: LakeTables, rows: Sequence[tuple[Any, ...]]) -> Any:
    return tables.spark.createDataFrame(rows, TABLES["metrics"].schema).coalesce(1)
