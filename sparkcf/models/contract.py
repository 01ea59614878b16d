"""What a model's fit takes beside its pairs, what it gives, and what folding in needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame

if TYPE_CHECKING:
    from sparkcf.lake.tables import LakeTables

Arrays = dict[str, NDArray[Any]]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Context:
    """Where a fit may begin, report, keep what it has so far, and lay down packed rows.

    starts : by side ("user", "item"), frames (idx, factor) to begin from.
    heard : called with the log entry of every sweep or epoch, or with a "note" for people.
    saved : folder or address for progress; a fit that was cut short goes on from there.
    tables, snapshot : the lake and the name of the snapshot of packed rows, for models that are fed from files.
    users, items, dictionary : the tables of users and items with their attributes, and of the numbers of texts, for
        models with features.
    """

    starts: dict[str, DataFrame] | None = None
    heard: Callable[[dict[str, Any]], None] = lambda entry: None
    saved: str | None = None
    tables: LakeTables | None = None
    snapshot: str | None = None
    users: DataFrame | None = None
    items: DataFrame | None = None
    dictionary: DataFrame | None = None


ALONE = Context()


@dataclass(frozen=True)
class Fit:
    """Fitted factors as frames (idx, factor, bias; nets: latent) and the log of the sweeps or epochs.

    `state`: weights that folding in needs beside the items' factors. `features`: of a factorization machine, field,
    feature_idx, factor, bias, samples. `in_context`: pairs to pairs with `factor`, the vector of their user in their
    moment, of a model that takes moments into account. `serving`:
    likewise, the features of users for folding them in. `unknown`: the vectors of a user and
    an item of whom nothing is known. `release` frees what is cached.
    """

    user: DataFrame
    item: DataFrame
    log: list[dict[str, Any]]
    kept: DataFrame
    mean: float = 0.0
    state: Arrays = field(default_factory=dict)
    features: DataFrame | None = None
    in_context: Callable[[DataFrame], DataFrame] | None = None
    serving: Callable[[DataFrame], DataFrame] | None = None
    unknown: tuple[F32, F32] | None = None

    def release(self) -> None:
        self.kept.unpersist()


@dataclass(frozen=True)
class Known:
    """A fit as folding in sees it, in this process.

    `items` (m, rank) and `bias` (m,): the items' factors; `present`: how many of them were in training; `mean`: what
    the biases stand on; `gram` (rank, rank): items^T items, where it is known already; `state`: see `Fit`;
    `features`: of a factorization machine, what the rows have beside their ids: indptr, feat, val; None: histories.
    """

    items: F32
    bias: F32
    present: int
    mean: float
    gram: NDArray[Any] | None = None
    state: Arrays = field(default_factory=dict)
    features: tuple[NDArray[np.int64], NDArray[np.int32], F32] | None = None
