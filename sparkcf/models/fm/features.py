"""Encode the fields of a factorization machine: the features of users, items and contexts, and of rows.

    users, dictionary ──▶ user features ──────┐
    items, dictionary ──▶ item features ──────┼▶ rows: user_idx, item_idx, value, key, feat, val
    pairs, dictionary ──▶ context features ───┘

A context is the time of a pair, its context columns and the user's previous item. Features of the fields held by every
worker are numbered from the field's start (`FMPlan.starts`). The table `features` numbers the texts; it only grows, so
that a number never changes its meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.config.fm import FMConfig, FMField
from sparkcf.data.dictionary import numbered
from sparkcf.data.pairs import last_items
from sparkcf.errors import ConfigError
from sparkcf.lake.frames import one_row
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.fm.rows import WEIGHT_EXPONENTS, Field
from sparkcf.training.blocks import ITEM, USER

CLOCK = {"hour": 24, "weekday": 7}  # kinds of fields derived from the timestamp, in UTC; weekday 0 is Monday
ENTRY = "struct<feat: int, val: float>"

Scales = NDArray[np.float64]  # (fields, 2): mean and standard deviation by which a field's number is standardised


@dataclass(frozen=True)
class Features:
    """The features of users, items and contexts, as arrays of (feat, val).

    fields : in the configuration's order.
    user : user_idx, features.
    serving : as `user`, with the features of the context `fm.context` that vectors are made for.
    item : item_idx, features.
    in_context : adds to pairs the columns `moment`, features of their context, and `unknown`, the number of context
        values that are not in the dictionary.
    scales : see `Scales`.
    """

    fields: tuple[Field, ...]
    user: DataFrame
    serving: DataFrame
    item: DataFrame
    in_context: Callable[[DataFrame], DataFrame]
    scales: Scales


def features_of(data: TrainingData, params: FMConfig, scales: Scales | None = None) -> Features:
    """Encode the features of all users and items; without a table of users or items, of those in the pairs.

    Parameters
    ----------
    data : pairs, from which histories are built, with their context if fields need it; tables of attributes.
    scales : scales of a fit; None: computed from the data.

    Raises
    ------
    ConfigError
        The tables have no data for a field.
    """
    return _Encoding(data, params, scales).features()


def fields_of(params: FMConfig, n_users: int, n_items: int, dictionary: DataFrame | None) -> tuple[Field, ...]:
    """The fields in the configuration's order, with their numbers of features."""
    sizes = {"user": n_users, "item": n_items, "history": n_items, "previous": n_items, "number": 1, **CLOCK}
    fields = []
    for f in params.fields:
        size = sizes.get(f.of)
        if size is None:
            size = 0 if dictionary is None else dictionary.where(F.col("field") == F.lit(f.dictionary)).count()
        side = {"user": USER, "item": ITEM}.get(f.of)
        fields.append(Field(f.name, size, f.several, side, f.side == "item"))
    return tuple(fields)


