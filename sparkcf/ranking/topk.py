"""Exact top-K lists of all users by blocks: score all items, mask, select.

Models that end in an inner product use the fused kernel, all others `Scorer.score_block`; selection, masks and ties
are the same. The item side is shared with the executors as memory-mapped files, see `sparkcf.data.shared`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparkcf.data.arrow import csr_of
from sparkcf.data.pairs import ROW
from sparkcf.data.shared import SharedArrays, share
from sparkcf.kernels.csr import take_rows
from sparkcf.kernels.topk import rank_block, rank_scores
from sparkcf.kernels.vectors import unit_rows
from sparkcf.models.contract import InnerProduct, Model, Scorer
from sparkcf.models.contract_data import F32, Saved, UserBlock
from sparkcf.ranking.rerank import Lists, Reranker
from sparkcf.ranking.rerank_items import SharedReranker
from sparkcf.ranking.scorers import SharedScorer, share_scorer, user_block
from sparkcf.spark import DataFrame, F, SparkSession

LISTS = "user_idx int, items array<int>, scores array<float>, by_model boolean"
SLICE = 65_536  # items whose unit vectors are computed at once
REASONS = {"concepts": "int", "because": "int", "explored": "boolean"}  # columns of reasons, a value for each item
Seen = tuple[NDArray[np.int64], NDArray[np.int32]]  # compressed rows: items not to list


@dataclass(frozen=True)
class Catalogue:
    """All items.

    eligible : bool (m,), whether an item may be recommended.
    popularity : float32 (m,), scores for users unknown to the model.
    """

    eligible: NDArray[np.bool_]
    popularity: F32

    @classmethod
    def of(cls, popularity: DataFrame, n_items: int, banned: DataFrame | None = None) -> Catalogue:
        """Collect frames: `popularity` (item_idx, score), and `banned` (item_idx) of the ineligible items."""
        scores, eligible = np.zeros(n_items, np.float32), np.ones(n_items, bool)
        counted = popularity.select("item_idx", "score").toPandas()
        scores[counted["item_idx"].to_numpy(np.int64)] = counted["score"].to_numpy(np.float32)
        if banned is not None:
            eligible[banned.select("item_idx").toPandas()["item_idx"].to_numpy(np.int64)] = False
        return cls(eligible, scores)


@dataclass(frozen=True)
class Ranker:
    """Ranks all items for blocks of users, in one process.

    fused : use the fused kernel for an inner product.
    reranker : chooses lists from longer ones; None: the best items are the list.
    """

    scorer: Scorer
    catalogue: Catalogue
    fused: bool = True
    reranker: Reranker | None = None

    def lists(self, users: UserBlock, ids: NDArray[np.int64], seen: Seen, k: int) -> Lists:
        """Re-ranked lists, or those of `rank` without rules. `ids` : (n,), the users' indices."""
        if self.reranker is None:
            return Lists(*self.rank(users, seen, k))
        return self.reranker.chosen(users, ids, *self.rank(users, seen, k * self.reranker.rules.factor), k)

    def rank(self, users: UserBlock, seen: Seen, k: int) -> tuple[NDArray[np.int32], F32]:
        """Item lists, int32 (n, k), padded with -1, and their scores; unknown users are ranked by popularity."""
        n, popularity = len(users), self.catalogue.popularity
        indices, scores = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
        listed = self.catalogue.eligible & self.scorer.known_items
        if len(rows := np.flatnonzero(users.known)):
            indices[rows], scores[rows] = self._by_model(users.take(rows), listed, *_seen_by(seen, rows), k)
        if len(rows := np.flatnonzero(~users.known)):
            ones = np.ones((len(rows), 1), np.float32)
            indices[rows], scores[rows] = rank_block(ones, popularity[:, None], None, listed, *_seen_by(seen, rows), k)
        return indices, scores

    def _by_model(
        self,
        users: UserBlock,
        listed: NDArray[np.bool_],
        indptr: NDArray[np.int64],
        indices: NDArray[np.int32],
        k: int,
    ) -> tuple[NDArray[np.int32], F32]:
        scorer = self.scorer
        if self.fused and isinstance(scorer, InnerProduct):
            return rank_block(users.vectors, scorer.item_vectors, scorer.item_bias, listed, indptr, indices, k)

        def score_block(part: slice) -> F32:
            return scorer.score_block(users.take(np.arange(part.start, part.stop)))

        return rank_scores(score_block, len(users), len(listed), listed, indptr, indices, k)

    def similar(self, items: NDArray[np.int32], k: int) -> tuple[NDArray[np.int32], F32]:
        """Nearest eligible items of each item, itself excluded: int32 (n, k), padded with -1, and their likeness.

        An item that cannot be compared has no neighbours and is no item's neighbour.
        """
        scorer, listed = self.scorer, self.catalogue.eligible & self.scorer.known_items
        own = (np.arange(len(items) + 1, dtype=np.int64), items)
        if isinstance(scorer, Cosine):
            vectors = scorer.item_vectors
            indices, scores = rank_block(vectors[items], vectors, None, listed, *own, k)
        else:

            def score_block(part: slice) -> F32:
                return scorer.similar_block(items[part])

            indices, scores = rank_scores(score_block, len(items), len(listed), listed, *own, k)
        indices[~scorer.known_items[items]] = -1
        return indices, scores


