"""From events to (user, item) pairs: which of them count, and how much."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.errors import ConfigError


def indexed(interactions: DataFrame, users: DataFrame, items: DataFrame) -> DataFrame:
    """Interactions with dense indices for ids: user_idx, item_idx, event, value, ts, context."""
    by_user = interactions.join(users.select("user_id", "user_idx"), on="user_id", how="inner")
    by_item = by_user.join(items.select("item_id", "item_idx"), on="item_id", how="inner")
    return by_item.select("user_idx", "item_idx", "event", "value", "ts", "context")


def pairs(events: DataFrame, config: Config) -> DataFrame:
    """One row a (user, item): user_idx, item_idx, value, as the model wants it.

    Explicit models get the latest value, and its event's weight where `preference.weight` is event. Every other model
    gets the weight of the positives, see `PreferenceConfig`: 1 a pair, or the sum of the values or event weights over
    its events. A factorization machine's pairs have their moments where it has fields of them.
    """
    if config.model == "fm" and not config.explicit:
        return labels(events, config)
    if config.model == "fm" and config.fm.contextual:
        return in_their_moments(events)
    if config.explicit:
        if config.preference.weight != "event":
            return latest_values(events)
        return latest_values(events.withColumn("weight", _weight(config)), "weight")
    good = positives(events, config)
    if config.preference.weight == "one":
        return good.groupBy("user_idx", "item_idx").agg(F.lit(1.0).alias("value"))
    return good.groupBy("user_idx", "item_idx").agg(F.sum(_weight(config)).alias("value"))


def labels(events: DataFrame, config: Config) -> DataFrame:
    """1 for a pair whose latest value is from `preference.positive_from` up, else 0."""
    threshold = config.preference.positive_from
    if threshold is None:
        raise ConfigError("fm.task=classification needs preference.positive_from: the least value that is a yes")
    rated = in_their_moments(events) if config.fm.contextual else latest_values(events)
    return rated.withColumn("value", (F.col("value") >= threshold).cast("float"))


def in_their_moments(events: DataFrame) -> DataFrame:
    """The latest value of every pair with its moment: ts, context, and `previous`, the item_idx that the user had
    before it."""
    comparable = events.withColumn("context", F.array_sort(F.map_entries("context")))  # which a map is not
    order = Window.partitionBy("user_idx").orderBy("ts", "item_idx")
    rated = latest_values(comparable, "context", "ts").withColumn("previous", F.lag("item_idx").over(order))
    return rated.withColumn("context", F.map_from_entries("context"))


def user_rows(pairs: DataFrame) -> DataFrame:
    """One row a user: user_idx, row, the (item_idx, value, weight) of the user's pairs in order of the items."""
    weight = F.col("weight") if "weight" in pairs.columns else F.lit(1.0)
    value, weight = (column.cast("float") for column in (F.col("value"), weight))  # as precise as training takes them
    entry = F.struct("item_idx", value.alias("value"), weight.alias("weight"))
    return pairs.groupBy("user_idx").agg(F.sort_array(F.collect_list(entry)).alias("row"))


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
    if config.preference.weight == "value":
        return F.col("value")
    weights = config.input.events or {}
    weight = F.lit(1.0)
    for event, its in weights.items():
        weight = F.when(F.col("event") == event, its).otherwise(weight)
    return weight
