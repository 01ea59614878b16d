"""Kernels of the mixture model: the mean of each entry, and gradient steps on the rows of a side."""

from __future__ import annotations

import numpy as np

from sparkcf.kernels.jit import kernel


@kernel(fastmath=True)
def entry_means(indptr, indices, own, fixed, out):
    """out[e] = own[row] · fixed[index], float32 (nnz,), for the entries of compressed rows.

    A row's last number is its bias, and so is a fixed row's: the product is that of the others plus both biases.

    Parameters
    ----------
    indptr : int64 (n + 1,).
    indices : int32 (nnz,), rows of `fixed`.
    own : float32 (n, k + 1).
    fixed : float32 (m, k + 1).
    out : float32 (nnz,), overwritten.
    """
    k = own.shape[1] - 1
    for row in range(indptr.size - 1):
        for e in range(indptr[row], indptr[row + 1]):
            other = indices[e]
            total = own[row, k] + fixed[other, k]
            for f in range(k):
                total += own[row, f] * fixed[other, f]
            out[e] = total


@kernel(fastmath=True)
def descend_rows(indptr, indices, weights, targets, fixed, reg, order, first, threads, steps, rate, out):
    """Lower the row problem of `sparkcf.kernels.als` by stochastic gradient steps, entry after entry.

    For an entry e of a row x with n entries: x += rate (a_e (t_e - x · y_e) y_e - reg x / n) / mean a.

    Parameters
    ----------
    indptr, indices, weights : compressed rows; a_e of each entry.
    targets : float32 (nnz,), t_e: the value that x · y_e should have.
    fixed : float32 (m, w).
    reg : float32 (n,).
    order : rows to work on; this call takes order[first::threads].
    steps : passes over each row's entries.
    rate : step size; dividing by the row's mean weight makes it independent of the scale of the weights.
    out : float32 (n, w), initial values and result.
    """
    width = fixed.shape[1]
    for place in range(first, order.size, threads):
        row = order[place]
        begin, end = indptr[row], indptr[row + 1]
        total = np.float32(0.0)
        for e in range(begin, end):
            total += weights[e]
        if total <= 0.0:
            continue
        scale = rate * (end - begin) / total
        decay = scale * reg[row] / (end - begin)
        for _ in range(steps):
            for e in range(begin, end):
                other = indices[e]
                error = targets[e]
                for f in range(width):
                    error -= out[row, f] * fixed[other, f]
                pull = scale * weights[e] * error
                for f in range(width):
                    out[row, f] += pull * fixed[other, f] - decay * out[row, f]
