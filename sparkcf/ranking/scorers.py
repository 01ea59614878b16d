"""Share a fit's scorer with the executors: its arrays are memory-mapped files, opened once in every process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.data.arrow import collect_factors, csr_of, vectors_of
from sparkcf.data.pairs import ROW
from sparkcf.data.shared import SharedState, share_state
from sparkcf.models.contract import Model, Scorer
from sparkcf.models.contract_data import F32, Fitted, Rows, Saved, UserBlock
from sparkcf.spark import SparkSession

ITEMS = ("item_vectors", "item_bias", "item_known")
Open = Callable[[Saved], Scorer]


@dataclass(frozen=True)
class SharedScorer:
    """Handle of a scorer that every executor can open."""

    opens: Open
    state: SharedState
    mean: float
    average: float

    @property
    def token(self) -> str:
        return self.state.arrays.token

    def open(self) -> Scorer:
        """The scorer, opened once per process."""
        return _opened(_Once(self))


def share_scorer(spark: SparkSession, opens: Open, saved: Saved) -> SharedScorer:
    """Share a fit's arrays with the executors. `opens` : `Model.open`, which builds a scorer from them."""
    items = {name: getattr(saved, name) for name in ITEMS}
    return SharedScorer(opens, share_state(spark, saved.arrays | items), saved.mean, saved.average)


def share_fitted(spark: SparkSession, model: Model[Any], fitted: Fitted, n_items: int) -> SharedScorer:
    """As `share_scorer`, for a fit whose item vectors are a frame."""
    return share_scorer(spark, model.open, saved_of(model, fitted, n_items))


def saved_of(model: Model[Any], fitted: Fitted, n_items: int) -> Saved:
    """Collect a fit as arrays in this process."""
    vectors, bias, known = collect_factors(fitted.item_factors, n_items, model.item_width)
    return Saved(vectors, bias, known, fitted.arrays, fitted.mean, fitted.average)


def user_block(batch: Any, width: int) -> UserBlock:
    """Users of an Arrow batch with `factor` (null for an unknown user), and optionally `bias` and the columns ROW."""
    names = batch.schema.names
    known, vectors = vectors_of(batch.column("factor"), width)
    bias: F32 = np.zeros(len(known), np.float32)
    if "bias" in names:
        bias = batch.column("bias").fill_null(0.0).to_numpy(zero_copy_only=False).astype(np.float32)
    return UserBlock(vectors, bias, known, rows_of(batch) if ROW[0] in names else None)


def rows_of(batch: Any) -> Rows:
    """The users' pairs from the columns ROW of an Arrow batch; null is a user without pairs."""
    indptr, indices = csr_of(batch.column(ROW[0]))
    values, weights = (
        batch.column(name).flatten().to_numpy(zero_copy_only=False).astype(np.float32) for name in ROW[1:]
    )
    return indptr, indices, values, weights


def known_entries(rows: Rows, known: NDArray[np.bool_]) -> Rows:
    """The rows without items that are unknown to the model."""
    indptr, indices, values, weights = rows
    usable = known[indices]
    offsets = np.concatenate([[0], np.cumsum(usable, dtype=np.int64)])[indptr]
    return offsets, indices[usable], values[usable], weights[usable]


@dataclass(frozen=True)
class _Once:
    """Cache key of a shared scorer: equal if the arrays are the same."""

    shared: SharedScorer

    def __hash__(self) -> int:
        return hash(self.shared.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Once) and other.shared.token == self.shared.token


@lru_cache(maxsize=4)
def _opened(once: _Once) -> Scorer:
    shared = once.shared
    arrays = shared.state.open()
    vectors, bias, known = (arrays.pop(name) for name in ITEMS)
    return shared.opens(Saved(vectors, bias, known, arrays, shared.mean, shared.average))
