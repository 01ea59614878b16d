"""Encoders of users' rows: from a row to the mean and the log-variance of its latent vector."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.models.nets.layers import SparseLinear
from sparkcf.training.batch import Rows

NORM_EPS = 0.1  # of the layer norms, as in Shenbin et al. (2020)


class MLPEncoder(nn.Module):
    """tanh layers of the given widths, the last one linear (Liang et al. 2018); output (B, widths[-1])."""

    def __init__(self, n_items: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.input = SparseLinear(n_items, widths[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, rows: Rows) -> Tensor:
        h = self.input(rows)
        for layer in self.layers:
            h = layer(torch.tanh(h))
        return h


class DenseEncoder(nn.Module):
    """Swish layers of one width, each normalised and fed by all before it (Shenbin et al. 2020, section 3.2).

    h_1 = norm(swish(W_1 x)),  h_l = norm(swish(W_l h_{l-1} + h_1 + … + h_{l-1})),  output = W h_L
    """

    def __init__(self, n_items: int, width: int, layers: int, n_out: int) -> None:
        super().__init__()
        self.input = SparseLinear(n_items, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for _ in range(layers))
        self.output = nn.Linear(width, n_out)

    def forward(self, rows: Rows) -> Tensor:
        h = self.norms[0](F.silu(self.input(rows)))
        before = h
        for layer, norm in zip(self.layers, self.norms[1:], strict=True):
            h = norm(F.silu(layer(h) + before))
            before = before + h
        return self.output(h)


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters are buffers: saved with the net, not trained."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return copied
