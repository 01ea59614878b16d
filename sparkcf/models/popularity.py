"""Popularity: the baseline, and the fallback of every other model. A factor model of rank 1."""

from __future__ import annotations

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.config.models import PopularityConfig
from sparkcf.models.contract import Fit


def popularity(pairs: DataFrame, config: PopularityConfig) -> DataFrame:
    """item_idx, score: the users that have the item, or the sum of the pairs' weights."""
    score = F.sum("value") if config.by == "weight" else F.count(F.lit(1))
    return pairs.groupBy("item_idx").agg(score.cast("float").alias("score"))


def fit_popularity(pairs: DataFrame, config: PopularityConfig) -> Fit:
    """Every user's vector is [1], every item's is its popularity."""
    no_bias = F.lit(0.0).cast("float").alias("bias")
    items = popularity(pairs, config).select(F.col("item_idx").alias("idx"), F.array("score").alias("factor"), no_bias)
    users = pairs.select(F.col("user_idx").alias("idx")).distinct()
    users = users.select("idx", F.array(F.lit(1.0).cast("float")).alias("factor"), no_bias)
    kept = items.withColumn("side", F.lit("item")).unionByName(users.withColumn("side", F.lit("user")))
    kept = kept.persist(StorageLevel.MEMORY_AND_DISK)
    user, item = (kept.where(F.col("side") == side).drop("side") for side in ("user", "item"))
    return Fit(user, item, [], kept)
