"""EASE: a linear model of items, solved in closed form.

Steck (2019), "Embarrassingly shallow autoencoders for sparse data", WWW, eq. 8:

    min_B |X - X B|^2 + lambda |B|^2, diag B = 0        B_ij = -P_ij / P_jj,  P = (X^T X + lambda I)^-1

A user's scores are x B, with x the user's row of positives. Two settings extend EASE; at 0 they have no effect:

    user_exponent b, item_exponent a     G = X^T D_u^-b X and B_ij n_i^a n_j^-a, with n the counts of users and items
    denoising p                          lambda + p / (1 - p) n_i on the diagonal: Steck (2020), "Autoencoders that
                                         don't overfit towards the identity", NeurIPS, eq. 7

    pairs ──a copy of a user's row for every slice that has one of its items──▶ slices of G ──driver──▶ B
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.sparse import csr_matrix

from sparkcf.config.linear import EASEConfig
from sparkcf.data.pairs import row_lists
from sparkcf.data.partitions import partition_keys
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.kernels.gram import add_gram
from sparkcf.lake.arrays import Arrays, Shapes
from sparkcf.lake.frames import side_by_side
from sparkcf.models.contract_data import F32, F64, I32, FitRun, Saved, TrainingData, UserBlock
from sparkcf.models.linear import Compressed, LinearModel, LinearScorer
from sparkcf.spark import DataFrame, F

SLICE_BYTES = 256 << 20  # of G in a task, in float64
GRAM_ROWS = "place int, row binary"


class EASE(LinearModel[EASEConfig]):
    """EASE: a weight for every pair of items."""

    section = EASEConfig

    def check_size(self, n_items: int) -> None:
        super().check_size(n_items)
        if n_items > self.params.max_items:
            memory = 12 * n_items**2 / 1e9  # G in float64, the weights in float32
            raise ConfigError(
                f"model=ease: {n_items:,} items, ease.max_items is {self.params.max_items:,}: solving would take "
                f"{memory:,.1f} GB of the driver's memory; raise ease.max_items if it has that much, or set model=als"
            )

    def solve(self, pairs: DataFrame, n_items: int, run: FitRun) -> Arrays:
        """Sum the Gram matrix on the executors, invert it on the driver."""
        return {"weights": item_weights(*self._gram(pairs, n_items), self.params)}

    def solve_rows(self, rows: Compressed, n_items: int) -> Arrays:
        gram, lengths = np.zeros((n_items, n_items)), np.diff(rows[0]).clip(1).astype(np.float64)
        add_gram(*rows, lengths**-self.params.user_exponent, 0, gram)
        counts = np.bincount(rows[1], minlength=n_items).astype(np.float64)
        return {"weights": item_weights(gram, counts, self.params)}

    def _gram(self, pairs: DataFrame, m: int) -> tuple[F64, F64]:
        """G (m, m), and the number of users of each item (m,)."""
        spark, exponent = pairs.sparkSession, self.params.user_exponent
        slices = max(spark.sparkContext.defaultParallelism, -(-8 * m * m // SLICE_BYTES))
        height = -(-m // slices)
        rows = row_lists(pairs)
        touched = F.array_distinct(F.transform("row_items", lambda place: (place / height).cast("int")))
        copies = rows.select(F.explode(touched).alias("slice"), "row_items", "row_values")
        by_slice = copies.repartition(slices, F.array(*map(F.lit, partition_keys(slices)))[F.col("slice")])

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            yield from _slice_of_gram(batches, m, height, exponent)

        gram, counts = np.zeros((m, m)), np.zeros(m)
        for row in side_by_side(by_slice.mapInArrow(work, GRAM_ROWS)):
            gram[row["place"]] = np.frombuffer(row["row"])
        counted: Any = pairs.groupBy("item_idx").count().toPandas()
        counts[counted["item_idx"].to_numpy()] = counted["count"].to_numpy()
        return gram, counts

    def open(self, saved: Saved) -> EASEScorer:
        return EASEScorer(saved)

    def shapes(self, data: TrainingData) -> Shapes:
        m = data.pairs.select("item_idx").distinct().count()
        return {"weights": (m, m), "items": (m,)}


def item_weights(gram: F64, counts: F64, params: EASEConfig) -> F32:
    """B, float32 (m, m), from the Gram matrix, which is overwritten.

    Parameters
    ----------
    gram : G (m, m), symmetric.
    counts : users of each item, (m,).
    """
    diagonal = params.regularization + params.denoising / (1 - params.denoising) * counts
    gram[np.diag_indices_from(gram)] += diagonal
    factor, singular = dpotrf(gram.T, lower=1, overwrite_a=1)  # in Fortran's order the transpose is no copy
    if singular:
        raise TrainingError(f"the items' Gram matrix is singular at row {singular}: raise ease.regularization")
    inverse, _ = dpotri(factor, lower=1, overwrite_c=1)  # its lower triangle
    scale, diagonal = counts**params.item_exponent, np.diag(inverse).copy()
    weights = np.empty(gram.shape, np.float32)
    for i in range(len(weights)):
        row = np.concatenate([inverse[i, :i], inverse[i:, i]])
        weights[i] = -row / diagonal * (scale[i] / scale)
        weights[i, i] = 0.0
    return weights


class EASEScorer(LinearScorer):
    """Scores users by their rows and a dense matrix of weights."""

    def __init__(self, saved: Saved) -> None:
        super().__init__(saved)
        self.weights: F32 = saved.arrays["weights"]

    def score_block(self, users: UserBlock) -> F32:
        assert users.rows is not None
        indptr, indices, values, _ = users.rows
        place = self.place[indices]
        shape = (len(users), len(self.items))
        rows = csr_matrix((np.where(place >= 0, values, 0), np.maximum(place, 0), indptr), shape=shape)
        return self.everywhere(rows @ self.weights)

    def similar_block(self, items: I32) -> F32:
        """The weights from an item to all others."""
        place = self.place[items]
        return self.everywhere(np.where((place >= 0)[:, None], self.weights[place], np.float32(0)))

    def brought(self, had: I32, values: F32, items: I32) -> F32:
        place, target = self.place[had], self.place[items]
        weights = self.weights[np.ix_(place, target)] * values[:, None]
        parts: F32 = np.where((place >= 0)[:, None] & (target >= 0), weights, np.float32(0))
        return parts


def _slice_of_gram(batches: Iterable[Any], m: int, height: int, exponent: float) -> Iterator[Any]:
    """GRAM_ROWS of one slice, from the rows of the users who have an item in the slice."""
    import pyarrow as pa

    from sparkcf.data.arrow import csr_of

    total: NDArray[np.float64] | None = None
    first = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        if total is None:
            first = batch.column("slice")[0].as_py() * height
            total = np.zeros((min(height, m - first), m))
        indptr, places = csr_of(batch.column("row_items"))
        values = batch.column("row_values").flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        add_gram(indptr, places, values, np.diff(indptr).astype(np.float64) ** -exponent, first, total)
    if total is None:
        return
    for start in range(0, len(total), 100):
        part = total[start : start + 100]
        numbers = pa.array(np.arange(first + start, first + start + len(part), dtype=np.int32))
        yield pa.RecordBatch.from_arrays([numbers, pa.array([row.tobytes() for row in part])], names=["place", "row"])
