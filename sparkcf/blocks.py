"""Blocks: a worker's rows of both sides, and the routes by which fixed factors reach them.

Row r of a side with W workers lives at worker r mod W, at place r div W. Every interaction goes to the worker of its
user and to the worker of its item, in one shuffle. There it becomes compressed sparse rows whose column indices point
into what this worker receives from all workers: only the rows that it needs, packed.

A tiny example, also a test. Two workers, users 0..2 and items 0..3, the pairs (0,0) (0,3) (1,1) (2,0) (2,3).
Worker 0 solves users 0 and 2, at places 0 and 1. They need items 0 and 3, that is place 0 of worker 0 and place 1 of
worker 1, so the received rows are [item 0, item 3] and

    needed  = [[0], [1]]          # places asked of worker 0 and of worker 1
    indptr  = [0, 2, 4]
    indices = [0, 1, 0, 1]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.gang import Gang, numpy_columns
from sparkcf.kernels.csr import build_csr

USER, ITEM = 0, 1
KINDS = ("user", "item")


@dataclass
class Block:
    """One side's rows at one worker.

    `indptr` int64 (n + 1,), `indices` int32 (nnz,) into the received rows, `values` float32 (nnz,);
    `needed[w]`: int64 places asked of worker w; `sends[w]`: places of the *other* side's rows here that w asked for.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    needed: list[NDArray[np.int64]]
    sends: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.diff(self.indptr)


@dataclass
class Parts:
    """What the shuffle brought to a worker, by side: triples, and the rows of a warm start."""

    triples: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]]
    starts: list[tuple[NDArray[np.int32], NDArray[np.float32]] | None]


def shuffled(pairs: DataFrame, workers: int, starts: dict[str, DataFrame] | None = None) -> DataFrame:
    """Send every pair to the worker of its user and to that of its item; one partition a worker.

    Parameters
    ----------
    pairs : user_idx, item_idx, value.
    starts : by side, (idx, factor) rows to begin from; they travel in the same shuffle.

    Returns
    -------
    DataFrame
        kind (0 user row, 1 item row, 2 user start, 3 item start), row, col, value and, with starts, vector.
    """
    worker, value = F.col("worker"), F.col("value").cast("float")

    def rows(kind: int, row: str, col: str) -> Column:
        return F.struct(
            F.pmod(F.col(row), F.lit(workers)).alias("worker"),
            F.lit(kind).cast("byte").alias("kind"),
            (F.col(row) / workers).cast("int").alias("row"),
            F.col(col).alias("col"),
            value.alias("value"),
        )

    copies = F.array(rows(USER, "user_idx", "item_idx"), rows(ITEM, "item_idx", "user_idx"))
    tagged = pairs.select(F.inline(copies))
    if starts:
        nothing = F.lit(None).cast("array<float>")
        tagged = tagged.withColumn("vector", nothing)
        for side, name in enumerate(KINDS):
            if name in starts:
                start = starts[name].select(
                    F.pmod(F.col("idx"), F.lit(workers)).alias("worker"),
                    F.lit(2 + side).cast("byte").alias("kind"),
                    (F.col("idx") / workers).cast("int").alias("row"),
                    F.lit(0).alias("col"),
                    F.lit(0.0).cast("float").alias("value"),
                    F.col("factor").alias("vector"),
                )
                tagged = tagged.unionByName(start)
    keys = partition_keys(pairs, workers)
    return tagged.repartition(workers, F.array(*map(F.lit, keys))[worker]).drop("worker")


def partition_keys(frame: DataFrame, partitions: int) -> list[int]:
    """Integers whose Spark hash falls on partition 0, 1, …: partitioning by them is partitioning by number."""
    bucket = F.pmod(F.hash("id"), F.lit(partitions))
    candidates = frame.sparkSession.range(64 * partitions, numPartitions=1).select(F.col("id").cast("int"))
    found = candidates.groupBy(bucket.alias("p")).agg(F.min("id").alias("key")).collect()
    keys = {row["p"]: row["key"] for row in found}
    return [keys[p] for p in range(partitions)]


def read_parts(batches: Iterable[Any], warm: bool, width: int) -> Parts:
    """Arrow batches of `shuffled` as arrays. `width`: length of a start's vector."""
    batches = list(batches)
    kinds, rows, cols, values = numpy_columns(batches, ("kind", "row", "col", "value"))
    starts: list[list[tuple[Any, Any]]] = [[], []]
    if warm:
        for batch, kind, row in zip(batches, kinds, rows, strict=True):
            for side in (USER, ITEM):
                chosen = np.flatnonzero(kind == 2 + side)
                if len(chosen):
                    vectors = batch.column("vector").take(_arrow_int(chosen)).flatten()
                    starts[side].append((row[chosen], vectors.to_numpy(zero_copy_only=False).reshape(-1, width)))
    kind = _joined(kinds, np.int8)
    row, col, value = _joined(rows, np.int32), _joined(cols, np.int32), _joined(values, np.float32)
    triples = []
    for side in (USER, ITEM):
        chosen = kind == side
        triples.append((row[chosen], col[chosen], value[chosen]))
    return Parts(triples, [_stacked(s) if s else None for s in starts])


def _arrow_int(values: Any) -> Any:
    import pyarrow

    return pyarrow.array(values)


def _joined(arrays: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.empty(0, dtype)


def _stacked(parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def places(n: int, rank: int, workers: int) -> int:
    """How many of a side's n rows live at a worker."""
    return (n - rank + workers - 1) // workers


def row_ids(n: int, rank: int, workers: int) -> NDArray[np.int64]:
    """The dense indices of a worker's rows, in order of their places."""
    return np.arange(rank, n, workers, dtype=np.int64)


def build_block(
    triples: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]],
    n_own: int,
    n_other: int,
    workers: int,
) -> Block:
    """Compressed rows of one side; `triples` = (place of the row here, column's dense index, value).

    Parameters
    ----------
    n_own : rows of the side at this worker. n_other : rows of the other side, over all workers.
    """
    indptr, cols, values = build_csr(*triples, n_own, n_other)
    wanted = np.zeros(n_other, bool)
    wanted[cols] = True
    needed = [np.flatnonzero(wanted[w::workers]) for w in range(workers)]
    position = np.zeros(n_other, np.int32)
    begin = 0
    for w, asked in enumerate(needed):
        position[w::workers][asked] = np.arange(begin, begin + len(asked), dtype=np.int32)
        begin += len(asked)
    return Block(indptr, position[cols], values, needed)


def exchange_routes(blocks: Sequence[Block], gang: Gang) -> None:
    """Tell every worker once which of its rows the others need."""
    for block in blocks:
        block.sends = [asked.copy() for asked in gang.exchange(block.needed)]


def received(block: Block, other_factors: NDArray[np.float32], gang: Gang) -> NDArray[np.float32]:
    """The other side's rows that this block needs, float32 (needed, k), from all workers."""
    parts = gang.exchange([other_factors[asked] for asked in block.sends])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def result_batches(chunks: Iterator[Any], size: int = 10_000) -> Iterator[Any]:
    """Arrow batches of at most `size` rows, so that no message grows with the block."""
    for table in chunks:
        yield from table.to_batches(max_chunksize=size)
