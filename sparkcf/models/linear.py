"""Linear models of items: a user's scores are the user's row of pairs times weights between items.

    pairs ──at most `max_history` of each user──▶ rows over the items that have pairs ──solve──▶ weights

EASE and MRF are such models. They differ in which weights there are, and how these are solved.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import numpy as np

from sparkcf.config.linear import EASEConfig, MRFConfig
from sparkcf.data.pairs import Reads
from sparkcf.data.split import uniform
from sparkcf.errors import TrainingError
from sparkcf.kernels.random import uniform_rows
from sparkcf.lake.arrays import Arrays
from sparkcf.models.contract import Model, Scorer
from sparkcf.models.contract_data import (
    F32,
    I32,
    I64,
    Features,
    FitRun,
    Fitted,
    LocalData,
    LocalFit,
    LocalRun,
    Rows,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.explanation import Explanation, of_items, strongest_had
from sparkcf.spark import DataFrame, F

Compressed = tuple[I64, I32, F32]  # indptr, indices, values
LinearParams = TypeVar("LinearParams", EASEConfig, MRFConfig)


class LinearModel(Model[LinearParams]):
    """Weights between items, solved exactly. Users have no vectors; they are scored by their rows."""

    scores_rows = True
    fits_locally = fits_in_parts = True

    @property
    def reads(self) -> Reads:
        return Reads("positives")

    @property
    def width(self) -> int:
        return 0

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """Solve on Spark.

        Raises
        ------
        ConfigError
            There are more items, or more pairs of items, than the parameters allow.
        TrainingError
            There is no pair of a user and an item, or the solve fails.
        """
        if run.warm_start:
            run.on_progress({"note": f"train.warm_start is ignored: {self.name} is solved exactly"})
        items = items_of(data.pairs)
        self.check_size(len(items))
        places = data.pairs.sparkSession.createDataFrame(enumerate(items.tolist()), "place int, item_idx int")
        placed = capped(data.pairs, self.params.max_history, self.seed).join(places, on="item_idx", how="inner")
        placed = placed.select("user_idx", F.col("place").alias("item_idx"), "value")
        return Fitted.without_vectors(data.pairs, self.solve(placed, len(items), run) | {"items": items})

    def fit_local(self, data: LocalData, run: LocalRun) -> LocalFit:
        items = np.flatnonzero(data.present()[1]).astype(np.int32)
        self.check_size(len(items))
        rows = capped_rows(data, items, self.params.max_history, self.seed)
        return LocalFit.without_vectors(data, self.solve_rows(rows, len(items)) | {"items": items})

    def check_size(self, n_items: int) -> None:
        """Raise TrainingError if no item has a pair; ConfigError for more items than the parameters allow."""
        if not n_items:
            raise TrainingError("no positive interaction to train on: is preference.positive_from too high?")

    @abstractmethod
    def solve(self, pairs: DataFrame, n_items: int, run: FitRun) -> Arrays:
        """The arrays of the weights, solved on Spark.

        Parameters
        ----------
        pairs : user_idx, item_idx, value; item_idx is the item's place among the `n_items` that have pairs.
        """

    @abstractmethod
    def solve_rows(self, rows: Compressed, n_items: int) -> Arrays:
        """The same arrays, solved in this process.

        Parameters
        ----------
        rows : rows of all users over the `n_items` that have pairs.
        """


class LinearScorer(Scorer):
    """Scores users by their rows; folding in a new user needs no solve. `items`: those with weights, ascending."""

    def __init__(self, saved: Saved) -> None:
        self.known_items = saved.item_known
        self.items: I32 = saved.arrays["items"]
        self.place = np.full(len(saved.item_known), -1, np.int32)
        self.place[self.items] = np.arange(len(self.items), dtype=np.int32)

    @abstractmethod
    def brought(self, had: I32, values: F32, items: I32) -> F32:
        """What each item of a user brings to the score of each item, (h, k)."""

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        n = len(rows[0]) - 1
        return np.zeros((n, 0), np.float32), np.zeros(n, np.float32)

    def explain(self, user: UserBlock, item: int) -> Explanation:
        """The weights from the user's items to the item, times the pairs' values."""
        assert user.rows is not None
        had, values = user.rows[1:3]
        parts = self.brought(had, values, np.array([item], np.int32))[:, 0]
        return Explanation.summing(float(parts.sum(dtype=np.float64)), of_items(had, parts))

    def because(self, users: UserBlock, items: I32) -> I32:
        assert users.rows is not None
        return strongest_had(*users.rows[:3], items, self.brought)

    def everywhere(self, scores: F32) -> F32:
        """Expand scores of the items with weights to all items, (n, m); the others score 0."""
        if len(self.items) == len(self.known_items):
            return scores
        out = np.zeros((len(scores), len(self.known_items)), np.float32)
        out[:, self.items] = scores
        return out


def items_of(pairs: DataFrame) -> I32:
    """The items of the pairs, ascending."""
    found: Any = pairs.select("item_idx").distinct().toPandas()
    return np.sort(found["item_idx"].to_numpy(np.int32))


def capped(pairs: DataFrame, most: int, seed: int) -> DataFrame:
    """Keep at most `most` pairs of each user, by hash: a user's cost grows with the square of their number."""
    many = pairs.groupBy("user_idx").count().where(F.col("count") > most)
    if many.isEmpty():
        return pairs
    entry = F.struct(uniform(seed, "ease", F.col("user_idx"), F.col("item_idx")).alias("at"), "item_idx", "value")
    of_many = pairs.join(F.broadcast(many), on="user_idx", how="left_semi")
    listed = of_many.groupBy("user_idx").agg(F.slice(F.sort_array(F.collect_list(entry)), 1, most).alias("row"))
    kept = listed.select("user_idx", F.inline("row")).select("user_idx", "item_idx", "value")
    others = pairs.join(F.broadcast(many), on="user_idx", how="left_anti")
    return others.select("user_idx", "item_idx", "value").unionByName(kept)


def capped_rows(data: LocalData, items: I32, most: int, seed: int) -> Compressed:
    """Compressed rows of all users over the places of `items`: at most `most` pairs of each, drawn by the seed."""
    indptr, indices, values, _ = data.rows()
    kept = np.ones(len(indices), bool)
    for row in np.flatnonzero(np.diff(indptr) > most):
        here = np.arange(indptr[row], indptr[row + 1])
        drawn = np.argsort(uniform_rows(seed, int(row), here - here[0]), kind="stable")
        kept[here[drawn[most:]]] = False
    counts = np.bincount(data.users[kept], minlength=data.n_users)
    places = np.searchsorted(items, indices[kept]).astype(np.int32)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), places, values[kept]
