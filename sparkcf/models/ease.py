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

from sparkcf.config.models import EASEConfig
from sparkcf.data.pairs import Reads, row_lists
from sparkcf.data.partitions import partition_keys
from sparkcf.data.split import uniform
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.kernels.gram import add_gram
from sparkcf.kernels.random import uniform_rows
from sparkcf.lake.arrays import Shapes
from sparkcf.lake.frames import side_by_side
from sparkcf.models.contract import Model, Scorer
from sparkcf.models.contract_data import (
    F32,
    F64,
    I32,
    I64,
    Features,
    FitRun,
    Fitted,
    LocalData,
    LocalFit,
    LocalRun,
    Rows,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.explanation import Explanation, of_items, strongest_had
from sparkcf.spark import DataFrame, F

SLICE_BYTES = 256 << 20  # of G in a task, in float64
GRAM_ROWS = "place int, row binary"


class EASE(Model[EASEConfig]):
    """EASE: a weight for every pair of items. Users have no vectors; they are scored by their rows."""

    section = EASEConfig
    scores_rows = True
    fits_locally = fits_in_parts = True

    @property
    def reads(self) -> Reads:
        return Reads("positives")

    @property
    def width(self) -> int:
        return 0

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """Sum the Gram matrix on the executors, invert it on the driver.

        Raises
        ------
        ConfigError
            There are more items than `ease.max_items`.
        TrainingError
            There is no pair.
        """
        if run.warm_start:
            run.on_progress({"note": "train.warm_start is ignored: ease is solved exactly"})
        items = items_of(data.pairs)
        self._check_size(len(items))
        gram, counts = self._gram(data.pairs, items)
        weights = item_weights(gram, counts, self.params)
        return Fitted.without_vectors(data.pairs, {"weights": weights, "items": items})

    def fit_local(self, data: LocalData, run: LocalRun) -> LocalFit:
        items = np.flatnonzero(data.present()[1]).astype(np.int32)
        self._check_size(len(items))
        indptr, places, values = capped_rows(data, items, self.params.max_history, self.seed)
        gram, lengths = np.zeros((len(items), len(items))), np.diff(indptr).clip(1).astype(np.float64)
        add_gram(indptr, places, values, lengths**-self.params.user_exponent, 0, gram)
        counts = np.bincount(places, minlength=len(items)).astype(np.float64)
        return LocalFit.without_vectors(data, {"weights": item_weights(gram, counts, self.params), "items": items})

    def _check_size(self, n_items: int) -> None:
        if not n_items:
            raise TrainingError("no positive interaction to train on: is preference.positive_from too high?")
        if n_items > self.params.max_items:
            memory = 12 * n_items**2 / 1e9  # G in float64, the weights in float32
            raise ConfigError(
                f"model=ease: {n_items:,} items, ease.max_items is {self.params.max_items:,}: solving would take "
                f"{memory:,.1f} GB of the driver's memory; raise ease.max_items if it has that much, or set model=als"
            )

    def _gram(self, pairs: DataFrame, items: I32) -> tuple[F64, F64]:
        """G (m, m) in the order of `items`, and the number of users of each item (m,)."""
        spark, m, exponent = pairs.sparkSession, len(items), self.params.user_exponent
        slices = max(spark.sparkContext.defaultParallelism, -(-8 * m * m // SLICE_BYTES))
        height = -(-m // slices)
        places = spark.createDataFrame(enumerate(items.tolist()), "place int, item_idx int")
        placed = capped(pairs, self.params.max_history, self.seed).join(places, on="item_idx", how="inner")
        rows = row_lists(placed.withColumn("item_idx", F.col("place")))
        touched = F.array_distinct(F.transform("row_items", lambda place: (place / height).cast("int")))
        copies = rows.select(F.explode(touched).alias("slice"), "row_items", "row_values")
        by_slice = copies.repartition(slices, F.array(*map(F.lit, partition_keys(slices)))[F.col("slice")])

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            yield from _slice_of_gram(batches, m, height, exponent)

        gram, counts = np.zeros((m, m)), np.zeros(m)
        for row in side_by_side(by_slice.mapInArrow(work, GRAM_ROWS)):
            gram[row["place"]] = np.frombuffer(row["row"])
        counted: Any = placed.groupBy("place").count().toPandas()
        counts[counted["place"].to_numpy()] = counted["count"].to_numpy()
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


class EASEScorer(Scorer):
    """Scores users by their rows; folding in a new user needs no solve."""

    def __init__(self, saved: Saved) -> None:
        self.known_items = saved.item_known
        self.weights: F32 = saved.arrays["weights"]
        self.items: I32 = saved.arrays["items"]
        self._place = np.full(len(saved.item_known), -1, np.int32)
        self._place[self.items] = np.arange(len(self.items), dtype=np.int32)

    def score_block(self, users: UserBlock) -> F32:
        assert users.rows is not None
        indptr, indices, values, _ = users.rows
        place = self._place[indices]
        shape = (len(users), len(self.items))
        rows = csr_matrix((np.where(place >= 0, values, 0), np.maximum(place, 0), indptr), shape=shape)
        return self._everywhere(rows @ self.weights)

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        n = len(rows[0]) - 1
        return np.zeros((n, 0), np.float32), np.zeros(n, np.float32)

    def similar_block(self, items: I32) -> F32:
        """The weights from an item to all others."""
        place = self._place[items]
        return self._everywhere(np.where((place >= 0)[:, None], self.weights[place], np.float32(0)))

    def explain(self, user: UserBlock, item: int) -> Explanation:
        """The weights from the user's items to the item, times the pairs' values."""
        assert user.rows is not None
        had, values = user.rows[1:3]
        parts = self._brought(had, values, np.array([item], np.int32))[:, 0]
        return Explanation.summing(float(parts.sum(dtype=np.float64)), of_items(had, parts))

    def because(self, users: UserBlock, items: I32) -> I32:
        assert users.rows is not None
        return strongest_had(*users.rows[:3], items, self._brought)

    def _brought(self, had: I32, values: F32, items: I32) -> F32:
        """What each item of a user brings to the score of each item, (h, k)."""
        place, target = self._place[had], self._place[items]
        weights = self.weights[np.ix_(place, target)] * values[:, None]
        parts: F32 = np.where((place >= 0)[:, None] & (target >= 0), weights, np.float32(0))
        return parts

    def _everywhere(self, scores: F32) -> F32:
        """Expand scores of the items with weights to all items, (n, m)."""
        if len(self.items) == len(self.known_items):
            return scores
        out = np.zeros((len(scores), len(self.known_items)), np.float32)
        out[:, self.items] = scores
        return out


def items_of(pairs: DataFrame) -> I32:
    """The items of the pairs, ascending."""
    found: Any = pairs.select("item_idx").distinct().toPandas()
    return np.sort(found["item_idx"].to_numpy(np.int32))


def capped_rows(data: LocalData, items: I32, most: int, seed: int) -> tuple[I64, I32, F32]:
    """Compressed rows of all users over the places of `items`: at most `most` pairs of each, drawn by the seed."""
    indptr, indices, values, _ = data.rows()
    kept = np.ones(len(indices), bool)
    for row in np.flatnonzero(np.diff(indptr) > most):
        here = np.arange(indptr[row], indptr[row + 1])
        drawn = np.argsort(uniform_rows(seed, int(row), here - here[0]), kind="stable")
        kept[here[drawn[most:]]] = False
    counts = np.bincount(data.users[kept], minlength=data.n_users)
    places = np.searchsorted(items, indices[kept]).astype(np.int32)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), places, values[kept]


def capped(pairs: DataFrame, most: int, seed: int) -> DataFrame:
    """Keep at most `most` pairs of each user, by hash: a user's cost grows with the square of their number."""
    many = pairs.groupBy("user_idx").count().where(F.col("count") > most)
    if many.isEmpty():
        return pairs
    entry = F.struct(uniform(seed, "ease", F.col("user_idx"), F.col("item_idx")).alias("at"), "item_idx", "value")
    of_many = pairs.join(F.broadcast(many), on="user_idx", how="left_semi")
    listed = of_many.groupBy("user_idx").agg(F.slice(F.sort_array(F.collect_list(entry)), 1, most).alias("row"))
    kept = listed.select("user_idx", F.inline("row")).select("user_idx", "item_idx", "value")
    others = pairs.join(F.broadcast(many), on="user_idx", how="left_anti")
    return others.select("user_idx", "item_idx", "value").unionByName(kept)


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
