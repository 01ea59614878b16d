"""Packed rows: one user's interactions in one row of a table, as bytes. Numpy only.

User 7 with items 2 and 5, of values 1.0 and 3.0:

    user_idx 7   items int32 bytes 02000000 05000000   values float32 bytes 0000803f 00004040   count 2

Many rows become compressed rows by joining their bytes: no loop over the entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.csr import take_rows


@dataclass(frozen=True)
class PackedRows:
    """Compressed rows with their ids.

    ids : int64 (n,).
    indptr : int64 (n + 1,).
    indices : int32 (nnz,).
    values : float32 (nnz,).
    """

    ids: NDArray[np.int64]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64] | slice) -> PackedRows:
        """The chosen rows, in the order of `rows`."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            first, last, _ = rows.indices(len(self))
            here = slice(int(self.indptr[first]), int(self.indptr[last]))
            indptr = self.indptr[first : last + 1] - self.indptr[first]
            return PackedRows(self.ids[first:last], indptr, self.indices[here], self.values[here])
        indptr, entries = take_rows(self.indptr, np.arange(len(self))[rows])
        return PackedRows(self.ids[rows], indptr, self.indices[entries], self.values[entries])


NO_ROWS = PackedRows(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))


def unpack(ids: NDArray[np.int64], items: Iterable[bytes], values: Iterable[bytes]) -> PackedRows:
    """Compressed rows from the bytes of the table.

    Raises ValueError if a row has more or fewer values than items.
    """
    items, values = list(items), list(values)
    lengths = np.fromiter(map(len, items), np.int64, len(items))
    if (lengths != np.fromiter(map(len, values), np.int64, len(values))).any():
        raise ValueError("a packed row has not as many values as items: write the snapshot again by jobs/prepare.py")
    indptr = np.concatenate([[0], np.cumsum(lengths // 4)]).astype(np.int64)
    return PackedRows(
        np.asarray(ids, np.int64),
        indptr,
        np.frombuffer(b"".join(items), np.int32),
        np.frombuffer(b"".join(values), np.float32),
    )


def fold_in_and_heldout(rows: PackedRows, share: float, seed: int) -> tuple[PackedRows, PackedRows]:
    """Split each row by a hash of its entries: a rounded `share` to fold in, the rest held out; at least one in each.

    A row of one entry has nothing held out.
    """
    counts = np.diff(rows.indptr)
    row_of = np.repeat(np.arange(len(rows)), counts)
    key = _hashed(rows.ids[row_of].astype(np.uint64) << np.uint64(32) | rows.indices.astype(np.uint64), seed)
    order = np.lexsort((key, row_of))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - rows.indptr[:-1][row_of]
    first = np.clip(np.floor(share * counts + 0.5).astype(np.int64), 1, np.maximum(counts - 1, 1))
    known = place < first[row_of]
    return _only(rows, known, row_of), _only(rows, ~known, row_of)


def _only(rows: PackedRows, kept: NDArray[np.bool_], row_of: NDArray[np.int64]) -> PackedRows:
    counts = np.bincount(row_of[kept], minlength=len(rows))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return PackedRows(rows.ids, indptr, rows.indices[kept], rows.values[kept])


def _hashed(numbers: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """splitmix64 of every number."""
    with np.errstate(over="ignore"):
        z = numbers + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def join(parts: list[PackedRows]) -> PackedRows:
    """The rows of all parts, concatenated."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return NO_ROWS
    ends = np.cumsum([0, *(part.indptr[-1] for part in parts)])
    shifted = [part.indptr[1:] + end for part, end in zip(parts, ends, strict=False)]
    return PackedRows(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([[0], *shifted]).astype(np.int64),
        np.concatenate([p.indices for p in parts]),
        np.concatenate([p.values for p in parts]),
    )
