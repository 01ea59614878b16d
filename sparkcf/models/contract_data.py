"""The data that pass between jobs, models and scorers; see `sparkcf.models.contract`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.csr import take_rows
from sparkcf.lake.arrays import Arrays

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from sparkcf.data.packing import Packing

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Rows = tuple[I64, I32, F32, F32]  # indptr (n + 1,), indices, values, weights (nnz,) of users' pairs over the items
Features = tuple[I64, I32, F32]  # indptr (n + 1,), feature, value: side features of users
USER_ARRAYS, ITEM_ARRAYS = ("vectors", "bias", "known"), ("item_vectors", "item_bias", "item_known")


@dataclass(frozen=True)
class TrainingData:
    """Input data of a fit.

    pairs : user_idx, item_idx, value and the further columns of `Model.reads`.
    n_users : user_idx is dense and below it.
    n_items : item_idx is dense and below it.
    users : table of users with attributes; None: the model reads none.
    items : table of items with attributes; None: the model reads none.
    dictionary : table of the numbers of texts; None: the model reads none.
    packing : packs rows into files for models that train by gradient; None: nothing can be written.
    """

    pairs: DataFrame
    n_users: int
    n_items: int
    users: DataFrame | None = None
    items: DataFrame | None = None
    dictionary: DataFrame | None = None
    packing: Packing | None = None


@dataclass(frozen=True)
class FitRun:
    """How a fit begins, reports and saves its progress.

    warm_start : by side ("user", "item"), frames (idx, factor, bias) of an earlier run; None: start from the seed.
    on_progress : called on the driver with the log entry of every sweep or epoch, or with a "note" to print.
    checkpoint_dir : folder or address of checkpoints, from which an interrupted fit resumes.
    """

    warm_start: Mapping[str, DataFrame] | None = None
    on_progress: Callable[[dict[str, Any]], None] = lambda entry: None
    checkpoint_dir: str | None = None


class FitFigure(NamedTuple):
    """A figure of a fit as a whole. `segment`: the part that it describes; None: all."""

    metric: str
    value: float
    segment: str | None = None


@dataclass(frozen=True)
class Fitted:
    """The result of a fit, fresh or read back from the lake.

    user_factors : idx, factor, bias (nets: latent too) of every user that the model knows; empty factors where scores
        do not come from vectors.
    item_factors : idx, factor, bias of every item that the model knows; likewise.
    log : an entry per sweep or epoch, with its number as "sweep" or "epoch".
    mean : the mean that biases are relative to; 0 without biases.
    average : mean value of the training pairs, if the model predicts values.
    arrays : further arrays for scoring and fold-in.
    tables : further frames to store, by table name.
    figures : figures of the fit as a whole, for the table of metrics.
    cached : persisted frame behind the other frames, freed by `release`.
    """

    user_factors: DataFrame
    item_factors: DataFrame
    log: list[dict[str, Any]] = field(default_factory=list)
    mean: float = 0.0
    average: float = 0.0
    arrays: Arrays = field(default_factory=dict)
    tables: Mapping[str, DataFrame] = field(default_factory=dict)
    figures: Sequence[FitFigure] = ()
    cached: DataFrame | None = None

    @classmethod
    def without_vectors(cls, pairs: DataFrame, arrays: Arrays) -> Fitted:
        """A fit whose scores do not come from vectors; it knows every user and item of the pairs."""
        from pyspark import StorageLevel
        from pyspark.sql import functions as F

        sides = [F.struct(F.lit(side).alias("side"), F.col(f"{side}_idx").alias("idx")) for side in ("user", "item")]
        known = pairs.select(F.inline(F.array(*sides))).distinct()
        empty, no_bias = F.array().cast("array<float>"), F.lit(0.0).cast("float")
        cached = known.select("side", "idx", empty.alias("factor"), no_bias.alias("bias"))
        cached = cached.persist(StorageLevel.MEMORY_AND_DISK)  # unpersisted by `release`
        user, item = (cached.where(F.col("side") == side).drop("side") for side in ("user", "item"))
        return cls(user, item, arrays=arrays, cached=cached)

    def release(self) -> None:
        if self.cached is not None:
            self.cached.unpersist()


@dataclass(frozen=True)
class Saved:
    """A fit as arrays, in one process.

    item_vectors : (m, item_width).
    item_bias : (m,).
    item_known : bool (m,), whether the model knows the item.
    arrays : see `Fitted`.
    mean : see `Fitted`.
    average : see `Fitted`.
    """

    item_vectors: F32
    item_bias: F32
    item_known: NDArray[np.bool_]
    arrays: Arrays = field(default_factory=dict)
    mean: float = 0.0
    average: float = 0.0


@dataclass(frozen=True)
class LocalData:
    """Input data of a fit in this process: an entry per pair, sorted by user and item, each pair once.

    users, items : int32 (nnz,), below n_users and n_items.
    values : float32 (nnz,), as `Model.reads` asks for them.
    weights : float32 (nnz,); None: all are 1.
    threads : threads that a kernel may use.
    """

    users: I32
    items: I32
    values: F32
    n_users: int
    n_items: int
    weights: F32 | None = None
    threads: int = 1

    def rows(self) -> Rows:
        """The pairs as compressed rows of all users."""
        indptr = np.concatenate([[0], np.cumsum(np.bincount(self.users, minlength=self.n_users))]).astype(np.int64)
        weights = np.ones(len(self.values), np.float32) if self.weights is None else self.weights
        return indptr, self.items, self.values, weights

    def present(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which users and which items have a pair, bool (n_users,) and (n_items,)."""
        user, item = np.zeros(self.n_users, bool), np.zeros(self.n_items, bool)
        user[self.users], item[self.items] = True, True
        return user, item


