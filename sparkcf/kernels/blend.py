"""Reciprocal rank fusion: score_i = sum over members m of w_m / (c + rank_m(i)).

Cormack, Clarke, Buettcher (2009), "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel
from sparkcf.kernels.metrics import ranking_measures
from sparkcf.kernels.topk import select_top

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
LEVELS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0)  # weights that the search tries for a member
ROUNDS = 6
MEASURED = 100  # k of the NDCG that weights are chosen by


def add_reciprocal_ranks(
    scores: F32, had: tuple[I64, I32], weight: float, constant: float, depth: int, out: F32
) -> None:
    """Add weight / (constant + rank) of the `depth` best items of each row.

    Ranks are counted among the items that the user does not have; an item that the user has gets the rank that it
    would have if it alone were new.

    Parameters
    ----------
    scores : (n, m); -inf and NaN: no item of this member.
    had : indptr (n + 1,), indices of the users' items.
    out : (n, m), added to.
    """
    longest = int(np.diff(had[0]).max(initial=0))
    order, _ = select_top(scores, max(1, min(scores.shape[1], depth + longest)))
    _add(order, *had, weight, constant, depth, out)


@kernel()
def _add(order: I32, indptr: I64, indices: I32, weight: float, constant: float, depth: int, out: F32) -> None:
    is_had = np.zeros(out.shape[1], np.bool_)
    for row in range(order.shape[0]):
        for at in range(indptr[row], indptr[row + 1]):
            is_had[indices[at]] = True
        rank = 1
        for place in range(order.shape[1]):
            item = order[row, place]
            if item < 0 or rank > depth:
                break
            out[row, item] += np.float32(weight / (constant + rank))
            if not is_had[item]:
                rank += 1
        for at in range(indptr[row], indptr[row + 1]):
            is_had[indices[at]] = False


def blend_weights(shares: list[F32], items: I32, heldout: tuple[I64, I32]) -> tuple[F64, list[float], float]:
    """Weights of the members by coordinate search on validation users.

    The search starts from the best of equal weights and of each member alone, and tries LEVELS for one member after
    the other until no change raises the mean NDCG@100. It draws nothing.

    Parameters
    ----------
    shares : of each member 1 / (constant + rank) of the candidates, (n, C).
    items : (n, C), the users' candidates, padded with -1.
    heldout : indptr (n + 1,), indices of the items held out.

    Returns
    -------
    Weights that sum to 1, the NDCG of each member alone, and that of the blend.
    """
    count = len(shares)

    def ndcg(weights: F64) -> float:
        mixed = np.zeros(items.shape, np.float32)
        for weight, share in zip(weights, shares, strict=True):
            mixed += np.float32(weight) * share
        mixed[items < 0] = -np.inf
        places, _ = select_top(mixed, MEASURED)
        ranked = np.where(places >= 0, np.take_along_axis(items, np.maximum(places, 0), axis=1), -1).astype(np.int32)
        names, values = ranking_measures(ranked, *heldout, [MEASURED])
        return float(np.nanmean(values[:, names.index(("ndcg_at_k", MEASURED))]))

    starts = [np.ones(count), *np.eye(count)]
    reached = [ndcg(start) for start in starts]
    best = int(np.argmax(reached))
    weights, value = starts[best].copy(), reached[best]
    for _ in range(ROUNDS):
        before = value
        for member in range(count):
            for level in LEVELS:
                tried = weights.copy()
                tried[member] = level
                if tried.sum() > 0 and (found := ndcg(tried)) > value + 1e-6:
                    weights, value = tried, found
        if value == before:
            break
    return weights / weights.sum(), reached[1:], value
