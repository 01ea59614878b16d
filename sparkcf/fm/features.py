"""The fields of a factorization machine: which features users, items and so rows have.

    items, the dictionary ──▶ item features ─┐
    pairs ──▶ user features ─────────────────┴▶ rows: user_idx, item_idx, value, key, feat, val

Features of a field that stands at every worker are numbered from where the field begins (`FMPlan.starts`). Texts have
their numbers from the table `features`, which only grows, so that a number means the same for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from sparkcf.blocks import ITEM, USER
from sparkcf.config import ITEM_SIDE, Config, FMField
from sparkcf.errors import ConfigError
from sparkcf.fit import Context
from sparkcf.fm.rows import Field
from sparkcf.ids import register
from sparkcf.lake import LakeTables
from sparkcf.schemas import TABLES

TEXTS = {"categories": "categories"}  # kinds of fields whose values are texts: the column of items that has them
SEVERAL = ("categories", "history")  # kinds of fields of which a row may have several features
FEATURE = "struct<feat: int, val: float>"


@dataclass(frozen=True)
class Features:
    """The fields in the configuration's order; `user`: user_idx, features, of every user to make a vector for;
    `item`: item_idx, features, likewise. `features` is an array of (feat, val)."""

    fields: tuple[Field, ...]
    user: DataFrame
    item: DataFrame


def register_values(tables: LakeTables, config: Config) -> None:
    """Give numbers to the values of the items that the table `features` does not have yet."""
    wanted = {f.of for f in config.fm.fields if f.of in TEXTS}
    if not wanted or tables.version("items") < 0:
        return
    items = tables.read("items")
    for field in sorted(wanted):
        found = items.select(F.explode(TEXTS[field]).alias("value")).distinct()
        named = found.select(
            F.concat(F.lit(f"{field}="), "value").alias("feature"),
            F.lit(None).cast("timestamp").alias("first_seen"),
            F.lit(field).alias("field"),
            "value",
        )
        register(tables, "features", named)


def features_of(pairs: DataFrame, n_users: int, n_items: int, config: Config, context: Context) -> Features:
    """The features of all users who have pairs and of all items that there are.

    Parameters
    ----------
    pairs : user_idx, item_idx, value; what a user's history is made of. context : `items` and `dictionary`, where the
        fields need them.

    Raises
    ------
    ConfigError
        A field needs what the items do not have.
    """
    fields = fields_of(config, n_users, n_items, context.dictionary)
    users = pairs.select("user_idx").distinct()
    items = pairs.select("item_idx").distinct() if context.items is None else context.items
    columns: dict[bool, list[Column]] = {True: [], False: []}
    begin = 0
    for f, field in zip(config.fm.fields, fields, strict=True):
        if field.side is not None:
            continue
        if f.of == "history":
            users = users.join(_histories(pairs, _named(f)), on="user_idx", how="left")
        elif context.items is None or context.dictionary is None:
            raise ConfigError(f"fm.fields: {f.name} is of {f.of}, and there is no table of items here")
        elif f.of == "number":
            items = _with_number(items, f)
        else:
            items = _with_texts(items, f, context.dictionary)
        columns[field.of_item].append(_shifted(_named(f), begin))
        begin += field.size
    return Features(fields, _joined(users, "user_idx", columns[False]), _joined(items, "item_idx", columns[True]))


def fields_of(config: Config, n_users: int, n_items: int, dictionary: DataFrame | None) -> tuple[Field, ...]:
    """The fields in the configuration's order, with the number of their features."""
    sizes = {"user": n_users, "item": n_items, "history": n_items, "number": 1}
    fields = []
    for f in config.fm.fields:
        size = sizes.get(f.of)
        if size is None:
            size = 0 if dictionary is None else dictionary.where(F.col("field") == f.of).count()
        side = {"user": USER, "item": ITEM}.get(f.of)
        fields.append(Field(f.name, size, f.of in SEVERAL, side, f.of in ITEM_SIDE))
    return tuple(fields)


