"""MacridVAE: assignments, the order of mask, norm and dropout, and a loss that K = 1 makes plain."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from sparkcf.config.nets import MacridVAEConfig
from sparkcf.models.nets import blocks
from sparkcf.models.nets.macridvae import MacridVAE, divergence
from sparkcf.models.nets.registry import build_net
from sparkcf.training.batch import Rows
from tests.models.nets.test_multvae import rows_of

M, D, K = 7, 4, 3
DENSE = torch.tensor([[0, 1.0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 1, 1]])
ROWS = rows_of(DENSE)


def net_of(**changes) -> MacridVAE:
    given = {"concepts": K, "latent_dim": D, "hidden": (6,), "dropout": 0.0} | changes
    return build_net({"n_items": M}, MacridVAEConfig(**given), 1)  # type: ignore[return-value]


def test_assignments_are_distributions_drawn_or_not() -> None:
    net = net_of()
    for training in (True, False):
        net.train(training)
        assigned = net.assignments()
        assert assigned.shape == (M, K) and (assigned >= 0).all()
        torch.testing.assert_close(assigned.sum(dim=1), torch.ones(M))
    assert torch.equal(net.assignments(), net.assignments())
    net.train()
    assert not torch.equal(net.assignments(), net.assignments())
    plain = net_of(assignment="softmax").train()
    assert torch.equal(plain.assignments(), plain.assignments())


@pytest.mark.parametrize("assignment", ["gumbel", "softmax"])
def test_prototypes_and_items_move(assignment: str) -> None:
    net = net_of(assignment=assignment).train()
    net.loss(ROWS, 0.2).sum().backward()
    for parameter in (net.prototypes, net.items, net.encoder.input.weight):
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0


def dense_encoder_input(net: MacridVAE, order: str) -> torch.Tensor:
    """What the encoder's first layer is given for every concept, (B, K, M), by a slow reference."""
    assigned = net.assignments()
    given = []
    for k in range(K):
        if order == "mask, normalise":
            given.append(F.normalize(DENSE * assigned[:, k], dim=1))
        else:
            given.append(F.normalize(DENSE, dim=1) * assigned[:, k])
    return torch.stack(given, dim=1)


@pytest.mark.parametrize(("order", "same"), [("mask, normalise", True), ("normalise, mask", False)])
def test_a_row_is_masked_and_then_normalised(order: str, same: bool) -> None:
    net = net_of(hidden=()).eval()
    mean, s = net.encode(ROWS, net.assignments())
    h = dense_encoder_input(net, order) @ net.encoder.input.weight + net.encoder.input.bias
    expected_mean, expected_s = h.chunk(2, dim=2)
    assert torch.allclose(s, expected_s, atol=1e-6) is same
    assert torch.allclose(mean, F.normalize(expected_mean, dim=2), atol=1e-6) is same


def test_entries_are_dropped_after_the_norm_and_for_every_concept_anew() -> None:
    """What is kept of a row of ones is the unit row scaled by 1 / 0.75, however many entries are kept."""
    net = net_of(hidden=(), dropout=0.25, latent_dim=M).train()
    many = rows_of(torch.ones(300, M))
    with torch.no_grad():
        net.encoder.input.bias.zero_()
        net.encoder.input.weight.zero_()
        net.encoder.input.weight[:, M:] = torch.eye(M)  # s is the row that the layer is given
        assigned = torch.full((M, K), 1 / K)
        given = net.encode(many, assigned)[1]  # (300, K, M)
    kept = given != 0
    assert 0.7 < kept.float().mean().item() < 0.8
    torch.testing.assert_close(given[kept], torch.full((int(kept.sum()),), 1 / 0.75 / M**0.5))
    assert not torch.equal(kept[:, 0], kept[:, 1])


