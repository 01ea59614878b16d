"""From events to (user, item) pairs: which of them count, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.errors import ConfigError

ENTRY = ("item_idx", "value", "weight")  # of a user's row
ROW = ("row_items", "row_values", "row_weights")  # lists of these


@dataclass(frozen=True)
class Texts:
    """A column of texts that are features: `name` is what the dictionary files their numbers under.

    `table` : users, items or interactions. `column` : key of its map of texts; None: the items' categories.
    """

    name: str
    table: str
    column: str | None = None


@dataclass(frozen=True)
class Reads:
    """The interactions, and the tables beside them, that a model reads.

    pairs : "positives": the pairs that say yes, with their weight; "values": every pair's latest value; "labels":
        every pair, 1 where its latest value is from `preference.positive_from` up, else 0.
    moments : the pairs also have `ts`, `context` and `previous`, see `in_their_moments`.
    attributes : the tables of users and items are handed over too.
    texts : columns of texts that need numbers in the dictionary before the fit.
    """

    pairs: Literal["positives", "values", "labels"] = "positives"
    moments: bool = False
    attributes: bool = False
    texts: tuple[Texts, ...] = ()

    @property
    def predicts(self) -> bool:
        """Whether a model that reads this predicts values or probabilities of pairs."""
        return self.pairs != "positives"


def indexed(interactions: DataFrame, users: DataFrame, items: DataFrame) -> DataFrame:
    """Interactions with dense indices for ids: user_idx, item_idx, event, value, ts, context."""
    by_user = interactions.join(users.select("user_id", "user_idx"), on="user_id", how="inner")
    by_item = by_user.join(items.select("item_id", "item_idx"), on="item_id", how="inner")
    return by_item.select("user_idx", "item_idx", "event", "value", "ts", "context")


def pairs(events: DataFrame, reads: Reads, config: Config) -> DataFrame:
    """One row a (user, item): user_idx, item_idx, value, as the model reads them.

    Values come with the weight of their event where `preference.weight` is event, as a column `weight`. Positives
    have the weight that `PreferenceConfig` says as their value: 1 a pair, or the sum over its events.
    """
    if reads.pairs == "labels":
        return _labels(events, reads, config)
    if reads.moments:
        return in_their_moments(events)
    if reads.pairs == "values":
        if config.preference.weight != "event":
            return latest_values(events)
        return latest_values(events.withColumn("weight", _weight(config)), "weight")
    good = positives(events, config)
    if config.preference.weight == "one":
        return good.groupBy("user_idx", "item_idx").agg(F.lit(1.0).alias("value"))
    summed = F.sum(_weight(config))
    whole = F.log1p(summed) if config.preference.weight == "log" else summed
    most = config.preference.max_weight
    value = whole if most is None else F.least(whole, F.lit(most))
    return good.groupBy("user_idx", "item_idx").agg(value.alias("value"))


def _labels(events: DataFrame, reads: Reads, config: Config) -> DataFrame:
    threshold = config.preference.positive_from
    if threshold is None:
        raise ConfigError("fm.task=classification needs preference.positive_from: the least value that is a yes")
    rated = in_their_moments(events) if reads.moments else latest_values(events)
    return rated.withColumn("value", (F.col("value") >= threshold).cast("float"))


def in_their_moments(events: DataFrame) -> DataFrame:
    """The latest value of every pair with its moment: ts, context, and `previous`, the item_idx that the user had
    before it."""
    comparable = events.withColumn("context", F.array_sort(F.map_entries("context")))  # which a map is not
    order = Window.partitionBy("user_idx").orderBy("ts", "item_idx")
    rated = latest_values(comparable, "context", "ts").withColumn("previous", F.lag("item_idx").over(order))
    return rated.withColumn("context", F.map_from_entries("context"))


def with_previous(rows: DataFrame, history: DataFrame) -> DataFrame:
    """Rows (user_idx, item_idx, ts, …) with `previous`: the item of the user's last event in a history before them.

    Parameters
    ----------
    history : user_idx, item_idx, ts.
    """
    had = latest_values(history.withColumn("value", F.lit(0.0)), "ts").select("user_idx", "item_idx", "ts")
    told = F.when(F.col("held"), F.lit(None)).otherwise(F.col("item_idx"))
    both = rows.withColumn("held", F.lit(True)).unionByName(had.withColumn("held", F.lit(False)), True)
    order = Window.partitionBy("user_idx").orderBy("ts", "item_idx").rowsBetween(Window.unboundedPreceding, -1)
    placed = both.withColumn("previous", F.last(told, ignorenulls=True).over(order))
    return placed.where("held").drop("held")


def last_items(pairs: DataFrame) -> DataFrame:
    """user_idx, previous: the item of every user's last pair in their moments."""
    return pairs.groupBy("user_idx").agg(F.max(F.struct("ts", "item_idx"))["item_idx"].alias("previous"))


def user_rows(pairs: DataFrame) -> DataFrame:
    """One row a user: user_idx, row, the (item_idx, value, weight) of the user's pairs in order of the items."""
    weight = F.col("weight") if "weight" in pairs.columns else F.lit(1.0)
    value, weight = (column.cast("float") for column in (F.col("value"), weight))  # as precise as training takes them
    entry = F.struct("item_idx", value.alias("value"), weight.alias("weight"))
    return pairs.groupBy("user_idx").agg(F.sort_array(F.collect_list(entry)).alias("row"))


def row_lists(pairs: DataFrame) -> DataFrame:
    """user_idx and the columns ROW, lists: the same rows as a scorer takes them."""
    columns = (F.col(f"row.{name}").alias(column) for name, column in zip(ENTRY, ROW, strict=True))
    return user_rows(pairs).select("user_idx", *columns)


def liked_pairs(events: DataFrame, config: Config) -> DataFrame:
    """One row a pair with a positive event, whatever a model reads: user_idx, item_idx, value 1."""
    return positives(events, config).groupBy("user_idx", "item_idx").agg(F.lit(1.0).alias("value"))


def popularity(pairs: DataFrame) -> DataFrame:
    """item_idx, score: how many users have the item. Of liked pairs it is the baseline, and what users without a
    vector get."""
    return pairs.groupBy("item_idx").agg(F.count(F.lit(1)).cast("float").alias("score"))


def latest_values(events: DataFrame, *more: str) -> DataFrame:
    """The value, and more columns, of every pair's last event; of several at one moment, the largest."""
    last = F.max(F.struct("ts", "value", *(name for name in more if name != "ts"))).alias("last")
    columns = (f"last.{name}" for name in ("value", *more))
    return events.groupBy("user_idx", "item_idx").agg(last).select("user_idx", "item_idx", *columns)


def positives(events: DataFrame, config: Config) -> DataFrame:
    """The events that say yes."""
    threshold = config.preference.positive_from
    return events if threshold is None else events.where(F.col("value") >= threshold)


def _weight(config: Config) -> Column:
    if config.preference.weight in ("value", "log"):
        return F.col("value")
    weights = config.input.events or {}
    weight = F.lit(1.0)
    for event, its in weights.items():
        weight = F.when(F.col("event") == event, its).otherwise(weight)
    return weight
