"""Side features of users and items on Spark: texts and numbers of their tables as numbered features.

users or items, dictionary ──▶ idx, features (feat, val) ──collected──▶ compressed rows by dense index
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkcf.config.nets import SideField
from sparkcf.data.pairs import Texts
from sparkcf.errors import ConfigError
from sparkcf.lake.frames import one_row
from sparkcf.models.contract_data import F64, Features, TrainingData
from sparkcf.spark import DataFrame, F

ENTRY = "array<struct<feat: int, val: float>>"


@dataclass(frozen=True)
class EncodedFeatures:
    """The side features of one side.

    rows : idx, features (ENTRY, empty for a row without any) of every row of the side's table.
    n_features : number of distinct features.
    scales : (fields, 2), mean and standard deviation by which a field's number is standardised; 0 and 1 for texts.
    """

    rows: DataFrame
    n_features: int
    scales: F64


def texts_of(table: str, f: SideField) -> Texts:
    """The texts of a field of categories or of an attribute. `table` : "users" or "items"."""
    if f.of == "categories":
        return Texts("categories", table)
    separated = "" if f.separator is None else f"[{f.separator}]"  # the same column may also be read as one value
    return Texts(f"{table}.{f.column}{separated}", table, f.column, f.separator)


def encoded_features(
    data: TrainingData, side: str, fields: tuple[SideField, ...], key: str, scales: F64 | None = None
) -> EncodedFeatures:
    """Encode the fields of a side, numbered from 0 field after field.

    Parameters
    ----------
    side : "user" or "item".
    key : the configuration key of the fields, for messages.
    scales : scales of an earlier fit, whose fields were checked then; None: computed from the data.

    Raises
    ------
    ConfigError
        There is no table of the side, no row has a field, or a field is the same in all rows.
    """
    from sparkcf.data.dictionary import numbered, values_of

    table = f"{side}s"
    frame = getattr(data, table)
    if frame is None or data.dictionary is None:
        raise ConfigError(f"{key}: there is no table of {table}: set input.{table}, or leave {key} out")
    columns, start, fits = [], 0, scales is None
    scales = np.tile([0.0, 1.0], (len(fields), 1)) if scales is None else scales
    for number, f in enumerate(fields):
        name = f.column or f.of
        if f.of == "number":
            value = F.col("numbers")[f.column]
            finite = F.when(F.abs(value) < float("inf"), value)
            if fits:
                mean, sd, count = one_row(frame.agg(F.avg(finite), F.stddev_pop(finite), F.count(finite)))
                _check_field(key, name, table, count, bool(sd))
                scales[number] = mean, sd
            mean, sd = map(float, scales[number])
            entry = F.struct(F.lit(start).alias("feat"), ((finite - F.lit(mean)) / F.lit(sd)).alias("val"))
            frame = frame.withColumn(f"_f{number}", F.when(finite.isNotNull(), F.array(entry)).cast(ENTRY))
            size = 1
        else:
            texts = texts_of(table, f)
            known = numbered(data.dictionary, texts.name)
            exploded = frame.select(f"{side}_idx", F.explode(F.array_distinct(values_of(texts))).alias("value"))
            listed = exploded.join(known, on="value", how="inner").groupBy(f"{side}_idx")
            entry = F.struct((F.col("feat") + start).alias("feat"), F.lit(1.0).alias("val"))
            features = listed.agg(F.sort_array(F.collect_list(entry)).cast(ENTRY).alias(f"_f{number}"))
            if fits:
                count, kinds = one_row(features.agg(F.count(F.lit(1)), F.count_distinct(f"_f{number}")))
                total = frame.count()
                _check_field(key, name, table, count, kinds > 1 or count < total)
            frame = frame.join(features, on=f"{side}_idx", how="left")
            size = known.count()
        columns.append(F.coalesce(f"_f{number}", F.array().cast(ENTRY)))
        start += size
    rows = frame.select(F.col(f"{side}_idx").alias("idx"), F.concat(*columns).alias("features"))
    return EncodedFeatures(rows, start, scales)


def n_features_of(data: TrainingData, side: str, fields: tuple[SideField, ...]) -> int:
    """Number of distinct features of a side's fields."""
    from sparkcf.data.dictionary import numbered

    if data.dictionary is None:
        return 0
    texts = [texts_of(f"{side}s", f).name for f in fields if f.of != "number"]
    return len(fields) - len(texts) + sum(numbered(data.dictionary, name).count() for name in texts)


def collected_features(rows: DataFrame, n: int) -> Features:
    """Compressed rows by index of a frame (idx, features) on the driver; an index without a row is empty."""
    flat: Any = rows.where(F.col("idx") < n).select("idx", F.inline("features")).toPandas()
    idx, feat, val = (flat[name].to_numpy() for name in ("idx", "feat", "val"))
    order = np.lexsort((feat, idx))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(idx, minlength=n))])
    return indptr, feat[order].astype(np.int32), val[order].astype(np.float32)


def _check_field(key: str, name: str, table: str, count: int, varies: bool) -> None:
    if not count:
        raise ConfigError(f"{key}: no row of {table} has {name}: set input.{table}.columns, or leave it out")
    if not varies:
        raise ConfigError(
            f"{key}: {name} is the same in all {count:,} rows of {table} and cannot distinguish them: leave it out"
        )
