"""The state of a fit at one worker, the E-step, the closed-form M-steps and the row solves.

A rating of user u and item i is drawn from a mixture of Gaussians (Chen, Li, Lv, Yan, Chu, Shang (2016), "MPMA: mixture
probabilistic matrix approximation for collaborative filtering", IJCAI):

    r ~ sum_t pi_t N(mu + mean_t, sigma_t^2)         mean of two vectors: p · q + both biases
    global       mean_0 = p_u · q_i
    user-local   mean_1 = p'_u · q'_{i, g(u)}        g(u): group of the user
    item-local   mean_2 = p''_{u, h(i)} · q''_i      h(i): group of the item

Priors are Gaussian. Local vectors have theirs around the row's vector of a factorization of the whole matrix, which the
component is fitted to first: a group with few ratings of an item differs little from all groups. The paper leaves the
grouping, the priors' means and the granularity of pi open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.models import MPMAConfig
from sparkcf.kernels.cholesky import solve_cholesky
from sparkcf.kernels.mixture import log_joint, log_sum, responsibilities
from sparkcf.kernels.mpma import descend_rows, entry_means
from sparkcf.kernels.threads import in_threads
from sparkcf.models.mpma.entries import Copy, View, fetched
from sparkcf.models.mpma.weights import Weights, shrunk
from sparkcf.training.blocks import ITEM, USER
from sparkcf.training.gang import Gang

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Mask = NDArray[np.bool_]
CHUNK = 1 << 18  # ratings whose float64 terms are in memory at once
NO_OFFSETS = np.empty(0, np.float32)


@dataclass
class State:
    """A fit at one worker; lists of two are by side.

    copies : the ratings, values relative to the mean.
    whole : views of the copies with no side split.
    views : by side and component.
    vectors : by side and component, float32 (blocks · places, rank + 1).
    shared : by side and component, the means of the priors, float32 (places, rank + 1), None where these are 0.
    groups : by side, int32 (places,), -1 for none.
    weights, row_weights : mixture weights; those of rows by side, float64 (places, T).
    sds : float64 (T,).
    scales : float64 (T,), precision of the priors in units of `regularization`; 1 with plain least squares.
    """

    config: MPMAConfig
    threads: int
    copies: list[Copy]
    whole: list[View]
    views: list[list[View]]
    vectors: list[list[F32]]
    shared: list[list[F32 | None]]
    groups: list[I32]
    weights: Weights
    row_weights: list[F64]
    sds: F64
    scales: F64
    other_groups: list[I32] = field(default_factory=list)  # by copy, the other side's group of each entry

    def entry_groups(self, side: int) -> tuple[I32, I32]:
        """The user group and the item group of a copy's entries."""
        own, other = self.groups[side][self.copies[side].row], self.other_groups[side]
        return (own, other) if side == USER else (other, own)


@dataclass
class Sums:
    """What the E-step adds up, over all workers except `by_row` and `row_counts`, which are of one side here.

    shares, squares : (T,), responsibilities, and responsibilities times squared error.
    table, table_counts : by user group and item group.
    log_likelihood, squared : log density of the ratings, and squared error of the mixtures' means.
    """

    shares: F64
    squares: F64
    table: F64
    table_counts: F64
    log_likelihood: float
    squared: float
    count: float
    by_row: F64
    row_counts: F64


def applies(config: MPMAConfig, user_groups: I32, item_groups: I32) -> F64:
    """1 where a component applies to a pair, (n, T): the local ones need a group."""
    needed = {"user_local": user_groups, "item_local": item_groups}
    everywhere = np.ones(len(user_groups), bool)
    columns = [needed[name] >= 0 if name in needed else everywhere for name in config.components]
    return np.stack(columns, axis=1).astype(np.float64)


def component_means(state: State, side: int, gang: Gang) -> F32:
    """Means of every component for a copy's entries, float32 (T, nnz); 0 where one does not apply. A collective."""
    out = np.zeros((len(state.config.components), len(state.copies[side].row)), np.float32)
    for t, view in enumerate(state.views[side]):
        fixed = fetched(view, state.vectors[1 - side][t], gang)
        found = np.empty(len(view.indices), np.float32)
        entry_means(view.indptr, view.indices, state.vectors[side][t], fixed, found)
        out[t, slice(None) if view.entries is None else view.entries] = found
    return out


