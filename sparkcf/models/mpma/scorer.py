"""Scorer of the mixture: distributions of pairs, blocks of scores, fold-in of new users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.factorization import MPMAConfig
from sparkcf.errors import LakeError
from sparkcf.kernels.als import work_order
from sparkcf.kernels.cholesky import solve_cholesky
from sparkcf.kernels.csr import take_rows
from sparkcf.kernels.mixture import Mixture, normal_cdf
from sparkcf.kernels.mpma import entry_means
from sparkcf.models.contract import Scorer
from sparkcf.models.contract_data import F32, F64, I32, I64, Features, Rows, Saved, UserBlock
from sparkcf.models.explanation import Explanation, Part
from sparkcf.models.mpma.groups import nearest_centre
from sparkcf.models.mpma.layout import RowState, packed, unpacked
from sparkcf.models.mpma.state import NO_OFFSETS, applies, with_constant
from sparkcf.models.mpma.weights import ALL_KINDS, Weights

PAIRS = 1 << 18  # whose distributions are in memory at once
I64s = NDArray[np.int64]


class MPMAScorer(Scorer):
    """Scores pairs by a mixture of Gaussians; an unknown user or item has vectors of 0 and no group."""

    def __init__(self, saved: Saved, params: MPMAConfig) -> None:
        self.params, self.known_items, self.mean = params, saved.item_known, saved.mean
        arrays = saved.arrays
        if "user_weights" not in arrays:
            raise LakeError("this mixture is of an earlier version, which kept no weights of users: train again")
        self.sds: F64 = np.asarray(arrays["sds"], np.float64)
        kind = ALL_KINDS[int(arrays["kind"][0])]
        self.weights = Weights(kind, np.asarray(arrays["overall"], np.float64), np.asarray(arrays["table"], np.float64))
        self.user_weights: F64 = np.asarray(arrays["user_weights"], np.float64)
        self.centres: F64 = np.asarray(arrays["user_centres"], np.float64)
        self.large = np.asarray(arrays["user_large"]).astype(bool)
        self.items = unpacked(np.asarray(saved.item_vectors, np.float32), "item", params)
        self.items.groups = np.where(self.known_items, self.items.groups, -1).astype(np.int32)

    def mixture(self, users: UserBlock, items: I32) -> Mixture:
        """The distribution of each pair's value; see `Scorer.mixture`."""
        rows = self._users(users)
        inside = (items >= 0) & (items < len(self.known_items))
        at = np.where(inside, items, 0)
        known = inside & self.known_items[at]
        means = np.stack([self._component(rows, at, known, t) for t in range(len(self.sds))], axis=1)
        item_groups = np.where(known, self.items.groups[at], -1)
        return self._mixed(rows, means, rows.groups, item_groups, rows.weights, self._item_weights(at, known))

    def component_names(self) -> tuple[str, ...]:
        return self.params.components

    def predict(self, users: UserBlock, items: I32) -> tuple[F64, F64 | None]:
        found = self.mixture(users, items)
        return found.mean(), found.sd()

    def score_block(self, users: UserBlock) -> F32:
        m = len(self.known_items)
        out = np.empty((len(users), m), np.float32)
        step = max(1, PAIRS // max(m, 1))
        for first in range(0, len(users), step):
            chosen = np.arange(first, min(first + step, len(users)))
            out[chosen] = self._ranked(self._all_items(users.take(chosen))).reshape(len(chosen), m)
        return out

    def explain(self, user: UserBlock, item: int) -> Explanation:
        """What each component of the mixture brings to the score."""
        found = self.mixture(user, np.array([item], np.int32))
        if self.params.rank_by == "lower_bound":  # the spread of a mixture is no sum over its components
            return super().explain(user, item)
        alone = found.means[0] if self.params.rank_by == "mean" else self._chances(found)[0]
        brought = found.weights[0] * alone
        named = zip(self.params.components, brought, strict=True)
        parts = [Part("component", name, None, float(value)) for name, value in named]
        return Explanation.summing(float(self._ranked(found)[0]), parts)

    def _chances(self, found: Mixture) -> F64:
        """Each component's chance of a value above the threshold, (n, components)."""
        return normal_cdf((found.means - self.params.threshold) / found.sds)

    def _ranked(self, found: Mixture) -> F64:
        if self.params.rank_by == "mean":
            return found.mean()
        if self.params.rank_by == "lower_bound":
            return found.mean() - self.params.lower_bound_sds * found.sd()
        return np.einsum("nt,nt->n", found.weights, self._chances(found))

    def _all_items(self, users: UserBlock) -> Mixture:
        """Distributions of all items for each user, pairs in order of users."""
        rows, (n, m), count = self._users(users), (len(users), len(self.known_items)), len(self.sds)
        means = np.empty((n, m, count))
        for t in range(count):
            means[:, :, t] = self._scores(rows, t)
        user_groups, item_groups = np.repeat(rows.groups, m), np.tile(self.items.groups, n)
        of_users, of_items = np.repeat(rows.weights, m, axis=0), np.tile(self._known_weights(), (n, 1))
        return self._mixed(rows, means.reshape(n * m, count), user_groups, item_groups, of_users, of_items)

    def _scores(self, rows: RowState, t: int) -> F32:
        """Means of a component for all items, without the overall mean, float32 (n, m)."""
        user, item = rows.vectors[t], self.items.vectors[t]
        out = np.zeros((len(rows.groups), len(self.known_items)), np.float32)
        if len(item) > 1 or self.items.shared[t] is not None:
            for group in range(-1, len(item)):
                if len(chosen := np.flatnonzero(rows.groups == group)):
                    out[chosen] = _products(user[0][chosen], self._shared(self.items, t) if group < 0 else item[group])
            return out
        if rows.shared[t] is not None:
            for group in range(-1, len(user)):
                if len(chosen := np.flatnonzero(self.items.groups == group)):
                    own = self._shared(rows, t) if group < 0 else user[group]
                    out[:, chosen] = _products(own, item[0][chosen])
            return out
        return _products(user[0], item[0])

    @staticmethod
    def _shared(rows: RowState, t: int) -> F32:
        found = rows.shared[t]
        assert found is not None
        return found

    def _component(self, rows: RowState, items: NDArray[np.intp], known: NDArray[np.bool_], t: int) -> F64:
        """Means of a component for pairs, without the overall mean, (n,)."""
        everyone = np.arange(len(items))
        groups = np.where(known, self.items.groups[items], -1)
        user = _chosen(rows.vectors[t], rows.shared[t], groups, everyone)
        item = _chosen(self.items.vectors[t], self.items.shared[t], rows.groups, items) * known[:, None]
        products = np.einsum("nk,nk->n", user[:, :-1], item[:, :-1], dtype=np.float64)
        return products + user[:, -1] + item[:, -1]

    def _mixed(
        self, rows: RowState, means: F64, user_groups: I32, item_groups: I32, of_users: F64, of_items: F64
    ) -> Mixture:
        here = applies(self.params, user_groups, item_groups)
        weights = self.weights.of_pairs(user_groups, item_groups, of_users, of_items, here)
        return Mixture(weights, means + self.mean, np.broadcast_to(self.sds, means.shape))

    def _users(self, users: UserBlock) -> RowState:
        """The users' rows; unknown ones have no group and the overall weights."""
        rows = unpacked(users.vectors, "user", self.params)
        rows.groups = np.where(users.known, rows.groups, -1).astype(np.int32)
        rows.weights = np.where(users.known[:, None], rows.weights, self.weights.overall)
        return rows

    def _item_weights(self, items: NDArray[np.intp], known: NDArray[np.bool_]) -> F64:
        return np.where(known[:, None], self.items.weights[items], self.weights.overall)

    def _known_weights(self) -> F64:
        return np.where(self.known_items[:, None], self.items.weights, self.weights.overall)

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        """Rows of new users: the row solves of training with the items fixed and every rating weighed alike.

        Their mixture weights are those of their group; with weights `user_item` the overall ones.

        `features` : the group of each user, where a column gives it; else the nearest centre is the group.
        """
        indptr, indices, values, _ = rows
        n, config = len(indptr) - 1, self.params
        state = RowState(
            [np.zeros((blocks, n, config.rank + 1), np.float32) for blocks in config.blocks("user")],
            [np.zeros((n, config.rank + 1), np.float32) if split else None for split in config.split("user")],
            np.zeros((n, len(config.components))),
            np.full(n, -1, np.int32),
        )
        targets = values - np.float32(self.mean)
        first = self._solved((indptr, indices, targets), self.items.vectors[0][0])
        state.groups = self._assigned(first, np.diff(indptr), features)
        state.weights = self.user_weights[state.groups]
        for t in range(len(self.sds)):
            item = self.items.vectors[t]
            if self.items.shared[t] is not None:
                for group in range(-1, len(item)):
                    if len(chosen := np.flatnonzero(state.groups == group)):
                        fixed = self._shared(self.items, t) if group < 0 else item[group]
                        state.vectors[t][0][chosen] = self._solved(_taken((indptr, indices, targets), chosen), fixed)
            elif state.shared[t] is not None:
                shared = self._solved((indptr, indices, targets), item[0])
                state.shared[t] = shared
                for group in range(len(state.vectors[t])):
                    here = self.items.groups[indices] == group
                    state.vectors[t][group] = self._solved(_among((indptr, indices, targets), here), item[0], shared)
            else:
                state.vectors[t][0] = self._solved((indptr, indices, targets), item[0])
        return packed(state), np.zeros(n, np.float32)

    def _assigned(self, vectors: F32, counts: I64, features: Features | None) -> I32:
        groups = np.full(len(vectors), -1, np.int32)
        if features is not None:
            has = np.diff(features[0]) > 0
            groups[has] = features[1][features[0][:-1][has]]
        elif self.params.user_group_column is None and any(self.params.split("item")):
            groups = nearest_centre(vectors[:, :-1].astype(np.float64), self.centres)
        groups[(counts == 0) | ~self.large[groups]] = -1
        return groups

    def _solved(self, rows: tuple[I64, I32, F32], fixed: F32, shared: F32 | None = None) -> F32:
        """Exact row solves, float32 (n, rank + 1). `shared` : means of the priors; None: 0."""
        indptr, indices, targets = rows
        counts, width = np.diff(indptr), fixed.shape[1]
        start = np.zeros((len(counts), width), np.float32) if shared is None else shared
        base = np.empty(len(indices), np.float32)
        fixed = np.ascontiguousarray(fixed)
        entry_means(indptr, indices, start, fixed, base)
        against = with_constant(fixed, self.params)
        strength = self.params.regularization if shared is None else self.params.local_regularization
        reg = (strength * counts.astype(np.float64) ** self.params.regularization_exponent).astype(np.float32)
        out, loss = np.zeros_like(start), np.zeros(len(counts))
        ones, gram = np.ones(len(indices), np.float32), np.zeros((width, width), np.float32)
        problem = (indptr, indices, ones, targets - base, against, NO_OFFSETS, gram, reg, work_order(counts))
        solve_cholesky(*problem, 0, 1, False, out, loss)
        out[:, -1] *= self.params.bias_constant
        return start + out

    def likeness(self) -> F32:
        """Vectors of all components side by side, without biases; of a split item the shared one."""
        parts = []
        for vectors, shared in zip(self.items.vectors, self.items.shared, strict=True):
            parts.append((vectors[0] if shared is None else shared)[:, :-1])
        return np.concatenate(parts, axis=1)


def _products(user: F32, item: F32) -> F32:
    scores: F32 = user[:, :-1] @ item[:, :-1].T + user[:, -1:] + item[:, -1]
    return scores


def _chosen(vectors: F32, shared: F32 | None, groups: I32, rows: NDArray[np.intp]) -> F32:
    """The vectors of rows: of their group where the side is split, the shared ones for group -1."""
    if shared is None:
        found: F32 = vectors[0][rows]
        return found
    return np.where((groups >= 0)[:, None], vectors[np.maximum(groups, 0), rows], shared[rows])


def _taken(rows: tuple[I64, I32, F32], chosen: I64s) -> tuple[I64, I32, F32]:
    indptr, entries = take_rows(rows[0], chosen)
    return indptr, rows[1][entries], rows[2][entries]


def _among(rows: tuple[I64, I32, F32], here: NDArray[np.bool_]) -> tuple[I64, I32, F32]:
    """The rows' entries of a mask."""
    before = np.concatenate([[0], np.cumsum(here, dtype=np.int64)])
    return before[rows[0]], rows[1][here], rows[2][here]
