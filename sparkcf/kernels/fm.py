"""Factorization machines over sparse rows: predictions, and the normal equations of one field's features.

    a(x) = w_0 + sum_j w_j x_j + sum_{j<l, pair allowed} <v_j, v_l> x_j x_l          Rendle (2010), eq. 1 and 5

    rowptr   int64 (n + 1,), feat int32 (nnz,) into `table`, val float32 (nnz,): compressed rows
    table    float32 (m, k + 1), [v_j, w_j] of each feature
    field    int16 (m,), field of each feature
    pairs    bool (F, F), symmetric, which fields interact, also with themselves

With all features of a row but j fixed, a(x) = g + <h, theta_j> with theta_j = [v_j, w_j] and h = x_j [c, 1]: c sums the
vectors that j interacts with, and g does not depend on j. Features of which no row has two (such as all features of a
one-hot field) are independent given the others. Each is a least-squares problem over its own rows, and solving them at
once is exact.

A solve is a step from the current parameters: with the residuals r = y - a(x), A = sum of h h^T and b = sum of h r,

    theta += M^-1 (alpha b + diag(lambda) (mu - theta)),   M = alpha A + diag(lambda) + E

A and b are sums of float32 products. E is a diagonal above their rounding errors: ROUNDING · (sqrt(width) · diagonal of
the matrix + largest entry of that diagonal). M bounds the true curvature from above, so that a step never raises the
objective, for any lambda >= 0. If the curvature is well above rounding, the step is the exact solution; in a direction
without curvature the step is short instead of arbitrary.

The kernels share compiled helpers and so stand in one file: see `jit.kernel`.
"""

from __future__ import annotations

import math

import numpy as np

from sparkcf.kernels.jit import kernel

CHUNK = 128  # rows of one matrix product
IDENTITY, PROBIT, LOGISTIC = 0, 1, 2  # links of `fold_in_users`
NEWTON_STEPS = 50  # at most
NEWTON_TOLERANCE = 1e-10  # of Newton's decrement: a step below it is the last one, and squares the error
FAST = {"reassoc", "contract", "arcp", "nsz"}  # NaN and infinity must be seen
ROUNDING = 5e-7  # relative rounding error of sums of float32 products


