"""Row solves by hierarchical ALS: coordinate descent, one dimension at a time. Notation: `sparkcf.kernels.als`.

    x_d += (sum_e r_e y_ed - (G x)_d - reg x_d) / (G_dd + sum_e a_e y_ed^2 + reg),  r_e = b_e - a_e x·y_e

Cichocki, Phan (2009), "Fast local algorithms for large scale nonnegative matrix and tensor factorizations"; implicit
feedback through the Gramian as in Pilászy, Zibriczky, Tikk (2010), "Fast ALS-based matrix factorization". Residuals and
G x are updated, not recomputed. A row's vectors are copied once, transposed, so that all inner loops read contiguous
memory.
"""

from __future__ import annotations

import numpy as np

from sparkcf.kernels.jit import kernel

LANES = 16  # rows solved side by side, so that their memory and arithmetic latencies overlap


@kernel(fastmath={"reassoc", "contract", "arcp", "nsz"})  # NaN and infinity must be seen
def solve_hals(
    indptr,
    indices,
    weights,
    targets,
    fixed,
    offsets,
    gramian,
    reg,
    order,
    first,
    threads,
    passes,
    nonnegative,
    out,
    loss,
):
    """Run `passes` over all dimensions of each row of order[first::threads], from `out`; see `solve_cholesky`.

    Returns 0, since the method has no singular rows: a dimension without curvature is not changed.
    """
    k = fixed.shape[1]
    longest = 0
    for place in range(first, order.size, threads):
        longest = max(longest, indptr[order[place] + 1] - indptr[order[place]])
    y = np.empty(longest * k, np.float32)
    residual = np.empty(longest, np.float32)
    x = np.empty(k, np.float32)
    gx = np.empty(k, np.float32)
    for place in range(first, order.size, threads):
        row = order[place]
        begin, end = indptr[row], indptr[row + 1]
        n = end - begin
        if n == 0:
            out[row] = 0.0
            loss[row] = 0.0
            continue
        x[:] = out[row]
        value = _times_gramian(gramian, x, gx)
        for i in range(k):
            value += np.float64(reg[row] * x[i]) * np.float64(x[i])
        value += _turn(fixed, indices[begin:end], weights[begin:end], targets[begin:end], offsets, x, y, residual)
        a = weights[begin:end]
        r = residual[:n]
        for _ in range(passes):
            step = np.float32(0.0)
            before = y[:n]
            for d in range(k):
                top, curvature = np.float32(0.0), gramian[d, d] + reg[row]
                here = y[d * n : (d + 1) * n]
                for e in range(n):  # the last step's change of the residual, and this dimension's sums
                    left = r[e] - step * a[e] * before[e]
                    r[e] = left
                    top += left * here[e]
                    curvature += a[e] * here[e] * here[e]
                before = here
                top -= gx[d] + reg[row] * x[d]
                step = np.float32(0.0)
                if not (np.isfinite(top) and np.isfinite(curvature)):
                    value = np.nan
                elif curvature > 0.0:
                    step = top / curvature
                if nonnegative and x[d] + step < 0.0:
                    step = -x[d]
                if step != 0.0:
                    x[d] += step
                    value -= np.float64(step) * np.float64(top + top - step * curvature)
                    for i in range(k):
                        gx[i] += step * gramian[d, i]
            for e in range(n):
                r[e] -= step * a[e] * before[e]
        out[row] = x
        loss[row] = value
    return 0


