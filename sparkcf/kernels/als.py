"""Row solves of alternating least squares over one block, the other side's factors fixed.

For every row u with entries j (weight a_j, target b_j, fixed vector y_j, offset o_j) the kernels minimise

    x^T G x + sum_j [ a_j (x·y_j)^2 - 2 (b_j - a_j o_j) x·y_j ] + reg_u |x|^2

that is, they solve A x = b with A = G + sum_j a_j y_j y_j^T + reg_u I and b = sum_j (b_j - a_j o_j) y_j. G is the
weighted Gramian of all fixed vectors (implicit) or zero (explicit). What a, b, G and reg are for each objective stands
in `sparkcf.objective`. A row without entries gets zeros.

The minimum's value, `loss_u` = x^T A x - 2 b·x, comes for nothing: the objective of a sweep is the sum over the rows
of the side solved last, plus what does not depend on that side.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from sparkcf.kernels.jit import kernel

CHUNK = 128  # entries that are gathered for one matrix product


def work_order(indptr: np.ndarray) -> np.ndarray:
    """Rows from the longest to the shortest: dealt to threads in strides, so that all end together. int64 (n,)."""
    return np.argsort(-np.diff(indptr), kind="stable")


@kernel(parallel=True, fastmath=True)
def solve_cholesky(indptr, indices, weights, targets, fixed, offsets, gramian, reg, order, threads, out, loss):
    """Exact row solves; see the module. Every array float32 but indptr, order (int64), indices (int32), loss (float64).

    Parameters
    ----------
    fixed : (m, k); offsets : (m,) or (0,); gramian : (k, k); reg : (n,); order : rows to solve.
    out : (n, k), overwritten; loss : (n,), overwritten.

    Returns
    -------
    int
        Rows whose matrix was singular in float32 and got a larger diagonal.
    """
    k = fixed.shape[1]
    singular = np.zeros(threads, np.int64)
    for t in prange(threads):
        a = np.empty((k, k), np.float32)
        product = np.empty((k, k), np.float32)
        plain = np.empty((CHUNK, k), np.float32)
        weighted = np.empty((CHUNK, k), np.float32)
        x = np.empty(k, np.float32)
        b = np.empty(k, np.float32)
        for place in range(t, order.size, threads):
            row = order[place]
            begin, end = indptr[row], indptr[row + 1]
            if begin == end:
                out[row, :] = 0.0
                loss[row] = 0.0
                continue
            for i in range(k):
                for j in range(k):
                    a[i, j] = gramian[i, j]
                a[i, i] += reg[row]
                b[i] = 0.0
            for first in range(begin, end, CHUNK):
                size = min(CHUNK, end - first)
                for s in range(size):
                    column = indices[first + s]
                    weight = weights[first + s]
                    target = targets[first + s]
                    if offsets.size:
                        target -= weight * offsets[column]
                    for i in range(k):
                        value = fixed[column, i]
                        plain[s, i] = value
                        weighted[s, i] = weight * value
                        b[i] += target * value
                np.dot(plain[:size].T, weighted[:size], product)
                for i in range(k):
                    for j in range(i + 1):
                        a[i, j] += product[i, j]
            singular[t] += _cholesky_solve(a, b, x)
            value = 0.0
            for i in range(k):
                out[row, i] = x[i]
                value -= np.float64(x[i]) * np.float64(b[i])
            loss[row] = value
    return singular.sum()


@kernel(fastmath={"reassoc", "contract", "arcp", "nsz"})  # NaN and infinity must be seen
def _cholesky_solve(a, b, x):
    """Solve a x = b by the lower triangle of a, which is overwritten; 1 where a pivot was lost in rounding, else 0.

    A lost pivot gets a diagonal so large that its unknown becomes 0; the others are solved as if it were not there.
    Raised to something small instead, it would turn the noise in its column into factors of any size.
    """
    k = b.size
    raised = 0
    trace = np.float32(1.0)
    for i in range(k):
        trace += a[i, i]
    if not np.isfinite(trace):
        x[:] = np.nan
        return raised
    wall = np.sqrt(trace) * np.float32(1e10)
    noise = np.float32(5e-7) * np.float32(np.sqrt(k))
    for i in range(k):
        for j in range(i):
            total = a[i, j]
            for s in range(j):
                total -= a[i, s] * a[j, s]
            a[i, j] = total / a[j, j]
        pivot = a[i, i]
        smallest = max(pivot * noise, np.float32(1e-30))
        for s in range(i):
            pivot -= a[i, s] * a[i, s]
        if pivot <= smallest:
            a[i, i] = wall
            raised = 1
        else:
            a[i, i] = np.sqrt(pivot)
    for i in range(k):
        total = b[i]
        for s in range(i):
            total -= a[i, s] * x[s]
        x[i] = total / a[i, i]
    for i in range(k - 1, -1, -1):
        x[i] /= a[i, i]
        for s in range(i):
            x[s] -= a[i, s] * x[i]
    return raised


@kernel(parallel=True, fastmath=True)
def solve_cg(indptr, indices, weights, targets, fixed, offsets, gramian, reg, order, threads, steps, out, loss):
    """Row solves by `steps` of conjugate gradient, started from `out` (float32 (n, k)); else as `solve_cholesky`.

    Takács, Pilászy, Tikk (2011), "Applications of the conjugate gradient method for implicit feedback".
    Returns 0: it needs no pivots.
    """
    k = fixed.shape[1]
    for t in prange(threads):
        x = np.empty(k, np.float32)
        b = np.empty(k, np.float32)
        r = np.empty(k, np.float32)
        p = np.empty(k, np.float32)
        ap = np.empty(k, np.float32)
        for place in range(t, order.size, threads):
            row = order[place]
            begin, end = indptr[row], indptr[row + 1]
            if begin == end:
                out[row, :] = 0.0
                loss[row] = 0.0
                continue
            x[:] = out[row]
            _gramian_product(gramian, reg[row], x, ap)
            b[:] = 0.0
            for e in range(begin, end):
                y = fixed[indices[e]]
                weight, target = weights[e], targets[e]
                if offsets.size:
                    target -= weight * offsets[indices[e]]
                score = np.float32(0.0)
                for i in range(k):
                    score += x[i] * y[i]
                score *= weight
                for i in range(k):
                    ap[i] += score * y[i]
                    b[i] += target * y[i]
            old, size = np.float32(0.0), np.float32(0.0)
            for i in range(k):
                r[i] = b[i] - ap[i]
                p[i] = r[i]
                old += r[i] * r[i]
                size += b[i] * b[i]
            # Below it the residual is rounding noise: in a singular system a step along it would lead anywhere.
            noise = max(max(old, size) * np.float32(1e-12), np.float32(1e-20))
            for _ in range(steps):
                if old < noise:
                    break
                _gramian_product(gramian, reg[row], p, ap)
                for e in range(begin, end):
                    y = fixed[indices[e]]
                    score = np.float32(0.0)
                    for i in range(k):
                        score += p[i] * y[i]
                    score *= weights[e]
                    for i in range(k):
                        ap[i] += score * y[i]
                curvature = np.float32(0.0)
                for i in range(k):
                    curvature += p[i] * ap[i]
                if not curvature > 0.0:
                    break
                length = old / curvature
                new = np.float32(0.0)
                for i in range(k):
                    x[i] += length * p[i]
                    r[i] -= length * ap[i]
                    new += r[i] * r[i]
                ratio = new / old
                for i in range(k):
                    p[i] = r[i] + ratio * p[i]
                old = new
            value = 0.0
            for i in range(k):
                out[row, i] = x[i]
                value -= np.float64(x[i]) * (np.float64(b[i]) + np.float64(r[i]))
            loss[row] = value
    return 0


@kernel(fastmath=True)
def _gramian_product(gramian, reg, x, out):
    k = x.size
    for i in range(k):
        out[i] = reg * x[i]
    for j in range(k):  # by rows of a symmetric matrix: contiguous
        value = x[j]
        for i in range(k):
            out[i] += value * gramian[j, i]


def gramian(factors: np.ndarray) -> np.ndarray:
    """factors^T factors, float64 (k, k), summed over slices so that float32 does not lose small rows."""
    k = factors.shape[1]
    total = np.zeros((k, k))
    for first in range(0, len(factors), 4096):
        part = factors[first : first + 4096]
        total += part.T @ part
    return total
