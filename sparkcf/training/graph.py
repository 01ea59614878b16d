"""The user–item graph as compressed rows of both sides, read from the packed rows of users.

Three users of whom the first has items 1 and 4, the second none and the third item 1:

    users   indptr [0, 2, 2, 3]           indices [1, 4, 1]
    items   indptr [0, 0, 2, 2, 2, 3]     indices [0, 2, 0]

Every training process holds all edges, 8 bytes each while it trains and about 100 while they are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sparkcf.data.packed import PackedRows, join
from sparkcf.errors import TrainingError
from sparkcf.kernels.csr import build_csr
from sparkcf.training.batch import Rows
from sparkcf.training.feed import PetastormFeed

READ_AT_ONCE = 16_384  # rows


class Neighbours(nn.Module):
    """The neighbours of the nodes of one side. No part of the net's state.

    indptr : int64 (n + 1,).
    indices : int32 (nnz,).
    """

    indptr: Tensor
    indices: Tensor

    def __init__(self, indptr: Tensor, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indptr", indptr, persistent=False)
        self.register_buffer("indices", indices, persistent=False)

    @property
    def degrees(self) -> Tensor:
        """Number of neighbours of every node, int64 (n,)."""
        return self.indptr.diff()

    def all(self) -> Rows:
        """The neighbours of all nodes."""
        return Rows(self.indices.long(), self.indptr, self.indices.new_zeros(0, dtype=torch.float32))

    def sample(self, ids: Tensor, most: int) -> Rows:
        """The neighbours of nodes, int64 (n,), of each at most `most`; see `sampled`."""
        return sampled(self.indices, self.indptr[ids], self.indptr[ids + 1], most)


def sampled(indices: Tensor, first: Tensor, last: Tensor, most: int) -> Rows:
    """Rows of entries of `indices`, of each row at most `most`, drawn by torch's generator.

    A row of `most` entries or fewer is whole. A longer one is cut into `most` stretches of equal length, and one entry
    is drawn of each: every entry is drawn most / n times on average, so means over the sample are unbiased. The time
    does not depend on the length of the rows. An entry on the border of two stretches may be drawn twice.

    Parameters
    ----------
    first, last : int64 (n,), where the rows begin and end in `indices`.
    """
    lengths = last - first
    counts = lengths.clamp_max(most)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    row_of = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    place = torch.arange(len(row_of), device=counts.device) - offsets[row_of]
    drawn = torch.rand(len(row_of), dtype=torch.float64, device=counts.device)
    stretch = (lengths.double() / counts)[row_of]  # at least 1
    within = torch.where(stretch > 1, ((place + drawn) * stretch).long(), place)
    entries = first[row_of] + torch.minimum(within, lengths[row_of] - 1)
    rows = Rows(indices[entries].long(), offsets, indices.new_zeros(0, dtype=torch.float32))
    rows.__dict__["row_of"] = row_of
    return rows


def graph_of(rows: PackedRows, n_users: int, n_items: int, name: str) -> dict[str, Neighbours]:
    """The neighbours of users and of items, by side.

    Raises TrainingError for a graph without an edge. `name`: of the model, for the message.
    """
    if not len(rows.indices):
        raise TrainingError(no_edge(name))
    users = np.repeat(rows.ids, np.diff(rows.indptr)).astype(np.int32)
    ones = np.ones(len(users), np.float32)
    sides = {"user": (users, rows.indices, n_users, n_items), "item": (rows.indices, users, n_items, n_users)}
    graph = {}
    for side, (own, others, n, n_others) in sides.items():
        indptr, indices, _ = build_csr(own, others, ones, n, n_others)
        graph[side] = Neighbours(torch.from_numpy(indptr), torch.from_numpy(indices))
    return graph


def no_edge(name: str) -> str:
    return (
        f"the graph of {name} has no edge: no user who trains has an item; check preference.positive_from and the "
        "table of interactions"
    )


def read_rows(files: Sequence[str]) -> PackedRows:
    """All rows of the files of a snapshot of users' rows. Raises LakeError if a file is missing."""
    feed = PetastormFeed(files, "user_idx", READ_AT_ONCE, seed=0)
    try:
        return join([batch.rows for batch in feed.epoch(0)])
    finally:
        feed.close()
