"""Likelihoods and divergence against values by hand and torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, Multinomial, Normal, kl_divergence

from sparkcf.models.nets.likelihoods import CONFIDENCE, gaussian, logistic, multinomial
from sparkcf.models.nets.multvae import divergence
from sparkcf.training.batch import Rows

X = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
ROWS = Rows(torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3]), torch.tensor([2.0, 1.0, 1.0]))
LOGITS = torch.tensor([[0.0, math.log(2.0), math.log(5.0)], [1.0, 2.0, 3.0], [-1.0, 0.5, 0.25]])


def test_multinomial_by_hand() -> None:
    found = multinomial(LOGITS, ROWS)  # the first row's probabilities are 1/8, 2/8, 5/8
    assert found[0].item() == pytest.approx(2 * math.log(1 / 8) + math.log(5 / 8), rel=1e-6)
    assert found[1].item() == 0.0


def test_multinomial_is_that_of_torch_without_the_coefficient() -> None:
    expected = [Multinomial(int(x.sum()), logits=f).log_prob(x) for x, f in zip(X, LOGITS, strict=True) if x.sum()]
    coefficient = [torch.lgamma(x.sum() + 1) - torch.lgamma(x + 1).sum() for x in X if x.sum()]
    torch.testing.assert_close(multinomial(LOGITS, ROWS)[[0, 2]], torch.stack(expected) - torch.stack(coefficient))


def test_logistic_is_the_bernoulli_of_torch() -> None:
    binary = Rows(ROWS.indices, ROWS.offsets, torch.ones(3))
    torch.testing.assert_close(logistic(LOGITS, binary), Bernoulli(logits=LOGITS).log_prob((X > 0).float()).sum(dim=1))


def test_gaussian_weighs_observed_entries() -> None:
    confidence = torch.where(X > 0, CONFIDENCE, 1.0)
    normal = Normal(LOGITS, confidence.rsqrt())
    constant = Normal(LOGITS, confidence.rsqrt()).log_prob(LOGITS)
    torch.testing.assert_close(gaussian(LOGITS, ROWS), (normal.log_prob(X) - constant).sum(dim=1))
    assert gaussian(torch.zeros(1, 2), Rows(torch.tensor([1]), torch.tensor([0, 1]), torch.tensor([3.0]))).item() == -45


def test_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(4, 3), torch.randn(4, 3)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)
    assert divergence(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0.0


@pytest.mark.parametrize("likelihood", [multinomial, gaussian, logistic])
def test_gradients_are_those_of_the_numbers(likelihood) -> None:
    logits = LOGITS.double().requires_grad_()
    likelihood(logits, ROWS).sum().backward()
    step = 1e-2
    for row in range(3):
        for item in range(3):
            moved = [LOGITS.clone(), LOGITS.clone()]
            moved[0][row, item] += step
            moved[1][row, item] -= step
            slope = (likelihood(moved[0], ROWS).sum() - likelihood(moved[1], ROWS).sum()) / (2 * step)
            assert logits.grad[row, item].item() == pytest.approx(slope.item(), abs=2e-3)