@kernel(fastmath={"reassoc", "contract", "arcp", "nsz"})
def solve_hals_unweighted(
    indptr, indices, targets, fixed, gramian, reg, order, first, threads, passes, nonnegative, out, loss
):
    """`solve_hals` for plain least squares with all zeros observed: every weight a_e and every offset is 0.

    The entries' part of the numerator is then the same in every pass and is summed once. The passes have no loop over
    entries, so LANES rows are solved side by side, one dimension of all of them at a time.
    """
    k = fixed.shape[1]
    numerator = np.zeros((LANES, k), np.float32)
    x = np.zeros((LANES, k), np.float32)
    gx = np.empty((LANES, k), np.float32)
    penalties = np.zeros(LANES, np.float32)
    for low in range(first, order.size, threads * LANES):
        rows = order[low : low + threads * LANES : threads]
        for lane in range(rows.size):
            row = rows[lane]
            begin, end = indptr[row], indptr[row + 1]
            penalties[lane] = reg[row]
            _sum_targets(fixed, indices[begin:end], targets[begin:end], numerator[lane])
            x[lane] = out[row]
            if begin == end:
                x[lane] = 0.0
        np.dot(x, gramian, gx)
        for _ in range(passes):
            for d in range(k):
                across = gramian[d]
                for lane in range(rows.size):
                    penalty, old = penalties[lane], x[lane, d]
                    curvature = across[d] + penalty
                    top = numerator[lane, d] - gx[lane, d] - penalty * old
                    step = top / curvature if curvature > 0.0 else np.float32(0.0)
                    step = -old if nonnegative and old + step < 0.0 else step
                    if step != 0.0:
                        x[lane, d] = old + step
                        moved = gx[lane]
                        for i in range(k):
                            moved[i] += step * across[i]
        for lane in range(rows.size):
            value = 0.0
            for d in range(k):
                half = gx[lane, d] + penalties[lane] * x[lane, d] - numerator[lane, d] - numerator[lane, d]
                value += np.float64(half) * np.float64(x[lane, d])
            loss[rows[lane]] = value
            out[rows[lane]] = x[lane]
    return 0


@kernel(fastmath=True)
def _times_gramian(gramian, x, gx):
    """gx = gramian x; returns x·gx."""
    k = x.size
    gx[:] = 0.0
    for j in range(k):
        v = x[j]
        for i in range(k):
            gx[i] += v * gramian[j, i]
    value = 0.0
    for i in range(k):
        value += np.float64(gx[i]) * np.float64(x[i])
    return value


@kernel(fastmath=True)
def _turn(fixed, indices, weights, targets, offsets, x, y, residual):
    """y = the entries' vectors, transposed; residual = r_e; returns sum_e a_e s_e^2 - 2 b_e s_e."""
    k, n = x.size, indices.size
    value = 0.0
    for e in range(n):
        vector, weight, target = fixed[indices[e]], weights[e], targets[e]
        if offsets.size:
            target -= weight * offsets[indices[e]]
        score = np.float32(0.0)
        for i in range(k):
            score += x[i] * vector[i]
        value += np.float64(score * (weight * score - target - target))
        residual[e] = target - weight * score
        if e % 8 == 7:
            _turn_eight(fixed, indices[e - 7 : e + 1], n, y[e - 7 :])
    for e in range(n - n % 8, n):
        vector = fixed[indices[e]]
        for i in range(k):
            y[i * n + e] = vector[i]
    return value


@kernel(fastmath=True)
def _turn_eight(fixed, rows, n, y):
    """y[i n + e] = fixed[rows[e], i] for eight rows that are still in the cache; writes eight adjacent values."""
    f0, f1, f2, f3 = fixed[rows[0]], fixed[rows[1]], fixed[rows[2]], fixed[rows[3]]
    f4, f5, f6, f7 = fixed[rows[4]], fixed[rows[5]], fixed[rows[6]], fixed[rows[7]]
    for i in range(fixed.shape[1]):
        at = i * n
        y[at] = f0[i]
        y[at + 1] = f1[i]
        y[at + 2] = f2[i]
        y[at + 3] = f3[i]
        y[at + 4] = f4[i]
        y[at + 5] = f5[i]
        y[at + 6] = f6[i]
        y[at + 7] = f7[i]


@kernel(fastmath=True)
def _sum_targets(fixed, indices, targets, numerator):
    """numerator = sum_e b_e y_e, four entries at a time."""
    k, n = numerator.size, indices.size
    numerator[:] = 0.0
    fours = n - n % 4
    for e in range(0, fours, 4):
        y0, y1, y2, y3 = fixed[indices[e]], fixed[indices[e + 1]], fixed[indices[e + 2]], fixed[indices[e + 3]]
        b0, b1, b2, b3 = targets[e], targets[e + 1], targets[e + 2], targets[e + 3]
        for i in range(k):
            numerator[i] += b0 * y0[i] + b1 * y1[i] + b2 * y2[i] + b3 * y3[i]
    for e in range(fours, n):
        y0, b0 = fixed[indices[e]], targets[e]
        for i in range(k):
            numerator[i] += b0 * y0[i]
