"""Compressed sparse rows from triples, by counting: no comparison sort, 64-bit offsets.

A tiny example, also a test. Three rows, four columns; the triples (row, column, value) in any order

    (2, 1, 5.)  (0, 3, 1.)  (2, 0, 2.)  (0, 3, 4.)

become, duplicates summed and each row in the order of its columns,

    indptr  = [0, 1, 1, 3]        # row 1 has no entry
    indices = [3, 0, 1]
    values  = [5., 2., 5.]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel


def build_csr(
    rows: NDArray[np.int32], cols: NDArray[np.int32], values: NDArray[np.float32], n_rows: int, n_cols: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Sort triples into compressed sparse rows and sum duplicates.

    Parameters
    ----------
    rows, cols : int32 (nnz,), in [0, n_rows) and [0, n_cols).
    values : float32 (nnz,).

    Returns
    -------
    indptr int64 (n_rows + 1,), indices int32 (m,), values float32 (m,), with m <= nnz.

    Raises
    ------
    ValueError
        An index is out of range, or the arrays differ in length.
    """
    if not len(rows) == len(cols) == len(values):
        raise ValueError(f"rows, cols and values differ in length: {len(rows)}, {len(cols)}, {len(values)}")
    if len(rows) and (rows.min() < 0 or rows.max() >= n_rows or cols.min() < 0 or cols.max() >= n_cols):
        seen = f"rows {rows.min()}..{rows.max()} of {n_rows}, cols {cols.min()}..{cols.max()} of {n_cols}"
        raise ValueError(f"indices out of range: {seen}")
    place = np.int32 if len(rows) < 2**31 else np.int64  # half the memory if 32 bits suffice
    by_col = _stable_order(cols, n_cols, np.empty(len(cols), place))
    order = _stable_order(rows[by_col], n_rows, np.empty(len(cols), place))
    order = by_col[order]
    return _merge_sorted(rows[order], cols[order], values[order], n_rows)


def take_rows(indptr: NDArray[np.int64], rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Select rows of compressed rows, in the order of `rows`.

    Returns
    -------
    The offsets of the selected rows, int64 (len(rows) + 1,), and the places of their entries in the old arrays.
    """
    counts = np.diff(indptr)[rows]
    taken = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    entries: NDArray[np.int64] = np.repeat(indptr[:-1][rows] - taken[:-1], counts)
    entries += np.arange(taken[-1])
    return taken, entries


@kernel()
def _stable_order(keys, n_keys, order):
    """Fill `order` with the positions of `keys` in ascending order, stable for equal keys."""
    start = np.zeros(n_keys + 1, np.int64)
    for key in keys:
        start[key + 1] += 1
    for key in range(n_keys):
        start[key + 1] += start[key]
    for place in range(keys.size):
        key = keys[place]
        order[start[key]] = place
        start[key] += 1
    return order


@kernel()
def _merge_sorted(rows, cols, values, n_rows):
    indptr = np.zeros(n_rows + 1, np.int64)
    indices = np.empty(cols.size, np.int32)
    merged = np.empty(cols.size, np.float32)
    size = 0
    place = 0
    while place < rows.size:
        row, col = rows[place], cols[place]
        total = 0.0  # float64, so that the sum does not depend on the order of the shuffle
        while place < rows.size and rows[place] == row and cols[place] == col:
            total += values[place]
            place += 1
        indices[size] = col
        merged[size] = total
        size += 1
        indptr[row + 1] += 1
    for row in range(n_rows):
        indptr[row + 1] += indptr[row]
    if size < cols.size:
        return indptr, indices[:size].copy(), merged[:size].copy()
    return indptr, indices, merged
