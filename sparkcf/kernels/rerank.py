"""Choose lists from candidates: greedy for relevance, diversity and calibration under caps, then exploration.

With the relevance s_j of a candidate j, scaled to 0..1 within the user, the list I so far, the cosine of items, and the
user's and the list's distributions over categories p and q, the next item is the j of the largest

    (1 - a - b) s_j  -  a max_{i in I} cos(i, j)  -  b KL(p || 0.99 q(I + j) + 0.01 p)

a: maximal marginal relevance (Carbonell, Goldstein 1998); b: calibrated recommendations (Steck 2018, eq. 5-7, greedy).
A candidate that would exceed a cap is passed over.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
SMOOTHING = 0.01  # share of p in the list's distribution, so that KL is finite
TRIES = 200  # draws of a candidate to explore before the item stays


@kernel()
def _divergence(wanted: F64, sums: F64, mass: float, mix: F32, own: float) -> float:
    """KL(p || q~) of a list whose categories sum to `sums` (of total `mass`) with one more item's `mix`."""
    total = mass + own
    found = 0.0
    for g in range(wanted.size):
        p = wanted[g]
        if p > 0.0:
            q = (sums[g] + mix[g]) / total if total > 0.0 else 0.0
            found += p * math.log(p / ((1.0 - SMOOTHING) * q + SMOOTHING * p))
    return found


@kernel()
def _fits(labels: I32, first: int, last: int, used: I32, most: I32) -> bool:
    for at in range(first, last):
        if used[labels[at]] >= most[labels[at]]:
            return False
    return True


@kernel()
def rerank_rows(
    items: I32,
    relevance: F32,
    vectors: F32,
    diversity: float,
    mix: F32,
    wanted: F64,
    calibration: float,
    label_ptr: I64,
    labels: I32,
    most: I32,
    explored: I64,
    keys: NDArray[np.uint64],
    places: I32,
    is_explored: NDArray[np.bool_],
) -> None:
    """Fill the lists of all users.

    Parameters
    ----------
    items : (n, C), candidates, padded with -1.
    relevance : (n, C).
    vectors : (m, d) of unit length; (m, 0) with diversity 0.
    diversity, calibration : a and b above.
    mix : (m, G), each item's distribution over categories; zeros for an item without one.
    wanted : (n, G), p of each user; zeros: the user is not calibrated.
    label_ptr, labels : (m + 1,) and (any,), the labels of each item that have a cap.
    most : (L,), the cap of each label.
    explored : (n,), positions of each list that go to candidates drawn at random.
    keys : (n,), of the random draws.
    places : (n, k), result: the chosen candidates' places, padded with -1.
    is_explored : (n, k), result.
    """
    n, candidates = items.shape
    k = places.shape[1]
    d, categories = vectors.shape[1], mix.shape[1]
    taken = np.empty(candidates, np.bool_)
    closest = np.empty(candidates, np.float64)
    used = np.zeros(most.size, np.int32)
    sums = np.empty(categories, np.float64)
    plain = 1.0 - diversity - calibration
    for u in range(n):
        taken[:], closest[:], used[:], sums[:] = False, 0.0, 0, 0.0
        places[u, :], is_explored[u, :] = -1, False
        calibrated = calibration > 0.0 and wanted[u].sum() > 0.0
        mass, size = 0.0, 0
        for position in range(k):
            best, best_value = -1, -np.inf
            for j in range(candidates):
                item = items[u, j]
                if item < 0 or taken[j]:
                    continue
                value = plain * relevance[u, j] - diversity * closest[j]
                # An upper bound, for KL is at least 0: most candidates need no logarithm.
                if value <= best_value or not _fits(labels, label_ptr[item], label_ptr[item + 1], used, most):
                    continue
                if calibrated:
                    value -= calibration * _divergence(wanted[u], sums, mass, mix[item], mix[item].sum())
                    if value <= best_value:
                        continue
                best, best_value = j, value
            if best < 0:
                break
            chosen = items[u, best]
            taken[best], places[u, position] = True, best
            size += 1
            for at in range(label_ptr[chosen], label_ptr[chosen + 1]):
                used[labels[at]] += 1
            for g in range(categories):
                sums[g] += mix[chosen, g]
                mass += mix[chosen, g]
            if diversity > 0.0:
                for j in range(candidates):
                    if items[u, j] >= 0 and not taken[j]:
                        cosine = 0.0
                        for c in range(d):
                            cosine += vectors[chosen, c] * vectors[items[u, j], c]
                        closest[j] = max(closest[j], cosine) if position else cosine
        state = keys[u]
        for _ in range(min(explored[u], size)):
            state = _splitmix64(state)
            swapped = np.int64(state % np.uint64(size))
            while is_explored[u, swapped]:
                swapped = (swapped + 1) % size
            old = items[u, places[u, swapped]]
            for at in range(label_ptr[old], label_ptr[old + 1]):
                used[labels[at]] -= 1
            for _try in range(TRIES):
                state = _splitmix64(state)
                drawn = np.int64(state % np.uint64(candidates))
                item = items[u, drawn]
                if item >= 0 and not taken[drawn] and _fits(labels, label_ptr[item], label_ptr[item + 1], used, most):
                    taken[drawn], old, places[u, swapped], is_explored[u, swapped] = True, item, drawn, True
                    break
            for at in range(label_ptr[old], label_ptr[old + 1]):
                used[labels[at]] += 1


def within_user(scores: F32) -> F32:
    """Scores (n, C) scaled to 0..1 within each row; -inf (no candidate) becomes 0, a row of equal scores 1."""
    real = np.isfinite(scores)
    least = np.where(real, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    top = np.where(real, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(top > least, (scores - least) / (top - least), 1.0)
    return np.where(real, scaled, 0.0).astype(np.float32)


def intra_list_diversity(items: I32, vectors: F32) -> F64:
    """Mean of 1 - cosine over the pairs of each list, (n,); NaN for a list of less than two items.

    Parameters
    ----------
    items : (n, k), padded with -1.
    vectors : (m, d) of unit length.
    """
    full = items >= 0
    listed = vectors[np.maximum(items, 0)] * full[:, :, None]
    summed = listed.sum(axis=1, dtype=np.float64)
    own = np.einsum("nkd,nkd->n", listed, listed, dtype=np.float64)
    count = full.sum(axis=1).astype(np.float64)
    pairs = count * (count - 1) / 2
    cosines = (np.einsum("nd,nd->n", summed, summed) - own) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        found: F64 = np.where(pairs > 0, 1 - cosines / pairs, np.nan)
    return found


def calibration_kl(items: I32, mix: F32, wanted: F64) -> F64:
    """KL(p || 0.99 q + 0.01 p) of each list, (n,); NaN for a user without p. See `rerank_rows` for the arguments."""
    full = (items >= 0)[:, :, None]
    sums = (mix[np.maximum(items, 0)] * full).sum(axis=1, dtype=np.float64)
    mass = sums.sum(axis=1, keepdims=True)
    q = np.divide(sums, mass, out=np.zeros_like(sums), where=mass > 0)
    smoothed = (1 - SMOOTHING) * q + SMOOTHING * wanted
    ratio = np.divide(wanted, smoothed, out=np.ones_like(wanted), where=wanted > 0)
    found: F64 = np.where(wanted.sum(axis=1) > 0, (wanted * np.log(ratio)).sum(axis=1), np.nan)
    return found


@kernel()
def _splitmix64(state):
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
