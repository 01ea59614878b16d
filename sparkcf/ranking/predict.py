"""Predicted values of pairs by any model, for the predict job and for protocol q3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, BooleanType, DoubleType, StringType, StructField, StructType

from sparkcf.data.pairs import ROW
from sparkcf.kernels.mixture import CALIBRATION_MEASURES, F64, Mixture, calibration
from sparkcf.lake.schemas import QUANTILE
from sparkcf.ranking.scorers import SharedScorer, user_block

PREDICTED = (
    StructField("predicted", DoubleType()),
    StructField("sd", DoubleType()),
    StructField("known_item", BooleanType()),
)


DISTRIBUTION = (
    StructField("quantiles", ArrayType(QUANTILE)),
    StructField("component", StringType()),
)
CALIBRATION = tuple(StructField(name, DoubleType()) for name in CALIBRATION_MEASURES)


def predicted(
    pairs: DataFrame,
    shared: SharedScorer,
    width: int,
    *kept: str,
    levels: Sequence[float] | None = None,
    actual: str = "",
) -> DataFrame:
    """The columns `kept` of the pairs with `predicted`, `sd` (null if the model has no spread) and `known_item`.

    Where the model predicts a distribution: with `levels` also `quantiles` and `component`; with `actual` also the
    measures CALIBRATION of the values in that column. Both are null where it predicts none.

    Parameters
    ----------
    pairs : factor and bias of the user, null for a user unknown to the model; item_idx, null for an item that is not in
        the catalogue; the columns ROW, if the scorer needs them.
    width : length of a factor.
    levels : of the quantiles.
    actual : column of observed values, one of `kept`.
    """
    added = (*PREDICTED, *(() if levels is None else DISTRIBUTION), *(CALIBRATION if actual else ()))

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        scorer = shared.open()
        for batch in batches:
            if batch.num_rows == 0:
                continue
            items = batch.column("item_idx").fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            users = user_block(batch, width)
            value, sd = scorer.predict(users, items)
            mixture = scorer.mixture(users, items) if actual or levels is not None else None
            inside = (items >= 0) & (items < len(scorer.known_items))
            known = inside & scorer.known_items[np.where(inside, items, 0)]
            spread = pa.nulls(len(value), pa.float64()) if sd is None else pa.array(sd)
            columns = [*(batch.column(name) for name in kept), pa.array(value), spread, pa.array(known)]
            if levels is not None:
                columns += _distribution(mixture, levels, scorer.component_names(), len(items))
            if actual:
                observed = batch.column(actual).to_numpy(zero_copy_only=False).astype(np.float64)
                columns += _calibration(mixture, observed)
            yield pa.RecordBatch.from_arrays(columns, names=[*kept, *(field.name for field in added)])

    rows = [name for name in ROW if name in pairs.columns]
    chosen = pairs.select(*dict.fromkeys([*kept, "factor", "bias", "item_idx", *rows]))
    return chosen.mapInArrow(work, StructType([*pairs.select(*kept).schema.fields, *added]))


def _distribution(mixture: Mixture | None, levels: Sequence[float], names: tuple[str, ...], n: int) -> list[Any]:
    """The Arrow columns DISTRIBUTION of n pairs."""
    import pyarrow as pa

    entry = pa.struct([("level", pa.float64()), ("value", pa.float64())])
    if mixture is None:
        return [pa.nulls(n, pa.list_(entry)), pa.nulls(n, pa.string())]
    values = mixture.quantiles(tuple(levels))
    parts = [pa.array(np.tile(np.asarray(levels, np.float64), n)), pa.array(values.reshape(-1))]
    listed = pa.StructArray.from_arrays(parts, fields=list(entry))
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * len(levels))
    return [pa.ListArray.from_arrays(offsets, listed), pa.array([names[t] for t in mixture.leading()], pa.string())]


def _calibration(mixture: Mixture | None, observed: F64) -> list[Any]:
    """The Arrow columns CALIBRATION."""
    import pyarrow as pa

    if mixture is None:
        return [pa.nulls(len(observed), pa.float64()) for _ in CALIBRATION]
    return [pa.array(column) for column in calibration(mixture, observed).T]
