"""Rows with the same key: one stays, the others are counted."""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

KEY = ("user_id", "item_id", "event", "ts")
COLUMNS = ("user_id", "item_id", "event", "value", "ts", "context", "source", "copies", "values")
MOST_HASHES = 500_000  # of repeated keys: some 25 MB at every executor


def deduplicate(rows: DataFrame, persisted: Callable[[DataFrame], DataFrame]) -> DataFrame:
    """One row per (user, item, event, ts): the last by file name, then by place in the file.

    Adds the number of rows of the key, `copies`, and of their distinct values, `values`. Only rows whose key's hash
    occurs again are grouped by the key; if there are more such hashes than every executor can hold, all rows are.

    Parameters
    ----------
    rows : source, block, line, hash (of the key), the key, value, context.
    persisted : persists a frame.
    """
    again = persisted(rows.groupBy("hash").count().where("count > 1").select("hash"))
    found = again.count()
    if found > MOST_HASHES:
        return persisted(_one_a_key(rows))
    alone = rows.withColumns({"copies": F.lit(1).cast("long"), "values": F.lit(1)}).select(*COLUMNS, "hash")
    if not found:
        return alone.select(*COLUMNS)
    again_here = F.broadcast(again)
    repeated = persisted(_one_a_key(rows.join(again_here, on="hash", how="left_semi")))
    return alone.join(again_here, on="hash", how="left_anti").select(*COLUMNS).unionByName(repeated)


def _one_a_key(rows: DataFrame) -> DataFrame:
    last = F.max(F.struct("source", "block", "line", "value", "context"))
    grouped = rows.groupBy(*KEY).agg(
        last.alias("last"),
        F.count(F.lit(1)).alias("copies"),
        F.size(F.collect_set("value")).alias("values"),
    )
    return grouped.select(
        *KEY[:3],
        F.col("last.value").alias("value"),
        "ts",
        F.col("last.context").alias("context"),
        F.col("last.source").alias("source"),
        "copies",
        "values",
    )
