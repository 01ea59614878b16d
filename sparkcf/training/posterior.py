"""Figures that show whether a variational net's posterior has collapsed to its prior.

A latent dimension is active when its posterior mean varies over the rows by more than ACTIVE (Burda, Grosse,
Salakhutdinov 2016, section 5.2). An inactive dimension carries no information, and its divergence is near zero.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sparkcf.training.batch import Rows
from sparkcf.training.group import Group

ACTIVE = 0.01  # variance of the posterior mean, in units of the prior's variance
LEAST_ROWS, SPARSEST = 200, 8  # rows that an epoch's figures need; of so many batches at least one counts


@runtime_checkable
class Variational(Protocol):
    """A net that encodes rows as distributions."""

    def posterior(self, rows: Rows) -> tuple[Tensor, Tensor] | None:
        """Means in units of the prior's deviation, and divergences from the prior, (B, D); None: no posterior."""
        ...


class PosteriorSums:
    """Sums over posteriors of an epoch's rows, evaluated without sampling and dropout.

    Evaluating them is a further pass of the encoder, so of a long epoch an eighth of the batches counts, spread evenly;
    of an epoch of fewer than 200 rows each one. A row's posterior is that of the weights after its own step. For a net
    without a posterior there are no sums.

    Parameters
    ----------
    part : the net, or the part of it that is trained on these rows.
    steps : number of batches of the epoch.
    """

    def __init__(self, part: nn.Module, steps: int) -> None:
        self._part, self._steps, self._stride, self._batches, self._count = part, steps, 1, 0, 0
        self._sums: Tensor | None = None  # (3, D): of means, squares of means, and divergences

    @torch.no_grad()
    def add(self, rows: Rows, total: int) -> None:
        """Add the next batch, if it counts. `total`: its rows of all ranks, which choose the same batches."""
        if self._batches == 0:
            self._stride = max(1, min(SPARSEST, self._steps * total // LEAST_ROWS))
        self._batches += 1
        if (self._batches - 1) % self._stride or not isinstance(self._part, Variational):
            return
        training = self._part.training
        self._part.train(False)
        posterior = self._part.posterior(rows)
        self._part.train(training)
        if posterior is None:
            return
        mean, kl = (each.double() for each in posterior)
        sums = torch.stack([mean.sum(dim=0), mean.square().sum(dim=0), kl.sum(dim=0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += len(mean)

    def figures(self, group: Group) -> dict[str, Any]:
        """active_units, kl (a row's mean divergence) and kl_by_dimension of the rows that count. A collective."""
        if self._sums is None:
            return {}
        n, *totals = group.sum(float(self._count), *self._sums.flatten().tolist())
        first, second, divergence = torch.tensor(totals, dtype=torch.float64).view(3, -1) / max(n, 1.0)
        active = (second - first.square() > ACTIVE).sum().item()
        by_dimension = [float(f"{value:.4g}") for value in divergence.tolist()]
        return {"active_units": int(active), "kl": float(divergence.sum()), "kl_by_dimension": by_dimension}
