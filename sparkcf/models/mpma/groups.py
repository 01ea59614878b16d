"""Groups of the rows of one side: k-means by a gang, and the groups that are too small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparkcf.errors import TrainingError
from sparkcf.kernels.random import uniform_rows
from sparkcf.training.gang import Gang

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
ROUNDS = 30  # most assignments of all rows
STREAM = 900  # of the draws of first centres, apart from those of factors


def k_means(points: F32, ids: NDArray[np.int64], groups: int, seed: int, what: str, gang: Gang) -> tuple[I32, F64]:
    """Lloyd's k-means over the rows of all workers, from k-means++ centres; does not depend on the workers' number.

    Arthur, Vassilvitskii (2007), "k-means++: the advantages of careful seeding". A row is drawn in proportion to its
    squared distance d2 by the least -log(uniform) / d2, so every worker draws for its own rows.

    Parameters
    ----------
    points : (n, k), rows of this worker.
    ids : (n,), their dense indices.
    what : the setting, for messages.

    Returns
    -------
    The group of each row, int32 (n,), and the centres, float64 (groups, k), the same at all workers.

    Raises
    ------
    TrainingError
        There are fewer rows than groups.
    """
    whole = int(gang.sum(np.array([len(points)], np.int64))[0])
    if whole < groups:
        raise TrainingError(f"{what}={groups}, but only {whole} rows have ratings: lower it")
    data = points.astype(np.float64)
    centres = np.zeros((groups, data.shape[1]))
    nearest = np.ones(len(data))
    for number in range(groups):
        draws = -np.log(uniform_rows(seed, STREAM + number, ids)) / np.maximum(nearest, 1e-12)
        centres[number] = _of_least(draws, data, gang)
        distance = ((data - centres[number]) ** 2).sum(axis=1)
        nearest = distance if number == 0 else np.minimum(nearest, distance)
    assigned = np.full(len(data), -1, np.int32)
    for _ in range(ROUNDS):
        before, assigned = assigned, nearest_centre(data, centres)
        if not gang.sum(np.array([np.count_nonzero(before != assigned)], np.int64))[0]:
            break
        sums = np.zeros((groups, data.shape[1] + 1))
        np.add.at(sums, assigned, np.column_stack([data, np.ones(len(data))]))
        sums = gang.sum(sums)
        filled = sums[:, -1] > 0  # an empty group keeps its centre
        centres[filled] = sums[filled, :-1] / sums[filled, -1:]
    return assigned, centres


def nearest_centre(points: F64, centres: F64) -> I32:
    """The nearest centre of each point, int32 (n,); the first of equally near ones."""
    distances = (centres**2).sum(axis=1) - 2 * points @ centres.T
    found: I32 = np.argmin(distances, axis=1).astype(np.int32)
    return found


def large_groups(groups: I32, present: NDArray[np.bool_], n_groups: int, least: int, gang: Gang) -> NDArray[np.bool_]:
    """Whether each group has at least `least` rows with ratings over all workers, bool (n_groups,)."""
    counted = groups[present & (groups >= 0)]
    large: NDArray[np.bool_] = gang.sum(np.bincount(counted, minlength=n_groups).astype(np.int64)) >= least
    return large


def _of_least(draws: F64, data: F64, gang: Gang) -> F64:
    """The row of the smallest draw over all workers, (k,)."""
    best = np.full(gang.size, 0.0)
    best[gang.rank] = draws.min() if len(draws) else np.inf
    rows = np.zeros((gang.size, data.shape[1]))
    if len(draws):
        rows[gang.rank] = data[np.argmin(draws)]
    chosen: F64 = gang.sum(rows)[int(np.argmin(gang.sum(best)))]
    return chosen
