"""Blocks: a worker's rows of both sides, and the routes by which fixed factors reach them.

Row r of a side with W workers lives at worker r mod W, at place r div W. Every interaction goes to the worker of its
user and to the worker of its item, in one shuffle. There the interactions become compressed sparse rows. Their column
indices point into the fixed rows that this worker receives: packed, and only those that its entries need.

A tiny example, also a test. Two workers, users 0..2 and items 0..3, the pairs (0,0) (0,3) (1,1) (2,0) (2,3).
Worker 0 solves users 0 and 2, at places 0 and 1. They need items 0 and 3, that is place 0 of worker 0 and place 1 of
worker 1, so the received rows are [item 0, item 3] and

    needed  = [[0], [1]]          # places requested from worker 0 and from worker 1
    indptr  = [0, 2, 4]
    indices = [0, 1, 0, 1]

A row is hot if it has so many entries that the other workers would wait for its worker. Its entries stay with the
workers of their columns, which sum its normal equations (see `Hot`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.csr import build_csr
from sparkcf.training.gang import Gang

F32 = NDArray[np.float32]
Rows = tuple[NDArray[np.int64], NDArray[np.int32], F32, F32]  # indptr, indices, values, weights (empty: all are 1)
Triples = tuple[NDArray[np.int32], NDArray[np.int32], F32, F32]  # place of the row, column, value, weight (or empty)
NO_WEIGHTS = np.empty(0, np.float32)

USER, ITEM = 0, 1
KINDS = ("user", "item")
HOT_BYTES = 64 << 20  # of one row's packed fixed vectors, the largest buffer of a row kernel


@dataclass
class Hot:
    """Rows too long for one worker: each worker holds the entries whose columns live at it.

    rows : int64 (h,), dense indices, the same at all workers.
    indptr : int64 (h + 1,).
    places : int32 (nnz,), places of the other side's rows at this worker.
    values : float32 (nnz,).
    weights : float32 (nnz,), or (0,) where all are 1.
    """

    rows: NDArray[np.int64]
    indptr: NDArray[np.int64]
    places: NDArray[np.int32]
    values: F32
    weights: F32

    def here(self, rank: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in `rows`, and places, of the hot rows that live at a worker."""
        mine = np.flatnonzero(self.rows % size == rank)
        return mine, self.rows[mine] // size


@dataclass
class Block:
    """One side's rows at one worker. The compressed rows leave hot rows empty.

    indptr : int64 (n + 1,).
    indices : int32 (nnz,), into the received rows.
    values : float32 (nnz,).
    weights : float32 (nnz,), or (0,) where all are 1.
    counts : int64 (n,), entries of every row, hot rows included.
    positives : int64 (n,), entries with a value above 0, hot rows included.
    needed : needed[w] : int64, places of the other side's rows that this worker requests from worker w.
    hot : this worker's entries of the hot rows.
    sends : sends[w] : int64, places of the other side's rows at this worker that worker w requests.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: F32
    weights: F32
    counts: NDArray[np.int64]
    positives: NDArray[np.int64]
    needed: list[NDArray[np.int64]]
    hot: Hot
    sends: list[NDArray[np.int64]] = field(default_factory=list)


@dataclass
class Parts:
    """A worker's part of the shuffled data.

    triples : by side, entries in any order.
    warm_start : by side, places and factors to start from; None without a warm start.
    """

    triples: list[Triples]
    warm_start: list[tuple[NDArray[np.int32], F32] | None]


def places(n: int, rank: int, workers: int) -> int:
    """Number of a side's n rows that live at a worker."""
    return (n - rank + workers - 1) // workers


def row_ids(n: int, rank: int, workers: int) -> NDArray[np.int64]:
    """The dense indices of a worker's rows, in order of their places."""
    return np.arange(rank, n, workers, dtype=np.int64)


def build_blocks(parts: Parts, sizes: tuple[int, int], width: int, gang: Gang) -> list[Block]:
    """Build both sides' blocks of a worker from its shuffled part; empties `parts.triples`.

    Parameters
    ----------
    sizes : users and items over all workers.
    width : columns of a factor row; decides which rows are hot.
    """
    rows = []
    for side in (USER, ITEM):
        own, other = places(sizes[side], gang.rank, gang.size), sizes[1 - side]
        rows.append(_compressed(parts.triples[side], own, other))
        parts.triples[side] = (np.empty(0, np.int32), np.empty(0, np.int32), NO_WEIGHTS, NO_WEIGHTS)  # frees memory
    counts = [np.diff(indptr) for indptr, *_ in rows]
    positives = [positive_counts(indptr, values) for indptr, _, values, _ in rows]
    hot_rows = [_hot_rows(counts[side], width, gang) for side in (USER, ITEM)]
    hots = [_hot_part(rows[1 - side], hot_rows[side], sizes[side]) for side in (USER, ITEM)]
    blocks = []
    for side in (USER, ITEM):
        indptr, cols, values, weights = _without(rows[side], hots[side].here(gang.rank, gang.size)[1])
        rows[side] = (indptr[:1], cols[:0], NO_WEIGHTS, NO_WEIGHTS)
        indices, needed = local_columns(cols, sizes[1 - side], gang.size)
        blocks.append(Block(indptr, indices, values, weights, counts[side], positives[side], needed, hots[side]))
    return blocks


