"""The table `comparisons`: models compared on one snapshot, from the plan to the last measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import functions as F

from sparkcf.lake.frames import frame_of, values_of
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables

Row = dict[str, Any]


def write_comparison(tables: LakeTables, comparison_id: str, rows: Sequence[Row]) -> None:
    """Replace all rows of a comparison, in one commit."""
    tables.replace("comparisons", _frame(tables, rows), f"comparison_id = '{comparison_id}'")


def write_compared(tables: LakeTables, row: Row) -> None:
    """Replace the row of one model of a comparison."""
    where = f"comparison_id = '{row['comparison_id']}' AND name = '{row['name']}'"
    tables.replace("comparisons", _frame(tables, [row]), where)


def measured_before(tables: LakeTables, snapshot: str) -> list[Row]:
    """The measured rows of all comparisons of a snapshot."""
    rows = tables.read("comparisons").where((F.col("snapshot") == snapshot) & (F.col("state") == "measured"))
    return [values_of(row) for row in rows.collect()]


def _frame(tables: LakeTables, rows: Sequence[Mapping[str, Any]]) -> Any:
    return frame_of(tables.spark, rows, TABLES["comparisons"].schema)
