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
Rows = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]  # indptr, indices, values


@dataclass(frozen=True)
class Model:
    """`fit(pairs, n_users, n_items, config, starts, heard)`; `fold_in(rows, items, item_bias, present, mean, config)`
    gives float32 vectors (n, rank); `iterations` for the progress bar."""

    fit: Callable[[DataFrame, int, int, Config, Starts, Heard], Fit]
    fold_in: Callable[[Rows, Any, Any, int, float, Config], NDArray[np.float32]]
    rank: Callable[[Config], int]


def _fit_als(pairs: DataFrame, n_users: int, n_items: int, config: Config, starts: Starts, heard: Heard) -> Fit:
    return fit(pairs, n_users, n_items, config.als, config.seed, starts, heard)


def _fold_in_als(rows: Rows, items: Any, bias: Any, present: int, mean: float, config: Config) -> NDArray[np.float32]:
    return fold_in(*rows, items, bias, config.als, present, mean)[0]


def _fit_popularity(pairs: DataFrame, _u: int, _i: int, config: Config, _s: Starts, _h: Heard) -> Fit:
    return fit_popularity(pairs, config.popularity)


def _fold_in_popularity(rows: Rows, _i: Any, _b: Any, _p: int, _m: float, _c: Config) -> NDArray[np.float32]:
    return np.ones((len(rows[0]) - 1, 1), np.float32)


MODELS = {
    "als": Model(_fit_als, _fold_in_als, lambda config: config.als.rank),
    "popularity": Model(_fit_popularity, _fold_in_popularity, lambda config: 1),
}
