"""Measures of ranked lists and of predicted ratings, and summaries of them that merge in any grouping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel

Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

MEASURES = (
    "ndcg_at_k",
    "recall_at_k",
    "precision_at_k",
    "map_at_k",
    "mrr_at_k",
    "hit_rate_at_k",
    "novelty_at_k",
)
# The distribution function of Poisson(1) times 2^64. A weight above 17 has a probability below 1e-16.
POISSON_STEPS = (np.cumsum([math.exp(-1) / math.factorial(w) for w in range(17)]) * 2.0**64).astype(np.uint64)
# Number of steps at or below the smallest number with the same first 8 bits: the start of the search.
POISSON_START = np.searchsorted(POISSON_STEPS, np.arange(256, dtype=np.uint64) << np.uint64(56), side="right")
PERCENTILES = (2.5, 97.5)
WEIGHTS_BYTES = 4 << 20  # of bootstrap weights held at a time


def ranking_measures(
    ranked: Int32,
    heldout_indptr: Int64,
    heldout_indices: Int32,
    ks: Sequence[int],
    item_share: Float64 | None = None,
) -> tuple[list[tuple[str, int]], Float64]:
    """Measure each user's list against the items held out for that user.

    With rel(p) = 1 if the item at position p (from 1) is held out, else 0, and h the number held out:

        ndcg_at_k       Σ_{p≤k} rel(p) / log2(p+1)  /  Σ_{p≤min(k,h)} 1 / log2(p+1)
        recall_at_k     Σ_{p≤k} rel(p) / min(k, h)
        precision_at_k  Σ_{p≤k} rel(p) / k
        map_at_k        Σ_{p≤k} rel(p) precision_at_p / min(k, h)
        mrr_at_k        1 / (the least p ≤ k with rel(p) = 1), or 0
        hit_rate_at_k   1 if any rel(p) = 1 for p ≤ k, else 0
        novelty_at_k    mean of -log2(share) over the items listed at p ≤ k; 0 for an empty list

    Positions that are -1 or beyond the list are misses. A repeated item counts the first time only. An item of share 0
    gets half of the least share above 0: more novel than any other item, but finite.

    Parameters
    ----------
    ranked : int32 array (n, K)
        Items, best first, padded with -1.
    heldout_indptr : int64 array (n + 1,)
    heldout_indices : int32 array (heldout_indptr[-1],) or longer
        Row u of this compressed sparse matrix has the items held out for user u; repeated items count once.
    ks : sequence of int
        Distinct list lengths, each at least 1; may exceed K.
    item_share : float64 array (m,), optional
        Share of the training users who have the item, in 0..1. Without it novelty is not measured.

    Returns
    -------
    names : list of (measure, k)
        The columns of `values`.
    values : float64 array (n, len(names))
        All NaN for a user without held-out items.

    Raises
    ------
    ValueError
        If a k is below 1 or repeated, or the arrays do not fit together.

    References
    ----------
    Liang, Krishnan, Hoffman, Jebara: Variational Autoencoders for Collaborative Filtering, WWW 2018, section
    4.2 (NDCG and Recall). Vargas, Castells: Rank and Relevance in Novelty and Diversity Metrics, RecSys 2011.
    """
    lengths = np.array(ks, dtype=np.int64).reshape(-1)
    if lengths.size == 0 or lengths.min() < 1 or np.unique(lengths).size < lengths.size:
        raise ValueError(f"ks is {tuple(ks)}; it must hold different lengths of at least 1")
    if ranked.dtype != np.int32 or ranked.ndim != 2 or (ranked.size and ranked.min() < -1):
        raise ValueError("ranked must be an int32 matrix of item indices, padded with -1")
    _check_heldout(heldout_indptr, heldout_indices, ranked.shape[0])
    measures = MEASURES if item_share is not None else MEASURES[:-1]
    names = [(measure, int(k)) for measure in measures for k in lengths]
    n_items = 1 + max(int(ranked.max(initial=-1)), int(heldout_indices.max(initial=-1)))
    surprise = np.zeros(0) if item_share is None else _surprise(item_share, int(ranked.max(initial=-1)))
    values = np.empty((ranked.shape[0], len(measures), lengths.size))
    depth = max(ranked.shape[1], int(lengths.max()))
    gains = 1.0 / np.log2(np.arange(2, depth + 2))
    _measure_rows(
        np.ascontiguousarray(ranked),
        heldout_indptr,
        heldout_indices,
        lengths,
        surprise,
        gains,
        n_items,
        values,
    )
    return names, values.reshape(ranked.shape[0], len(names))


def _check_heldout(indptr: Int64, indices: Int32, n: int) -> None:
    if indptr.dtype != np.int64 or indptr.shape != (n + 1,):
        raise ValueError(f"heldout_indptr must be int64 ({n + 1},), not {indptr.dtype} {indptr.shape}")
    if indices.dtype != np.int32 or indices.ndim != 1 or (indices.size and indices.min() < 0):
        raise ValueError("heldout_indices must be int32 with 1 dimension, and not negative")
    if indptr[0] < 0 or indptr[-1] > indices.size or (np.diff(indptr) < 0).any():
        raise ValueError(f"heldout_indptr must rise within 0..{indices.size}")


def _surprise(item_share: Float64, last_item: int) -> Float64:
    """-log2 of each item's share, with the floor that ranking_measures defines."""
    share = np.asarray(item_share, dtype=np.float64)
    if share.ndim != 1 or share.size <= last_item:
        raise ValueError(f"item_share has shape {share.shape}, but item {last_item} is listed")
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError("item_share must lie within 0..1")
    seen = share[share > 0]
    if seen.size == 0:
        raise ValueError("item_share is 0 for all items: novelty is not defined")
    return -np.log2(np.maximum(share, seen.min() / 2))


