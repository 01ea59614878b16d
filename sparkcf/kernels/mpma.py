"""Kernels of the mixture model: the mean of each entry, the E-step, and gradient steps on the rows of a side."""

from __future__ import annotations

import math

import numpy as np

from sparkcf.kernels.jit import kernel
from sparkcf.kernels.mixture import LOG_2PI


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


@kernel()
def expect_entries(
    entries,
    values,
    means,
    row,
    index,
    user_groups,
    item_groups,
    needs,
    kind,
    overall,
    table,
    of_rows,
    of_others,
    sds,
    temperature,
    totals,
    by_row,
    cells,
    counts,
    shares,
):
    """Responsibilities of the components for ratings, and their sums; see `sparkcf.models.mpma.weights`.

    Parameters
    ----------
    entries : int64 (m,), the ratings to go through.
    values : float32 (nnz,).
    means : float32 (T, nnz), of the components.
    row, index : int32 (nnz,), rows of `of_rows` and of `of_others`.
    user_groups, item_groups : int32 (nnz,), -1 for none.
    needs : int8 (T,), 1 for a component of a user's group, 2 for one of an item's group, else 0.
    kind : 0 for weights `overall`, 1 for `table`, 2 for products of `of_rows` and `of_others`.
    overall : float64 (T,).
    table : float64 (g, h, T), the last row and column are of no group.
    of_rows, of_others : float64 (n, T), (n_others, T).
    sds : float64 (T,).
    temperature : weight · density is raised to the power 1 / temperature; 1 is the E-step.
    totals : float64 (2 T + 3,), added to: responsibilities, these times squared errors, log density, squared error of
        the mixtures' means, number of ratings.
    by_row, cells, counts : float64 (n, T), (g, h, T), (g, h), added to: responsibilities by row and by groups, and the
        number of ratings by groups.
    shares : float32 (T, nnz), overwritten with the responsibilities; (0, 0): not wanted.
    """
    n = overall.size
    weights, errors, terms = np.empty(n), np.empty(n), np.empty(n)
    constants = np.empty(n)
    for t in range(n):
        constants[t] = -math.log(sds[t]) - 0.5 * LOG_2PI
    for place in range(entries.size):
        e = entries[place]
        user, item = user_groups[e], item_groups[e]
        g = user if user >= 0 else table.shape[0] - 1
        h = item if item >= 0 else table.shape[1] - 1
        total = 0.0
        for t in range(n):
            if (needs[t] == 1 and user < 0) or (needs[t] == 2 and item < 0):
                weights[t] = 0.0
                continue
            if kind == 1:
                weight = table[g, h, t]
            elif kind == 2:
                weight = of_rows[row[e], t] * of_others[index[e], t] / overall[t]
            else:
                weight = overall[t]
            weights[t] = max(weight, 1e-12)
            total += weights[t]
        most, mean_error = -np.inf, 0.0
        for t in range(n):
            weights[t] = weights[t] / total if total > 0.0 else 1.0 / n
            errors[t] = np.float64(values[e]) - np.float64(means[t, e])
            mean_error += weights[t] * errors[t]
            if weights[t] > 0.0:
                scaled = errors[t] / sds[t]
                terms[t] = constants[t] - 0.5 * scaled * scaled
                if temperature != 1.0:
                    terms[t] += math.log(weights[t])
                most = max(most, terms[t])
        density = tempered = 0.0
        for t in range(n):
            if weights[t] > 0.0:
                share = math.exp(terms[t] - most)
                if temperature == 1.0:  # needs no logarithm of a weight
                    share *= weights[t]
                density += share
                weights[t] = share if temperature == 1.0 else math.exp((terms[t] - most) / temperature)
                tempered += weights[t]
        for t in range(n):
            share = weights[t] / tempered
            totals[t] += share
            totals[n + t] += share * errors[t] * errors[t]
            by_row[row[e], t] += share
            cells[g, h, t] += share
            if shares.shape[0]:
                shares[t, e] = share
        counts[g, h] += 1.0
        totals[2 * n] += math.log(density) + most
        totals[2 * n + 1] += mean_error * mean_error
        totals[2 * n + 2] += 1.0


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
