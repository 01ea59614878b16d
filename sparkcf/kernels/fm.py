"""Factorization machines over sparse rows: predictions, and the normal equations of one field's features.

    a(x) = w_0 + sum_j w_j x_j + sum_{j<l, pair allowed} <v_j, v_l> x_j x_l          Rendle (2010), eq. 1 and 5

Rows are compressed: `rowptr` int64 (n + 1,), `feat` int32 (nnz,) into `table`, `val` float32 (nnz,). `table` float32
(m, k + 1) holds [v_j, w_j]; `field` int16 (m,) the field of each feature; `pairs` bool (F, F), symmetric, says which
fields interact, a field with itself included.

All but one feature of a row held, a(x) = g + x_j <[c, 1], [v_j, w_j]>: c sums the vectors that j interacts with, g is
what the row has without j. A row has at most one feature of a one-hot field, so its features are independent of each
other given the rest, and each is one least-squares problem over its rows. That makes solves by blocks exact.
"""

from __future__ import annotations

import numpy as np

from sparkcf.kernels.jit import kernel

CHUNK = 128  # rows of one matrix product
FAST = {"reassoc", "contract", "arcp", "nsz"}  # NaN and infinity must be seen


@kernel(fastmath=FAST)
def predict_rows(rowptr, feat, val, table, field, pairs, w0, first, threads, out):
    """a(x) of the rows of one of `threads` equal parts, into `out` float64 (n,)."""
    k = table.shape[1] - 1
    whole = pairs.all()
    sums = np.zeros((1 if whole else pairs.shape[0], k), np.float32)
    squares = np.zeros(len(sums), np.float32)
    n = rowptr.size - 1
    for row in range(first * n // threads, (first + 1) * n // threads):
        sums[:] = 0.0
        squares[:] = 0.0
        linear = _add_entries(rowptr[row], rowptr[row + 1], -1, feat, val, table, field, whole, sums, squares)
        out[row] = w0 + linear + _interactions(sums, squares, pairs, whole)


@kernel(fastmath=FAST)
def sum_features(visits, entries, groups, y, rows, table, field, pairs, w0, own, a, b):
    """Add the normal equations of features of the one-hot field `own` over some visits of rows.

    Parameters
    ----------
    visits : int64 (v,), rows; entries : int64 (v,), where in feat and val the feature stands that is solved for.
    groups : int64 (v,), ascending: the place of its sums in `a` float64 (g, k + 1, k + 1) and `b` float64 (g, k + 1).
    y : float32 (n,), targets. rows : (rowptr, feat, val).
    """
    begin = 0
    while begin < visits.size:
        group, end = groups[begin], begin + 1
        while end < visits.size and groups[end] == group:
            end += 1
        at = visits[begin:end], entries[begin:end]
        _sum_visits(at, y, rows, table, field, pairs, w0, own, a[group], b[group])
        begin = end


@kernel(fastmath=FAST)
def draw_features(a, b, noise_precision, precision, mean, normal, out):
    """Each feature's parameters from their Gaussian conditional: its mean, and `normal` standard deviations more.

    theta = m + L^-T z,  L L^T = alpha A + diag(lambda),  L L^T m = alpha b + lambda mu

    Parameters
    ----------
    a, b : float64 (g, K, K) and (g, K), the sums of h h^T and h (y - g). noise_precision : alpha.
    precision, mean : float64 (K,), lambda and mu. normal : float32 (g, K), z; zeros give the minimum (ALS).
    out : float32 (g, K), overwritten.

    Returns
    -------
    int
        Features whose matrix is singular: their unknowns without curvature stay as they are.
    """
    singular = 0
    factor = np.empty(a.shape[1:])
    for feature in range(len(b)):
        given = (noise_precision, precision, mean, normal[feature])
        singular += _draw(a[feature], b[feature], given, factor, out[feature])
    return singular


@kernel(fastmath=FAST)
def solve_features(starts, visits, entries, y, rows, table, field, pairs, w0, own, drawn, normal, out):
    """`sum_features` and `draw_features` of features all of whose visits are here, one feature after the other.

    Parameters
    ----------
    starts : int64 (g + 1,), where each feature's visits begin and end. drawn : (noise_precision, precision, mean).
    The others, and what is returned, as there.
    """
    singular = 0
    width = table.shape[1]
    a, b, factor = np.empty((width, width)), np.empty(width), np.empty((width, width))
    for feature in range(len(out)):
        begin, end = starts[feature], starts[feature + 1]
        a[:] = 0.0
        b[:] = 0.0
        at = visits[begin:end], entries[begin:end]
        _sum_visits(at, y, rows, table, field, pairs, w0, own, a, b)
        given = (drawn[0], drawn[1], drawn[2], normal[feature])
        singular += _draw(a, b, given, factor, out[feature])
    return singular


@kernel(fastmath=FAST)
def _sum_visits(at, y, rows, table, field, pairs, w0, own, a, b):
    """Add the normal equations of one feature over its visits: `at` has their rows and entries."""
    visits, entries = at
    rowptr, feat, val = rows
    width = table.shape[1]
    k = width - 1
    whole = pairs.all()
    sums = np.zeros((1 if whole else pairs.shape[0], k), np.float32)
    squares = np.zeros(len(sums), np.float32)
    h = np.empty((min(CHUNK, visits.size), width), np.float32)
    t = np.empty(len(h), np.float32)
    product = np.empty((width, width), np.float32)
    for start in range(0, visits.size, CHUNK):
        size = min(CHUNK, visits.size - start)
        for s in range(size):
            row, entry = visits[start + s], entries[start + s]
            begin, end = rowptr[row], rowptr[row + 1]
            x, slope = val[entry], h[s]
            if whole and end - begin == 2:  # one other feature, which interacts with this one alone
                other = begin if entry > begin else begin + 1
                vector, scale = table[feat[other]], val[other]
                g = w0 + np.float64(scale * vector[k])
                scale *= x
                for d in range(k):
                    slope[d] = scale * vector[d]
            else:
                sums[:] = 0.0
                squares[:] = 0.0
                rest = _add_entries(begin, end, entry, feat, val, table, field, whole, sums, squares)
                g = w0 + rest + _interactions(sums, squares, pairs, whole)
                _context(sums, pairs, own, whole, slope)
                for d in range(k):
                    slope[d] *= x
            slope[k] = x
            t[s] = y[row] - g
        _add_products(h[:size], t, product, a, b)


@kernel(fastmath=FAST)
def _draw(a, b, given, factor, out):
    """One feature of `draw_features`; `given` is (alpha, lambda, mu, z), `factor` room for a's factor."""
    noise_precision, precision, mean, normal = given
    width = b.size
    x = np.empty(width)
    diagonal = 0.0
    for i in range(width):
        for j in range(i + 1):
            factor[i, j] = noise_precision * a[i, j]
        factor[i, i] += precision[i]
        diagonal = max(diagonal, factor[i, i])
        x[i] = noise_precision * b[i] + precision[i] * mean[i]
    singular = 0
    for i in range(width):
        row = factor[i]
        fours = i - i % 4
        for j in range(0, fours, 4):  # four columns at a time: their sums run side by side over the same row
            f0, f1, f2, f3 = factor[j], factor[j + 1], factor[j + 2], factor[j + 3]
            s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
            for s in range(j):
                v = row[s]
                s0 += v * f0[s]
                s1 += v * f1[s]
                s2 += v * f2[s]
                s3 += v * f3[s]
            v0 = (row[j] - s0) / f0[j]
            v1 = (row[j + 1] - s1 - v0 * f1[j]) / f1[j + 1]
            v2 = (row[j + 2] - s2 - v0 * f2[j] - v1 * f2[j + 1]) / f2[j + 2]
            v3 = row[j + 3] - s3 - v0 * f3[j] - v1 * f3[j + 1] - v2 * f3[j + 2]
            row[j], row[j + 1], row[j + 2], row[j + 3] = v0, v1, v2, v3 / f3[j + 3]
        for j in range(fours, i):
            total = row[j]
            for s in range(j):
                total -= row[s] * factor[j, s]
            row[j] = total / factor[j, j]
        pivot = row[i]
        for s in range(i):
            pivot -= row[s] * row[s]
        if pivot <= diagonal * 1e-13 + 1e-300:  # no curvature: an infinite pivot holds the unknown at zero
            singular = 1
            pivot = 1e30 * (1.0 + diagonal)
        row[i] = np.sqrt(pivot)
    for i in range(width):
        total = x[i]
        for s in range(i):
            total -= factor[i, s] * x[s]
        x[i] = total / factor[i, i]
    for i in range(width):
        x[i] += normal[i]
    for i in range(width - 1, -1, -1):
        x[i] /= factor[i, i]
        for s in range(i):
            x[s] -= factor[i, s] * x[i]
    for i in range(width):
        out[i] = x[i]
    return singular


@kernel(fastmath=FAST)
def fill_state(rowptr, feat, val, table, field, pairs, w0, own, y, first, threads, contexts, residual):
    """What `sum_feature` and `move_feature` keep for field `own`, for one of `threads` equal parts of the rows.

    contexts : float32 (n, k), the sum of the vectors that the field interacts with; residual : float64 (n,), y - a(x).
    """
    k = table.shape[1] - 1
    whole = pairs.all()
    sums = np.zeros((1 if whole else pairs.shape[0], k), np.float32)
    squares = np.zeros(len(sums), np.float32)
    n = rowptr.size - 1
    for row in range(first * n // threads, (first + 1) * n // threads):
        sums[:] = 0.0
        squares[:] = 0.0
        linear = _add_entries(rowptr[row], rowptr[row + 1], -1, feat, val, table, field, whole, sums, squares)
        residual[row] = y[row] - (w0 + linear + _interactions(sums, squares, pairs, whole))
        _context(sums, pairs, own, whole, contexts[row])


@kernel(fastmath=FAST)
def sum_feature(rows, x, theta, within, contexts, residual, a, b):
    """Add the normal equations of one feature of a field of which rows have several, from what `fill_state` keeps.

    Parameters
    ----------
    rows : int64 (v,) and x : float32 (v,), where the feature stands and its values. theta : float32 (k + 1,).
    within : whether the field interacts with itself. a : float64 (k + 1, k + 1); b : float64 (k + 1,).
    """
    width = theta.size
    h = np.empty((CHUNK, width), np.float32)
    t = np.empty(CHUNK, np.float32)
    product = np.empty((width, width), np.float32)
    for start in range(0, rows.size, CHUNK):
        size = min(CHUNK, rows.size - start)
        for s in range(size):
            row, value = rows[start + s], x[start + s]
            _slope(contexts[row], value, theta, within, h[s])
            fit = 0.0
            for d in range(width):
                fit += h[s, d] * theta[d]
            t[s] = residual[row] + fit
        _add_products(h[:size], t, product, a, b)


@kernel(fastmath=FAST)
def move_feature(rows, x, theta, moved, within, contexts, residual):
    """Bring contexts and residual up to date after `theta` became `theta + moved`, float32 (k + 1,) both."""
    width = theta.size
    h = np.empty(width, np.float32)
    for place in range(rows.size):
        row, value = rows[place], x[place]
        _slope(contexts[row], value, theta, within, h)
        change = 0.0
        for d in range(width):
            change += h[d] * moved[d]
        residual[row] -= change
        if within:
            for d in range(width - 1):
                contexts[row, d] += value * moved[d]


@kernel(fastmath=FAST)
def _add_products(h, t, product, a, b):
    """a += h^T h and b += h^T t of up to CHUNK rows, summed in float32 by BLAS and a loop over neighbours."""
    np.dot(h.T, h, product)
    total = np.zeros(h.shape[1], np.float32)
    for s in range(h.shape[0]):
        row, left = h[s], t[s]
        for i in range(total.size):
            total[i] += left * row[i]
    for i in range(total.size):
        b[i] += total[i]
        into, added = a[i], product[i]
        for j in range(total.size):
            into[j] += added[j]


@kernel(fastmath=FAST)
def _slope(context, value, theta, within, h):
    """How a(x) changes with the parameters of a feature of value `value`."""
    k = theta.size - 1
    for d in range(k):
        own = value * theta[d] if within else np.float32(0.0)
        h[d] = value * (context[d] - own)
    h[k] = value


@kernel(fastmath=FAST)
def _add_entries(begin, end, left_out, feat, val, table, field, whole, sums, squares):
    """Add a row's vectors up by field (all to the first where `whole`); returns its linear part."""
    k = table.shape[1] - 1
    linear = 0.0
    for e in range(begin, end):
        if e == left_out:
            continue
        x = val[e]
        vector = table[feat[e]]
        at = 0 if whole else field[feat[e]]
        into = sums[at]
        square = np.float32(0.0)
        for d in range(k):
            scaled = x * vector[d]
            into[d] += scaled
            square += scaled * scaled
        squares[at] += square
        linear += np.float64(x * vector[k])
    return linear


@kernel(fastmath=FAST)
def _interactions(sums, squares, pairs, whole):
    """sum over the pairs that interact: <s_p, s_q> between fields, (|s_p|^2 - squares_p) / 2 within one."""
    k = sums.shape[1]
    total = 0.0
    for p in range(1 if whole else sums.shape[0]):
        if pairs[p, p]:
            norm = np.float32(0.0)
            for d in range(k):
                norm += sums[p, d] * sums[p, d]
            total += 0.5 * np.float64(norm - squares[p])
        if not whole:
            for q in range(p):
                if pairs[p, q]:
                    dot = np.float32(0.0)
                    for d in range(k):
                        dot += sums[p, d] * sums[q, d]
                    total += np.float64(dot)
    return total


@kernel(fastmath=FAST)
def _context(sums, pairs, own, whole, out):
    """The sum of the vectors that field `own` interacts with, into out[:k]."""
    k = sums.shape[1]
    for d in range(k):
        out[d] = sums[0, d] if whole else np.float32(0.0)
    if not whole:
        for q in range(sums.shape[0]):
            if pairs[own, q]:
                for d in range(k):
                    out[d] += sums[q, d]