class _Encoding:
    """Builds the feature columns of users, items and pairs, field by field."""

    def __init__(self, data: TrainingData, params: FMConfig, scales: Scales | None) -> None:
        self.data, self.params = data, params
        self.fields = fields_of(params, data.n_users, data.n_items, data.dictionary)
        self.scales = np.tile([0.0, 1.0], (len(self.fields), 1)) if scales is None else scales
        self.fitting = scales is None

    def features(self) -> Features:
        has_user_attributes = any(f.side == "user" and f.of in ("attribute", "number") for f in self.params.fields)
        # Without attributes a user who has no pairs has no features.
        users = self.data.users if has_user_attributes else None
        users = self.data.pairs.select("user_idx").distinct() if users is None else users
        items = self.data.pairs.select("item_idx").distinct() if self.data.items is None else self.data.items
        frames = {"user": users, "item": items}
        columns: dict[str, list[Column]] = {"user": [], "item": [], "context": []}
        served: list[Column] = []
        for number, (f, begin) in enumerate(zip(self.params.fields, self._starts(), strict=True)):
            if f.of in ("user", "item"):
                continue
            if f.side == "context":
                self._check(f, number, self.data.pairs)
                frames["user"], context = self._served(frames["user"], f, number)
                served.append(_shifted(context, begin))
            else:
                self._check(f, number, frames[f.side])
                frames[f.side] = self._with_field(frames[f.side], f, number)
                columns[f.side].append(_shifted(F.col(_named(f)), begin))
        return Features(
            self.fields,
            _joined(frames["user"], ("user_idx",), columns["user"], "features"),
            _joined(frames["user"], ("user_idx",), [*columns["user"], *served], "features"),
            _joined(frames["item"], ("item_idx",), columns["item"], "features"),
            self.in_context,
            self.scales,
        )

    def in_context(self, pairs: DataFrame) -> DataFrame:
        names, columns, unknown = tuple(pairs.columns), [], F.lit(0)
        for number, (f, begin) in enumerate(zip(self.params.fields, self._starts(), strict=True)):
            if f.side == "context":
                pairs = self._with_field(pairs, f, number)
                columns.append(_shifted(F.col(_named(f)), begin))
                if f.dictionary:
                    unknown += (_text_of(f).isNotNull() & F.col(_named(f)).isNull()).cast("int")
        return _joined(pairs, (*names,), [*columns], "moment", unknown.alias("unknown"))

    def _starts(self) -> list[int]:
        sizes = [0 if f.side is not None else f.size for f in self.fields]
        return [sum(sizes[:number]) for number in range(len(sizes))]

    def _check(self, f: FMField, number: int, frame: DataFrame) -> None:
        """Raise ConfigError if the field has no data; when fitting, compute the scale of a number."""
        if f.of == "number":
            if f.table != "interactions" and getattr(self.data, f.table) is None:
                raise ConfigError(f"fm.fields: {f.name} is a number of {f.table}, but there is no table of {f.table}")
            if not self.fitting:
                return
            value = _number_of(f)
            mean, sd, n = one_row(frame.agg(F.avg(value), F.stddev_pop(value), F.count(value)))
            if not n:
                raise ConfigError(f"fm.fields: no {f.whose} has a number {f.column!r}: give it in {f.source_key}")
            self.scales[number] = mean, sd or 1.0
        elif f.dictionary:
            if self.data.dictionary is None or (f.side != "context" and getattr(self.data, f.table) is None):
                raise ConfigError(f"fm.fields: {f.name} is of {f.column or f.of}, but there is no table of {f.table}")
            if not self.fields[number].size:
                raise ConfigError(
                    f"fm.fields: no {f.whose} has {f.column or f.of}: give it in {f.source_key}, or drop {f.name}"
                )

    def _with_field(self, frame: DataFrame, f: FMField, number: int) -> DataFrame:
        """Add the field's features as a column; null for a row without features of the field."""
        if f.of == "history":
            return frame.join(_histories(self.data.pairs, f), on="user_idx", how="left")
        if f.of == "categories":
            return _with_categories(frame, f, self._known(f))
        if f.of == "attribute":
            known = F.broadcast(self._known(f).withColumnRenamed("value", "_text").withColumnRenamed("feat", "_feat"))
            joined = frame.join(known, on=_text_of(f) == F.col("_text"), how="left")
            return joined.withColumn(_named(f), _one(F.col("_feat"))).drop("_text", "_feat")
        return frame.withColumn(_named(f), self._from_row(f, number))

    def _from_row(self, f: FMField, number: int) -> Column:
        """The features of a number, of the previous item, of the hour or weekday, from the row's own columns."""
        if f.of == "number":
            mean, sd = map(float, self.scales[number])
            return _one(F.lit(0), (_number_of(f) - F.lit(mean)) / F.lit(sd), present=_number_of(f))
        if f.of == "previous":
            return _one(F.col("previous"))
        return _one(F.hour("ts") if f.of == "hour" else F.weekday("ts"))

    def _served(self, users: DataFrame, f: FMField, number: int) -> tuple[DataFrame, Column]:
        """The field's features in the context `fm.context`, for which vectors are made."""
        if f.of == "previous":  # each user's last item
            last = last_items(self.data.pairs).withColumnRenamed("previous", _named(f))
            return users.join(last, on="user_idx", how="left"), _one(F.col(_named(f)))
        value = self.params.context.get(f.name)
        if value is None:
            return users, F.lit(None).cast(f"array<{ENTRY}>")
        if f.of == "attribute":
            row = self._known(f).where(F.col("value") == (value if isinstance(value, str) else f"{value:g}")).first()
            if row is None:
                raise ConfigError(f"fm.context.{f.name}={value!r} is not a known value of {f.dictionary}")
            return users, _one(F.lit(row["feat"]))
        if f.of == "number":
            mean, sd = self.scales[number]
            return users, _one(F.lit(0), F.lit((float(value) - mean) / sd))
        return users, _one(F.lit(int(value)))

    def _known(self, f: FMField) -> DataFrame:
        assert self.data.dictionary is not None and f.dictionary
        return numbered(self.data.dictionary, f.dictionary)


