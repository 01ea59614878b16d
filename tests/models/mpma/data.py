"""Small ratings with two kinds of users, for the tests of the mixture."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparkcf.config.factorization import MPMAConfig

N, M = 90, 40
RNG = np.random.default_rng(7)
TASTES = RNG.normal(size=(2, M, 2))
PEOPLE = RNG.normal(size=(N, 2))
KIND = (np.arange(N) % 3 == 0).astype(np.int32)
SEEN = RNG.random((N, M)) < 0.4
SEEN[:, M - 1] = False  # an item without ratings
SEEN[N - 1] = False  # a user without ratings
USERS, ITEMS = (index.astype(np.int32) for index in np.nonzero(SEEN))
MEANS = 3.5 + 0.5 * np.einsum("nk,nmk->nm", PEOPLE, TASTES[KIND])
VALUES = (MEANS[USERS, ITEMS] + 0.3 * RNG.normal(size=len(USERS))).astype(np.float32)


def config(**given: Any) -> MPMAConfig:
    small = {
        "rank": 3,
        "user_groups": 2,
        "item_groups": 2,
        "base_iterations": 6,
        "iterations": 3,
        "refit_iterations": 2,
        "min_group": 2,
        "sgd_steps": 5,
        "sgd_learning_rate": 0.02,
    }
    return MPMAConfig(**(small | {"regularization": 0.3, "local_regularization": 0.5} | given))
