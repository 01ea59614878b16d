"""The models by name: each fits pairs and folds in rows that were not in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from sparkcf.als import Fit, fit, fold_in
from sparkcf.config import Config
from sparkcf.popularity import fit_popularity

Starts = dict[str, DataFrame] | None
Heard = Callable[[dict[str, Any]], None]
F32 = NDArray[np.float32]
Rows = tuple[NDArray[np.int64], NDArray[np.int32], F32, F32]  # indptr, indices, values, weights
Folded = tuple[F32, F32]  # vectors, biases


@dataclass(frozen=True)
class Model:
    """`fit(pairs, n_users, n_items, config, starts, heard, snapshots=None)`.

    `fold_in(rows, items, item_bias, present, mean, config, gram=None)` gives float32 vectors (n, rank) and biases (n,);
    gram: items^T items, where it is known already.
    """

    fit: Callable[..., Fit]
    fold_in: Callable[..., Folded]
    rank: Callable[[Config], int]


def _fit_factors(
    pairs: DataFrame, n_users: int, n_items: int, config: Config, starts: Starts, heard: Heard, saved: str | None = None
) -> Fit:
    assert config.factorization
    return fit(pairs, n_users, n_items, config.factorization, config.seed, starts, heard, saved)


def _fold_in_factors(
    rows: Rows, items: Any, bias: Any, present: int, mean: float, config: Config, gram: Any = None
) -> Folded:
    assert config.factorization
    return fold_in(*rows[:3], items, bias, config.factorization, present, mean, gram, weights=rows[3])


def _rank(config: Config) -> int:
    return config.factorization.rank if config.factorization else 1


def _fit_popularity(pairs: DataFrame, _u: int, _i: int, config: Config, _s: Starts, _h: Heard, _f: Any = None) -> Fit:
    return fit_popularity(pairs, config.popularity)


def _fold_in_popularity(rows: Rows, _i: Any, _b: Any, _p: int, _m: float, _c: Config, _g: Any = None) -> Folded:
    n = len(rows[0]) - 1
    return np.ones((n, 1), np.float32), np.zeros(n, np.float32)


MODELS = {
    "als": Model(_fit_factors, _fold_in_factors, _rank),
    "hals": Model(_fit_factors, _fold_in_factors, _rank),
    "popularity": Model(_fit_popularity, _fold_in_popularity, _rank),
}
