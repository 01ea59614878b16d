"""Popularity as a model: an inner product of rank 1. Also the baseline, and the fallback of all other models."""

from __future__ import annotations

import numpy as np

from sparkcf.config.models import PopularityConfig
from sparkcf.data.pairs import Reads, popularity
from sparkcf.models.contract import InnerProduct, Model
from sparkcf.models.contract_data import (
    F32,
    I32,
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
from sparkcf.models.explanation import Explanation, Part
from sparkcf.spark import DataFrame, F, StorageLevel


class Popularity(Model[PopularityConfig]):
    """Every user's vector is [1]; an item's vector is its number of users, or the sum of its pairs' weights."""

    section = PopularityConfig
    fits_locally = True

    @property
    def reads(self) -> Reads:
        return Reads("positives")

    @property
    def width(self) -> int:
        return 1

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        no_bias = F.lit(0.0).cast("float").alias("bias")
        items = self._scores(data.pairs).select(
            F.col("item_idx").alias("idx"), F.array("score").alias("factor"), no_bias
        )
        users = data.pairs.select(F.col("user_idx").alias("idx")).distinct()
        users = users.select("idx", F.array(F.lit(1.0).cast("float")).alias("factor"), no_bias)
        both = items.withColumn("side", F.lit("item")).unionByName(users.withColumn("side", F.lit("user")))
        cached = both.persist(StorageLevel.MEMORY_AND_DISK)  # released with the fit
        user, item = (cached.where(F.col("side") == side).drop("side") for side in ("user", "item"))
        return Fitted(user, item, cached=cached)

    def _scores(self, pairs: DataFrame) -> DataFrame:
        if self.params.by == "users":
            return popularity(pairs)
        return pairs.groupBy("item_idx").agg(F.sum("value").cast("float").alias("score"))

    def fit_local(self, data: LocalData, run: LocalRun) -> LocalFit:
        user, item = data.present()
        weights = None if self.params.by == "users" else data.values
        scores = np.bincount(data.items, weights, minlength=data.n_items).astype(np.float32)
        users = UserBlock(user[:, None].astype(np.float32), np.zeros(data.n_users, np.float32), user)
        return LocalFit(Saved(scores[:, None], np.zeros(data.n_items, np.float32), item), users)

    def open(self, saved: Saved) -> PopularityScorer:
        return PopularityScorer(saved)


class PopularityScorer(InnerProduct):
    """Folds in every new user as the vector [1]."""

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        n = len(rows[0]) - 1
        return np.ones((n, 1), np.float32), np.zeros(n, np.float32)

    def explain(self, user: UserBlock, item: int) -> Explanation:
        score = float(self.item_vectors[item, 0] + self.item_bias[item])
        return Explanation.summing(score, [Part("popularity", "users who have the item", None, score)])

    def because(self, users: UserBlock, items: I32) -> None:
        return None
