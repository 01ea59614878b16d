"""The shuffle that sends pairs to the workers of a gang, and its partitions as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sparkcf.data.partitions import partition_keys
from sparkcf.spark import Column, DataFrame, F
from sparkcf.training.blocks import ITEM, KINDS, USER, Parts
from sparkcf.training.gang import numpy_columns

ROW_COLUMNS = ("key", "feat", "val")  # rows of a factorization machine, see `sparkcf.models.fm.features`


def shuffled(pairs: DataFrame, workers: int, warm_start: dict[str, DataFrame] | None = None) -> DataFrame:
    """Send every pair to the worker of its user and to that of its item; one partition per worker.

    Parameters
    ----------
    pairs : user_idx, item_idx, value, and optionally weight and ROW_COLUMNS.
    warm_start : by side, (idx, factor) rows to start from; sent in the same shuffle.

    Returns
    -------
    DataFrame
        kind (0 user row, 1 item row, 2 user warm start, 3 item warm start), row, col, value; weight if the pairs have
        it, vector with a warm start.
    """
    worker = F.col("worker")
    numbers = [name for name in ("value", "weight") if name in pairs.columns]
    whole = [name for name in ROW_COLUMNS if name in pairs.columns]

    def rows(kind: int, row: str, col: str) -> Column:
        return F.struct(
            F.pmod(F.col(row), F.lit(workers)).alias("worker"),
            F.lit(kind).cast("byte").alias("kind"),
            (F.col(row) / workers).cast("int").alias("row"),
            F.col(col).alias("col"),
            *(F.col(name).cast("float").alias(name) for name in numbers),
            *(F.col(name) for name in whole),
        )

    copies = F.array(rows(USER, "user_idx", "item_idx"), rows(ITEM, "item_idx", "user_idx"))
    tagged = pairs.select(F.inline(copies))
    if warm_start:
        tagged = tagged.withColumn("vector", F.lit(None).cast("array<float>"))
        for side, name in enumerate(KINDS):
            if name in warm_start:
                start = warm_start[name].select(
                    F.pmod(F.col("idx"), F.lit(workers)).alias("worker"),
                    F.lit(2 + side).cast("byte").alias("kind"),
                    (F.col("idx") / workers).cast("int").alias("row"),
                    F.lit(0).alias("col"),
                    *(F.lit(0.0).cast("float").alias(name) for name in numbers),
                    F.col("factor").alias("vector"),
                )
                tagged = tagged.unionByName(start)
    keys = partition_keys(workers)
    return tagged.repartition(workers, F.array(*map(F.lit, keys))[worker]).drop("worker")


def read_parts(batches: Iterable[Any], warm: bool, width: int) -> Parts:
    """Arrow batches of `shuffled` as arrays.

    Parameters
    ----------
    warm : whether the batches have warm-start rows.
    width : length of a warm-start vector.
    """
    batches = list(batches)
    weighted = bool(batches) and "weight" in batches[0].schema.names
    kinds, rows, cols, values = numpy_columns(batches, ("kind", "row", "col", "value"))
    weights = numpy_columns(batches, ("weight",))[0] if weighted else []
    starts: list[list[tuple[Any, Any]]] = [[], []]
    if warm:
        for batch, kind, row in zip(batches, kinds, rows, strict=True):
            for side in (USER, ITEM):
                chosen = np.flatnonzero(kind == 2 + side)
                if len(chosen):
                    vectors = batch.column("vector").take(_arrow_int(chosen)).flatten()
                    starts[side].append((row[chosen], vectors.to_numpy(zero_copy_only=False).reshape(-1, width)))
    kind = _joined(kinds, np.int8)
    row, col, value = _joined(rows, np.int32), _joined(cols, np.int32), _joined(values, np.float32)
    weight = _joined(weights, np.float32)
    del batches, kinds, rows, cols, values, weights
    triples = []
    for side in (USER, ITEM):
        chosen = kind == side
        triples.append((row[chosen], col[chosen], value[chosen], weight[chosen] if weighted else weight))
    return Parts(triples, [_stacked(s) if s else None for s in starts])


def _arrow_int(values: Any) -> Any:
    import pyarrow

    return pyarrow.array(values)


def _joined(arrays: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.empty(0, dtype)


def _stacked(parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