@kernel()
def _measure_rows(
    ranked: Int32,
    indptr: Int64,
    indices: Int32,
    ks: Int64,
    surprise: Float64,
    gains: Float64,
    n_items: int,
    values: Float64,
) -> None:
    """values: (users, measures, ks), in the order of MEASURES."""
    n, width = ranked.shape
    depth = min(width, ks.max())
    relevant = np.empty(depth, dtype=np.bool_)
    awaited = np.full(n_items, -1, dtype=np.int64)  # by item: the last user for whom it is held out and not yet listed
    for u in range(n):
        heldout = 0
        for p in range(indptr[u], indptr[u + 1]):
            if awaited[indices[p]] != u:
                awaited[indices[p]] = u
                heldout += 1
        if heldout == 0:
            values[u] = np.nan
            continue
        values[u] = 0.0
        for p in range(depth):
            item = ranked[u, p]
            relevant[p] = item >= 0 and awaited[item] == u
            if relevant[p]:
                awaited[item] = -1
        for c in range(ks.size):
            _measure_list(ranked[u, : ks[c]], relevant[: ks[c]], heldout, ks[c], gains, surprise, values[u, :, c])


@kernel()
def _measure_list(
    items: Int32,
    relevant: NDArray[np.bool_],
    heldout: int,
    k: int,
    gains: Float64,
    surprise: Float64,
    values: Float64,
) -> None:
    """One user and one k: `items` has at most k positions, the rest are misses; values start at 0."""
    hits, listed, gain, precisions, novelty = 0, 0, 0.0, 0.0, 0.0
    for p in range(items.size):
        if relevant[p]:
            hits += 1
            gain += gains[p]
            precisions += hits / (p + 1)
            if hits == 1:
                values[4] = 1.0 / (p + 1)
        if surprise.size > 0 and items[p] >= 0:
            listed += 1
            novelty += surprise[items[p]]
    reachable = min(k, heldout)
    values[0] = gain / gains[:reachable].sum()
    values[1] = hits / reachable
    values[2] = hits / k
    values[3] = precisions / reachable
    values[5] = 1.0 if hits > 0 else 0.0
    if listed > 0:
        values[6] = novelty / listed