@kernel(fastmath=FAST)
def predict_rows(rowptr, feat, val, table, field, pairs, w0, first, threads, out):
    """Write a(x) of part `first` of `threads` equal parts of the rows into `out`, float64 (n,)."""
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
    """Add A = sum of h h^T and b = sum of h (y - a(x)) of features of the one-hot field `own`, over visits of rows.

    Parameters
    ----------
    visits : int64 (v,), rows.
    entries : int64 (v,), entry of the solved feature in feat and val.
    groups : int64 (v,), ascending, place of the feature in `a` and `b`.
    y : float32 (n,), targets.
    rows : (rowptr, feat, val).
    a, b : float64 (g, k + 1, k + 1) and (g, k + 1).
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
def draw_features(a, b, noise_precision, precision, mean, normal, theta):
    """Draw each feature's parameters from their Gaussian conditional.

    theta += m + L^-T z,  L L^T = M,  L L^T m = alpha b + diag(lambda) (mu - theta)

    Parameters
    ----------
    a, b : float64 (g, K, K) and (g, K), the sums of h h^T and of h (y - a(x)).
    noise_precision : alpha.
    precision, mean : float64 (K,), lambda and mu.
    normal : float32 (g, K), z; zeros give the minimum (ALS).
    theta : float32 (g, K), the current parameters; overwritten.

    Returns
    -------
    int
        Number of features whose matrix is singular in float32: in some direction only E limits the step.
    """
    singular = 0
    factor = np.empty(a.shape[1:])
    for feature in range(len(b)):
        drawn = (noise_precision, precision, mean, normal[feature])
        singular += _draw(a[feature], b[feature], drawn, factor, theta[feature])
    return singular


@kernel(fastmath=FAST)
def solve_features(starts, visits, entries, y, rows, table, field, pairs, w0, own, drawn, normal, theta):
    """`sum_features` and `draw_features`, feature by feature, for features all of whose visits are at this worker.

    Parameters
    ----------
    starts : int64 (g + 1,), start and end of each feature's visits.
    drawn : (noise_precision, precision, mean).
    The other parameters and the result are those of the two functions.
    """
    singular = 0
    width = table.shape[1]
    a, b, factor = np.empty((width, width)), np.empty(width), np.empty((width, width))
    for feature in range(len(theta)):
        begin, end = starts[feature], starts[feature + 1]
        a[:] = 0.0
        b[:] = 0.0
        at = visits[begin:end], entries[begin:end]
        _sum_visits(at, y, rows, table, field, pairs, w0, own, a, b)
        with_normal = (drawn[0], drawn[1], drawn[2], normal[feature])
        singular += _draw(a, b, with_normal, factor, theta[feature])
    return singular


@kernel(fastmath=FAST)
def _sum_visits(at, y, rows, table, field, pairs, w0, own, a, b):
    """Add the normal equations of one feature over its visits; `at` : (rows, entries) of the visits."""
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
    theta = table[feat[entries[0]] if visits.size else 0]
    for start in range(0, visits.size, CHUNK):
        size = min(CHUNK, visits.size - start)
        for s in range(size):
            row, entry = visits[start + s], entries[start + s]
            begin, end = rowptr[row], rowptr[row + 1]
            x, slope = val[entry], h[s]
            if whole and end - begin == 2:  # a single other feature in the row
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
        fit = np.dot(h[:size], theta)
        for s in range(size):
            t[s] -= fit[s]
        _add_products(h[:size], t, product, a, b)


@kernel(fastmath=FAST)
def _draw(a, b, drawn, factor, theta):
    """One feature of `draw_features`. `drawn` : (alpha, lambda, mu, z). `factor` : memory for the Cholesky factor."""
    noise_precision, precision, mean, normal = drawn
    width = b.size
    x = np.empty(width)  # the step
    floor = np.empty(width)
    largest = 1e-300
    for i in range(width):
        for j in range(i + 1):
            factor[i, j] = noise_precision * a[i, j]
        factor[i, i] += precision[i]
        largest = max(largest, factor[i, i])
        x[i] = noise_precision * b[i] + precision[i] * (mean[i] - np.float64(theta[i]))
    for i in range(width):
        floor[i] = ROUNDING * (np.sqrt(np.float64(width)) * factor[i, i] + largest)
        factor[i, i] += floor[i]
        floor[i] *= 2.0
    singular = _factorize(factor, floor)
    _forward(factor, x)
    for i in range(width):
        x[i] += normal[i]
    _backward(factor, x)
    for i in range(width):
        theta[i] = np.float64(theta[i]) + x[i]
    return singular


@kernel(fastmath=FAST)
def _factorize(factor, floor):
    """Cholesky factor of the lower triangle, in place, with pivots raised to `floor`; returns 1 if any was, else 0."""
    raised = 0
    for i in range(len(factor)):
        row = factor[i]
        fours = i - i % 4
        for j in range(0, fours, 4):  # four columns at a time: independent sums over the same row
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
        if pivot <= floor[i]:
            raised = 1
            pivot = floor[i]
        row[i] = np.sqrt(pivot)
    return raised


@kernel(fastmath=FAST)
def _forward(factor, x):
    """x = L^-1 x."""
    for i in range(x.size):
        total = x[i]
        for s in range(i):
            total -= factor[i, s] * x[s]
        x[i] = total / factor[i, i]


@kernel(fastmath=FAST)
def _backward(factor, x):
    """x = L^-T x."""
    for i in range(x.size - 1, -1, -1):
        x[i] /= factor[i, i]
        for s in range(i):
            x[s] -= factor[i, s] * x[i]


@kernel(fastmath=FAST)
def fold_in_users(indptr, indices, values, items, rest, parts, contexts, prior, link, out):
    """Parameters theta = [v, w] of users' ids with all other parameters fixed: the mode of their posterior.

    F(theta) = alpha sum_r loss(y_r, g_r + <h_r, theta>) + 1/2 sum_d lambda_d (theta_d - mu_d)^2,   h_r = [c_r, 1]

    The loss is minus the log-likelihood: (y - a)^2 / 2 (link IDENTITY), -log Phi(s a) (PROBIT) or log(1 + exp(-s a))
    (LOGISTIC), with s = 1 for y > 0, else -1. F is convex: Newton's method with step halving, to NEWTON_TOLERANCE. For
    IDENTITY one step is exact.

    Parameters
    ----------
    indptr : int64 (n + 1,), indices : int32 and values : float32, the users' rows: items and y.
    items : float32 (m, p) and rest : float32 (n, p), whose inner product is g.
    parts : float64 (m, k) and contexts : float64 (n, k), whose sum is c.
    prior : (alpha, lambda float64 (k + 1,), mu float64 (k + 1,)).
    link : IDENTITY, PROBIT or LOGISTIC.
    out : float64 (n, k + 1), overwritten; zeros for a user without rows.
    """
    noise_precision, precision, mean = prior
    width = out.shape[1]
    k = width - 1
    factor, floor = np.empty((width, width)), np.empty(width)
    for user in range(len(out)):
        begin, n = indptr[user], indptr[user + 1] - indptr[user]
        theta = out[user]
        if n == 0:
            theta[:] = 0.0
            continue
        h, fitted = np.empty((n, width)), np.empty(n)
        theta[:] = mean
        for r in range(n):
            item = indices[begin + r]
            total = mean[k]
            for d in range(items.shape[1]):
                total += np.float64(items[item, d]) * np.float64(rest[user, d])
            for d in range(k):
                h[r, d] = parts[item, d] + contexts[user, d]
                total += h[r, d] * mean[d]
            h[r, k] = 1.0
            fitted[r] = total
        scaled, along = np.empty((n, width)), np.empty(n)
        for _ in range(NEWTON_STEPS):
            step = precision * (mean - theta)
            value = 0.0
            for r in range(n):
                loss, slope, curvature = _loss(values[begin + r], fitted[r], link)
                value += noise_precision * loss
                for d in range(width):
                    step[d] -= noise_precision * slope * h[r, d]
                    scaled[r, d] = noise_precision * curvature * h[r, d]
            np.dot(scaled.T, h, factor)
            for d in range(width):
                value += 0.5 * precision[d] * (theta[d] - mean[d]) ** 2
                factor[d, d] += precision[d]
                floor[d] = 1e-13 * factor[d, d] + 1e-300
            _factorize(factor, floor)
            _forward(factor, step)
            decrement = 0.0
            for d in range(width):
                decrement += step[d] * step[d]
            _backward(factor, step)
            last = link == IDENTITY or decrement <= NEWTON_TOLERANCE
            np.dot(h, step, along)
            length = 1.0
            while not last and length > 1e-9:
                reached = 0.0
                for r in range(n):
                    reached += noise_precision * _loss(values[begin + r], fitted[r] + length * along[r], link)[0]
                for d in range(width):
                    reached += 0.5 * precision[d] * (theta[d] + length * step[d] - mean[d]) ** 2
                if reached <= value - 1e-4 * length * decrement:
                    break
                length *= 0.5
            for r in range(n):
                fitted[r] += length * along[r]
            for d in range(width):
                theta[d] += length * step[d]
            if last:
                break


@kernel()
def _loss(y, a, link):
    """The loss of `fold_in_users` at a, and its first and second derivatives."""
    if link == IDENTITY:
        return 0.5 * (y - a) ** 2, a - y, 1.0
    sign = 1.0 if y > 0.0 else -1.0
    t = sign * a
    if link == LOGISTIC:
        wrong = 1.0 / (1.0 + math.exp(t)) if t < 700.0 else 0.0
        return math.log1p(math.exp(-abs(t))) + max(-t, 0.0), -sign * wrong, wrong * (1.0 - wrong)
    if t > -6.0:
        below = 0.5 * math.erfc(t / math.sqrt(2.0))
        ratio = math.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi) / (1.0 - below)
        return -math.log1p(-below), -sign * ratio, ratio * (ratio + t)
    beyond = 0.0  # phi / Phi = -t + 1 / (-t + 2 / (-t + 3 / ...)), Laplace's continued fraction
    for place in range(40, 0, -1):
        beyond = place / (beyond - t)
    ratio = beyond - t
    return 0.5 * t * t + 0.5 * math.log(2.0 * math.pi) + math.log(ratio), -sign * ratio, ratio * beyond


@kernel(fastmath=FAST)
def fill_state(rowptr, feat, val, table, field, pairs, w0, own, y, first, threads, contexts, residual):
    """Fill inputs of `sum_several` and `move_several` for field `own` and part `first` of `threads` parts of the rows.

    contexts : float32 (n, k), the sum of the vectors that the field interacts with.
    residual : float64 (n,), y - a(x).
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
def sum_several(features, starts, visits, x, theta, within, contexts, residual, a, b):
    """Add A and b of features of a field of which rows may have several features.

    Parameters
    ----------
    features : int64 (g,), no two of them in the same row.
    starts : int64 (m + 1,), start and end of each feature's visits.
    visits, x : int64 (v,) and float32 (v,), rows and values of the visits.
    theta : float32 (m, k + 1).
    within : whether the field interacts with itself.
    contexts, residual : see `fill_state`.
    a, b : float64 (g, k + 1, k + 1) and (g, k + 1).
    """
    width = theta.shape[1]
    h = np.empty((CHUNK, width), np.float32)
    t = np.empty(CHUNK, np.float32)
    product = np.empty((width, width), np.float32)
    for place in range(features.size):
        feature = features[place]
        begin, end = starts[feature], starts[feature + 1]
        for start in range(begin, end, CHUNK):
            size = min(CHUNK, end - start)
            for s in range(size):
                row = visits[start + s]
                _slope(contexts[row], x[start + s], theta[feature], within, h[s])
                t[s] = residual[row]
            _add_products(h[:size], t, product, a[place], b[place])