def expectation(
    state: State, side: int, gang: Gang, counted: Mask, temperature: float = 1.0, means: F32 | None = None
) -> Sums:
    """The E-step on one copy, for the ratings `counted`, bool (nnz,), alone: what it adds up. A collective.

    `means` : result of `component_means`, if it is known.
    """
    copy, config = state.copies[side], state.config
    n, (g, h) = len(config.components), state.weights.table.shape[:2]
    totals, by_row = np.zeros(2 * n + 3), np.zeros((copy.places, n))
    table, table_counts = np.zeros((g * h, n)), np.zeros(g * h)
    entries = np.flatnonzero(counted)
    for part, weights, errors in pair_terms(state, side, gang, entries, means):
        joint = log_joint(weights, errors, state.sds)
        share = responsibilities(joint, temperature)
        squared = np.einsum("nt,nt->n", weights, errors) ** 2
        sums = [share.sum(axis=0), (share * errors**2).sum(axis=0)]
        totals += np.concatenate([*sums, [log_sum(joint).sum(), squared.sum(), len(squared)]])
        by_row += _summed(copy.row[part], share, copy.places)
        users, items = (groups[part] for groups in state.entry_groups(side))
        cells = np.where(users < 0, g - 1, users) * h + np.where(items < 0, h - 1, items)
        table += _summed(cells, share, g * h)
        table_counts += np.bincount(cells, minlength=g * h)
    totals, table, table_counts = gang.sum(totals), gang.sum(table), gang.sum(table_counts)
    row_counts = np.bincount(copy.row[entries], minlength=copy.places).astype(np.float64)
    likelihood, squared_error, count = (float(v) for v in totals[2 * n :])
    tables = (table.reshape(g, h, n), table_counts.reshape(g, h))
    return Sums(totals[:n], totals[n : 2 * n], *tables, likelihood, squared_error, count, by_row, row_counts)


def entry_shares(state: State, side: int, gang: Gang, temperature: float | None) -> F32:
    """What a copy's entries weigh in the factors, times the variances, float32 (nnz, T). A collective.

    Their responsibilities; without a temperature the components' overall weights, so that all ratings count alike.
    """
    nnz = len(state.copies[side].row)
    out = np.empty((nnz, len(state.config.components)), np.float32)
    if temperature is None:
        out[:] = state.weights.overall
        return out
    for part, weights, errors in pair_terms(state, side, gang, np.arange(nnz), None):
        out[part] = responsibilities(log_joint(weights, errors, state.sds), temperature)
    return out


def pair_terms(
    state: State, side: int, gang: Gang, entries: NDArray[np.intp], means: F32 | None
) -> Iterator[tuple[NDArray[np.intp], F64, F64]]:
    """Chunks of a copy's entries, with their mixture weights and errors of each component, float64 (chunk, T).

    The collectives are called before the first chunk.
    """
    copy = state.copies[side]
    means = component_means(state, side, gang) if means is None else means
    others = fetched(state.whole[side], state.row_weights[1 - side], gang)
    users, items = state.entry_groups(side)
    for begin in range(0, len(entries), CHUNK):
        part = entries[begin : begin + CHUNK]
        own, other = state.row_weights[side][copy.row[part]], others[state.whole[side].indices[part]]
        by_side = (own, other) if side == USER else (other, own)
        here = applies(state.config, users[part], items[part])
        weights = state.weights.of_pairs(users[part], items[part], *by_side, here)
        yield part, weights, copy.values[part, None] - means[:, part].T.astype(np.float64)


def _summed(rows: NDArray[np.integer], values: F64, n: int) -> F64:
    """Sums of values (m, T) by row, (n, T)."""
    return np.stack([np.bincount(rows, column, minlength=n) for column in values.T], axis=1)


