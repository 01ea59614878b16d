"""Turn events into (user, item) pairs with their values and weights."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from sparkcf.config.root import Config
from sparkcf.errors import ConfigError
from sparkcf.spark import Column, DataFrame, F, Window

ENTRY = ("item_idx", "value", "weight")  # fields of a user's row
ROW = ("row_items", "row_values", "row_weights")  # list columns of these fields


@dataclass(frozen=True)
class Texts:
    """A column of texts that are features.

    name : the texts' field in the dictionary.
    table : users, items or interactions.
    column : key in the table's map of texts; None: the items' categories.
    separator : stands between the values in a text; None: a text is one value.
    """

    name: str
    table: str
    column: str | None = None
    separator: str | None = None


@dataclass(frozen=True)
class Reads:
    """The interactions and other tables that a model reads.

    pairs : "positives": pairs with a positive event, with their weight; "values": every pair's latest value; "labels":
        every pair, 1 if its latest value is at least `preference.positive_from`, else 0.
    moments : whether the pairs also have `ts`, `context` and `previous`, see `in_their_moments`.
    attributes : whether the model also reads the tables of users and items.
    texts : columns of texts that are numbered in the dictionary before the fit.
    """

    pairs: Literal["positives", "values", "labels"] = "positives"
    moments: bool = False
    attributes: bool = False
    texts: tuple[Texts, ...] = ()

    @property
    def predicts(self) -> bool:
        """Whether the model predicts values or probabilities of pairs."""
        return self.pairs != "positives"


def indexed(interactions: DataFrame, users: DataFrame, items: DataFrame) -> DataFrame:
    """Interactions with dense indices instead of ids: user_idx, item_idx, event, value, ts, context.

    All events of a user are in one partition: what is then grouped by user, or by user and item, moves no row.
    """
    by_user = interactions.join(users.select("user_id", "user_idx"), on="user_id", how="inner")
    by_item = by_user.join(items.select("item_id", "item_idx"), on="item_id", how="inner")
    return by_item.select("user_idx", "item_idx", "event", "value", "ts", "context").repartition("user_idx")


def pairs(events: DataFrame, reads: Reads, config: Config) -> DataFrame:
    """One row per (user, item) pair with events in the window, as the model reads it: user_idx, item_idx, value.

    For "values" with `preference.weight=event` or `preference.half_life_days` a column `weight` has the weight of the
    pair's event. For "positives" the value is the pair's weight as `PreferenceConfig` defines it: 1 per pair, or a sum
    over its events; with a half-life, events weigh less the older they are, and a pair of weight 1 as its last event.

    Raises ConfigError for a half-life where the model reads pairs that have no weights.
    """
    events = in_window(events, config)
    if config.preference.half_life_days is not None and (reads.moments or reads.pairs == "labels"):
        raise ConfigError(
            f"preference.half_life_days={config.preference.half_life_days:g}: model={config.model} weighs every row 1 "
            "here; leave it out"
        )
    if reads.pairs == "labels":
        return _labels(events, reads, config)
    if reads.moments:
        return in_their_moments(events)
    if reads.pairs == "values":
        if config.preference.weight != "event" and config.preference.half_life_days is None:
            return latest_values(events)
        weight = _weight(config) if config.preference.weight == "event" else F.lit(1.0)
        return latest_values(events.withColumn("weight", weight * decay(config)), "weight")
    good = positives(events, config)
    if config.preference.weight == "one":
        return good.groupBy("user_idx", "item_idx").agg(F.max(decay(config)).alias("value"))
    summed = F.sum(_weight(config) * decay(config))
    whole = F.log1p(F.greatest(summed, F.lit(0.0))) if config.preference.weight == "log" else summed
    most = config.preference.max_weight
    value = whole if most is None else F.least(whole, F.lit(most))
    return good.groupBy("user_idx", "item_idx").agg(value.alias("value"))


def in_window(events: DataFrame, config: Config) -> DataFrame:
    """The events of the last `train.window_days` days up to the end of `ds`, or all of them."""
    days = config.train.window_days
    if days is None:
        return events
    first = config.ds - dt.timedelta(days=days - 1)
    return events.where(F.col("ts") >= F.lit(f"{first.isoformat()}T00:00:00Z").cast("timestamp"))


def decay(config: Config) -> Column:
    """2^(-age / half-life) of an event, its age counted back from the end of `ds`; 1 without a half-life."""
    half_life = config.preference.half_life_days
    if half_life is None:
        return F.lit(1.0)
    end = F.lit(f"{(config.ds + dt.timedelta(days=1)).isoformat()}T00:00:00Z").cast("timestamp")
    age_s = F.greatest(end.cast("double") - F.col("ts").cast("double"), F.lit(0.0))
    return F.pow(F.lit(2.0), -age_s / (half_life * 86_400))


def _labels(events: DataFrame, reads: Reads, config: Config) -> DataFrame:
    threshold = config.preference.positive_from
    if threshold is None:
        raise ConfigError("fm.task=classification needs preference.positive_from: the least value of a positive pair")
    rated = in_their_moments(events) if reads.moments else latest_values(events)
    return rated.withColumn("value", (F.col("value") >= threshold).cast("float"))


def in_their_moments(events: DataFrame) -> DataFrame:
    """The latest value of every pair, with its ts, its context, and `previous`: item_idx of the user's pair before."""
    comparable = events.withColumn("context", F.array_sort(F.map_entries("context")))  # maps cannot be compared
    order = Window.partitionBy("user_idx").orderBy("ts", "item_idx")
    rated = latest_values(comparable, "context", "ts").withColumn("previous", F.lag("item_idx").over(order))
    return rated.withColumn("context", F.map_from_entries("context"))