@kernel(fastmath=FAST)
def move_several(features, starts, visits, x, theta, new, within, contexts, residual):
    """Replace `theta` of the features by `new`, float32 (g, k + 1), and update contexts and residual."""
    width = theta.shape[1]
    h, moved = np.empty(width, np.float32), np.empty(width, np.float32)
    for place in range(features.size):
        feature = features[place]
        before, after = theta[feature], new[place]
        for d in range(width):
            moved[d] = after[d] - before[d]
        for s in range(starts[feature], starts[feature + 1]):
            row = visits[s]
            _slope(contexts[row], x[s], before, within, h)
            change = np.float32(0.0)
            for d in range(width):
                change += h[d] * moved[d]
            residual[row] -= np.float64(change)
            if within:
                for d in range(width - 1):
                    contexts[row, d] += x[s] * moved[d]
        for d in range(width):
            before[d] = after[d]


@kernel(fastmath=FAST)
def _add_products(h, t, product, a, b):
    """a += h^T h and b += h^T t of up to CHUNK rows, summed in float32."""
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
    """h: the derivative of a(x) by the parameters of a feature with value `value`."""
    k = theta.size - 1
    for d in range(k):
        own = value * theta[d] if within else np.float32(0.0)
        h[d] = value * (context[d] - own)
    h[k] = value


@kernel(fastmath=FAST)
def _add_entries(begin, end, left_out, feat, val, table, field, whole, sums, squares):
    """Sum a row's vectors by field (into the first if `whole`); returns the row's linear part."""
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