@dataclass(frozen=True)
class Summary:
    """Sums over users (or rows) of q values and of their bootstrap replicates; summaries merge by addition.

    Attributes
    ----------
    counted, left_out : int
        Rows summed, and rows without a value.
    sums : float64 array (q,)
    replicate_weights : float64 array (replicates,)
        Sum of the bootstrap weights of the rows.
    replicate_sums : float64 array (replicates, q)
        Sum of weight times value.
    """

    counted: int
    left_out: int
    sums: Float64
    replicate_weights: Float64
    replicate_sums: Float64

    def pack(self) -> Float64:
        """The summary as one float64 array (2 + q + replicates + replicates q,); such arrays merge by addition."""
        counts = np.array([self.counted, self.left_out], dtype=np.float64)
        return np.concatenate([counts, self.sums, self.replicate_weights, self.replicate_sums.ravel()])

    def among(self, which: int, values: slice) -> Summary:
        """The summary of the columns `values` over the rows in which column `which`, an indicator, is 1.

        The columns must have been summed as products with the indicator, so that they are 0 in the other rows.
        """
        return Summary(
            round(self.sums[which]),
            self.left_out,
            self.sums[values],
            self.replicate_sums[:, which],
            self.replicate_sums[:, values],
        )

    def columns(self, values: slice) -> Summary:
        """The summary of some of the values."""
        sums, drawn = self.sums[values], self.replicate_sums[:, values]
        return Summary(self.counted, self.left_out, sums, self.replicate_weights, drawn)

    def without(self, part: Summary) -> Summary:
        """The summary of the rows that are not in `part`, of as many first values as `part` has; values are >= 0."""
        q = part.sums.size
        return Summary(
            self.counted - part.counted,
            self.left_out,
            np.maximum(self.sums[:q] - part.sums, 0.0),
            self.replicate_weights - part.replicate_weights,
            np.maximum(self.replicate_sums[:, :q] - part.replicate_sums, 0.0),
        )

    def replicate_means(self) -> Float64:
        """The mean in each replicate, float64 (replicates, q); NaN in a replicate that drew no row."""
        drawn = np.where(self.replicate_weights > 0, self.replicate_weights, np.nan)
        return self.replicate_sums / drawn[:, None]

    def result(self) -> tuple[Float64, Float64, Float64]:
        """Mean, lower and upper bound, each float64 (q,).

        The bounds are the 2.5 and 97.5 percentiles of the replicate means; NaN without replicates. The mean is NaN if
        no row was counted.
        """
        mean = self.sums / self.counted if self.counted else np.full(self.sums.size, np.nan)
        lower, upper = _bounds(self.replicate_means())
        return mean, lower, upper


def unpack(array: Float64, q: int, replicates: int) -> Summary:
    """Undo `Summary.pack`. Raises ValueError if the array's length does not match q and replicates."""
    if array.shape != (2 + q + replicates + replicates * q,):
        raise ValueError(f"an array {array.shape} is no summary of {q} values with {replicates} replicates")
    sums, weights, replicate_sums = np.split(np.asarray(array[2:], dtype=np.float64), [q, q + replicates])
    return Summary(int(array[0]), int(array[1]), sums, weights, replicate_sums.reshape(replicates, q))


