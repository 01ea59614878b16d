"""Exact top-k: of the rows of a score matrix, and of the inner products of users with all items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

SCORE_BYTES = 16 << 20
SLICE_ITEMS = 1 << 15  # with these a block of scores has a hundred users, which a matrix product needs to be fast
GROUPS = 512  # least number of groups, so that loops over the maxima are long enough for vector instructions
GROUPS_PER_K = 4  # groups for each wanted item: about 15 % more candidates than wanted pass the first cut
NEG_INF = np.float32(-np.inf)
NEG_INF_KEY = -0x7F800001  # the key of -inf, see _to_keys


def select_top(scores: Float32, k: int) -> tuple[Int32, Float32]:
    """Select the k best entries of each row, best first; of equal scores the smaller index comes first.

    Parameters
    ----------
    scores : float32 array (n, m)
        Entries that are -inf (masked) or NaN are never selected; +inf is a score like any other.
    k : int
        Length of the lists, at least 1; may exceed m.

    Returns
    -------
    indices : int32 array (n, k)
        Columns of the best entries, padded with -1 if a row has fewer than k.
    best : float32 array (n, k)
        Their scores, padded with -inf.

    Raises
    ------
    ValueError
        If k < 1, or `scores` is not a float32 matrix.

    Notes
    -----
    A row is divided into at least 4 k groups; the k-th largest of the groups' maxima is a bound that at least k entries
    reach. Only the entries that reach it (about 1.2 k in random order) are compared one by one. Their buffer is
    bounded: when full, it is cut to the best k, which raises the bound, so that many ties cost only a few cuts.
    """
    _check_k(k)
    _check_float32("scores", scores, 2)
    n = scores.shape[0]
    indices, best = _padding(n, k)
    everyone = np.ones(n, dtype=np.bool_)
    nothing_seen = np.zeros(n + 1, dtype=np.int64)
    _select_rows(
        np.ascontiguousarray(scores),
        everyone,
        np.empty(0, np.float32),
        nothing_seen,
        np.empty(0, np.int32),
        indices,
        best,
    )
    return indices, best


def rank_block(
    user_vectors: Float32,
    item_vectors: Float32,
    item_bias: Float32 | None,
    eligible: NDArray[np.bool_] | None,
    seen_indptr: Int64,
    seen_indices: Int32,
    k: int,
    score_bytes: int = SCORE_BYTES,
    slice_items: int = SLICE_ITEMS,
) -> tuple[Int32, Float32]:
    """Rank all items for a block of users by user_vectors @ item_vectors.T + item_bias.

    The items are scored in slices, whose lists are merged: of a catalogue larger than memory, mapped from a file, one
    slice has to be in memory at a time.

    Parameters
    ----------
    user_vectors : float32 array (n, r)
    item_vectors : float32 array (m, r)
    item_bias : float32 array (m,), optional
        A user's bias would not change the order and is left to the caller.
    eligible : bool array (m,), optional
        Items that may be listed; all, if None.
    seen_indptr : int64 array (n + 1,)
    seen_indices : int32 array (seen_indptr[-1],) or longer
        Row u of this compressed sparse matrix has the items not to be listed for user u, in any order.
    k : int
        Length of the lists, at least 1; may exceed m.
    score_bytes : int
        Size of the buffer of scores, which limits how many users are scored at a time (at least one).
    slice_items : int
        Most items in a slice.

    Returns
    -------
    indices : int32 array (n, k)
        Items, best first, ties by the smaller index, padded with -1.
    scores : float32 array (n, k)
        Their scores, padded with -inf, never NaN. A user whose vector is not finite gets padding only; an item whose
        vector or bias is not finite is not listed.

    Raises
    ------
    ValueError
        If k < 1, or the arrays do not fit together.
    """
    _check_k(k)
    _check_float32("user_vectors", user_vectors, 2)
    _check_float32("item_vectors", item_vectors, 2)
    n, m = user_vectors.shape[0], item_vectors.shape[0]
    if user_vectors.shape[1] != item_vectors.shape[1]:
        raise ValueError(f"user_vectors have rank {user_vectors.shape[1]}, item_vectors {item_vectors.shape[1]}")
    _check_seen(seen_indptr, seen_indices, n, m)
    _check_items(m, item_bias, eligible)
    scorable = np.isfinite(user_vectors).all(axis=1)
    width = min(m, slice_items)
    buffer = np.empty((max(1, min(n, score_bytes // (4 * max(width, 1)))), width), dtype=np.float32)
    best: tuple[Int32, Float32] | None = None
    for start in range(0, m, slice_items):
        part = slice(start, min(start + slice_items, m))
        vectors = item_vectors[part]
        offset = _item_offset(vectors, _of(item_bias, part), _of(eligible, part))
        seen = (seen_indptr, seen_indices) if len(vectors) == m else _seen_within(seen_indptr, seen_indices, part)

        def score_block(users: slice, vectors: Float32 = vectors) -> Float32:
            scores = buffer[: users.stop - users.start, : len(vectors)]
            if len(vectors) == width:
                return np.dot(user_vectors[users], vectors.T, out=scores)
            return np.dot(user_vectors[users], vectors.T)  # the last slice: its rows are not contiguous in the buffer

        found = _rank(score_block, scorable, len(vectors), offset, *seen, k, len(buffer))
        found[0][found[0] >= 0] += start
        best = found if best is None else merge_lists(best, found, k)
    return best or _padding(n, k)


def merge_lists(first: tuple[Int32, Float32], second: tuple[Int32, Float32], k: int) -> tuple[Int32, Float32]:
    """Merge lists of the same users, the second of items after those of the first: the k best of each user.

    Parameters
    ----------
    first, second : (items, scores) as `rank_block` gives them, int32 and float32 arrays (n, any).
    """
    items, scores = (np.concatenate(arrays, axis=1) for arrays in zip(first, second, strict=True))
    places, best = select_top(scores, k)  # of equal scores the first place, which has the smaller index
    return np.where(places >= 0, np.take_along_axis(items, np.maximum(places, 0), axis=1), -1).astype(np.int32), best


def _seen_within(indptr: Int64, indices: Int32, part: slice) -> tuple[Int64, Int32]:
    """The seen items within a slice of the items, numbered from its start."""
    within = (indices >= part.start) & (indices < part.stop)
    kept = np.concatenate([[0], np.cumsum(within, dtype=np.int64)])
    return kept[indptr], indices[within] - np.int32(part.start)


def _of(array: np.ndarray | None, part: slice) -> np.ndarray | None:
    return None if array is None else array[part]


def rank_scores(
    score_block: Callable[[slice], Float32],
    n: int,
    m: int,
    eligible: NDArray[np.bool_] | None,
    seen_indptr: Int64,
    seen_indices: Int32,
    k: int,
    score_bytes: int = SCORE_BYTES,
) -> tuple[Int32, Float32]:
    """Rank all items for n users by scores of any kind.

    Parameters
    ----------
    score_block : (slice of users) -> scores, float32 (users, m), in memory that may be written to.
    eligible, seen_indptr, seen_indices, k, score_bytes : see `rank_block`.

    Returns
    -------
    indices, scores
        See `rank_block`; a score that is NaN is not listed.

    Raises
    ------
    ValueError
        If k < 1, or the arrays or a block of scores do not fit together.
    """
    _check_k(k)
    _check_seen(seen_indptr, seen_indices, n, m)
    _check_items(m, None, eligible)
    offset = _item_offset(np.empty((m, 0), np.float32), None, eligible)

    def checked(users: slice) -> Float32:
        scores = score_block(users)
        _check_float32("scores", scores, 2)
        if scores.shape != (users.stop - users.start, m):
            raise ValueError(f"score_block gave {scores.shape} for {users.stop - users.start} users and {m} items")
        return np.ascontiguousarray(scores)

    rows = max(1, min(n, score_bytes // (4 * m) if m else 1))
    return _rank(checked, np.ones(n, dtype=np.bool_), m, offset, seen_indptr, seen_indices, k, rows)


def _rank(
    score_block: Callable[[slice], Float32],
    scorable: NDArray[np.bool_],
    m: int,
    offset: Float32,
    seen_indptr: Int64,
    seen_indices: Int32,
    k: int,
    rows: int,
) -> tuple[Int32, Float32]:
    """Lists of all users, computed for `rows` users at a time."""
    n = len(scorable)
    indices, best = _padding(n, k)
    for start in range(0, n if m else 0, rows):
        end = min(start + rows, n)
        scores = score_block(slice(start, end))
        _select_rows(
            scores,
            scorable[start:end],
            offset,
            seen_indptr[start : end + 1],
            seen_indices,
            indices[start:end],
            best[start:end],
        )
    return indices, best


def _padding(n: int, k: int) -> tuple[Int32, Float32]:
    return np.full((n, k), -1, dtype=np.int32), np.full((n, k), NEG_INF, dtype=np.float32)


def _item_offset(item_vectors: Float32, item_bias: Float32 | None, eligible: NDArray[np.bool_] | None) -> Float32:
    """Offset of each item's score: the item's bias, or -inf if it may not be listed; empty if all are 0."""
    listed = np.isfinite(item_vectors).all(axis=1)
    if item_bias is not None:
        listed &= np.isfinite(item_bias)
    if eligible is not None:
        listed &= eligible
    if item_bias is None and listed.all():
        return np.empty(0, dtype=np.float32)
    bias = np.float32(0) if item_bias is None else item_bias
    return np.where(listed, bias, NEG_INF).astype(np.float32)


def _check_items(m: int, item_bias: Float32 | None, eligible: NDArray[np.bool_] | None) -> None:
    if item_bias is not None:
        _check_float32("item_bias", item_bias, 1)
        if item_bias.size != m:
            raise ValueError(f"item_bias has {item_bias.size} entries for {m} items")
    if eligible is not None and (eligible.dtype != np.bool_ or eligible.shape != (m,)):
        raise ValueError(f"eligible must be bool ({m},), not {eligible.dtype} {eligible.shape}")


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")


def _check_float32(name: str, array: np.ndarray, ndim: int) -> None:
    if array.dtype != np.float32 or array.ndim != ndim:
        raise ValueError(f"{name} must be float32 with {ndim} dimensions, not {array.dtype} {array.shape}")


def _check_seen(indptr: Int64, indices: Int32, n: int, m: int) -> None:
    """Check indices before the kernel writes to the places they name."""
    if indptr.dtype != np.int64 or indptr.shape != (n + 1,):
        raise ValueError(f"seen_indptr must be int64 ({n + 1},), not {indptr.dtype} {indptr.shape}")
    if indices.dtype != np.int32 or indices.ndim != 1:
        raise ValueError(f"seen_indices must be int32 with 1 dimension, not {indices.dtype} {indices.shape}")
    if indptr[0] < 0 or indptr[-1] > indices.size or (np.diff(indptr) < 0).any():
        raise ValueError(f"seen_indptr must rise within 0..{indices.size}")
    used = indices[indptr[0] : indptr[-1]]
    if used.size and (used.min() < 0 or used.max() >= m):
        raise ValueError(f"seen_indices must lie within 0..{m - 1}, found {used.min()}..{used.max()}")


@kernel()
def _select_rows(
    scores: Float32,
    scorable: NDArray[np.bool_],
    offset: Float32,
    seen_indptr: Int64,
    seen_indices: Int32,
    indices: Int32,
    best: Float32,
) -> None:
    """Fill the lists of all rows. Scores are overwritten at seen items, and everywhere if there are offsets."""
    n, m = scores.shape
    k = min(indices.shape[1], m)
    maxima = np.empty(min(m, max(GROUPS, GROUPS_PER_K * k)), dtype=np.float32)
    capacity = GROUPS_PER_K * k + 8
    candidates = np.empty(capacity + 8, dtype=np.int32)
    values = np.empty(capacity + 8, dtype=np.float32)
    packed = np.empty(k, dtype=np.int64)
    words = np.empty((m + 7) // 8, dtype=np.uint64)
    words[:] = 0
    passes = words.view(np.uint8)  # one byte for each score, read eight at a time
    for i in range(n):
        if not scorable[i] or m == 0:
            continue
        row = scores[i]
        for p in range(seen_indptr[i], seen_indptr[i + 1]):
            row[seen_indices[p]] = NEG_INF
        _group_maxima(row, offset, maxima)
        bound = _below(_cut(_to_keys(maxima), k, k // 8))
        for j in range(m):
            passes[j] = row[j] > bound  # false for NaN, and for -inf whatever the bound
        count = 0
        for w in range(words.size):
            if words[w] == 0:
                continue
            if count > capacity - 8:
                count, bound = _keep_best(row, candidates, values, count, k)
            for j in range(8 * w, min(8 * w + 8, m)):
                candidates[count] = j
                count += row[j] > bound
        if count > k:
            count, bound = _keep_best(row, candidates, values, count, k)
        _write_sorted(row, candidates[:count], values[:count], packed[:count], indices[i], best[i])


@kernel()
def _group_maxima(row: Float32, offset: Float32, maxima: Float32) -> None:
    """Add the offset to the row; maxima[g] = the largest of row[g], row[g + groups], row[g + 2 groups], …"""
    groups = maxima.size
    maxima[:] = NEG_INF
    for start in range(0, row.size, groups):
        part = row[start : start + groups]
        if offset.size:
            added = offset[start : start + groups]
            for g in range(part.size):
                x = part[g] + added[g]
                part[g] = x
                maxima[g] = x if x > maxima[g] else maxima[g]
        else:
            for g in range(part.size):
                x = part[g]
                maxima[g] = x if x > maxima[g] else maxima[g]


@kernel()
def _to_keys(values: Float32) -> Int32:
    """Convert floats in place to integer keys of the same order; 0.0 and -0.0 get the same key. No NaN."""
    for j in range(values.size):
        values[j] = values[j] + np.float32(0)  # -0.0 + 0.0 is 0.0
    keys = values.view(np.int32)
    for j in range(keys.size):
        b = keys[j]
        keys[j] = b ^ ((b >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return keys


@kernel()
def _to_value(key: np.int64) -> np.float32:
    """The float of a key."""
    one = np.empty(1, dtype=np.int32)
    b = np.int32(key)
    one[0] = b ^ ((b >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return one.view(np.float32)[0]


@kernel()
def _count_from(keys: Int32, lowest: np.int32) -> np.int32:
    """Number of keys that are at least `lowest`; computed in 32 bits, so that the loop is vectorised."""
    n = np.int32(0)
    for j in range(keys.size):
        n += np.int32(keys[j] >= lowest)
    return n


@kernel()
def _cut(keys: Int32, k: int, slack: int) -> np.int64:
    """A key that k to k + slack keys reach, by bisection; with ties at it, the k-th largest key."""
    low = np.int64(keys[0])
    high = low
    for j in range(keys.size):
        low = min(low, np.int64(keys[j]))
        high = max(high, np.int64(keys[j]))
    while low < high:
        middle = low + (high - low + 1) // 2
        reached = _count_from(keys, np.int32(middle))
        if reached < k:
            high = middle - 1
            continue
        low = middle
        if reached <= k + slack:
            break
    return low


@kernel()
def _below(key: np.int64) -> np.float32:
    """The next smaller float than the key's; -inf for -inf."""
    if key <= NEG_INF_KEY:
        return NEG_INF
    # The key below that of 0.0 is -0.0, which is not smaller.
    return _to_value(key - 2 if key == 0 else key - 1)


