"""Likelihoods as members of the exponential family, against torch.distributions; sums in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, Poisson

from sparkcf.models.nets import blocks
from sparkcf.models.nets.exponential import FAMILIES

F = torch.linspace(-3, 3, 13)
X = {
    "bernoulli": torch.tensor([0.0, 1.0]),
    "poisson": torch.tensor([0.0, 1.0, 4.0]),
    "gaussian": torch.tensor([-1.5, 0, 2]),
}


def log_probability(family: str, link: str, x: Tensor, f: Tensor) -> Tensor:
    mean = {"sigmoid": f.sigmoid(), "exp": f.exp(), "softplus": torch.nn.functional.softplus(f), "identity": f}[link]
    made = {
        "bernoulli": lambda: Bernoulli(mean),
        "poisson": lambda: Poisson(mean),
        "gaussian": lambda: Normal(mean, 1.0),
    }
    return made[family]().log_prob(x)


@pytest.mark.parametrize(("family", "link"), FAMILIES)
def test_a_likelihood_is_that_of_its_distribution_but_for_what_is_constant_in_f(family: str, link: str) -> None:
    """Differences to the value at f = 0 leave h(x) out on both sides."""
    of = FAMILIES[family, link]
    zero = torch.zeros(1)
    for x in X[family]:
        ours = x * of.eta(F) - of.partition(F) - (x * of.eta(zero) - of.partition(zero))
        theirs = log_probability(family, link, x, F) - log_probability(family, link, x, zero)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "link"), FAMILIES)
def test_partition_and_parameter_are_finite_with_their_gradients_far_out(family: str, link: str) -> None:
    f = torch.tensor([-80.0, -20.0, 0.0, 20.0, 80.0], requires_grad=True)
    of = FAMILIES[family, link]
    (of.eta(f) - of.partition(f)).sum().backward()
    assert f.grad is not None and torch.isfinite(f.grad).all()


def test_the_derivative_of_the_partition_is_the_mean() -> None:
    """dA / d eta = E T(x): what makes A the log-partition of its family."""
    for family, mean in (("bernoulli", torch.sigmoid), ("poisson", torch.exp), ("gaussian", lambda eta: eta)):
        natural = {"bernoulli": "sigmoid", "poisson": "exp", "gaussian": "identity"}[family]
        eta = F.clone().requires_grad_()
        FAMILIES[family, natural].partition(eta).sum().backward()
        torch.testing.assert_close(eta.grad, mean(F))


def test_a_sum_in_blocks_is_the_sum_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    table, z = torch.randn(11, 3).div(3).requires_grad_(), torch.randn(4, 3).requires_grad_()

    def of_block(part: Tensor) -> Tensor:
        seen.append(len(part))
        return (z @ part.T).exp().sum(dim=1)

    found = []
    for numbers, heights in ((1 << 24, {11}), (8, {2, 1})):  # two rows of the table at a time
        monkeypatch.setattr(blocks, "BLOCK_NUMBERS", numbers)
        seen: list[int] = []
        total = blocks.sum_over_blocks(of_block, len(z), table)
        gradients = torch.autograd.grad(total.square().sum(), (table, z))
        assert set(seen) == heights
        found.append((total, *gradients))
    for whole, in_blocks in zip(*found, strict=True):
        torch.testing.assert_close(in_blocks, whole, atol=1e-5, rtol=1e-5)


def test_a_sum_in_blocks_is_of_float32_whatever_autocast_says() -> None:
    table, z = torch.randn(50, 3), torch.randn(4, 3)

    def summed() -> Tensor:
        return blocks.sum_over_blocks(lambda part: (z @ part.T).exp().sum(dim=1), len(z), table)

    whole = summed()
    with torch.autocast("cpu", torch.bfloat16):
        assert (z @ table.T).dtype == torch.bfloat16
        torch.testing.assert_close(summed(), whole, rtol=1e-6, atol=0)
