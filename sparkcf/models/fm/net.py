"""A factorization machine as a torch module, for gradient descent.

    a(x) = w_0 + sum_j w_j x_j + sum_{j<l, pair allowed} <v_j, v_l> x_j x_l          Rendle (2010), eq. 1 and 5

A row's first entry is its target; the others are features and their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.config.fm import FMConfig
from sparkcf.training.batch import Rows


class FactorizationMachine(nn.Module):
    """A factorization machine; features are numbered field after field.

    Parameters
    ----------
    sizes : number of features of each field.
    pairs : bool (fields, fields), symmetric, which fields interact.
    mean : initial w_0.
    penalty : (fields, 2), L2 penalties of a field's vectors and weights, divided by the number of rows.
    classification : targets are 1 or 0 and the loss is logistic; else the loss is the squared error.
    intercept : whether w_0 is trained.
    """

    pairs: Tensor
    field_of: Tensor
    penalty: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        rank: int,
        pairs: Sequence[Sequence[bool]],
        mean: float,
        penalty: Sequence[Sequence[float]],
        classification: bool,
        intercept: bool = True,
    ) -> None:
        super().__init__()
        self.classification = classification
        self.table = nn.Parameter(torch.zeros(sum(sizes), rank + 1))  # [v, w]
        self.w0 = nn.Parameter(torch.tensor([mean]), requires_grad=intercept)
        counts = torch.tensor(list(sizes))
        self.register_buffer("pairs", torch.tensor(pairs, dtype=torch.float32), persistent=False)
        self.register_buffer("field_of", torch.repeat_interleave(torch.arange(len(counts)), counts), persistent=False)
        per_field = torch.tensor(penalty, dtype=torch.float32)
        self.register_buffer("penalty", torch.repeat_interleave(per_field, counts, dim=0), persistent=False)

    def initialize(self, sd: float, generator: torch.Generator) -> None:
        """Vectors ~ N(0, sd^2), weights 0."""
        with torch.no_grad():
            self.table[:, :-1] = sd * torch.randn(self.table[:, :-1].shape, generator=generator)

    def forward(self, rows: Rows) -> Tensor:
        """a(x) of rows without targets, (B,)."""
        row, entries = rows.row_of, self.table[rows.indices] * rows.values[:, None]
        vectors, linear = entries[:, :-1], entries[:, -1]
        squares = vectors.square().sum(dim=1)
        n, n_fields = len(rows), len(self.pairs)
        zeros = self.w0.new_zeros
        if bool(self.pairs.all()):
            sums = zeros(n, vectors.shape[1]).index_add(0, row, vectors)
            twice = sums.square().sum(dim=1) - zeros(n).index_add(0, row, squares)
        else:
            field = self.field_of[rows.indices]
            flat = zeros(n * n_fields, vectors.shape[1]).index_add(0, row * n_fields + field, vectors)
            sums = flat.reshape(n, n_fields, -1)
            within = squares * self.pairs.diagonal()[field]
            twice = (sums * (self.pairs @ sums)).sum(dim=(1, 2)) - zeros(n).index_add(0, row, within)
        return self.w0 + zeros(n).index_add(0, row, linear) + 0.5 * twice

    def loss(self, rows: Rows, _kl_weight: float) -> Tensor:
        """Squared error, or -2 log of the label's probability, plus each row's share of the penalty: (B,)."""
        targets, features = split(rows)
        fitted = self(features)
        if self.classification:
            loss = 2 * F.softplus(torch.where(targets > 0, -fitted, fitted))
        else:
            loss = (targets - fitted).square()
        squares = self.table.square()
        penalty = squares[:, :-1].sum(dim=1) @ self.penalty[:, 0] + squares[:, -1] @ self.penalty[:, 1]
        return loss + penalty


def split(rows: Rows) -> tuple[Tensor, Rows]:
    """Targets (B,), and the rows without them."""
    first = rows.offsets[:-1]
    rest = torch.ones(len(rows.indices), dtype=torch.bool, device=first.device)
    rest[first] = False
    offsets = rows.offsets - torch.arange(len(rows.offsets), device=first.device)
    return rows.values[first], Rows(rows.indices[rest], offsets, rows.values[rest])


def net_of(data: Mapping[str, Any], config: FMConfig, seed: int) -> FactorizationMachine:
    """The machine with its initial parameters. `data`: see `sgd.net_data`."""
    machine = FactorizationMachine(
        data["sizes"],
        config.rank,
        data["pairs"],
        float(data["mean"]),
        data["penalty"],
        config.task == "classification",
        config.intercept,
    )
    machine.initialize(config.init_sd, torch.Generator().manual_seed(seed))
    return machine
