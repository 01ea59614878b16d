"""The ratings at one worker as entries, and as the rows of each component.

A worker has two copies of its ratings, as in `sparkcf.training.blocks`: those of its users and those of its items. A
component that splits the items by user group has the row (group, item) for each group; such a row lives at the worker
of its item, so that splitting moves no rating. Every side is padded to the same number of places at every worker:

    local row of a split side     group · places + place
    its identity for others       (group · places + place) · W + worker
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.als import work_order
from sparkcf.kernels.random import uniform_rows
from sparkcf.training.blocks import USER, Triples, local_columns
from sparkcf.training.gang import Gang

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)
HELD_STREAM = 899  # of the draws of held-out ratings, apart from those of factors


@dataclass
class Copy:
    """The ratings of one side's rows at a worker, in order of row and column.

    side : USER or ITEM, whose rows these are.
    places : (padded) rows of this side at every worker.
    other_places : likewise of the other side.
    row : int32 (nnz,), places.
    col : int32 (nnz,), dense indices of the other side.
    values : float32 (nnz,).
    held : bool (nnz,), ratings kept from the factors; the same in both copies.
    """

    side: int
    places: int
    other_places: int
    row: I32
    col: I32
    values: F32
    held: NDArray[np.bool_]


@dataclass
class View:
    """A copy's entries as compressed rows of one component.

    entries : int64 (m,), places in the copy; None: all, in order.
    indptr : int64 (rows + 1,).
    indices : int32 (m,), into the received rows of the other side.
    order : work order of the rows.
    needed, sends : places of the other side's rows that this worker requests, and that others request from it.
    """

    entries: I64 | None
    indptr: I64
    indices: I32
    order: I64
    needed: list[I64]
    sends: list[I64]

    @property
    def counts(self) -> I64:
        return np.diff(self.indptr)

    def of_entries(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Values of the copy's entries in the order of this view."""
        return array if self.entries is None else array[self.entries]


def make_copy(triples: Triples, side: int, sizes: tuple[int, int], share: float, seed: int, gang: Gang) -> Copy:
    """Sort a worker's ratings of one side, and mark the held-out share of them by a hash of the pair."""
    row, col, values, _ = triples
    order = np.lexsort((col, row))
    row, col, values = row[order], col[order], values[order]
    own = row.astype(np.int64) * gang.size + gang.rank
    user, item = (own, col.astype(np.int64)) if side == USER else (col.astype(np.int64), own)
    held = np.zeros(len(row), bool)
    if share:
        held = uniform_rows(seed, HELD_STREAM, user * sizes[1] + item) < share
    places, other = (-(-n // gang.size) for n in (sizes[side], sizes[1 - side]))
    return Copy(side, places, other, row, col, values, held)


def whole_view(copy: Copy, gang: Gang) -> View:
    """The rows as they are, for components that split no side."""
    return _view(copy.row, copy.col, None, copy.places, copy.other_places * gang.size, gang)


def split_view(copy: Copy, groups: I32, of_other: bool, n_groups: int, gang: Gang) -> View:
    """The rows where one side is split; entries without a group are left out.

    Parameters
    ----------
    groups : (nnz,), group of each entry that splits; -1 for none.
    of_other : the group is the other side's, which splits this side's rows; else this side's splits the other's.
    """
    entries = np.flatnonzero(groups >= 0)
    group, row, col = groups[entries].astype(np.int64), copy.row[entries], copy.col[entries].astype(np.int64)
    n_rows, n_cols = copy.places, copy.other_places * gang.size
    if of_other:
        row = (group * copy.places + row).astype(np.int32)
        n_rows *= n_groups
    else:
        col = (group * copy.other_places + col // gang.size) * gang.size + col % gang.size
        n_cols *= n_groups
    return _view(row, col.astype(np.int32), entries, n_rows, n_cols, gang)


def _view(row: I32, col: I32, entries: I64 | None, n_rows: int, n_cols: int, gang: Gang) -> View:
    if entries is not None:
        order = np.argsort(row, kind="stable")
        row, col, entries = row[order], col[order], entries[order]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_rows))]).astype(np.int64)
    indices, needed = local_columns(col, n_cols, gang.size)
    sends = [requested.copy() for requested in gang.exchange(needed)]
    return View(entries, indptr, indices, work_order(np.diff(indptr)), needed, sends)


def fetched(view: View, rows: NDArray[Scalar], gang: Gang) -> NDArray[Scalar]:
    """The other side's rows that a view needs, in the order of its indices. A collective."""
    return gang.gather([rows[requested] for requested in view.sends])
