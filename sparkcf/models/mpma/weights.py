"""Mixture weights of pairs: equal, one for each component, by user group and item group, or by user and by item.

For a pair of a user of group g with an item of group h, normalised over the components that apply to the pair:

    global      pi_t
    group       pi_t(g, h) = (kappa pi_t + sum of responsibilities) / (kappa + number of ratings), a Dirichlet prior
    user_item   a_t(u) b_t(i) / pi_t, with a and b shrunk in the same way

`global` and `group` are exact M-steps. `user_item` multiplies two estimates, as if user and item told of the component
independently; it has the form of the weights in Li, Chen, Liu, Lu, Gu, Chu (2017), "Mixture-rank matrix
approximation for collaborative filtering", NeurIPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Kind = Literal["equal", "global", "group", "user_item"]
KINDS: tuple[Kind, ...] = ("global", "group", "user_item")  # that are fitted
ALL_KINDS: tuple[Kind, ...] = ("equal", *KINDS)


@dataclass
class Weights:
    """Mixture weights.

    kind : which of the forms above.
    overall : (T,).
    table : (user groups + 1, item groups + 1, T); the last row and column are of no group.
    """

    kind: Kind
    overall: F64
    table: F64

    @classmethod
    def equal(cls, kind: Kind, components: int, user_groups: int, item_groups: int) -> Weights:
        overall = np.full(components, 1.0 / components)
        return cls(kind, overall, np.tile(overall, (user_groups + 1, item_groups + 1, 1)))

    def of_pairs(self, user_groups: I32, item_groups: I32, of_users: F64, of_items: F64, applies: F64) -> F64:
        """Weights of pairs, (n, T); rows sum to 1.

        Parameters
        ----------
        user_groups, item_groups : (n,), -1 for none.
        of_users, of_items : (n, T), used by kind `user_item`.
        applies : (n, T), 1 where a component applies to a pair; where none does, all do.
        """
        if self.kind == "group":
            weights = self.table[user_groups, item_groups]
        elif self.kind == "user_item":
            weights = of_users * of_items / self.overall
        else:
            weights = np.broadcast_to(self.overall, applies.shape)
        weights = np.maximum(weights, 1e-12) * applies
        total = weights.sum(axis=1, keepdims=True)
        return np.where(total > 0, weights, 1.0) / np.where(total > 0, total, applies.shape[1])


def shrunk(sums: F64, counts: F64, overall: F64, prior: float) -> F64:
    """(prior · overall + sums) / (prior + counts), the last axis is of components; `overall` where both are 0."""
    total = prior + counts[..., None]
    found: F64 = np.where(total > 0, (prior * overall + sums) / np.where(total > 0, total, 1.0), overall)
    return found
