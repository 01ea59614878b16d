"""A batch of sparse rows as tensors.

Three users of whom the first has items 1 and 4, the second none and the third item 0:

    indices [1, 4, 0]   offsets [0, 2, 2, 3]   values [1., 1., 1.]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Compressed rows.

    indices : int64 (nnz,).
    offsets : int64 (B + 1,).
    values : float32 (nnz,).
    ids : int64 (B,), the rows' dense indices; None: not known.
    """

    indices: Tensor
    offsets: Tensor
    values: Tensor
    ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def row_of(self) -> Tensor:
        """The row of every entry, int64 (nnz,)."""
        rows = torch.arange(len(self), device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff(), output_size=len(self.indices))

    def unit(self) -> Rows:
        """The rows divided by their L2 norms; an empty row stays empty."""
        squares = torch.zeros(len(self), device=self.values.device).index_add_(0, self.row_of, self.values**2)
        norms = squares.clamp_min(1e-24).sqrt()  # clamped before the root: the gradient at an empty row is 0
        return self.with_values(self.values / norms[self.row_of])

    def with_values(self, values: Tensor) -> Rows:
        """The same entries with other values."""
        rows = Rows(self.indices, self.offsets, values, self.ids)
        rows.__dict__["row_of"] = self.row_of
        return rows

    def take(self, rows: Tensor) -> Rows:
        """The given rows, int64 (n,), in the given order."""
        counts = self.offsets.diff()[rows]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        first = torch.repeat_interleave(self.offsets[rows] - offsets[:-1], counts)
        entries = first + torch.arange(len(first), device=first.device)
        return Rows(self.indices[entries], offsets, self.values[entries])

    def sums(self) -> Tensor:
        """The sum of every row, (B,)."""
        return torch.zeros(len(self), device=self.values.device).index_add_(0, self.row_of, self.values)

    def to(self, device: torch.device | str) -> Rows:
        given = (self.indices, self.offsets, self.values, self.ids)
        return Rows(*(None if t is None else t.to(device, non_blocking=True) for t in given))  # type: ignore[arg-type]
