"""A batch of sparse rows as tensors.

Three users of whom the first has items 1 and 4, the second none and the third item 0:

    indices [1, 4, 0]   offsets [0, 2, 2, 3]   values [1., 1., 1.]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Compressed rows: `indices` int64 (nnz,), `offsets` int64 (B + 1,), `values` float32 (nnz,)."""

    indices: Tensor
    offsets: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def row_of(self) -> Tensor:
        """The row of every entry, int64 (nnz,)."""
        rows = torch.arange(len(self), device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff(), output_size=len(self.indices))

    def unit(self) -> Rows:
        """The rows divided by their L2 norms; an empty row stays empty."""
        squares = torch.zeros(len(self), device=self.values.device).index_add_(0, self.row_of, self.values**2)
        norms = squares.sqrt().clamp_min(1e-12)
        return Rows(self.indices, self.offsets, self.values / norms[self.row_of])

    def sums(self) -> Tensor:
        """The sum of every row, (B,)."""
        return torch.zeros(len(self), device=self.values.device).index_add_(0, self.row_of, self.values)

    def to(self, device: torch.device | str) -> Rows:
        return Rows(*(t.to(device, non_blocking=True) for t in (self.indices, self.offsets, self.values)))
