"""Concepts of items (Ma et al. 2019) as arrays: assignments of items, and contributions to scores.

    c_ik = softmax over k of cos(h_i, m_k) / tau        exp(score_i) = sum_k c_ik exp(z_k · h_i / tau)

h_i and z_k have length 1. m items, K concepts, d dimensions, n users.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def assignments(items: F32, prototypes: F32, temperature: float) -> F32:
    """c (m, K) from h (m, d) and m_k (K, d), both of unit rows."""
    logits = items @ prototypes.T / np.float32(temperature)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    assigned: F32 = weights / weights.sum(axis=1, keepdims=True)
    return assigned


def concept_mass(z: F32, items: F32, assigned: F32, temperature: float) -> F32:
    """Contribution of one concept to exp(score), (n, m), from its z (n, d), h (m, d) and its column of c, (m,)."""
    mass: F32 = z @ items.T
    mass /= np.float32(temperature)
    np.exp(mass, out=mass)
    mass *= assigned
    return mass


def normalised_mutual_information(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    """Mutual information of two labellings of the same things, divided by the mean of their entropies: 0 to 1.

    0 if one of them has a single label. Strehl, Ghosh (2002); the arithmetic mean as in scikit-learn.
    """
    rows, columns = (np.unique(labels, return_inverse=True)[1] for labels in (one, other))
    joint = np.zeros((rows.max(initial=0) + 1, columns.max(initial=0) + 1))
    np.add.at(joint, (rows, columns), 1.0)
    joint /= max(len(rows), 1)
    a, b = joint.sum(axis=1), joint.sum(axis=0)
    here = joint > 0
    mutual = float((joint[here] * np.log(joint[here] / np.outer(a, b)[here])).sum())
    entropies = [float(-(p[p > 0] * np.log(p[p > 0])).sum()) for p in (a, b)]
    return mutual / (sum(entropies) / 2) if min(entropies) > 0 else 0.0
