"""Top-K lists of every user by blocks: users' vectors against all items, masked, selected, exact.

The item side is shared with the executors as mapped files, see `sparkcf.data.shared`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from sparkcf.data.shared import SharedArrays, share
from sparkcf.kernels.topk import rank_block

F32 = NDArray[np.float32]
LISTS = "user_idx int, items array<int>, scores array<float>, by_model boolean"
FILES = ("vectors", "bias", "eligible", "fallback")


@dataclass(frozen=True)
class ItemSide:
    """All items in this process.

    `vectors` float32 (m, k), `bias` float32 (m,), `eligible` bool (m,): may be recommended and has a vector,
    `fallback` float32 (m,): popularity, 0 where nobody has the item.
    """

    vectors: F32
    bias: F32
    eligible: NDArray[np.bool_]
    fallback: F32

    def share(self, spark: Any) -> SharedItems:
        """Hand the arrays to the executors."""
        return SharedItems(share(spark, **{name: getattr(self, name) for name in FILES}))


@dataclass(frozen=True)
class SharedItems:
    """A name for an ItemSide that every executor can open."""

    arrays: SharedArrays

    def open(self) -> ItemSide:
        return ItemSide(*self.arrays.open())


def item_side(items: DataFrame, popularity: DataFrame, n_items: int, rank: int, banned: DataFrame | None) -> ItemSide:
    """Collect the item side in this process, packed.

    Parameters
    ----------
    items : idx, factor, bias. popularity : item_idx, score. banned : item_idx of the ineligible; None: all may be.
    """
    vectors, bias, eligible = collect_factors(items, n_items, rank)
    fallback = np.zeros(n_items, np.float32)
    for row in popularity.select("item_idx", "score").toLocalIterator():
        fallback[row["item_idx"]] = row["score"]
    if banned is not None:
        for row in banned.select("item_idx").toLocalIterator():
            eligible[row["item_idx"]] = False
    return ItemSide(vectors, bias, eligible, fallback)


def collect_factors(frame: DataFrame, n: int, rank: int) -> tuple[F32, F32, NDArray[np.bool_]]:
    """Vectors (n, rank), biases (n,) and which rows there are (n,), from a frame of idx, factor, bias."""
    vectors, bias, present = np.zeros((n, rank), np.float32), np.zeros(n, np.float32), np.zeros(n, bool)
    for rows, factors, biases in _packed(frame, rank):
        vectors[rows], bias[rows], present[rows] = factors, biases, True
    return vectors, bias, present


def _packed(items: DataFrame, rank: int) -> Iterator[tuple[Any, Any, Any]]:
    """The rows in a few large pieces: an Arrow batch becomes one row of bytes."""
    import pyarrow as pa

    def pack(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            values = batch.column("factor").flatten().to_numpy(zero_copy_only=False)
            columns = (batch.column("idx"), pa.array(values), batch.column("bias"))
            data = [[c.to_numpy(zero_copy_only=False).tobytes()] for c in columns]
            yield pa.RecordBatch.from_arrays([pa.array(d, pa.binary()) for d in data], names=["idx", "factor", "bias"])

    typed = items.select(F.col("idx").cast("int"), F.col("factor").cast("array<float>"), F.col("bias").cast("float"))
    for row in typed.mapInArrow(pack, "idx binary, factor binary, bias binary").toLocalIterator():
        factors = np.frombuffer(row["factor"], np.float32).reshape(-1, rank)
        yield np.frombuffer(row["idx"], np.int32), factors, np.frombuffer(row["bias"], np.float32)


def top_k(users: DataFrame, shared: SharedItems, k: int) -> DataFrame:
    """The lists of `ranked_lists`, a row an item: user_idx, position (from 1), item_idx, score, reason."""
    lists = ranked_lists(users, shared, k)
    listed = lists.select("user_idx", "by_model", F.posexplode(F.arrays_zip("items", "scores")).alias("at", "entry"))
    return listed.select(
        "user_idx",
        (F.col("at") + 1).alias("position"),
        F.col("entry.items").alias("item_idx"),
        F.col("entry.scores").alias("score"),
        F.when(F.col("by_model"), "model").otherwise("fallback").alias("reason"),
    )


def ranked_lists(users: DataFrame, shared: SharedItems, k: int) -> DataFrame:
    """Lists of at most k items, a row a user as LISTS: between Python and the JVM far cheaper than a row an item.

    Parameters
    ----------
    users : user_idx; factor, null for a user without one: they get popularity, by_model false;
        seen, array<int> of items not to list, null for none.
    """

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        items = shared.open()
        with threadpool_limits(1, user_api="blas"):
            for batch in batches:
                if batch.num_rows:
                    yield _ranked_batch(batch, items, k)

    return users.select("user_idx", "factor", "seen").mapInArrow(work, LISTS)


def _ranked_batch(batch: Any, items: ItemSide, k: int) -> Any:
    import pyarrow as pa

    indices, scores, has_factor = rank_users(batch.column("factor"), *csr_of(batch.column("seen")), items, k)
    full = indices >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(full.sum(axis=1))]).astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(values[full])) for values in (indices, scores)]
    columns = [batch.column("user_idx").cast(pa.int32()), *lists, pa.array(has_factor)]
    return pa.RecordBatch.from_arrays(columns, names=["user_idx", "items", "scores", "by_model"])


def rank_users(
    factor: Any, seen_indptr: NDArray[np.int64], seen_indices: NDArray[np.int32], items: ItemSide, k: int
) -> tuple[NDArray[np.int32], F32, NDArray[np.bool_]]:
    """Lists of a batch of users: by their vectors (an Arrow list column), by popularity where that is null."""
    has_factor, vectors = vectors_of(factor, items.vectors.shape[1])
    n = len(has_factor)
    indices, scores = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
    sides = (
        (True, vectors, items.vectors, items.bias),
        (False, np.ones((n, 1), np.float32), items.fallback[:, None], None),
    )
    for flag, left, right, bias in sides:
        rows = np.flatnonzero(has_factor == flag)
        if len(rows):
            indptr, kept = take_rows(seen_indptr, seen_indices, rows)
            indices[rows], scores[rows] = rank_block(left[rows], right, bias, items.eligible, indptr, kept, k)
    return indices, scores, has_factor


def vectors_of(column: Any, rank: int) -> tuple[NDArray[np.bool_], F32]:
    """Which rows of an Arrow list column have a vector, bool (n,), and the vectors, float32 (n, rank), else zeros."""
    present = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    vectors = np.zeros((len(column), rank), np.float32)
    vectors[present] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, rank)
    return present, vectors


def csr_of(column: Any) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """An Arrow list<int> column as compressed rows; null is an empty row."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return indptr, column.flatten().to_numpy(zero_copy_only=False).astype(np.int32)


def take_rows(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Some rows of compressed rows."""
    counts = np.diff(indptr)[rows]
    taken = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    source = np.repeat(indptr[rows] - taken[:-1], counts) + np.arange(taken[-1])
    return taken, indices[source]
