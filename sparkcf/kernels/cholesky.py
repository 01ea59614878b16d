"""Exact row solves by Cholesky: of whole rows, of non-negative rows, of blocks of a row's dimensions.

See `sparkcf.kernels.als` for the problem and its notation.
"""

from __future__ import annotations

import numpy as np

from sparkcf.kernels.jit import kernel

CHUNK = 128  # entries gathered for one matrix product
PASSES = 10  # most passes of coordinate descent over a non-negative row before the active set method


@kernel(fastmath=True)
def solve_cholesky(
    indptr, indices, weights, targets, fixed, offsets, gramian, reg, order, first, threads, nonnegative, out, loss
):
    """Solve rows exactly. All arrays are float32 except indptr, order (int64), indices (int32), loss (float64).

    Parameters
    ----------
    indptr, indices, weights, targets : compressed rows; a_e and b_e of each entry.
    fixed : (m, k).
    offsets : (m,), or (0,) if there are none.
    gramian : (k, k).
    reg : (n,).
    order : rows to solve; this call solves order[first::threads].
    nonnegative : minimise over x >= 0, from `out`.
    out : (n, k), overwritten.
    loss : (n,), overwritten.

    Returns
    -------
    int
        Number of rows whose matrix was singular in float32 and got a larger diagonal.
    """
    k = fixed.shape[1]
    singular = 0
    a = np.empty((k, k), np.float32)
    product = np.empty((k, k), np.float32)
    plain = np.empty((CHUNK, k), np.float32)
    weighted = np.empty((CHUNK, k), np.float32)
    x = np.empty(k, np.float32)
    b = np.empty(k, np.float32)
    for place in range(first, order.size, threads):
        row = order[place]
        begin, end = indptr[row], indptr[row + 1]
        if begin == end:
            out[row] = 0.0
            loss[row] = 0.0
            continue
        a[:] = gramian
        b[:] = 0.0
        for i in range(k):
            a[i, i] += reg[row]
        for start in range(begin, end, CHUNK):
            size = min(CHUNK, end - start)
            for s in range(size):
                vector, weight, target = fixed[indices[start + s]], weights[start + s], targets[start + s]
                if offsets.size:
                    target -= weight * offsets[indices[start + s]]
                plain_s, weighted_s = plain[s], weighted[s]
                for i in range(k):
                    value = vector[i]
                    plain_s[i] = value
                    weighted_s[i] = weight * value
                    b[i] += target * value
            np.dot(plain[:size].T, weighted[:size], product)
            a += product
        if nonnegative:
            x[:] = out[row]
            loss[row] = solve_nonnegative(a, b, x)
        else:
            singular += _cholesky_solve(a, b, x)
            reached = 0.0
            for i in range(k):
                reached -= np.float64(x[i]) * np.float64(b[i])
            loss[row] = reached
        out[row] = x
    return singular


@kernel(fastmath={"reassoc", "contract", "arcp", "nsz"})
def solve_nonnegative(a, b, x):
    """min x^T a x - 2 b·x over x >= 0 from x, in place; returns the minimum. a, b and x have the same float type.

    A few passes of coordinate descent find most of the unknowns that are 0. If they have not converged, the active set
    method of Lawson and Hanson (1974), in the form of Bro and De Jong (1997), continues from there.
    """
    k = b.size
    gradient = np.empty_like(b)  # half of it: a x - b
    largest = a[0, 0]
    for i in range(k):
        if not x[i] > 0.0:
            x[i] = 0.0
        largest = max(largest, a[i, i])
    for i in range(k):
        total = -b[i]
        for j in range(k):
            total += a[i, j] * x[j]
        gradient[i] = total
    smallest = max(largest * np.float32(1e-7), np.float32(1e-30))
    for _ in range(PASSES):
        moved, size = np.float32(0.0), np.float32(0.0)
        for i in range(k):
            new = max(np.float32(0.0), x[i] - gradient[i] / max(a[i, i], smallest))
            step = new - x[i]
            if step != 0.0:
                x[i] = new
                for j in range(k):
                    gradient[j] += step * a[i, j]
            moved += step * step
            size += new * new
        if moved <= size * np.float32(1e-12):
            break
    else:
        _solve_active_set(a, b, x)
        for i in range(k):
            total = -b[i]
            for j in range(k):
                total += a[i, j] * x[j]
            gradient[i] = total
    value = 0.0
    for i in range(k):
        value += np.float64(x[i]) * (np.float64(gradient[i]) - np.float64(b[i]))
    return value


