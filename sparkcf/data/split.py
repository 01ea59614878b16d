"""Train and held-out parts by the four protocols: by hash or by time, so the same rows on every run and cluster.

Q1 strong generalisation: whole users are held out; most of their items are folded in, the rest are ranked.
Q2 weak generalisation: a share of each user's items is held out.
Q3 ratings: a share of all pairs is held out.
Q4 by time: what comes after a day trains nothing.
Liang et al. (2018), "Variational autoencoders for collaborative filtering", section 4.1, for Q1.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from sparkcf.config.root import Config, EvaluationConfig
from sparkcf.data.pairs import Reads, latest_values, pairs, positives
from sparkcf.errors import GateRefused

PAIR = ("user_idx", "item_idx")


@dataclass(frozen=True)
class Split:
    """`train`: pairs to fit on. `known`: the tested users' pairs that are masked (and, in Q1, folded in).
    `heldout`: pairs to find. All user_idx, item_idx, value. `note` says where the cut is."""

    train: DataFrame
    known: DataFrame
    heldout: DataFrame
    note: str


def split(events: DataFrame, reads: Reads, config: Config) -> Split:
    """Split indexed events by `config.evaluation.protocol`."""
    protocols = {"q1": _strong, "q2": _weak, "q3": _ratings, "q4": _by_time}
    return protocols[config.evaluation.protocol](events, reads, config)


def _strong(events: DataFrame, reads: Reads, config: Config) -> Split:
    evaluation = config.evaluation
    liked = _with_enough(_liked(events, config), evaluation)
    is_test = uniform(config.seed, "q1-user", F.col("user_idx")) < evaluation.holdout_share
    users = liked.select("user_idx").distinct().withColumn("test", is_test)
    weighted = pairs(events, reads, config).join(users, on="user_idx", how="inner")
    trained, tested = weighted.where("NOT test").drop("test"), weighted.where("test").drop("test")
    tested = tested.join(liked, on=list(PAIR), how="left_semi")  # explicit pairs may be dislikes
    tested = tested.join(trained.select("item_idx").distinct(), on="item_idx", how="left_semi")
    known, heldout = _share_of_each_user(tested, evaluation.foldin_share, config.seed, "q1-item")
    return Split(trained, known, heldout, f"{evaluation.holdout_share:.0%} of users held out")


def _weak(events: DataFrame, reads: Reads, config: Config) -> Split:
    evaluation = config.evaluation
    liked = _with_enough(_liked(events, config), evaluation)
    known, heldout = _share_of_each_user(liked, 1 - evaluation.holdout_share, config.seed, "q2-item")
    trained = pairs(events, reads, config).join(heldout, on=list(PAIR), how="left_anti")
    return Split(trained, known, heldout, f"{evaluation.holdout_share:.0%} of each user's items held out")


def _ratings(events: DataFrame, reads: Reads, config: Config) -> Split:
    rated = (
        pairs(events, reads, config) if reads.pairs == "values" else latest_values(events)
    )  # with weights, where it has any
    is_test = uniform(config.seed, "q3", *map(F.col, PAIR)) < config.evaluation.holdout_share
    trained = rated.where(~is_test)
    return Split(trained, trained, rated.where(is_test), f"{config.evaluation.holdout_share:.0%} of ratings held out")


def _by_time(events: DataFrame, reads: Reads, config: Config) -> Split:
    at = time_cut(events, config.evaluation.holdout_share)
    cut = F.lit(at.isoformat() + "T00:00:00Z").cast("timestamp")
    before, after = events.where(F.col("ts") < cut), events.where(F.col("ts") >= cut)
    known = _liked(before, config)
    heldout = _liked(after, config).join(known, on=list(PAIR), how="left_anti")
    return Split(pairs(before, reads, config), known, heldout, f"held out from {at} on")


def time_cut(events: DataFrame, share: float) -> dt.date:
    """The first day (UTC) whose events, with all later ones, make no more than `share` of all; at least the last day.

    Raises GateRefused where all events are of one day: nothing could be trained on.
    """
    days = events.groupBy(F.to_date("ts").alias("day")).count().orderBy("day").collect()
    if len(days) < 2:
        raise GateRefused("evaluation.protocol=q4 needs events of two days or more: use evaluation.protocol=q2")
    total, after = sum(d["count"] for d in days), 0
    cut: dt.date = days[-1]["day"]
    for day in reversed(days[1:]):
        after += day["count"]
        if after > share * total:
            break
        cut = day["day"]
    return cut


def uniform(seed: int, salt: str, *columns: Column) -> Column:
    """A number in [0, 1) that depends on the values alone."""
    return F.pmod(F.xxhash64(F.lit(seed), F.lit(salt), *columns), F.lit(2**40)) / F.lit(float(2**40))


def _liked(events: DataFrame, config: Config) -> DataFrame:
    return positives(events, config).groupBy(*PAIR).agg(F.lit(1.0).alias("value"))


def _with_enough(liked: DataFrame, evaluation: EvaluationConfig) -> DataFrame:
    enough = liked.groupBy("user_idx").count().where(F.col("count") >= evaluation.min_user_items)
    return liked.join(enough, on="user_idx", how="left_semi")


def _share_of_each_user(liked: DataFrame, share: float, seed: int, salt: str) -> tuple[DataFrame, DataFrame]:
    """The given share of each user's items in a hashed order, rounded; and the rest."""
    order = Window.partitionBy("user_idx").orderBy(uniform(seed, salt, *map(F.col, PAIR)), "item_idx")
    whole = Window.partitionBy("user_idx").rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    first = F.row_number().over(order) <= F.round(F.count(F.lit(1)).over(whole) * share)
    marked = liked.withColumn("first", first)
    return marked.where("first").drop("first"), marked.where("NOT first").drop("first")
