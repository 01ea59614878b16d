"""A fit's parameters as frames: factors of users and items, vectors of pairs in their context, parameters of features.

learned (kind, idx, factor) ⋈ features ──▶ idx, factor, bias          (see `sparkcf.models.fm.factors`)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from sparkcf.data.arrow import entries_of, vectors_of, vectors_to_arrow
from sparkcf.data.shared import SharedArrays
from sparkcf.lake.arrays import Arrays
from sparkcf.models.fm.factors import folded
from sparkcf.models.fm.features import ENTRY, Features
from sparkcf.models.fm.rows import FMPlan
from sparkcf.training.blocks import KINDS, USER

F64 = NDArray[np.float64]
BATCH = 2_000  # vectors in an Arrow batch
FEATURES = "field string, feature_idx int, factor array<float>, bias float, samples array<float>"


@dataclass(frozen=True)
class Learned:
    """Result of a learner, before fields are folded into factors.

    cached : persisted frame: kind (user, item, everywhere), idx, factor, a feature's [v, w] of all samples.
    log : one entry per sweep or epoch.
    state : w0 and noise_precision (samples,), precision and mean of the users' prior (samples, k + 1), everywhere
        (samples, m, k + 1).
    """

    cached: DataFrame
    log: list[dict[str, Any]]
    state: Arrays

    def own(self, kind: str) -> DataFrame:
        """KIND_idx, own: the parameters of one side's ids."""
        return self.cached.where(F.col("kind") == kind).select(
            F.col("idx").alias(f"{kind}_idx"), F.col("factor").alias("own")
        )


def folded_side(
    own: DataFrame, kind: str, features: DataFrame, w0: F64, everywhere: SharedArrays, plan: FMPlan
) -> DataFrame:
    """idx, factor, bias of all users or items in `features`. `own`: KIND_idx, own, see `Learned.own`."""
    rows = features.join(own, on=f"{kind}_idx", how="left").withColumnRenamed(f"{kind}_idx", "idx")
    factors = _folded_rows(rows, ("idx",), kind == "item", w0, everywhere, plan)
    return factors.withColumn("bias", F.lit(0.0).cast("float"))


def folded_in_context(
    pairs: DataFrame, own: DataFrame, features: Features, w0: F64, everywhere: SharedArrays, plan: FMPlan
) -> DataFrame:
    """Add to pairs `factor`, the user's vector in the pair's context; `known_user`; `unknown`, see `Features`.

    Parameters
    ----------
    pairs : user_idx and the columns of the context, see `data.pairs.in_their_moments`.
    own : user_idx, own, see `Learned.own`.
    """
    names = [name for name in pairs.columns if name not in ("ts", "context", "previous")]
    users = features.user.join(own, on="user_idx", how="full").withColumn("known_user", F.lit(True))
    rows = features.in_context(pairs).join(users, on="user_idx", how="left")
    nothing = F.array().cast(f"array<{ENTRY}>")
    whole = rows.withColumn("features", F.concat(F.coalesce("features", nothing), "moment"))
    known = whole.withColumn("known_user", F.coalesce("known_user", F.lit(False)))
    return _folded_rows(known, (*names, "known_user", "unknown"), False, w0, everywhere, plan)


def _folded_rows(
    rows: DataFrame, names: tuple[str, ...], of_item: bool, w0: F64, everywhere: SharedArrays, plan: FMPlan
) -> DataFrame:
    """The columns `names` and `factor`, computed from the columns `features` and `own`."""
    has_ids = any(f.side is not None and f.of_item == of_item for f in plan.fields)
    width = (len(w0), plan.config.rank + 1)

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        (table,) = everywhere.open()
        for batch in batches:
            for first in range(0, batch.num_rows, BATCH):
                part = batch.slice(first, BATCH)
                entries = entries_of(part.column("features"))
                ids = None
                if has_ids:
                    ids = vectors_of(part.column("own"), width[0] * width[1])[1].reshape(-1, *width)
                vectors = folded(of_item, ids, entries, w0, table, plan)
                columns = [*(part.column(name) for name in names), vectors_to_arrow(vectors)]
                yield pa.RecordBatch.from_arrays(columns, names=[*names, "factor"])

    selected = rows.select(*names, "features", "own")
    factor = StructField("factor", ArrayType(FloatType()))
    return selected.mapInArrow(work, StructType([*selected.select(*names).schema.fields, factor]))


def feature_factors(learned: Learned, plan: FMPlan) -> DataFrame:
    """FEATURES of every feature: means over the samples, and the samples themselves if predictions need them."""
    names = np.array([f.name for f in plan.fields], object)
    starts = [(start, number) for number, start in enumerate(plan.starts()) if start >= 0]
    located = {KINDS[f.side]: f.name for f in plan.fields if f.side is not None}
    samples = len(learned.state["w0"])
    kept = {located.get(KINDS[USER])} if plan.config.contextual else set()

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            if batch.num_rows == 0:
                continue
            idx = batch.column("idx").to_numpy()
            flat = batch.column("factor").flatten().to_numpy(zero_copy_only=False).reshape(len(idx), -1)
            means = flat.reshape(len(idx), samples, -1).mean(axis=1, dtype=np.float64).astype(np.float32)
            fields = np.array([located.get(kind, "") for kind in batch.column("kind").to_pylist()], object)
            everywhere = fields == ""
            if everywhere.any():
                at = np.searchsorted([start for start, _ in starts], idx[everywhere], side="right") - 1
                fields[everywhere] = names[[starts[place][1] for place in at]]
                idx = idx.copy()
                idx[everywhere] -= np.array([starts[place][0] for place in at], idx.dtype)
            whole = [row if field in kept else None for row, field in zip(flat, fields, strict=True)]
            columns = [
                pa.array(fields.tolist()),
                pa.array(idx),
                vectors_to_arrow(means[:, :-1]),
                pa.array(means[:, -1]),
                pa.array(whole, pa.list_(pa.float32())),
            ]
            yield pa.RecordBatch.from_arrays(columns, names=[part.split()[0] for part in FEATURES.split(", ")])

    rows = learned.cached.where(F.col("factor").isNotNull()).select("kind", "idx", "factor")
    return rows.mapInArrow(work, FEATURES)