@kernel(fastmath={"reassoc", "contract", "arcp", "nsz"})
def _solve_active_set(a, b, x):
    """min x^T a x - 2 b·x over x >= 0 from x, in place: exact up to rounding, and never above the initial value.

    The positive unknowns (free) are solved for with the others at 0. If the solution violates x >= 0, x moves toward it
    up to the boundary, and the unknown that reached the boundary is fixed at 0. Then the unknown at 0 that lowers the
    objective most is freed, until none lowers it by a relative 1e-9.
    """
    k = b.size
    free, barred = x > 0.0, np.zeros(k, np.bool_)
    at, matrix, right, solved = (
        np.empty(k, np.int64),
        np.empty(k * k, a.dtype),
        np.empty(k, a.dtype),
        np.empty(k, a.dtype),
    )
    for _ in range(3 * k):
        while True:
            n = 0
            for i in range(k):
                if free[i]:
                    at[n] = i
                    n += 1
            part = matrix[: n * n].reshape(n, n)
            for i in range(n):
                right[i] = b[at[i]]
                for j in range(n):
                    part[i, j] = a[at[i], at[j]]
            _cholesky_solve(part, right[:n], solved[:n])
            share, stop = 1.0, -1
            for i in range(n):
                if solved[i] <= 0.0:
                    reached = np.float64(x[at[i]]) / (np.float64(x[at[i]]) - np.float64(solved[i]) + 1e-300)
                    if reached < share or stop < 0:
                        share, stop = min(share, reached), i
            for i in range(n):
                x[at[i]] = max(0.0, x[at[i]] + share * (solved[i] - x[at[i]]))
            if stop < 0:
                break
            x[at[stop]] = 0.0
            free[at[stop]] = False
            barred[at[stop]] = barred[at[stop]] or share == 0.0  # freed without effect, by rounding
        value, best, gain = 0.0, -1, 0.0
        for i in range(k):
            value += np.float64(x[i]) * np.float64(b[i])
            if not (free[i] or barred[i]):
                slope = b[i]
                for j in range(k):
                    slope -= a[i, j] * x[j]
                if slope > 0.0 and a[i, i] > 0.0 and np.float64(slope) ** 2 / np.float64(a[i, i]) > gain:
                    best, gain = i, np.float64(slope) ** 2 / np.float64(a[i, i])
        if best < 0 or gain <= 1e-9 * abs(value):
            break
        free[best] = True


@kernel(fastmath=True)
def solve_subspace(
    indptr, indices, weights, targets, fixed, offsets, gramian, reg, order, first, threads, size, out, loss
):
    """Solve each block of `size` dimensions of a row exactly, with the others fixed; arrays as in `solve_cholesky`.

    iALS++: Rendle, Krichene, Zhang, Koren (2021), algorithm 2. The entries' residuals are updated, so that a row costs
    entries·k·size instead of entries·k^2. Starts from `out`, and never raises a row's loss.
    """
    k = fixed.shape[1]
    singular = 0
    longest = 0
    for place in range(first, order.size, threads):
        longest = max(longest, indptr[order[place] + 1] - indptr[order[place]])
    y = np.empty(longest * k, np.float32)  # one row's vectors, block by block
    weighted = np.empty(longest * size, np.float32)
    residual = np.empty(longest, np.float32)
    x = np.empty(k, np.float32)
    for place in range(first, order.size, threads):
        row = order[place]
        begin, n = indptr[row], indptr[row + 1] - indptr[row]
        if n == 0:
            out[row] = 0.0
            loss[row] = 0.0
            continue
        x[:] = out[row]
        value = 0.0
        for i in range(k):
            total = reg[row] * x[i]
            for j in range(k):
                total += gramian[i, j] * x[j]
            value += np.float64(total) * np.float64(x[i])
        for e in range(n):
            vector = fixed[indices[begin + e]]
            weight = weights[begin + e]
            target = targets[begin + e]
            if offsets.size:
                target -= weight * offsets[indices[begin + e]]
            score = np.float32(0.0)
            for i in range(k):
                score += x[i] * vector[i]
            value += np.float64(score * (weight * score - target - target))
            residual[e] = target - weight * score
            for low in range(0, k, size):
                d = min(size, k - low)
                at = n * low + e * d
                for i in range(d):
                    y[at + i] = vector[low + i]
        for low in range(0, k, size):
            d = min(size, k - low)
            block = y[n * low : n * (low + d)].reshape(n, d)
            scaled = weighted[: n * d].reshape(n, d)
            b = np.dot(block.T, residual[:n])
            for e in range(n):
                weight, plain, product = weights[begin + e], block[e], scaled[e]
                for i in range(d):
                    product[i] = weight * plain[i]
            a = np.dot(block.T, scaled)
            for i in range(d):
                across, total = gramian[low + i], reg[row] * x[low + i]
                for j in range(k):
                    total += across[j] * x[j]
                b[i] -= total
                for j in range(d):
                    a[i, j] += across[low + j]
                a[i, i] += reg[row]
            step = np.empty(d, np.float32)
            singular += _cholesky_solve(a, b, step)
            moved = np.dot(scaled, step)
            for e in range(n):
                residual[e] -= moved[e]
            for i in range(d):
                x[low + i] += step[i]
                value -= np.float64(step[i]) * np.float64(b[i])
        out[row] = x
        loss[row] = value
    return singular


@kernel(fastmath={"reassoc", "contract", "arcp", "nsz"})  # NaN and infinity must be seen
def _cholesky_solve(a, b, x):
    """Solve a x = b by the lower triangle of a, which is overwritten; returns 1 if rounding lost a pivot, else 0.

    A lost pivot gets a diagonal so large that its unknown becomes 0; the others are solved without it. A small diagonal
    would turn the rounding noise in the pivot's column into factors of arbitrary size.
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
        fours = i - i % 4
        for j in range(0, fours, 4):  # four columns at a time: independent sums over the same row
            s0, s1, s2, s3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for s in range(j):
                v = a[i, s]
                s0 += v * a[j, s]
                s1 += v * a[j + 1, s]
                s2 += v * a[j + 2, s]
                s3 += v * a[j + 3, s]
            v0 = (a[i, j] - s0) / a[j, j]
            v1 = (a[i, j + 1] - s1 - v0 * a[j + 1, j]) / a[j + 1, j + 1]
            v2 = (a[i, j + 2] - s2 - v0 * a[j + 2, j] - v1 * a[j + 2, j + 1]) / a[j + 2, j + 2]
            v3 = a[i, j + 3] - s3 - v0 * a[j + 3, j] - v1 * a[j + 3, j + 1] - v2 * a[j + 3, j + 2]
            a[i, j] = v0
            a[i, j + 1] = v1
            a[i, j + 2] = v2
            a[i, j + 3] = v3 / a[j + 3, j + 3]
        for j in range(fours, i):
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
