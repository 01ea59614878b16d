"""Layers of the nets: linear layers over sparse rows, sums over rows, initial weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.training.batch import Rows

BIAS_SD = 0.001


class SparseLinear(nn.Module):
    """A linear layer over sparse rows; only the weights of their entries are read."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, rows: Rows) -> Tensor:
        if not len(rows):  # embedding_bag refuses an empty batch
            return self.weight[:0] + self.bias  # (0, n_out)
        return sparse_product(self.weight, rows) + self.bias  # (B, n_out)


def sparse_product(weight: Tensor, rows: Rows) -> Tensor:
    """The rows times the weights (n_in, n_out): (B, n_out)."""
    return F.embedding_bag(
        rows.indices, weight, rows.offsets, mode="sum", per_sample_weights=rows.values, include_last_offset=True
    )


def initialize(net: nn.Module, generator: torch.Generator) -> None:
    """Xavier weights and truncated normal biases, as in Liang et al. (2018)."""
    for name, parameter in net.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1 and not name.endswith("bias"):
                continue  # scales of layer norms: 1
            if name.endswith("bias"):
                nn.init.trunc_normal_(parameter, 0.0, BIAS_SD, -2 * BIAS_SD, 2 * BIAS_SD, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter, generator=generator)


def entries(logits: Tensor, rows: Rows) -> Tensor:
    """The logits of the rows' entries, (nnz,)."""
    return logits.reshape(-1)[rows.row_of * logits.shape[1] + rows.indices]


def by_row(per_entry: Tensor, rows: Rows) -> Tensor:
    """Sums of numbers of the entries by row, (B,)."""
    return torch.zeros(len(rows), device=per_entry.device, dtype=per_entry.dtype).index_add_(0, rows.row_of, per_entry)
