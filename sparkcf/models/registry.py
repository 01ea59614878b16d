"""The models by name: each fits pairs and folds in rows that were not in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from sparkcf.config.root import Config
from sparkcf.models.als.fit import fit, fold_in
from sparkcf.models.contract import F32, Context, Fit, Known
from sparkcf.models.fm.factors import fold_in_fm, sample_count, sample_width, without_biases
from sparkcf.models.fm.fit import fit_fm
from sparkcf.models.nets.fit import fit_net, fold_in_net
from sparkcf.models.popularity import fit_popularity

Rows = tuple[NDArray[np.int64], NDArray[np.int32], F32, F32]  # indptr, indices, values, weights
Folded = tuple[F32, F32]  # vectors, biases


@dataclass(frozen=True)
class Model:
    """`fit(pairs, n_users, n_items, config, context)`; `fold_in(rows, known, config)` gives vectors (n, rank) and
    biases (n,), float32."""

    fit: Callable[[DataFrame, int, int, Config, Context], Fit]
    fold_in: Callable[[Rows, Known, Config], Folded]


def _fit_factors(pairs: DataFrame, n_users: int, n_items: int, config: Config, context: Context) -> Fit:
    assert config.factorization
    starts, heard, saved = context.starts, context.heard, context.saved
    return fit(pairs, n_users, n_items, config.factorization, config.seed, starts, heard, saved)


def _fold_in_factors(rows: Rows, known: Known, config: Config) -> Folded:
    assert config.factorization
    present, mean, gram = known.present, known.mean, known.gram
    return fold_in(*rows[:3], known.items, known.bias, config.factorization, present, mean, gram, weights=rows[3])


def _fold_in_fm(rows: Rows, known: Known, config: Config) -> Folded:
    vectors = fold_in_fm(rows[:3], known.items, known.state, config.fm, known.features)
    return vectors, np.zeros(len(vectors), np.float32)


def _fit_popularity(pairs: DataFrame, _u: int, _i: int, config: Config, _c: Context) -> Fit:
    return fit_popularity(pairs, config.popularity)


def _fold_in_popularity(rows: Rows, _k: Known, _c: Config) -> Folded:
    n = len(rows[0]) - 1
    return np.ones((n, 1), np.float32), np.zeros(n, np.float32)


MODELS: dict[str, Model] = {
    "als": Model(_fit_factors, _fold_in_factors),
    "hals": Model(_fit_factors, _fold_in_factors),
    "fm": Model(fit_fm, _fold_in_fm),
    "multvae": Model(fit_net, fold_in_net),
    "multdae": Model(fit_net, fold_in_net),
    "popularity": Model(_fit_popularity, _fold_in_popularity),
}


def comparable(vectors: F32, config: Config) -> F32:
    """What of items' factors (n, rank) tells how alike they are, (n, any)."""
    return without_biases(vectors, config.fm) if config.model == "fm" else vectors


def rank_of(config: Config) -> int:
    """The length of a factor of the configured model."""
    if config.factorization:
        return config.factorization.rank
    if config.model == "fm":
        return sample_count(config.fm) * sample_width(config.fm)
    if config.net:
        return config.net.hidden[0] if config.net.hidden else config.net.latent_dim
    return 1
