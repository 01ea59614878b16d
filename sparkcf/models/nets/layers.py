"""What the nets share: rows of sparse input, layers over them, initial weights.

Three users of whom the first has items 1 and 4, the second none and the third item 0:

    indices [1, 4, 0]   offsets [0, 2, 2, 3]   values [1., 1., 1.]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BIAS_SD = 0.001


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


class SparseLinear(nn.Module):
    """A linear layer over sparse rows: only the weights of the entries that there are get touched."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, rows: Rows) -> Tensor:
        if not len(rows):  # embedding_bag refuses a batch of nothing
            return self.weight[:0] + self.bias  # (0, n_out)
        summed = F.embedding_bag(
            rows.indices,
            self.weight,
            rows.offsets,
            mode="sum",
            per_sample_weights=rows.values,
            include_last_offset=True,
        )
        return summed + self.bias  # (B, n_out)


def initialize(net: nn.Module, generator: torch.Generator) -> None:
    """Xavier weights and biases of a truncated normal, as Liang et al. (2018) have them."""
    for name, parameter in net.named_parameters():
        with torch.no_grad():
            if name.endswith("bias"):
                nn.init.trunc_normal_(parameter, 0.0, BIAS_SD, -2 * BIAS_SD, 2 * BIAS_SD, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter, generator=generator)


def entries(logits: Tensor, rows: Rows) -> Tensor:
    """The logits of the rows' entries, (nnz,)."""
    return logits.reshape(-1)[rows.row_of * logits.shape[1] + rows.indices]


def by_row(per_entry: Tensor, rows: Rows) -> Tensor:
    """Sums of what stands at the entries, (B,)."""
    return torch.zeros(len(rows), device=per_entry.device, dtype=per_entry.dtype).index_add_(0, rows.row_of, per_entry)
