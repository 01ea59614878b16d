"""Which batches count for the figures of an epoch's posteriors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparkcf.training.batch import Rows
from sparkcf.training.group import Group
from sparkcf.training.posterior import PosteriorSums

ALONE = Group(0, 1, torch.device("cpu"))


class Places(nn.Module):
    """A net whose posterior mean is a row's place; it notes the sizes of the batches that it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[int] = []

    def posterior(self, rows: Rows) -> tuple[Tensor, Tensor]:
        self.encoded.append(len(rows))
        return torch.arange(len(rows))[:, None].float(), torch.ones(len(rows), 1)


@pytest.mark.parametrize(
    ("steps", "batch_size", "counted"),
    [(10, 19, 10), (40, 20, 10), (10, 500, 2), (1000, 1, 200), (1000, 100, 125), (1, 5000, 1)],
)
def test_an_epochs_figures_need_two_hundred_rows_and_an_eighth_of_the_batches(steps, batch_size, counted) -> None:
    net = Places()
    sums = PosteriorSums(net, steps)
    none = torch.zeros(0, dtype=torch.int64)
    rows = Rows(none, torch.zeros(batch_size + 1, dtype=torch.int64), none.float())
    for _ in range(steps):
        sums.add(rows, batch_size)
    assert net.encoded == [batch_size] * counted
    figures = sums.figures(ALONE)
    assert figures["kl"] == 1 and figures["active_units"] == (batch_size > 1)