def _named(f: FMField) -> str:
    return f"field_{f.name}"


def _shifted(name: str, begin: int) -> Column:
    """A column of features, numbered from where its field begins."""
    return F.transform(name, lambda e: F.struct((e.feat + begin).alias("feat"), e.val.alias("val")))


def _joined(frame: DataFrame, idx: str, columns: list[Column]) -> DataFrame:
    """One array of features a row, null where a field has none left out."""
    nothing = F.array().cast(f"array<{FEATURE}>")
    whole = F.concat(*(F.coalesce(c, nothing) for c in columns)) if columns else nothing
    return frame.select(idx, whole.cast(f"array<{FEATURE}>").alias("features"))


def _histories(pairs: DataFrame, name: str) -> DataFrame:
    """A user's items, each with 1 / sqrt(how many): Koren (2008), SVD++."""
    listed = pairs.groupBy("user_idx").agg(F.sort_array(F.collect_set("item_idx")).alias("list"))
    weight = (1 / F.sqrt(F.size("list"))).cast("float")
    entry = F.transform("list", lambda item: F.struct(item.cast("int").alias("feat"), weight.alias("val")))
    return listed.select("user_idx", entry.alias(name))


def _with_number(items: DataFrame, f: FMField) -> DataFrame:
    """The number less its mean, over its standard deviation; an item without it has no feature."""
    number = F.col("numbers")[f.column]
    mean, sd, n = items.agg(F.avg(number), F.stddev_pop(number), F.count(number)).first()
    if not n:
        raise ConfigError(f"fm.fields: no item has a number {f.column!r}: give it in input.items.columns.numbers")
    scaled = ((number - F.lit(mean)) / F.lit(sd or 1.0)).cast("float")
    entry = F.array(F.struct(F.lit(0).alias("feat"), scaled.alias("val")))
    return items.withColumn(_named(f), F.when(number.isNotNull(), entry))


def _with_texts(items: DataFrame, f: FMField, dictionary: DataFrame) -> DataFrame:
    """An item's values by their numbers; one that the dictionary does not have adds nothing."""
    known = numbered(dictionary, f.of)
    if known.isEmpty():
        raise ConfigError(f"fm.fields: no item has {f.of}: give them in input.items.columns.{f.of}, or drop {f.name}")
    exploded = items.select("item_idx", F.explode(F.array_distinct(TEXTS[f.of])).alias("value"))
    one = F.struct(F.col("feat"), F.lit(1.0).cast("float").alias("val"))
    listed = exploded.join(known, on="value", how="inner").groupBy("item_idx")
    return items.join(listed.agg(F.sort_array(F.collect_list(one)).alias(_named(f))), on="item_idx", how="left")


def numbered(dictionary: DataFrame, field: str) -> DataFrame:
    """value, feat: the field's values in the order in which they came into the dictionary."""
    order = F.row_number().over(Window.partitionBy("field").orderBy("feature_idx")) - 1
    return dictionary.where(F.col("field") == field).select("value", order.cast("int").alias("feat"))


def no_values(spark: SparkSession) -> DataFrame:
    """An empty dictionary."""
    return spark.createDataFrame([], TABLES["features"].schema)


def rows_of(pairs: DataFrame, features: Features) -> DataFrame:
    """Pairs with what their user and item have: user_idx, item_idx, value, key, feat, val."""
    empty = F.array().cast(f"array<{FEATURE}>")
    user = features.user.withColumnRenamed("features", "user_features")
    item = features.item.withColumnRenamed("features", "item_features")
    joined = pairs.join(user, on="user_idx", how="left").join(item, on="item_idx", how="left")
    whole = F.concat(*(F.coalesce(f"{name}_features", empty) for name in ("user", "item")))
    key = F.xxhash64("user_idx", "item_idx")
    return joined.select(
        "user_idx", "item_idx", "value", key.alias("key"), whole.feat.alias("feat"), whole.val.alias("val")
    )