@dataclass(frozen=True)
class UserBlock:
    """Input of a scorer: some users.

    vectors : (n, width); 0 for users that the model does not know.
    bias : (n,).
    known : bool (n,), whether the model knows the user.
    rows : the users' pairs; None unless `Model.scores_rows`.
    """

    vectors: F32
    bias: F32
    known: NDArray[np.bool_]
    rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.known)

    def take(self, chosen: NDArray[np.intp]) -> UserBlock:
        """The chosen users, in the given order."""
        rows = None
        if self.rows is not None:
            indptr, entries = take_rows(self.rows[0], chosen)
            indices, values, weights = self.rows[1:]
            rows = (indptr, indices[entries], values[entries], weights[entries])
        return UserBlock(self.vectors[chosen], self.bias[chosen], self.known[chosen], rows)


@dataclass(frozen=True)
class Described:
    """Attributes of one user and one item, for explanations.

    user, item : rows of the lake's tables `users` and `items`.
    texts : numbers of texts by their field in the dictionary, as `data.dictionary.numbered` gives them.
    """

    user: Mapping[str, Any]
    item: Mapping[str, Any]
    texts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class LocalRun:
    """How a fit in this process begins, reports and ends.

    on_progress : called with the log entry of every sweep or epoch.
    rounds : sweeps to run, of `Model.rounds`; None: all. Only with `Model.fits_in_parts`.
    start : an earlier fit to continue from; None: start from the seed. Only with `Model.fits_in_parts`.
    """

    on_progress: Callable[[dict[str, Any]], None] = lambda entry: None
    rounds: int | None = None
    start: LocalFit | None = None


@dataclass(frozen=True)
class LocalFit:
    """The result of a fit in this process.

    saved : what `Model.open` takes.
    users : all users of the data; without rows.
    log : see `Fitted`.
    """

    saved: Saved
    users: UserBlock
    log: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def without_vectors(cls, data: LocalData, arrays: Arrays) -> LocalFit:
        """A fit whose scores do not come from vectors; it knows every user and item of the data."""
        user, item = data.present()
        none, no_bias = (np.zeros((data.n_items, 0), np.float32), np.zeros(data.n_items, np.float32))
        users = UserBlock(np.zeros((data.n_users, 0), np.float32), np.zeros(data.n_users, np.float32), user)
        return cls(Saved(none, no_bias, item, arrays), users)

    @classmethod
    def of_arrays(cls, arrays: Arrays, mean: float, average: float, log: list[dict[str, Any]]) -> LocalFit:
        """The inverse of `to_arrays`. Raises TypeError if an array is missing."""

        def part(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        saved = Saved(**part("saved."), arrays=part("array."), mean=mean, average=average)
        return cls(saved, UserBlock(**part("users.")), log)

    def to_arrays(self) -> Arrays:
        """All arrays of the fit under one name each; the means and the log are left out."""
        arrays: Arrays = {f"saved.{name}": getattr(self.saved, name) for name in ITEM_ARRAYS}
        arrays |= {f"users.{name}": getattr(self.users, name) for name in USER_ARRAYS}
        return arrays | {f"array.{name}": array for name, array in self.saved.arrays.items()}
