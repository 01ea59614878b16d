"""Which batches count for the figures of an epoch's posteriors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparkcf.training.batch import Rows
from sparkcf.training.group import Group
from sparkcf.training.posterior import PosteriorSample

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
    [(10, 19, 10), (40, 20, 10), (10, 500, 2), (1000, 1, 200), (1000, 100, 20), (1, 5000, 1)],
)
def test_the_sample_of_an_epoch_is_an_eighth_of_its_rows_within_bounds(steps, batch_size, counted) -> None:
    net = Places()
    sample = PosteriorSample(net, steps)
    none = torch.zeros(0, dtype=torch.int64)
    rows = Rows(none, torch.zeros(batch_size + 1, dtype=torch.int64), none.float())
    for _ in range(steps):
        sample.add(rows, batch_size)
    figures = sample.figures(ALONE)
    assert net.encoded == [batch_size] * counted
    assert figures["kl"] == 1 and figures["active_units"] == (batch_size > 1)


def test_a_mean_that_moves_in_the_epoch_alone_is_no_active_unit() -> None:
    """The figures are of the weights at the epoch's end."""

    class Same(Places):
        level = 0.0

        def posterior(self, rows: Rows) -> tuple[Tensor, Tensor]:
            return torch.full((len(rows), 1), self.level), torch.zeros(len(rows), 1)

    net, none = Same(), torch.zeros(0, dtype=torch.int64)
    sample = PosteriorSample(net, 4)
    for step in range(4):
        net.level = float(step)
        sample.add(Rows(none, torch.zeros(6, dtype=torch.int64), none.float()), 5)
    assert sample.figures(ALONE)["active_units"] == 0