def _compressed(triples: Triples, n_rows: int, n_cols: int) -> Rows:
    """Entries sorted by row and column. Values of a repeated entry are summed; with weights, averaged by weight."""
    row, col, value, weight = triples
    if not len(weight):
        return *build_csr(row, col, value, n_rows, n_cols), NO_WEIGHTS
    weights = build_csr(row, col, weight, n_rows, n_cols)[2]
    indptr, cols, sums = build_csr(row, col, weight * value, n_rows, n_cols)
    means = np.divide(sums, weights, out=np.zeros_like(sums), where=weights != 0)
    return indptr, cols, means, weights


def positive_counts(indptr: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number of values above 0 in each compressed row, int64 (n,)."""
    before = np.concatenate([[0], np.cumsum(values > 0)])
    return before[indptr[1:]] - before[indptr[:-1]]


def local_columns(
    cols: NDArray[np.int32], n_other: int, workers: int
) -> tuple[NDArray[np.int32], list[NDArray[np.int64]]]:
    """Columns as positions among the received rows, and the places to request from each worker."""
    wanted = np.zeros(n_other, bool)
    wanted[cols] = True
    needed = [np.flatnonzero(wanted[w::workers]) for w in range(workers)]
    position = np.zeros(n_other, np.int32)
    begin = 0
    for w, requested in enumerate(needed):
        position[w::workers][requested] = np.arange(begin, begin + len(requested), dtype=np.int32)
        begin += len(requested)
    return position[cols], needed


def _hot_rows(counts: NDArray[np.int64], width: int, gang: Gang) -> NDArray[np.int64]:
    """Dense indices of the hot rows of all workers: packed vectors above HOT_BYTES. Depends on the data alone."""
    mine = np.flatnonzero(counts * (4 * width) > HOT_BYTES) * gang.size + gang.rank
    return np.sort(np.concatenate(gang.exchange([mine] * gang.size)))


def _hot_part(rows: Rows, hot: NDArray[np.int64], n_other: int) -> Hot:
    """Entries of the other side's rows at this worker whose column is hot, transposed."""
    number = np.full(n_other, -1, np.int32)
    number[hot] = np.arange(len(hot), dtype=np.int32)
    indptr, cols, values, weights = rows
    entries = np.flatnonzero(number[cols] >= 0) if len(hot) else np.empty(0, np.int64)
    place = (np.searchsorted(indptr, entries, side="right") - 1).astype(np.int32)
    chosen = weights[entries] if len(weights) else NO_WEIGHTS
    return Hot(hot, *_compressed((number[cols[entries]], place, values[entries], chosen), len(hot), len(indptr) - 1))


def _without(rows: Rows, removed: NDArray[np.int64]) -> Rows:
    """Compressed rows without the entries of the rows `removed`."""
    if len(removed) == 0:
        return rows
    indptr, cols, values, weights = rows
    counts = np.diff(indptr)
    emptied = np.zeros(len(counts), bool)
    emptied[removed] = True
    kept = np.repeat(~emptied, counts)
    counts[removed] = 0
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return indptr, cols[kept], values[kept], weights[kept] if len(weights) else weights


def exchange_routes(blocks: Sequence[Block], gang: Gang) -> None:
    """Fill `Block.sends`: every worker learns, once, which of its rows the others need. A collective."""
    for block in blocks:
        block.sends = [requested.copy() for requested in gang.exchange(block.needed)]


def received(block: Block, other_factors: NDArray[np.float32], gang: Gang) -> NDArray[np.float32]:
    """Gather the other side's rows that this block needs, float32 (needed, k). A collective."""
    return gang.gather([other_factors[requested] for requested in block.sends])


def worker_bytes(nnz: int, n_users: int, n_items: int, width: int, workers: int) -> int:
    """Peak memory of a worker in bytes, without the interpreter and its libraries.

    Building: a pair arrives as 13 bytes at the worker of its user and at that of its item, is copied out of the
    messages, and sorted one side after the other. Sweeping: 16 bytes for each of the two copies (index, value, weight,
    target); the worker's own factors; the larger side's factors once as received and once as packed for sending.

    Parameters
    ----------
    nnz : pairs.
    width : columns of a factor row: the rank, plus 1 with biases.
    """
    share = nnz / workers
    building = 2 * (13 + 12) * share + (8 + 8 + 12) * share
    own = 4 * width * (n_users + n_items) / workers
    sweeping = 2 * 16 * share + own + 2 * 4 * width * max(n_users, n_items)
    return int(max(building, sweeping))
