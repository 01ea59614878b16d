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


@runtime_checkable
class Variational(Protocol):
    """A net that encodes rows as distributions."""

    def posterior(self, rows: Rows) -> tuple[Tensor, Tensor] | None:
        """Means in units of the prior's deviation, and divergences from the prior, (B, D); None: no posterior."""
        ...


@torch.no_grad()
def posterior_figures(part: nn.Module, rows: Rows, group: Group) -> dict[str, Any]:
    """active_units, kl (a row's mean divergence) and kl_by_dimension over some rows of all ranks.

    Empty for a net without a posterior. Evaluated without sampling and dropout.
    """
    if not isinstance(part, Variational):
        return {}
    training = part.training
    part.train(False)
    posterior = part.posterior(rows)
    part.train(training)
    if posterior is None:
        return {}
    mean, kl = (each.double() for each in posterior)
    sums = torch.cat([mean.sum(dim=0), mean.square().sum(dim=0), kl.sum(dim=0)]).tolist()
    n, *totals = group.sum(float(len(mean)), *sums)
    first, second, divergence = torch.tensor(totals, dtype=torch.float64).view(3, -1) / max(n, 1.0)
    active = (second - first.square() > ACTIVE).sum().item()
    by_dimension = [float(f"{value:.4g}") for value in divergence.tolist()]
    return {"active_units": int(active), "kl": float(divergence.sum()), "kl_by_dimension": by_dimension}
