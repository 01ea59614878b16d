"""Weighted sums of products of rows' entries: a slice of a Gram matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel


@kernel()
def add_gram(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float32],
    weights: NDArray[np.float64],
    first: int,
    out: NDArray[np.float64],
) -> None:
    """out[i - first, j] += sum_u weights[u] x_ui x_uj, for the columns i from `first` on for which `out` has rows.

    Parameters
    ----------
    indptr, indices, values : (n + 1,), (nnz,), (nnz,), compressed rows x_u.
    weights : (n,), of the rows.
    first : column of the first row of `out`.
    out : (rows, columns), added to.
    """
    last = first + out.shape[0]
    for u in range(indptr.size - 1):
        for p in range(indptr[u], indptr[u + 1]):
            i = indices[p]
            if i < first or i >= last:
                continue
            row = out[i - first]
            scale = weights[u] * values[p]
            for q in range(indptr[u], indptr[u + 1]):
                row[indices[q]] += scale * values[q]