@kernel()
def _keep_best(row: Float32, candidates: Int32, values: Float32, count: int, k: int) -> tuple[int, np.float32]:
    """Keep the best k candidates in their order; returns k and the least score kept.

    Candidates are in order of their indices, so of those tied at the cut the first are kept, and a later entry must
    exceed the cut.
    """
    for c in range(count):
        values[c] = row[candidates[c]]
    keys = _to_keys(values[:count])
    cut = _cut(keys, k, 0)
    ties = k
    for c in range(count):
        ties -= int(keys[c] > cut)
    kept = 0
    for c in range(count):
        tied = keys[c] == cut
        if keys[c] > cut or (tied and ties > 0):
            ties -= int(tied)
            candidates[kept] = candidates[c]
            kept += 1
    return kept, _to_value(cut)


@kernel()
def _write_sorted(
    row: Float32, candidates: Int32, values: Float32, packed: Int64, indices: Int32, best: Float32
) -> None:
    """Sort by descending score, then ascending index, packed into one integer: the inverted key above the index."""
    for c in range(candidates.size):
        values[c] = row[candidates[c]]
    keys = _to_keys(values)
    for c in range(candidates.size):
        packed[c] = (np.int64(~keys[c]) << np.int64(32)) | np.int64(candidates[c])
    packed.sort()
    for c in range(candidates.size):
        j = packed[c] & np.int64(0xFFFFFFFF)
        indices[c] = j
        best[c] = row[j]
