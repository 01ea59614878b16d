"""MRF: a sparse linear model of items. Every item is an independent small solve over its most correlated items.

Steck (2019), "Markov random fields for collaborative filtering", NeurIPS, section 3, with one item a solve (r = 0):

    G = X^T D_u^-b X, centred by the items' means if `centred`          c_ij = G_ij / sqrt(G_ii G_jj)
    N(j) = the `max_neighbours` items of largest |c_ij| >= `min_correlation`; other entries of G count as 0
    B_Nj = (G_NN + D_N)^-1 G_Nj,  D = lambda + p / (1 - p) n_i         B_ij (n_i / n_j)^a

With `scale_exponent` e, G and B are those of the items divided by G_ii^(e/2) (the paper's alpha; 0.75 there). Without
it and without centring, an N(j) of all items gives the weights of EASE. Unlike in the paper, an entry of G_NN below
`min_correlation` is 0: so the sparse matrix is all that is needed, and no dense square matrix is built anywhere.

    pairs ──a copy of a user's row for every slice that has one of its items──▶ rows of G, sparse ──driver, shared──▶
        a small solve for every item ──driver──▶ B, sparse
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from sparkcf.config.linear import MRFConfig
from sparkcf.data.pairs import row_lists
from sparkcf.data.partitions import partition_keys
from sparkcf.data.shared import SharedArrays, share
from sparkcf.kernels.mrf import multiply_rows
from sparkcf.lake.arrays import Arrays, Shapes
from sparkcf.lake.frames import kept, one_row, side_by_side
from sparkcf.models.contract_data import F32, I32, FitRun, Saved, TrainingData, UserBlock
from sparkcf.models.linear import Compressed, LinearModel, LinearScorer
from sparkcf.models.mrf.items import (
    Found,
    ItemPairs,
    ItemSums,
    correlated,
    item_weights,
    joined,
    pairs_of,
    solve_item,
)
from sparkcf.spark import DataFrame, F, SparkSession

FOUND = "item int, others binary, numbers binary"
TASKS_PER_SLOT = 4  # of the solves, which differ in size
ITEMS_PER_BATCH = 500


class MRF(LinearModel[MRFConfig]):
    """MRF: sparse weights between items."""

    section = MRFConfig

    def solve(self, pairs: DataFrame, n_items: int, run: FitRun) -> Arrays:
        """Find the correlated pairs of items on the executors, then solve every item there."""
        spark, params = pairs.sparkSession, self.params
        with kept(row_lists(pairs)) as rows:  # read twice
            sums = _sums(rows, n_items, params)
            correlations = pairs_of(_correlated(rows, sums, params), sums, params)
        columns, raised = _solved(spark, correlations, params)
        if raised:
            run.on_progress({"note": f"{raised:,} items' systems were singular: lower mrf.min_correlation"})
        return _stored(joined(columns, n_items))

    def solve_rows(self, rows: Compressed, n_items: int) -> Arrays:
        with threadpool_limits(1, user_api="blas"):
            return _stored(item_weights(rows, n_items, self.params))

    def open(self, saved: Saved) -> MRFScorer:
        return MRFScorer(saved)

    def shapes(self, data: TrainingData) -> Shapes:
        m = data.pairs.select("item_idx").distinct().count()
        return {"indptr": (m + 1,), "indices": (None,), "values": (None,), "items": (m,)}


class MRFScorer(LinearScorer):
    """Scores users by their rows and a sparse matrix of weights."""

    def __init__(self, saved: Saved) -> None:
        super().__init__(saved)
        self.weights: Compressed = (saved.arrays["indptr"], saved.arrays["indices"], saved.arrays["values"])

    def score_block(self, users: UserBlock) -> F32:
        assert users.rows is not None
        indptr, indices, values, _ = users.rows
        return self._scores(indptr, self.place[indices], values)

    def similar_block(self, items: I32) -> F32:
        """The weights from an item to all others."""
        one_each = np.arange(len(items) + 1, dtype=np.int64)
        return self._scores(one_each, self.place[items], np.ones(len(items), np.float32))

    def brought(self, had: I32, values: F32, items: I32) -> F32:
        parts = np.zeros((len(had), len(items)), np.float32)
        indptr, targets, weights = self.weights
        place, column = self.place[had], np.full(len(self.items), -1)
        wanted = np.where(items >= 0, self.place[items], -1)
        column[wanted[wanted >= 0]] = np.flatnonzero(wanted >= 0)
        for row in np.flatnonzero(place >= 0):
            here = slice(indptr[place[row]], indptr[place[row] + 1])
            at = column[targets[here]]
            parts[row, at[at >= 0]] = values[row] * weights[here][at >= 0]
        return parts

    def _scores(self, indptr: Any, places: I32, values: F32) -> F32:
        """Scores of rows for all items, (n, m)."""
        scores = np.zeros((len(indptr) - 1, len(self.items)), np.float32)
        multiply_rows(indptr, places, values.astype(np.float32), *self.weights, scores)
        return self.everywhere(scores)


def _stored(weights: Compressed) -> Arrays:
    return dict(zip(("indptr", "indices", "values"), weights, strict=True))


def _sums(rows: DataFrame, m: int, params: MRFConfig) -> ItemSums:
    weight = F.pow(F.size("row_items").cast("double"), F.lit(-params.user_exponent)).alias("w")
    entry = F.explode(F.arrays_zip("row_items", "row_values")).alias("e")
    value = F.col("e.row_values").cast("double")
    by_item = rows.select(weight, entry).groupBy(F.col("e.row_items").alias("item"))
    found: Any = by_item.agg(F.count("e"), F.sum(F.col("w") * value), F.sum(F.col("w") * value * value)).toPandas()
    of = np.zeros((3, m))
    of[:, found["item"].to_numpy()] = found.to_numpy(np.float64)[:, 1:].T
    return ItemSums(of[0], of[1], of[2], float(one_row(rows.agg(F.sum(weight)))[0]))


def _correlated(rows: DataFrame, sums: ItemSums, params: MRFConfig) -> Iterator[Found]:
    """The sparse rows of G. Each task has the items of one slice, and the rows of their users."""
    slices, m = rows.sparkSession.sparkContext.defaultParallelism, len(sums.counts)
    touched = F.array_distinct(F.transform("row_items", lambda place: place % slices))
    copies = rows.select(F.explode(touched).alias("slice"), "user_idx", "row_items", "row_values")
    by_slice = copies.repartition(slices, F.array(*map(F.lit, partition_keys(slices)))[F.col("slice")])

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        from sparkcf.data.arrow import csr_of

        full = [batch for batch in batches if batch.num_rows]
        if not full:
            return
        number = full[0].column("slice")[0].as_py()
        table = pa.Table.from_batches(full).combine_chunks()
        indptr, places = csr_of(table.column("row_items").combine_chunks())
        values = table.column("row_values").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        chosen = np.arange(number, m, slices, dtype=np.int32)
        yield from _batches(correlated((indptr, places, values.astype(np.float32)), chosen, sums, params))

    ordered = by_slice.sortWithinPartitions("user_idx")  # sums of float64 depend on their order in the last digits
    return _collected(ordered.mapInArrow(work, FOUND))


def _solved(spark: SparkSession, pairs: ItemPairs, params: MRFConfig) -> tuple[list[Found], int]:
    """The columns of B, and the number of systems that were singular."""
    tasks = spark.sparkContext.defaultParallelism * TASKS_PER_SLOT
    shared: SharedArrays = share(
        spark,
        indptr=pairs.indptr,
        indices=pairs.indices,
        values=pairs.values,
        variances=pairs.variances,
        counts=pairs.counts,
    )
    order = np.argsort(-np.diff(pairs.indptr), kind="stable").astype(np.int32)  # every task gets some large ones

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        opened = ItemPairs(*shared.open())
        with threadpool_limits(1, user_api="blas"):
            for batch in batches:
                for number in batch.column("id").to_pylist():
                    yield from _batches(_solutions(opened, order[number::tasks], params))

    columns: list[Found] = []
    raised = 0
    for item, others, weights in _collected(spark.range(0, tasks, 1, tasks).mapInArrow(work, FOUND)):
        raised += item < 0
        columns.append((item if item >= 0 else -item - 1, others, weights))
    return columns, raised


def _solutions(pairs: ItemPairs, items: I32, params: MRFConfig) -> Iterator[Found]:
    """Columns of B; of a system that was singular the item's number is -item - 1."""
    for item in items.tolist():
        others, weights, raised = solve_item(pairs, item, params)
        yield -item - 1 if raised else item, others, weights


def _batches(found: Iterator[Found]) -> Iterator[Any]:
    """Arrow batches of FOUND."""
    import pyarrow as pa

    rows: list[Found] = []
    for row in found:
        rows.append(row)
        if len(rows) == ITEMS_PER_BATCH:
            yield _batch(pa, rows)
            rows = []
    if rows:
        yield _batch(pa, rows)


def _batch(pa: Any, rows: list[Found]) -> Any:
    items = pa.array([row[0] for row in rows], pa.int32())
    packed = [pa.array([row[1].tobytes() for row in rows]), pa.array([row[2].tobytes() for row in rows])]
    return pa.RecordBatch.from_arrays([items, *packed], names=["item", "others", "numbers"])


def _collected(frame: DataFrame) -> Iterator[Found]:
    for row in side_by_side(frame):
        yield row["item"], np.frombuffer(row["others"], np.int32), np.frombuffer(row["numbers"], np.float32)
