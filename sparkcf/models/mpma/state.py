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

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.factorization import MPMAConfig
from sparkcf.kernels.cholesky import solve_cholesky
from sparkcf.kernels.mpma import descend_rows, entry_means, expect_entries
from sparkcf.kernels.threads import in_threads
from sparkcf.models.mpma.entries import Copy, View, fetched
from sparkcf.models.mpma.weights import Weights, shrunk
from sparkcf.training.blocks import ITEM, USER
from sparkcf.training.gang import Gang

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Mask = NDArray[np.bool_]
NEEDS = {"user_local": 1, "item_local": 2}  # components of a user's group, and of an item's
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
    groups = {1: user_groups, 2: item_groups}
    everywhere = np.ones(len(user_groups), bool)
    needs = (NEEDS.get(name, 0) for name in config.components)
    return np.stack([groups[need] >= 0 if need else everywhere for need in needs], axis=1).astype(np.float64)


def component_means(state: State, side: int, gang: Gang) -> F32:
    """Means of every component for a copy's entries, float32 (T, nnz); 0 where one does not apply. A collective."""
    out = np.zeros((len(state.config.components), len(state.copies[side].row)), np.float32)
    for t, view in enumerate(state.views[side]):
        fixed = fetched(view, state.vectors[1 - side][t], gang)
        found = view_means(view, state.vectors[side][t], fixed, state.threads)
        out[t, slice(None) if view.entries is None else view.entries] = found
    return out


def view_means(view: View, own: F32, fixed: F32, threads: int) -> F32:
    """Products of rows and received rows for a view's entries, float32 (m,)."""
    out = np.empty(len(view.indices), np.float32)
    bounds = np.searchsorted(view.indptr, np.linspace(0, len(out), threads + 1).astype(np.int64))
    bounds[0], bounds[-1] = 0, len(view.indptr) - 1

    def share(number: int) -> None:
        low, high = bounds[number], bounds[number + 1]
        entry_means(view.indptr[low : high + 1], view.indices, own[low:high], fixed, out)

    in_threads(threads, share)
    return out


def expectation(
    state: State, side: int, gang: Gang, counted: Mask, temperature: float = 1.0, means: F32 | None = None
) -> Sums:
    """The E-step on one copy, for the ratings `counted`, bool (nnz,), alone: what it adds up. A collective.

    `means` : result of `component_means`, if it is known.
    """
    n, entries = len(state.config.components), np.flatnonzero(counted)
    nowhere = np.empty((0, 0), np.float32)
    totals, by_row, *tables = _expected(state, side, gang, entries, temperature, means, nowhere)
    totals, table, table_counts = (gang.sum(array) for array in (totals, *tables))
    places, rows = state.copies[side].places, state.copies[side].row[entries]
    row_counts = np.bincount(rows, minlength=places).astype(np.float64)
    likelihood, squared_error, count = (float(v) for v in totals[2 * n :])
    of_all = (totals[:n], totals[n : 2 * n], table, table_counts, likelihood, squared_error, count)
    return Sums(*of_all, by_row, row_counts)


def entry_shares(state: State, side: int, gang: Gang, temperature: float | None) -> F32:
    """What a copy's entries weigh in the factors, times the variances, float32 (T, nnz). A collective.

    Their responsibilities; without a temperature the components' overall weights, (T, 1), so that all ratings count
    alike.
    """
    if temperature is None:
        return state.weights.overall.astype(np.float32)[:, None]
    nnz = len(state.copies[side].row)
    out = np.empty((len(state.config.components), nnz), np.float32)
    _expected(state, side, gang, np.arange(nnz), temperature, None, out)
    return out


def _expected(
    state: State,
    side: int,
    gang: Gang,
    entries: NDArray[np.intp],
    temperature: float,
    means: F32 | None,
    shares: F32,
) -> list[F64]:
    """What `expect_entries` adds up over a copy's entries: totals, by_row, cells, counts. A collective.

    `shares`, unless empty, gets the responsibilities.
    """
    copy, whole, (g, h, n) = state.copies[side], state.whole[side], state.weights.table.shape
    means = component_means(state, side, gang) if means is None else means
    others = fetched(whole, state.row_weights[1 - side], gang)
    groups = state.entry_groups(side)
    needs = np.array([NEEDS.get(name, 0) for name in state.config.components], np.int8)
    kind = {"group": 1, "user_item": 2}.get(state.weights.kind, 0)
    bounds = np.linspace(0, len(entries), state.threads + 1).astype(np.int64)

    def share(number: int) -> tuple[F64, ...]:
        added = np.zeros(2 * n + 3), np.zeros((copy.places, n)), np.zeros((g, h, n)), np.zeros((g, h))
        expect_entries(
            entries[bounds[number] : bounds[number + 1]],
            *(copy.values, means, copy.row, whole.indices, *groups, needs, kind),
            *(state.weights.overall, state.weights.table, state.row_weights[side], others),
            *(state.sds, temperature, *added, shares),
        )
        return added

    return [np.sum(parts, axis=0) for parts in zip(*in_threads(state.threads, share), strict=True)]


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


def group_weights(state: State, gang: Gang) -> list[F64]:
    """Mixture weights of the rows of each group, by side, (groups + 1, T); the last are of no group. A collective.

    With weights `group` the mean, over a group's ratings, of the weights of their user group and item group; else the
    overall ones.
    """
    table, overall = state.weights.table, state.weights.overall
    if state.weights.kind != "group":
        return [np.tile(overall, (n, 1)) for n in table.shape[:2]]
    counts = np.zeros(table.shape[:2])
    np.add.at(counts, state.entry_groups(USER), 1.0)
    counts = gang.sum(counts)
    sums = table * counts[..., None]
    return [shrunk(sums.sum(axis=other), counts.sum(axis=other), overall, 0.0) for other in (ITEM, USER)]


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
    if shared is None:
        base = fixed[view.indices, -1]
    else:
        start = np.tile(shared, (len(vectors) // len(shared), 1))
        base = view_means(view, start, fixed, state.threads)
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
