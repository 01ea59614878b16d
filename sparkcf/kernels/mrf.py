"""Sparse products of items: an item's row of the Gram matrix, the small block of its neighbours, scores of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@kernel()
def add_products(
    users: I32,
    scales: F64,
    indptr: I64,
    indices: I32,
    values: F32,
    total: F64,
    touched: I32,
    last: I32,
    mark: int,
) -> int:
    """total[j] += sum_u scales[u] x_uj over the rows of an item's users: the item's row of the Gram matrix.

    Parameters
    ----------
    users : (n,), rows to add.
    scales : (n,), the factor of each: its weight times its value of the item.
    indptr, indices, values : compressed rows x_u.
    total : (m,), zeros, added to.
    touched : (m,), receives the columns that were added to, in no order.
    last : (m,), the `mark` of the call that last touched a column.
    mark : a number that no earlier call with the same `last` had.

    Returns
    -------
    int
        The number of these columns.
    """
    n = 0
    for e in range(users.size):
        u = users[e]
        for p in range(indptr[u], indptr[u + 1]):
            j = indices[p]
            if last[j] != mark:
                last[j] = mark
                touched[n] = j
                n += 1
            total[j] += scales[e] * values[p]
    return n


@kernel()
def fill_block(
    chosen: I32,
    indptr: I64,
    indices: I32,
    values: F32,
    place: I32,
    out: F64,
) -> None:
    """out[a, b] = A[chosen[a], chosen[b]] of a sparse matrix A, 0 where A has no entry.

    Parameters
    ----------
    chosen : (d,), distinct rows and columns.
    indptr, indices, values : A in compressed rows, (m + 1,), (nnz,), (nnz,).
    place : (m,), -1 everywhere; so it is again afterwards.
    out : (d, d), overwritten.
    """
    for a in range(chosen.size):
        place[chosen[a]] = a
    for a in range(chosen.size):
        out[a, :] = 0.0
        for p in range(indptr[chosen[a]], indptr[chosen[a] + 1]):
            b = place[indices[p]]
            if b >= 0:
                out[a, b] = values[p]
    for a in range(chosen.size):
        place[chosen[a]] = -1


@kernel()
def multiply_rows(
    indptr: I64,
    indices: I32,
    values: F32,
    b_indptr: I64,
    b_indices: I32,
    b_values: F32,
    out: F32,
) -> None:
    """out[u] = x_u B of compressed rows x_u and a sparse matrix B in compressed rows; an index of -1 contributes 0.

    Parameters
    ----------
    indptr, indices, values : (n + 1,), (nnz,), (nnz,).
    b_indptr, b_indices, b_values : B.
    out : (n, columns of B), zeros, added to.
    """
    for u in range(indptr.size - 1):
        row = out[u]
        for p in range(indptr[u], indptr[u + 1]):
            i = indices[p]
            if i < 0:
                continue
            for q in range(b_indptr[i], b_indptr[i + 1]):
                row[b_indices[q]] += values[p] * b_values[q]
