"""Re-rank candidates in one process: scores scaled within the user ▶ boosts ▶ freshness ▶ greedy choice ▶ exploration.

Exclusions come first: what they exclude is no candidate (`jobs.recommend.banned_items`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from sparkcf.kernels.random import draw_keys, uniform_rows
from sparkcf.kernels.rerank import calibration_kl, intra_list_diversity, rerank_rows, within_user
from sparkcf.models.contract_data import F32, F64, I32, I64, UserBlock

EXPLORATION = 71  # stream of the random draws
MEASURES = ("intra_list_diversity_at_k", "calibration_kl_at_k", "exploration_share_at_k")


@dataclass(frozen=True)
class Rules:
    """Settings that are the same for every user; see `RerankConfig`. `seed`, `day` : of exploration."""

    factor: int
    diversity: float
    calibration: float
    exploration: float
    seed: int
    day: int


@dataclass(frozen=True)
class ItemSide:
    """What the rules need to know of m items.

    multiply, add : (m,), boosts.
    fresh : (m,), 0 to 1.
    vectors : (m, d) of unit length, for diversity and its measure.
    mix : (m, G), distribution over categories; zeros for none.
    label_ptr, labels : the capped labels of each item, compressed rows.
    most : (L,), the cap of each label.
    """

    multiply: F32
    add: F32
    fresh: F32
    vectors: F32
    mix: F32
    label_ptr: I64
    labels: I32
    most: I32


class Lists(NamedTuple):
    """Lists of n users.

    items : int32 (n, k), padded with -1.
    scores : (n, k), the model's, padded with -inf; they need not fall within a list that is re-ranked.
    explored : bool (n, k), whether the item was drawn at random; None: lists were not re-ranked.
    """

    items: I32
    scores: F32
    explored: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Reranker:
    """Chooses lists of k from k * factor candidates."""

    rules: Rules
    items: ItemSide

    def chosen(self, users: UserBlock, ids: I64, candidates: I32, scores: F32, k: int) -> Lists:
        """Lists of k.

        Parameters
        ----------
        users : with their rows, if calibration needs them.
        ids : (n,), the users' indices, which decide what they explore on a day.
        candidates, scores : (n, C), best first, padded with -1 and -inf.
        """
        rules, side, at = self.rules, self.items, np.maximum(candidates, 0)
        boosted = within_user(scores) * side.multiply[at] + side.add[at]
        relevance = np.where(boosted > 0, boosted * side.fresh[at], boosted)  # age never raises a score below 0
        places, explored = np.empty((len(ids), k), np.int32), np.empty((len(ids), k), np.bool_)
        few = self._explored(ids, k)
        keys = draw_keys(rules.seed, EXPLORATION + rules.day, ids)
        vectors = side.vectors if rules.diversity else side.vectors[:, :0]
        rerank_rows(
            candidates,
            relevance.astype(np.float32),
            np.ascontiguousarray(vectors),
            rules.diversity,
            side.mix,
            self.wanted(users) if rules.calibration else np.zeros((len(ids), side.mix.shape[1])),
            rules.calibration,
            side.label_ptr,
            side.labels,
            side.most,
            few,
            keys,
            places,
            explored,
        )
        full, at = places >= 0, np.maximum(places, 0)
        items = np.where(full, np.take_along_axis(candidates, at, axis=1), -1).astype(np.int32)
        own = np.where(full, np.take_along_axis(scores, at, axis=1), -np.inf).astype(np.float32)
        return Lists(items, own, explored)

    def _explored(self, ids: I64, k: int) -> I64:
        """Positions that each user explores: share * k, rounded down or up at random so that the mean is right."""
        wanted = self.rules.exploration * k
        drawn = uniform_rows(self.rules.seed, EXPLORATION - 1 - self.rules.day, ids)
        counts: I64 = (np.floor(wanted) + (drawn < wanted % 1)).astype(np.int64)
        return counts

    def wanted(self, users: UserBlock) -> F64:
        """The distribution of each user's items over categories, weighted by their values, (n, G)."""
        mix = self.items.mix
        if users.rows is None:
            return np.zeros((len(users), mix.shape[1]))
        indptr, indices, values, _ = users.rows
        inside = indices < len(mix)
        strength = np.where(inside, np.maximum(values, 0), 0).astype(np.float64)
        rows = csr_matrix((strength, np.where(inside, indices, 0), indptr), shape=(len(users), len(mix)))
        sums = rows @ mix.astype(np.float64)
        mass = sums.sum(axis=1, keepdims=True)
        found: F64 = np.divide(sums, mass, out=np.zeros_like(sums), where=mass > 0)
        return found

    def measures(self, lists: Lists, users: UserBlock, ks: list[int]) -> tuple[list[tuple[str, int]], F64]:
        """Names and values (n, names) of MEASURES at every k. NaN where a list has none."""
        wanted = self.wanted(users)
        names, values = [], []
        for k in ks:
            items = lists.items[:, :k]
            full = (items >= 0).sum(axis=1)
            drawn = np.zeros(len(items)) if lists.explored is None else lists.explored[:, :k].sum(axis=1)
            values.append(intra_list_diversity(items, self.items.vectors))
            values.append(calibration_kl(items, self.items.mix, wanted))
            values.append(np.divide(drawn, full, out=np.full(len(items), np.nan), where=full > 0))
            names += [(name, k) for name in MEASURES]
        return names, np.column_stack(values)