class Cosine(InnerProduct):
    """Scores items by the inner product of unit vectors, their cosine."""


def _seen_by(seen: Seen, rows: NDArray[np.intp]) -> Seen:
    indptr, entries = take_rows(seen[0], rows)
    return indptr, seen[1][entries]


@dataclass(frozen=True)
class SharedRanker:
    """Handle of a Ranker that every executor can open."""

    scorer: SharedScorer
    catalogue: SharedArrays
    fused: bool = True
    reranker: SharedReranker | None = None

    def open(self) -> Ranker:
        reranker = None if self.reranker is None else self.reranker.open()
        return Ranker(self.scorer.open(), Catalogue(*self.catalogue.open()), self.fused, reranker)


def share_ranker(
    spark: SparkSession,
    scorer: SharedScorer,
    catalogue: Catalogue,
    fused: bool = True,
    reranker: SharedReranker | None = None,
) -> SharedRanker:
    """Share the catalogue with the executors, beside the scorer."""
    arrays = share(spark, eligible=catalogue.eligible, popularity=catalogue.popularity)
    return SharedRanker(scorer, arrays, fused, reranker)


def share_similarity(spark: SparkSession, model: Model[Any], saved: Saved, scorer: SharedScorer) -> SharedScorer:
    """A scorer for item similarity: unit vectors if the model compares by cosine, else the model's scorer."""
    opened = model.open(saved)
    if type(opened).similar_block is not Scorer.similar_block:
        return scorer
    unit = _unit_on_disk(opened.likeness())
    comparable = saved.item_known & unit.any(axis=1)
    return share_scorer(spark, Cosine, Saved(unit, np.zeros(len(unit), np.float32), comparable))


def _unit_on_disk(vectors: F32) -> F32:
    """`unit_rows` in a temporary file, a slice at a time: the driver's memory need not hold the item side twice."""
    if not vectors.size:
        return vectors
    file = tempfile.TemporaryFile(prefix="sparkcf-")
    for first in range(0, len(vectors), SLICE):  # written, not mapped: a full disk is then an error, not a signal
        file.write(unit_rows(vectors[first : first + SLICE]).astype(np.float32, copy=False).tobytes())
    file.flush()
    return np.memmap(file, np.float32, "r", shape=vectors.shape)


def top_k(users: DataFrame, shared: SharedRanker, width: int, k: int, *reasons: str) -> DataFrame:
    """The lists of `ranked_lists`, one row per item: user_idx, position (from 1), item_idx, score, reason.

    Parameters
    ----------
    reasons : columns of REASONS. With concepts the reason is "concept N", where the model has concepts, instead of
        "model". With because there is a column `because`: the item_idx of the user's item that is the reason, or null.
    """
    if shared.reranker is not None:
        reasons = (*reasons, "explored")
    lists = ranked_lists(users, shared, width, k, *reasons)
    entries = F.arrays_zip("items", "scores", *reasons)
    listed = lists.select("user_idx", "by_model", F.posexplode(entries).alias("at", "entry"))
    reason = F.lit("model")
    if "concepts" in reasons:
        reason = F.coalesce(F.concat(F.lit("concept "), F.col("entry.concepts")), reason)
    because = F.col("entry.because") if "because" in reasons else F.lit(None).cast("int")
    if "explored" in reasons:
        reason = F.when(F.col("entry.explored"), "exploration").otherwise(reason)
        because = F.when(~F.col("entry.explored"), because)
    named = [F.when(F.col("by_model"), because).alias("because")] if "because" in reasons else []
    return listed.select(
        "user_idx",
        (F.col("at") + 1).alias("position"),
        F.col("entry.items").alias("item_idx"),
        F.col("entry.scores").alias("score"),
        F.when(F.col("by_model"), reason).otherwise("fallback").alias("reason"),
        *named,
    )


