"""What each item of a user's history brings to a score: the row solve taken apart.

With A_u and b_uj of the row's normal equations, see `objective`, and items q_j (with biases: q_j and a 1),

    p_u = A_u^-1 sum_j b_uj q_j      so      p_u·q_i = sum_j b_uj s_ij,      s_ij = q_j A_u^-1 q_i

Hu, Koren, Volinsky (2008), "Collaborative filtering for implicit feedback datasets", section 5: s_ij is how similar the
items are in the eyes of the user, b_uj how much the user's event weighs. With non-negative factors the same holds for
the dimensions in which p_u is above 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.factorization import ALSConfig, HALSConfig
from sparkcf.models.als.objective import NO_WEIGHTS, Objective

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]


def contributions(
    row: tuple[I32, F32, F32],
    listed: I32,
    items: tuple[F32, F32, int],
    vector: F32,
    gram: F64,
    mean: float,
    config: ALSConfig | HALSConfig,
) -> F64:
    """What every item of one user's row brings to the score of each listed item, (h, k); biases are left out.

    Parameters
    ----------
    row : indices, values, weights (h,) of the user's pairs.
    listed : (k,).
    items : vectors (m, rank), biases (m,), and the number of items in training.
    vector : (rank,), the user's; read with `nonnegative` only.
    gram : vectors^T vectors (rank, rank).
    mean : that biases are relative to.
    """
    indices, values, weights = row
    vectors, biases, present = items
    objective = Objective.of(config, mean)
    a, b = objective.coefficients(values, weights if objective.form == "explicit" else NO_WEIGHTS)
    had, wanted = vectors[indices].astype(np.float64), vectors[listed].astype(np.float64)
    targets = b.astype(np.float64)
    system = objective.alpha0 * gram
    if config.biases:
        targets -= a * biases[indices]
        had = np.concatenate([had, np.ones((len(had), 1))], axis=1)
        wanted = np.concatenate([wanted, np.zeros((len(wanted), 1))], axis=1)
        system = np.zeros((config.width, config.width))
    counts, positives = np.array([len(indices)]), np.array([np.count_nonzero(values > 0)])
    reg = objective.row_regularization(objective.counted(counts, positives), present)
    system = system + (had * a[:, None]).T @ had
    system[np.diag_indices_from(system)] += float(reg[0])
    if config.nonnegative:
        used = np.flatnonzero(vector > 0)
        system, had, wanted = system[np.ix_(used, used)], had[:, used], wanted[:, used]
    try:
        solved = np.linalg.solve(system, wanted.T)
    except np.linalg.LinAlgError:  # no regularization, and fewer items than dimensions
        solved = np.linalg.pinv(system) @ wanted.T
    found: F64 = (had @ solved) * targets[:, None]
    return found
