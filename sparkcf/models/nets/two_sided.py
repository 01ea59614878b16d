"""BiVAE on Spark: packs rows of users and rows of items, and encodes both after training.

    pairs ──▶ user rows, item rows ──trained in turns──▶ two encoders ──▶ user factors, item factors

Scores are inner products of the means. Items' rows leave out the users kept for validation.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from sparkcf.config.models import BiVAEConfig, SideField
from sparkcf.data.dictionary import numbered
from sparkcf.data.packing import SIDES, Snapshot, held_out
from sparkcf.data.pairs import Reads, Texts
from sparkcf.errors import ConfigError
from sparkcf.lake.arrays import Arrays
from sparkcf.lake.frames import one_row
from sparkcf.models.contract import F32, Features, Rows, Saved, TrainingData
from sparkcf.models.nets.fit import Encoder, NetModel, NetScorer, Sizes, check_values

ENTRY = "array<struct<feat: int, val: float>>"


class BiVAEModel(NetModel[BiVAEConfig]):
    """BiVAE."""

    section = BiVAEConfig
    has_latent = False

    @property
    def width(self) -> int:
        return self.params.latent_dim

    @property
    def reads(self) -> Reads:
        sides = (("users", self.params.user_prior), ("items", self.params.item_prior))
        texts = tuple(_texts(table, f) for table, fields in sides for f in fields if f.of != "number")
        return Reads("positives", attributes=any(fields for _, fields in sides), texts=texts)

    def check(self, data: TrainingData) -> None:
        value, likelihood = F.col("value"), self.params.likelihood
        if self.params.binary:
            return
        not_finite = F.isnan(value) | (F.abs(value) == float("inf"))
        outside, takes = {
            "poisson": (not_finite | (value < 0), "it takes 0 and more"),
            "bernoulli": (~value.isin(0.0, 1.0), "it takes 0 and 1"),
            "gaussian": (not_finite, "it takes finite numbers"),
        }[likelihood]
        check_values(data.pairs, outside, self.name, likelihood, takes, f"{self.name}.binary=true")

    def item_rows(self, data: TrainingData) -> Snapshot | None:
        assert data.packing is not None
        entries = F.count(F.lit(1)).over(Window.partitionBy("user_idx"))
        held = held_out("user", self.validation_share, data.packing.seed) & (entries > 1)
        return data.packing.rows(data.pairs.withColumn("held", held).where(~F.col("held")), "item")

    def net_data(self, data: TrainingData, folder: str) -> dict[str, Any]:
        from sparkcf.training.side_features import store_features

        sizes = super().net_data(data, folder)
        features = {}
        for side, fields in (("user", self.params.user_prior), ("item", self.params.item_prior)):
            if fields:
                features[side] = _collected(data, side, fields, sizes[f"n_{side}s"])
        return sizes | ({"features": store_features(folder, features)} if features else {})

    def sizes_of(self, state: Arrays) -> Sizes:
        return {f"n_{other}s": len(state[f"{side}.encoder.input.weight"]) for side, other in SIDES.items()}

    def item_factors(self, data: TrainingData, state: Arrays, item_rows: Snapshot | None) -> DataFrame:
        assert data.packing is not None and item_rows is not None
        return self.encoded(data.packing.read(item_rows), state, "item")

    def open(self, saved: Saved) -> BiVAEScorer:
        return BiVAEScorer(saved, self)


class BiVAEScorer(NetScorer):
    """Folds in new users by the users' encoder and new items by the items' encoder."""

    @cached_property
    def _item_encoder(self) -> Encoder:
        return self._model.encoder(self._state, "item")

    def fold_in_items(self, rows: Rows) -> F32:
        return self._item_encoder.of_rows(rows)


def _texts(table: str, f: SideField) -> Texts:
    return Texts("categories" if f.of == "categories" else f"{table}.{f.column}", table, f.column)


def _collected(data: TrainingData, side: str, fields: tuple[SideField, ...], n: int) -> tuple[Features, int]:
    """The side features of all rows of a side, in order of their indices, and the number of distinct ones.

    Raises ConfigError for a field that no row has or that is the same in all rows.
    """
    key, table = f"bivae.{side}_prior", f"{side}s"
    frame = getattr(data, table)
    if frame is None or data.dictionary is None:
        raise ConfigError(f"{key}: there is no table of {table}: set input.{table}, or leave {key} out")
    columns, start = [], 0
    for number, f in enumerate(fields):
        name = f.column or f.of
        if f.of == "number":
            value = F.col("numbers")[f.column]
            finite = F.when(F.abs(value) < float("inf"), value)
            mean, sd, count = one_row(frame.agg(F.avg(finite), F.stddev_pop(finite), F.count(finite)))
            _check_field(key, name, table, count, bool(sd))
            entry = F.struct(F.lit(start).alias("feat"), ((finite - F.lit(mean)) / F.lit(sd or 1.0)).alias("val"))
            frame = frame.withColumn(f"_f{number}", F.when(finite.isNotNull(), F.array(entry)).cast(ENTRY))
            size = 1
        else:
            texts = F.col("categories") if f.of == "categories" else F.array(F.col("attributes")[f.column])
            known = numbered(data.dictionary, _texts(table, f).name)
            exploded = frame.select(f"{side}_idx", F.explode(F.array_distinct(texts)).alias("value"))
            listed = exploded.join(known, on="value", how="inner").groupBy(f"{side}_idx")
            entry = F.struct((F.col("feat") + start).alias("feat"), F.lit(1.0).alias("val"))
            features = listed.agg(F.sort_array(F.collect_list(entry)).cast(ENTRY).alias(f"_f{number}"))
            count, kinds = one_row(features.agg(F.count(F.lit(1)), F.count_distinct(f"_f{number}")))
            total = frame.count()
            _check_field(key, name, table, count, kinds > 1 or count < total)
            frame = frame.join(features, on=f"{side}_idx", how="left")
            size = known.count()
        columns.append(F.coalesce(f"_f{number}", F.array().cast(ENTRY)))
        start += size
    rows = frame.select(F.col(f"{side}_idx").alias("idx"), F.concat(*columns).alias("features"))
    return _rows_of(rows, n), start


def _check_field(key: str, name: str, table: str, count: int, varies: bool) -> None:
    if not count:
        raise ConfigError(f"{key}: no row of {table} has {name}: set input.{table}.columns, or leave it out")
    if not varies:
        raise ConfigError(
            f"{key}: {name} is the same in all {count:,} rows of {table} and cannot distinguish them: leave it out"
        )


def _rows_of(frame: DataFrame, n: int) -> Features:
    """Compressed rows by index of a frame (idx, features) on the driver; an index without a row is empty."""
    flat: Any = frame.where(F.col("idx") < n).select("idx", F.inline("features")).toPandas()
    idx, feat, val = (flat[name].to_numpy() for name in ("idx", "feat", "val"))
    order = np.lexsort((feat, idx))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(idx, minlength=n))])
    return indptr, feat[order].astype(np.int32), val[order].astype(np.float32)