def ranked_lists(users: DataFrame, shared: SharedRanker, width: int, k: int, *reasons: str) -> DataFrame:
    """Lists of at most k items, one row per user (LISTS), which passes from Python to the JVM faster than one per item.

    Parameters
    ----------
    users : user_idx; factor, null for a user unknown to the model, who gets popularity with by_model false; seen,
        array<int> of items not to list, null for none; the columns ROW, if the scorer, a rule or a reason needs them.
    width : length of a factor.
    reasons : columns of REASONS to add, with null where there is none.
    """

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        ranker = shared.open()
        with threadpool_limits(1, user_api="blas"):
            for batch in batches:
                if batch.num_rows:
                    block, seen = user_block(batch, width), csr_of(batch.column("seen"))
                    ids = batch.column("user_idx").to_numpy(zero_copy_only=False).astype(np.int64)
                    lists = ranker.lists(block, ids, seen, k)
                    listed = _lists_batch(batch.column("user_idx"), lists.items, lists.scores, block.known)
                    yield _with_reasons(listed, reasons, ranker.scorer, block, lists)

    rows = [name for name in ROW if name in users.columns]
    schema = ", ".join([LISTS, *(f"{name} array<{REASONS[name]}>" for name in reasons)])
    return users.select("user_idx", "factor", "seen", *rows).mapInArrow(work, schema)


def _with_reasons(batch: Any, reasons: tuple[str, ...], scorer: Scorer, users: UserBlock, lists: Lists) -> Any:
    """The batch of lists with columns of reasons."""
    import pyarrow as pa

    if not reasons:
        return batch
    columns, full = list(batch.columns), lists.items >= 0
    for name in reasons:
        if name == "explored":
            assert lists.explored is not None
            flat = pa.array(lists.explored[full])
        else:
            found = scorer.concepts(users, lists.items) if name == "concepts" else scorer.because(users, lists.items)
            values = np.full(int(full.sum()), -1, np.int32) if found is None else found[full]
            flat = pa.array(values, mask=values < 0)
        columns.append(pa.ListArray.from_arrays(batch.column("items").offsets, flat))
    return pa.RecordBatch.from_arrays(columns, names=[*batch.schema.names, *reasons])


def similar_items(items: DataFrame, shared: SharedRanker, k: int) -> DataFrame:
    """The k nearest items of each item: item_idx, position (from 1), similar_idx, score.

    Parameters
    ----------
    items : idx of the items known to the model.
    """

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        ranker = shared.open()
        with threadpool_limits(1, user_api="blas"):
            for batch in batches:
                if batch.num_rows:
                    idx = batch.column("idx").to_numpy(zero_copy_only=False).astype(np.int32)
                    yield _lists_batch(batch.column("idx"), *ranker.similar(idx, k), np.ones(len(idx), bool))

    lists = items.select("idx").mapInArrow(work, LISTS)
    listed = lists.select("user_idx", F.posexplode(F.arrays_zip("items", "scores")).alias("at", "entry"))
    return listed.select(
        F.col("user_idx").alias("item_idx"),
        (F.col("at") + 1).alias("position"),
        F.col("entry.items").alias("similar_idx"),
        F.col("entry.scores").alias("score"),
    )


def _lists_batch(idx: Any, indices: NDArray[np.int32], scores: F32, by_model: NDArray[np.bool_]) -> Any:
    import pyarrow as pa

    full = indices >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(full.sum(axis=1))]).astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(values[full])) for values in (indices, scores)]
    columns = [idx.cast(pa.int32()), *lists, pa.array(by_model)]
    return pa.RecordBatch.from_arrays(columns, names=["user_idx", "items", "scores", "by_model"])
