"""Groups of features of which no row has two, so that a group's features can be solved at once."""

from __future__ import annotations

import numpy as np

from sparkcf.kernels.jit import kernel


@kernel()
def list_keys(rows, features, out):
    """Add a hash of each feature to its row's key, uint64 (n,): rows with the same features get the same key."""
    for place in range(rows.size):
        z = (np.uint64(features[place]) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[rows[place]] += z ^ (z >> np.uint64(31))


@kernel()
def group_features(order, starts, lists, indptr, features):
    """Greedy groups of features of which no list has two: each feature gets the first group that has no conflict.

    Parameters
    ----------
    order : int64 (p,), the features in the order of assignment.
    indptr, features : int64 (n + 1,) and (e,), the features of each list.
    starts, lists : int64 (m + 1,) and (e,), the lists of each feature.

    Returns
    -------
    int64 (m,)
        The group of each feature, from 0; -1 if it is not in `order`.
    """
    group = np.full(starts.size - 1, -1, np.int64)
    taken = np.full(order.size + 1, -1, np.int64)  # the last feature for which a group has a conflict
    for place in range(order.size):
        feature = order[place]
        for at in range(starts[feature], starts[feature + 1]):
            for e in range(indptr[lists[at]], indptr[lists[at] + 1]):
                other = group[features[e]]
                if other >= 0:
                    taken[other] = feature
        free = 0
        while taken[free] == feature:
            free += 1
        group[feature] = free
    return group