def test_users_and_concepts_are_not_mixed() -> None:
    """Users in another order, or concepts in another order, give the same in that order."""
    net = net_of().eval()
    assigned = net.assignments()
    mean, s = net.encode(ROWS, assigned)
    users, concepts = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    turned = net.encode(ROWS.take(users), assigned)
    torch.testing.assert_close(turned[0], mean[users])
    torch.testing.assert_close(turned[1], s[users])
    torch.testing.assert_close(net.encode(ROWS, assigned[:, concepts])[0], mean[:, concepts])
    whole = net.log_likelihood(mean, ROWS, assigned)
    torch.testing.assert_close(net.log_likelihood(mean[users], ROWS.take(users), assigned), whole[users])
    torch.testing.assert_close(net.log_likelihood(mean[:, concepts], ROWS, assigned[:, concepts]), whole)


def logits_of(net: MacridVAE, z: torch.Tensor) -> torch.Tensor:
    """(B, M) by a double loop."""
    assigned, items = net.assignments(), F.normalize(net.items, dim=1)
    rows = []
    for user in F.normalize(z, dim=2):
        cosines = user @ items.T / net.temperature  # (K, M)
        rows.append((assigned.T * cosines.exp()).sum(dim=0).log())
    return torch.stack(rows)


@pytest.mark.parametrize("numbers", [1 << 24, 2 * 3 * K])
def test_the_likelihood_is_the_softmax_over_items_in_blocks_or_not(numbers: int, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", numbers)
    net = net_of().eval()
    assigned = net.assignments()
    mean, _ = net.encode(ROWS, assigned)
    logits = logits_of(net, mean)
    expected = (DENSE * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(net.log_likelihood(mean, ROWS, assigned), expected)
    torch.testing.assert_close(net(ROWS)[0], logits)


def test_one_concept_is_a_vae_with_a_softmax_of_cosines() -> None:
    net = net_of(concepts=1).eval()
    mean, s = net.encode(ROWS, net.assignments())
    cosines = F.normalize(mean[:, 0], dim=1) @ F.normalize(net.items, dim=1).T / 0.1
    kl = 0.5 * (s.exp() - 1 - s).sum(dim=(1, 2))
    expected = 0.3 * kl - (DENSE * cosines.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(net.loss(ROWS, 0.3), expected)


def test_the_divergence_is_that_of_normals_around_one_mean() -> None:
    s = torch.randn(5, 4)
    q, prior = Normal(torch.zeros(5, 4), 0.075 * (0.5 * s).exp()), Normal(torch.zeros(5, 4), 0.075)
    torch.testing.assert_close(divergence(s), kl_divergence(q, prior))


def test_noise_has_the_deviation_of_the_prior_times_that_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of(hidden=(), deviation=0.05).train()
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(net, "log_likelihood", lambda z, rows, assigned: seen.append(z) or torch.zeros(len(rows)))
    with torch.no_grad():
        net.encoder.input.weight[:, D:] = 0.0
        net.encoder.input.bias[D:] = torch.tensor(4.0).log()  # s: twice the prior's deviation
        many = Rows(torch.zeros(5000, dtype=torch.int64), torch.arange(5001), torch.ones(5000))
        net.loss(many, 1.0)
        mean, _ = net.encode(many, net.assignments())
    assert (seen[0] - mean).std().item() == pytest.approx(0.1, rel=0.03)


def test_an_empty_row_costs_its_divergence_alone() -> None:
    net = net_of().eval()
    _, s = net.encode(ROWS, net.assignments())
    assert net.loss(ROWS, 1.0)[1].item() == pytest.approx(divergence(s[1]).sum().item(), rel=1e-5)


def test_a_rank_without_rows_has_a_loss_and_gradients_of_zero() -> None:
    """Of fewer files than ranks one rank has no row, and DDP waits for its gradients."""
    net = net_of().train()
    nobody = ROWS.take(torch.zeros(0, dtype=torch.int64))
    net.loss(nobody, 0.2).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in net.parameters())
    assert net.posterior(nobody)[0].shape == (0, K * D)
    assert net.eval()(nobody)[0].shape == (0, M)
