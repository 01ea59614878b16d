"""Conversions between Arrow columns and numpy arrays: vectors, compressed rows, factors collected on the driver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

F32 = NDArray[np.float32]


def vectors_to_arrow(vectors: F32) -> Any:
    """A (n, k) array as an Arrow list column."""
    import pyarrow as pa

    n, k = vectors.shape
    offsets = np.arange(0, (n + 1) * k, k, dtype=np.int32) if k else np.zeros(n + 1, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(vectors).reshape(-1)))


def vectors_of(column: Any, rank: int) -> tuple[NDArray[np.bool_], F32]:
    """Which rows of an Arrow list column are not null, bool (n,), and their vectors, float32 (n, rank); null: zeros."""
    present = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    vectors = np.zeros((len(column), rank), np.float32)
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    vectors[present] = flat.reshape(int(present.sum()), rank)
    return present, vectors


def csr_of(column: Any) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """An Arrow list<int> column as compressed rows; null is an empty row."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return indptr, column.flatten().to_numpy(zero_copy_only=False).astype(np.int32)


def entries_of(column: Any) -> tuple[NDArray[np.int64], NDArray[np.int32], F32]:
    """An Arrow column of feature lists as indptr, feat, val; null is an empty row."""
    ptr = np.concatenate([[0], np.cumsum(lengths(column), dtype=np.int64)])
    feat, val = (part.to_numpy(zero_copy_only=False) for part in column.flatten().flatten())
    return ptr, feat.astype(np.int32), val.astype(np.float32)


def lengths(column: Any) -> NDArray[Any]:
    """Lengths of the lists of an Arrow column; 0 for null."""
    import pyarrow.compute as pc

    found: NDArray[Any] = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return found


def collect_factors(frame: DataFrame, n: int, rank: int) -> tuple[F32, F32, NDArray[np.bool_]]:
    """Collect a frame of idx, factor, bias: vectors (n, rank), biases (n,), and which rows the frame has, bool (n,)."""
    vectors, bias, present = np.zeros((n, rank), np.float32), np.zeros(n, np.float32), np.zeros(n, bool)
    for rows, factors, biases in _packed(frame, rank):
        vectors[rows], bias[rows], present[rows] = factors, biases, True
    return vectors, bias, present


def _packed(items: DataFrame, rank: int) -> Iterator[tuple[Any, Any, Any]]:
    """The rows in a few large parts: each Arrow batch is collected as one row of bytes."""
    import pyarrow as pa
    from pyspark.sql import functions as F

    def pack(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            values = batch.column("factor").flatten().to_numpy(zero_copy_only=False)
            columns = (batch.column("idx"), pa.array(values), batch.column("bias"))
            data = [[c.to_numpy(zero_copy_only=False).tobytes()] for c in columns]
            yield pa.RecordBatch.from_arrays([pa.array(d, pa.binary()) for d in data], names=["idx", "factor", "bias"])

    typed = items.select(F.col("idx").cast("int"), F.col("factor").cast("array<float>"), F.col("bias").cast("float"))
    for row in typed.mapInArrow(pack, "idx binary, factor binary, bias binary").toLocalIterator():
        rows = np.frombuffer(row["idx"], np.int32)
        factors = np.frombuffer(row["factor"], np.float32).reshape(len(rows), rank)
        yield rows, factors, np.frombuffer(row["bias"], np.float32)
