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
LEAST, MOST, SHARE = 200, 2_000, 8  # rows of an epoch's sample: one of SHARE, within the bounds


@runtime_checkable
class Variational(Protocol):
    """A net that encodes rows as distributions."""

    def posterior(self, rows: Rows) -> tuple[Tensor, Tensor] | None:
        """Means in units of the prior's deviation, and divergences from the prior, (B, D); None: no posterior."""
        ...


class PosteriorSample:
    """Batches of an epoch, spread evenly, whose posteriors are evaluated at its end without sampling and dropout.

    Encoding all rows once more would take a tenth of an epoch. The sample is an eighth of the rows, of a short epoch at
    least 200 and of a long one about 2,000; at least one batch.

    Parameters
    ----------
    part : the net, or the part of it that is trained on these rows.
    steps : number of batches of the epoch.
    """

    def __init__(self, part: nn.Module, steps: int) -> None:
        self._part, self._steps, self._stride, self._batches = part, steps, 1, 0
        self._sample: list[Rows] = []

    def add(self, rows: Rows, total: int) -> None:
        """Keep the next batch if it is of the sample. `total`: its rows of all ranks, which choose the same batches."""
        if self._batches == 0:
            n = self._steps * total
            self._stride = max(1, n // min(max(n // SHARE, LEAST), MOST))
        if self._batches % self._stride == 0 and isinstance(self._part, Variational):
            self._sample.append(rows)
        self._batches += 1

    @torch.no_grad()
    def figures(self, group: Group) -> dict[str, Any]:
        """active_units, kl (a row's mean divergence) and kl_by_dimension over the sample of all ranks. A collective.

        Empty for a net without a posterior.
        """
        training, count, sums = self._part.training, 0, None
        self._part.train(False)
        for rows in self._sample:
            posterior = self._part.posterior(rows)  # type: ignore[operator]  # a Variational, see `add`
            if posterior is None:
                break
            mean, kl = (each.double() for each in posterior)
            of_batch = torch.stack([mean.sum(dim=0), mean.square().sum(dim=0), kl.sum(dim=0)])
            sums, count = of_batch if sums is None else sums + of_batch, count + len(mean)
        self._part.train(training)
        if sums is None:
            return {}
        n, *totals = group.sum(float(count), *sums.flatten().tolist())
        first, second, divergence = torch.tensor(totals, dtype=torch.float64).view(3, -1) / max(n, 1.0)
        active = (second - first.square() > ACTIVE).sum().item()
        by_dimension = [float(f"{value:.4g}") for value in divergence.tolist()]
        return {"active_units": int(active), "kl": float(divergence.sum()), "kl_by_dimension": by_dimension}