def _one(feat: Column, value: Column | None = None, present: Column | None = None) -> Column:
    """An array of one entry; null if `present` (default: `feat`) is null."""
    val = F.lit(1.0) if value is None else value
    entry = F.array(F.struct(feat.cast("int").alias("feat"), val.cast("float").alias("val")))
    return F.when((feat if present is None else present).isNotNull(), entry)


def _named(f: FMField) -> str:
    return f"field_{f.name}"


def _text_of(f: FMField) -> Column:
    return F.col("context" if f.table == "interactions" else "attributes")[f.column]


def _number_of(f: FMField) -> Column:
    """The field's number; null if it is missing or not finite."""
    number = F.col("context")[f.column].cast("double") if f.table == "interactions" else F.col("numbers")[f.column]
    return F.when(F.abs(number) < float("inf"), number)


def _shifted(entries: Column, begin: int) -> Column:
    """Features renumbered from the field's start."""
    return F.transform(entries, lambda e: F.struct((e.feat + begin).alias("feat"), e.val.alias("val")))


def _joined(frame: DataFrame, names: tuple[str, ...], columns: list[Column], name: str, *more: Column) -> DataFrame:
    """One array of features per row, concatenated from the fields' columns; null columns are skipped."""
    nothing = F.array().cast(f"array<{ENTRY}>")
    whole = F.concat(*(F.coalesce(c, nothing) for c in columns)) if columns else nothing
    return frame.select(*names, whole.cast(f"array<{ENTRY}>").alias(name), *more)


def _histories(pairs: DataFrame, f: FMField) -> DataFrame:
    """user_idx and the field's features: the user's items."""
    listed = pairs.groupBy("user_idx").agg(F.sort_array(F.collect_set("item_idx")).alias("list"))
    return listed.select("user_idx", _weighed("list", f).alias(_named(f)))


def _with_categories(items: DataFrame, f: FMField, known: DataFrame) -> DataFrame:
    """Add the numbers of an item's categories; categories that are not in the dictionary are skipped."""
    exploded = items.select("item_idx", F.explode(F.array_distinct("categories")).alias("value"))
    listed = exploded.join(known, on="value", how="inner").groupBy("item_idx")
    lists = listed.agg(F.sort_array(F.collect_list("feat")).alias("list"))
    entries = lists.select("item_idx", _weighed("list", f).alias(_named(f)))
    return items.join(entries, on="item_idx", how="left")


def _weighed(features: str, f: FMField) -> Column:
    """Entries for a list of m features, with the value of each by `FMField.weight`."""
    weight = F.pow(F.size(features).cast("double"), F.lit(WEIGHT_EXPONENTS[f.own_weight])).cast("float")
    return F.transform(features, lambda feat: F.struct(feat.cast("int").alias("feat"), weight.alias("val")))


def rows_of(pairs: DataFrame, features: Features) -> DataFrame:
    """Rows of pairs with the features of user, item and context: user_idx, item_idx, value, key, feat, val."""
    empty = F.array().cast(f"array<{ENTRY}>")
    user = features.user.withColumnRenamed("features", "user_features")
    item = features.item.withColumnRenamed("features", "item_features")
    joined = features.in_context(pairs).join(user, on="user_idx", how="left").join(item, on="item_idx", how="left")
    whole = F.concat(*(F.coalesce(name, empty) for name in ("user_features", "item_features", "moment")))
    key = F.xxhash64("user_idx", "item_idx")
    return joined.select(
        "user_idx", "item_idx", "value", key.alias("key"), whole.feat.alias("feat"), whole.val.alias("val")
    )