def maximize(state: State, sums: list[Sums]) -> None:
    """The M-steps of mixture weights and standard deviations, in closed form.

    `sums` : of the users' copy, and for weights `user_item` of the items' copy.
    """
    config, whole = state.config, sums[USER]
    if not whole.count:
        return
    known = whole.shares > 1e-9
    variances = np.divide(whole.squares, whole.shares, out=state.sds**2, where=known)
    state.sds = np.sqrt(np.maximum(variances, config.min_sd**2))
    if state.weights.kind == "equal":
        return
    overall = np.maximum(whole.shares / whole.shares.sum(), 1e-9)
    state.weights.overall = overall / overall.sum()
    if state.weights.kind == "group":
        state.weights.table = shrunk(whole.table, whole.table_counts, state.weights.overall, config.weight_prior)
    if state.weights.kind == "user_item":
        state.row_weights = [shrunk(s.by_row, s.row_counts, state.weights.overall, config.weight_prior) for s in sums]


def penalties(state: State, side: int, t: int) -> F32:
    """Precision of the prior of every row of a component, float32 (rows,)."""
    config, view = state.config, state.views[side][t]
    strength = config.regularization if state.shared[side][t] is None else config.local_regularization
    scaled = strength * state.scales[t] * view.counts.astype(np.float64) ** config.regularization_exponent
    return np.where(view.counts > 0, scaled, 0.0).astype(np.float32)


def solve(state: State, side: int, t: int, weights: F32, gang: Gang) -> int:
    """Solve, or step, the rows of one side and component with the other side fixed. A collective.

    Parameters
    ----------
    weights : float32 (nnz,), of the copy's entries.

    Returns
    -------
    Number of rows at this worker whose matrix was singular.
    """
    view, config, vectors = state.views[side][t], state.config, state.vectors[side][t]
    fixed = fetched(view, state.vectors[1 - side][t], gang)
    targets = view.of_entries(state.copies[side].values).astype(np.float32)
    weights, shared = view.of_entries(weights).astype(np.float32), state.shared[side][t]
    start = np.zeros_like(vectors)
    if shared is not None:
        start = np.tile(shared, (len(vectors) // len(shared), 1))
    base = np.empty(len(view.indices), np.float32)  # with start 0: the other side's bias
    entry_means(view.indptr, view.indices, start, fixed, base)
    targets, fixed = targets - base, with_constant(fixed, config)
    out, reg = vectors - start, penalties(state, side, t)
    out[:, -1] /= config.bias_constant

    def share(first: int) -> int:
        common = (view.indptr, view.indices, weights)
        if config.factors == "sgd":
            steps, rate = config.sgd_steps, np.float32(config.sgd_learning_rate)
            descend_rows(*common, targets, fixed, reg, view.order, first, state.threads, steps, rate, out)
            return 0
        gram = np.zeros((config.rank + 1, config.rank + 1), np.float32)
        problem = (*common, weights * targets, fixed, NO_OFFSETS, gram, reg, view.order)
        return int(solve_cholesky(*problem, first, state.threads, False, out, np.zeros(len(out))))

    singular = sum(in_threads(state.threads, share))
    out[:, -1] *= config.bias_constant
    vectors[:] = start + out
    return singular


def with_constant(fixed: F32, config: MPMAConfig) -> F32:
    """A copy of fixed rows with a constant c for their biases: the penalty of a bias b is then that of b / c."""
    fixed = fixed.copy()
    fixed[:, -1] = config.bias_constant
    return fixed


def penalty(state: State, gang: Gang) -> F64:
    """Sum of precision times squared distance from the prior's mean, by component, over all workers and sides: (T,)."""
    total = np.zeros(len(state.config.components))
    for side in (USER, ITEM):
        for t, vectors in enumerate(state.vectors[side]):
            shared = state.shared[side][t]
            apart = vectors - (0 if shared is None else np.tile(shared, (len(vectors) // len(shared), 1)))
            apart[:, -1] /= state.config.bias_constant
            total[t] += np.einsum("n,nk,nk->", penalties(state, side, t).astype(np.float64), apart, apart)
    return gang.sum(total)
