"""Predicted values of pairs by any model, for the predict job and for protocol q3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql.types import BooleanType, DoubleType, StructField, StructType

from sparkcf.data.pairs import ROW
from sparkcf.ranking.scorers import SharedScorer, user_block

PREDICTED = (
    StructField("predicted", DoubleType()),
    StructField("sd", DoubleType()),
    StructField("known_item", BooleanType()),
)


def predicted(pairs: DataFrame, shared: SharedScorer, width: int, *kept: str) -> DataFrame:
    """The columns `kept` of the pairs with `predicted`, `sd` (null if the model has no spread) and `known_item`.

    Parameters
    ----------
    pairs : factor and bias of the user, null for a user unknown to the model; item_idx, null for an item that is not in
        the catalogue; the columns ROW, if the scorer needs them.
    width : length of a factor.
    """

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        scorer = shared.open()
        for batch in batches:
            items = batch.column("item_idx").fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            value, sd = scorer.predict(user_block(batch, width), items)
            inside = (items >= 0) & (items < len(scorer.known_items))
            known = inside & scorer.known_items[np.where(inside, items, 0)]
            spread = pa.nulls(len(value), pa.float64()) if sd is None else pa.array(sd)
            columns = [*(batch.column(name) for name in kept), pa.array(value), spread, pa.array(known)]
            yield pa.RecordBatch.from_arrays(columns, names=[*kept, *(field.name for field in PREDICTED)])

    rows = [name for name in ROW if name in pairs.columns]
    chosen = pairs.select(*dict.fromkeys([*kept, "factor", "bias", "item_idx", *rows]))
    return chosen.mapInArrow(work, StructType([*pairs.select(*kept).schema.fields, *PREDICTED]))
