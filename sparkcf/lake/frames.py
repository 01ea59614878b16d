"""Frames of the driver's own values, frames that are read several times, and single rows."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sparkcf.spark import DataFrame, F, SparkSession, StorageLevel

if TYPE_CHECKING:
    from pyspark.sql import Row
    from pyspark.sql.types import StructType

TIMES = "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"


def one_row(rows: DataFrame) -> Row:
    """The only row of an aggregation or a command."""
    (row,) = rows.collect()
    return row


@contextmanager
def kept(frame: DataFrame) -> Iterator[DataFrame]:
    """Keep a frame that is read several times, until the block ends; where an outer block keeps it, it stays.

    Spark recognises a frame by its plan: one built anew from the same versions of the same tables is the same frame.
    """
    level = frame.storageLevel
    if level.useMemory or level.useDisk:
        yield frame
        return
    frame = frame.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        yield frame
    finally:
        frame.unpersist()


def side_by_side(frame: DataFrame) -> Iterator[Row]:
    """The rows of a frame, one partition at a time on the driver, but computed as many at a time as there are slots.

    `toLocalIterator` alone starts a partition's task when the rows of the one before have been taken.
    """
    with kept(frame):
        frame.count()
        yield from frame.toLocalIterator()


def frame_of(spark: SparkSession, rows: Iterable[Mapping[str, Any]], schema: StructType) -> DataFrame:
    """A frame of one partition with a few rows of Python values; a column without a value is null.

    The rows are one literal of the query, as JSON: `createDataFrame` would start a Python worker to unpickle them.

    Parameters
    ----------
    rows : values by column. A datetime without a zone is UTC, on every host.
    """
    from pyspark.sql.types import ArrayType

    text = json.dumps([dict(row) for row in rows], default=_text)
    options = {"mode": "FAILFAST", "timestampFormat": TIMES}
    parsed = F.from_json(F.lit(text), ArrayType(schema), options)
    return spark.range(0, 1, 1, 1).select(F.explode(parsed).alias("row")).select("row.*")


def values_of(row: Row) -> dict[str, Any]:
    """A row's values as `frame_of` takes them: Spark gives times without a zone, in that of the host."""
    values = row.asDict(recursive=True)
    return {k: v.astimezone(dt.UTC) if isinstance(v, dt.datetime) else v for k, v in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, dt.datetime):
        utc = value if value.tzinfo is None else value.astimezone(dt.UTC)
        return f"{utc:%Y-%m-%dT%H:%M:%S.%f}Z"
    if isinstance(value, dt.date):
        return value.isoformat()
    raise TypeError(f"{value!r} is no value of a column")