def with_previous(rows: DataFrame, history: DataFrame) -> DataFrame:
    """Add `previous` to rows (user_idx, item_idx, ts, …): the item of the user's last pair in `history` before the row.

    Parameters
    ----------
    history : user_idx, item_idx, ts.
    """
    earlier = latest_values(history.withColumn("value", F.lit(0.0)), "ts").select("user_idx", "item_idx", "ts")
    history_item = F.when(F.col("held"), F.lit(None)).otherwise(F.col("item_idx"))
    both = rows.withColumn("held", F.lit(True)).unionByName(earlier.withColumn("held", F.lit(False)), True)
    order = Window.partitionBy("user_idx").orderBy("ts", "item_idx").rowsBetween(Window.unboundedPreceding, -1)
    placed = both.withColumn("previous", F.last(history_item, ignorenulls=True).over(order))
    return placed.where("held").drop("held")


def last_items(pairs: DataFrame) -> DataFrame:
    """user_idx, previous: the item of every user's last pair in time."""
    return pairs.groupBy("user_idx").agg(F.max(F.struct("ts", "item_idx"))["item_idx"].alias("previous"))


def user_rows(pairs: DataFrame) -> DataFrame:
    """One row per user: user_idx, and `row`, the (item_idx, value, weight) of the user's pairs in order of items."""
    weight = F.col("weight") if "weight" in pairs.columns else F.lit(1.0)
    value, weight = (column.cast("float") for column in (F.col("value"), weight))  # the precision of training
    entry = F.struct("item_idx", value.alias("value"), weight.alias("weight"))
    return pairs.groupBy("user_idx").agg(F.sort_array(F.collect_list(entry)).alias("row"))


def row_lists(pairs: DataFrame) -> DataFrame:
    """The rows of `user_rows` as the list columns ROW, which scorers read; and user_idx."""
    columns = (F.col(f"row.{name}").alias(column) for name, column in zip(ENTRY, ROW, strict=True))
    return user_rows(pairs).select("user_idx", *columns)


def liked_pairs(events: DataFrame, config: Config) -> DataFrame:
    """One row per pair with a positive event, for every model alike: user_idx, item_idx, value 1."""
    return positives(events, config).groupBy("user_idx", "item_idx").agg(F.lit(1.0).alias("value"))


def popularity(pairs: DataFrame) -> DataFrame:
    """item_idx, score: number of users of each item. Of liked pairs: the baseline, and the fallback for users without
    a vector."""
    return pairs.groupBy("item_idx").agg(F.count(F.lit(1)).cast("float").alias("score"))


def latest_values(events: DataFrame, *more: str) -> DataFrame:
    """The value, and more columns, of every pair's last event; of several at the same time, the largest."""
    last = F.max(F.struct("ts", "value", *(name for name in more if name != "ts"))).alias("last")
    columns = (f"last.{name}" for name in ("value", *more))
    return events.groupBy("user_idx", "item_idx").agg(last).select("user_idx", "item_idx", *columns)


def positives(events: DataFrame, config: Config) -> DataFrame:
    """The positive events."""
    return events if config.preference.positive_from is None else events.where(is_positive(config))


def is_positive(config: Config) -> Column:
    """Whether an event is positive: its value is at least `preference.positive_from`, or there is no such bound."""
    threshold = config.preference.positive_from
    return F.lit(True) if threshold is None else F.col("value") >= threshold


def _weight(config: Config) -> Column:
    if config.preference.weight in ("value", "log"):
        return F.col("value")
    weights = config.input.events or {}
    weight = F.lit(1.0)
    for event, event_weight in weights.items():
        weight = F.when(F.col("event") == event, event_weight).otherwise(weight)
    return weight
