"""Single rows of frames, read by the driver."""

from __future__ import annotations

from pyspark.sql import DataFrame, Row


def one_row(rows: DataFrame) -> Row:
    """The only row of an aggregation or a command."""
    (row,) = rows.collect()
    return row
