"""Row solves by conjugate gradient; see `sparkcf.kernels.als` for the problem and its notation.

Takács, Pilászy, Tikk (2011), "Applications of the conjugate gradient method for implicit feedback".

The solve is bound by memory, not by arithmetic: every step reads all fixed vectors of a row twice. So the vectors of
several rows are packed into one buffer that stays in the core's cache through all steps, and these rows share one
matrix product with the Gramian.
"""

from __future__ import annotations

import numpy as np

from sparkcf.kernels.jit import kernel

ROWS = 64  # most rows that share a product with the Gramian
PACKED_BYTES = 256 << 10  # of vectors in the buffer, so that they stay in a core's L2 cache; a single row may be longer


@kernel(fastmath={"reassoc", "contract", "arcp", "nsz"})  # NaN and infinity must be seen
def solve_cg(
    indptr, indices, weights, targets, fixed, offsets, gramian, reg, order, first, threads, steps, scale, out, loss
):
    """Run `steps` of conjugate gradient from `out`; arrays as in `sparkcf.kernels.cholesky.solve_cholesky`.

    `scale`: mean squared norm of the fixed vectors. Returns 0, since the method has no singular rows.
    """
    k = fixed.shape[1]
    room = max(1, PACKED_BYTES // (4 * k))
    longest = 0
    for place in range(first, order.size, threads):
        longest = max(longest, indptr[order[place] + 1] - indptr[order[place]])
    y = np.empty((max(room, longest), k), np.float32)
    x = np.empty((ROWS, k), np.float32)
    r = np.empty((ROWS, k), np.float32)
    p = np.empty((ROWS, k), np.float32)
    ap = np.empty((ROWS, k), np.float32)
    rows = np.empty(ROWS, np.int64)
    starts = np.zeros(ROWS + 1, np.int64)
    old = np.empty(ROWS, np.float32)
    noise = np.empty(ROWS, np.float32)
    value = np.empty(ROWS)
    place = first
    while place < order.size:
        n = 0
        while n < ROWS and place < order.size:
            row = order[place]
            size = indptr[row + 1] - indptr[row]
            if n > 0 and starts[n] + size > room:
                break
            place += threads
            if size == 0:
                out[row] = 0.0
                loss[row] = 0.0
                continue
            rows[n] = row
            x[n] = out[row]
            starts[n + 1] = starts[n] + size
            n += 1
        np.dot(x[:n], gramian, ap[:n])
        for m in range(n):
            row, begin, end = rows[m], indptr[rows[m]], indptr[rows[m] + 1]
            xm, rm, pm, gx = x[m], r[m], p[m], ap[m]
            dense = np.float32(0.0)
            for i in range(k):
                v = gx[i] + reg[row] * xm[i]
                rm[i] = -v
                dense += v * xm[i]
            value[m] = dense
            value[m] += _gather(
                fixed,
                indices[begin:end],
                weights[begin:end],
                targets[begin:end],
                offsets,
                xm,
                y[starts[m] : starts[m + 1]],
                rm,
            )
            residual, size_b = np.float32(0.0), np.float32(0.0)
            for i in range(k):
                pm[i] = rm[i]
                residual += rm[i] * rm[i]
            for e in range(begin, end):
                size_b += targets[e] * targets[e]
            old[m] = residual
            if not np.isfinite(residual):
                value[m] = np.nan
            # A residual below `noise` is rounding: in a singular system a step along it would be arbitrary.
            noise[m] = max(max(residual, size_b * scale) * np.float32(1e-12), np.float32(1e-20))
        for step in range(steps):
            np.dot(p[:n], gramian, ap[:n])
            for m in range(n):
                if old[m] < noise[m]:
                    continue
                row, begin, end = rows[m], indptr[rows[m]], indptr[rows[m] + 1]
                xm, rm, pm, product = x[m], r[m], p[m], ap[m]
                packed = y[starts[m] : starts[m + 1]]
                curvature = np.float32(0.0)
                for i in range(k):
                    product[i] += reg[row] * pm[i]
                if step == steps - 1:  # the last step needs the step length only
                    curvature = _quadratic(packed, weights[begin:end], pm)
                else:
                    _add_product(packed, weights[begin:end], pm, product)
                for i in range(k):
                    curvature += pm[i] * product[i]
                if not curvature > 0.0:
                    old[m] = np.float32(0.0)
                    continue
                length = old[m] / curvature
                value[m] -= np.float64(length) * np.float64(old[m])
                new = np.float32(0.0)
                for i in range(k):
                    xm[i] += length * pm[i]
                    rm[i] -= length * product[i]
                    new += rm[i] * rm[i]
                ratio = new / old[m]
                for i in range(k):
                    pm[i] = rm[i] + ratio * pm[i]
                old[m] = new
        for m in range(n):
            out[rows[m]] = x[m]
            loss[rows[m]] = value[m]
    return 0


@kernel(fastmath=True)
def _gather(fixed, indices, weights, targets, offsets, x, y, r):
    """y_e = the entry's fixed vector; r += sum_e (b_e - a_e s_e) y_e, s_e = x·y_e; returns sum_e a_e s_e^2 - 2 b_e s_e.

    Four entries at a time: their sums are independent, and r is read and written once for four.
    """
    k, n = x.size, indices.size
    value = 0.0
    fours = n - n % 4
    for e in range(0, fours, 4):
        y0, y1, y2, y3 = y[e], y[e + 1], y[e + 2], y[e + 3]
        _copy(fixed[indices[e]], y0)
        _copy(fixed[indices[e + 1]], y1)
        _copy(fixed[indices[e + 2]], y2)
        _copy(fixed[indices[e + 3]], y3)
        s0, s1, s2, s3 = _scores(x, y0, y1, y2, y3)
        t0 = _moved_target(targets, weights, indices, offsets, e)
        t1 = _moved_target(targets, weights, indices, offsets, e + 1)
        t2 = _moved_target(targets, weights, indices, offsets, e + 2)
        t3 = _moved_target(targets, weights, indices, offsets, e + 3)
        a0, a1, a2, a3 = weights[e] * s0, weights[e + 1] * s1, weights[e + 2] * s2, weights[e + 3] * s3
        value += np.float64(s0 * (a0 - t0 - t0)) + np.float64(s1 * (a1 - t1 - t1))
        value += np.float64(s2 * (a2 - t2 - t2)) + np.float64(s3 * (a3 - t3 - t3))
        t0, t1, t2, t3 = t0 - a0, t1 - a1, t2 - a2, t3 - a3
        for i in range(k):
            r[i] += t0 * y0[i] + t1 * y1[i] + t2 * y2[i] + t3 * y3[i]
    for e in range(fours, n):
        y0 = y[e]
        _copy(fixed[indices[e]], y0)
        s0 = np.float32(0.0)
        for i in range(k):
            s0 += x[i] * y0[i]
        t0 = _moved_target(targets, weights, indices, offsets, e)
        a0 = weights[e] * s0
        value += np.float64(s0 * (a0 - t0 - t0))
        t0 -= a0
        for i in range(k):
            r[i] += t0 * y0[i]
    return value


@kernel(fastmath=True)
def _scores(x, y0, y1, y2, y3):
    """Inner products of x with four vectors."""
    s0, s1, s2, s3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for i in range(x.size):
        v = x[i]
        s0 += v * y0[i]
        s1 += v * y1[i]
        s2 += v * y2[i]
        s3 += v * y3[i]
    return s0, s1, s2, s3


@kernel(fastmath=True)
def _copy(source, target):  # a slice assignment would check shapes and broadcast for every short row
    for i in range(target.size):
        target[i] = source[i]


@kernel(fastmath=True)
def _moved_target(targets, weights, indices, offsets, e):
    if offsets.size:
        return targets[e] - weights[e] * offsets[indices[e]]
    return targets[e]


@kernel(fastmath=True)
def _add_product(y, weights, p, ap):
    """ap += sum_e a_e (y_e·p) y_e, four entries at a time."""
    n, k = y.shape
    fours = n - n % 4
    for e in range(0, fours, 4):
        y0, y1, y2, y3 = y[e], y[e + 1], y[e + 2], y[e + 3]
        s0, s1, s2, s3 = _scores(p, y0, y1, y2, y3)
        s0 *= weights[e]
        s1 *= weights[e + 1]
        s2 *= weights[e + 2]
        s3 *= weights[e + 3]
        for i in range(k):
            ap[i] += s0 * y0[i] + s1 * y1[i] + s2 * y2[i] + s3 * y3[i]
    for e in range(fours, n):
        y0 = y[e]
        s0 = np.float32(0.0)
        for i in range(k):
            s0 += p[i] * y0[i]
        s0 *= weights[e]
        for i in range(k):
            ap[i] += s0 * y0[i]


@kernel(fastmath=True)
def _quadratic(y, weights, p):
    """sum_e a_e (y_e·p)^2, four entries at a time."""
    n, k = y.shape
    total = np.float32(0.0)
    fours = n - n % 4
    for e in range(0, fours, 4):
        y0, y1, y2, y3 = y[e], y[e + 1], y[e + 2], y[e + 3]
        s0, s1, s2, s3 = _scores(p, y0, y1, y2, y3)
        total += weights[e] * s0 * s0 + weights[e + 1] * s1 * s1
        total += weights[e + 2] * s2 * s2 + weights[e + 3] * s3 * s3
    for e in range(fours, n):
        y0 = y[e]
        s0 = np.float32(0.0)
        for i in range(k):
            s0 += p[i] * y0[i]
        total += weights[e] * s0 * s0
    return total
