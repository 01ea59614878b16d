"""Fit Spark's query settings to the size of what is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PARTITION_BYTES = 16 << 20  # of a shuffle, half of a file split: a few hundred thousand rows, which fit a small heap
MOST_PARTITIONS = 4000
SMALL_BYTES = 8 << 20  # to compile a query's Java code takes longer than to interpret it on this much


def size_queries(spark: Any, *frames: Any) -> None:
    """Set shuffle partitions and code generation by the size of the frames' files; settings of the user are kept.

    Shuffle partitions: a few per slot, or about PARTITION_BYTES each if the files are large. If they are small, queries
    are interpreted: a night has about a hundred, and of most the code would run once. Without frames nothing is known
    of the size, and queries are compiled.
    """
    user_conf = spark.sparkContext.getConf()
    size = sum(_input_bytes(frame) for frame in frames)
    least = max(8, 3 * spark.sparkContext.defaultParallelism)
    fitted = {
        "spark.sql.shuffle.partitions": max(least, min(-(-size // PARTITION_BYTES), MOST_PARTITIONS)),
        "spark.sql.codegen.wholeStage": str(not frames or size > SMALL_BYTES).lower(),
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": PARTITION_BYTES,  # Spark's default merges up to 64 MB
        "spark.sql.files.maxPartitionBytes": 2 * PARTITION_BYTES,
    }
    for key, value in fitted.items():
        if user_conf.get(key) is None:
            spark.conf.set(key, value)


@contextmanager
def query_settings(spark: Any, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of Spark's queries within the block; afterwards they are as before."""
    before = {key: spark.conf.get(key, None) for key in settings}
    for key, value in settings.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, old in before.items():
            spark.conf.unset(key) if old is None else spark.conf.set(key, old)


def _input_bytes(frame: Any) -> int:
    """Size in bytes of the files that a frame reads, by Spark's plan."""
    leaves = frame._jdf.queryExecution().optimizedPlan().collectLeaves()
    return sum(int(leaves.apply(i).stats().sizeInBytes()) for i in range(leaves.size()))