def summarize(values: Float64, user_idx: Int64, seed: int, replicates: int) -> Summary:
    """Sum the rows of `values`, unweighted and for each replicate with bootstrap weights.

    Rows that are all NaN are left out and counted. All rows of a user get the same weight, wherever they are summed, so
    the bootstrap is over users.

    Parameters
    ----------
    values : float64 array (n, q)
    user_idx : int64 array (n,)
    seed : int
    replicates : int
        Bootstrap replicates; 0 for none.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If a row is NaN in part, or the arrays do not fit together.

    References
    ----------
    Chamandy, Muralidharan, Najmi, Naidu: Estimating Uncertainty for Massive Data Streams, Google 2012
    (Poisson bootstrap of clustered data).
    """
    if values.ndim != 2 or user_idx.shape != values.shape[:1]:
        raise ValueError(f"values {values.shape} and user_idx {user_idx.shape} do not fit together")
    missing = np.isnan(values)
    empty = missing.all(axis=1)
    partial = np.flatnonzero(missing.any(axis=1) & ~empty)
    if partial.size:
        raise ValueError(f"row {partial[0]} is NaN in part; only a row without any value can be left out")
    values, user_idx = np.asarray(values[~empty], dtype=np.float64), user_idx[~empty]
    replicate_weights = np.zeros(replicates)
    replicate_sums = np.zeros((replicates, values.shape[1]))
    step = max(1, WEIGHTS_BYTES // (8 * max(1, replicates)))
    for start in range(0, values.shape[0] if replicates else 0, step):
        weights = poisson_weights(seed, replicates, user_idx[start : start + step])
        replicate_weights += weights.sum(axis=0)
        replicate_sums += weights.T @ values[start : start + step]
    return Summary(values.shape[0], int(empty.sum()), values.sum(axis=0), replicate_weights, replicate_sums)


def merge(summaries: Iterable[Summary]) -> Summary:
    """Merge one or more summaries with the same numbers of values and replicates."""
    parts = list(summaries)
    if not parts or len({part.replicate_sums.shape for part in parts}) > 1:
        raise ValueError("merge needs one or more summaries, all with the same numbers of values and replicates")
    replicates, q = parts[0].replicate_sums.shape
    return unpack(np.sum([part.pack() for part in parts], axis=0), q, replicates)


def rating_errors(actual: NDArray[np.floating], predicted: NDArray[np.floating]) -> Float64:
    """Squared and absolute error of each predicted rating: float64 (n, 2), to be summarized by user.

    Raises ValueError if the lengths differ or a value is not finite: leaving such a row out would flatter the model.
    """
    if actual.ndim != 1 or actual.shape != predicted.shape:
        raise ValueError(f"actual {actual.shape} and predicted {predicted.shape} do not fit together")
    errors = np.abs(np.asarray(predicted, dtype=np.float64) - np.asarray(actual, dtype=np.float64))
    wrong = np.flatnonzero(~np.isfinite(errors))
    if wrong.size:
        row = wrong[0]
        raise ValueError(f"row {row}: actual {actual[row]}, predicted {predicted[row]}; both must be finite")
    return np.stack([errors**2, errors], axis=1)


def rmse(errors: Summary) -> tuple[float, float, float]:
    """Root of the mean squared error of summarized rating_errors, and its bounds over users."""
    mean = float(errors.result()[0][0])
    lower, upper = _bounds(np.sqrt(errors.replicate_means()[:, :1]))
    return float(np.sqrt(mean)), float(lower[0]), float(upper[0])


def mae(errors: Summary) -> tuple[float, float, float]:
    """Mean absolute error of summarized rating_errors, and its bounds over users."""
    mean, lower, upper = errors.result()
    return float(mean[1]), float(lower[1]), float(upper[1])


def _bounds(replicate_means: Float64) -> Float64:
    """The percentiles (2, q) over the replicates that drew a row."""
    drawn = replicate_means[~np.isnan(replicate_means).any(axis=1)]
    if drawn.shape[0] == 0:
        return np.full((2, replicate_means.shape[1]), np.nan)
    return np.percentile(drawn, PERCENTILES, axis=0)


def poisson_weights(seed: int, replicates: int, user_idx: Int64) -> Float64:
    """Bootstrap weights, float64 (n, replicates): Poisson(1) by hashing (seed, replicate, user_idx).

    So a user has the same weights on every machine and in every partition. The hash is a uniform 64-bit number; the
    weight is the number of steps of the Poisson distribution function at or below it.

    References
    ----------
    Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014 (SplitMix64's finalizer).
    """
    weights = np.empty((user_idx.size, replicates))
    user_idx = np.ascontiguousarray(user_idx, dtype=np.int64)
    _fill_weights(np.uint64(seed % 2**64), user_idx, POISSON_STEPS, POISSON_START, weights)
    return weights


@kernel()
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel()
def _fill_weights(seed: np.uint64, user_idx: Int64, steps: NDArray[np.uint64], start: Int64, weights: Float64) -> None:
    golden = np.uint64(0x9E3779B97F4A7C15)
    n, replicates = weights.shape
    keys = np.empty(replicates, dtype=np.uint64)
    for b in range(replicates):
        keys[b] = _mix(_mix(seed + golden) + golden * np.uint64(b + 1))
    for i in range(n):
        user = _mix(np.uint64(user_idx[i]) + golden)
        for b in range(replicates):
            x = _mix(user + keys[b])
            w = start[x >> np.uint64(56)]
            while w < steps.size and x >= steps[w]:
                w += 1
            weights[i, b] = w
