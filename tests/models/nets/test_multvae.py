"""Mult-VAE and Mult-DAE: sizes, details that quality hangs on, and the inner product that they end in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkcf.config.models import MultDAEConfig, MultVAEConfig
from sparkcf.models.nets.layers import BIAS_SD, SparseLinear
from sparkcf.models.nets.multvae import MultVAE
from sparkcf.models.nets.registry import build_net
from sparkcf.training.batch import Rows
from sparkcf.training.loop import annealed

M = 7
DENSE = torch.tensor([[0, 2.0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])


def rows_of(dense: Tensor) -> Rows:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (dense > 0).sum(dim=1).cumsum(0)])
    return Rows(dense.nonzero()[:, 1], offsets, dense[dense > 0])


ROWS = rows_of(DENSE)


def vae(**changes) -> MultVAE:
    return build_net(M, MultVAEConfig(**{"hidden": (6, 5), "latent_dim": 3} | changes), 1)  # type: ignore[return-value]


def dae(**changes) -> MultVAE:
    return build_net(M, MultDAEConfig(**{"latent_dim": 3} | changes), 1)  # type: ignore[return-value]


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_parameters_are_those_of_the_architecture() -> None:
    encoder = M * 6 + 6 + 6 * 5 + 5 + 5 * 6 + 6  # means and log-variances
    decoder = 3 * 5 + 5 + 5 * 6 + 6 + 6 * M + M
    assert count(vae()) == encoder + decoder
    assert count(dae()) == M * 3 + 3 + 3 * M + M
    assert count(build_net(20_108, MultVAEConfig(), 1)) == 2 * 20_108 * 600 + 20_108 + 600 * 600 + 1600


def test_the_sparse_layer_is_a_linear_layer() -> None:
    layer = SparseLinear(M, 4)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    torch.testing.assert_close(layer(ROWS), DENSE @ layer.weight + layer.bias)
    assert layer(Rows(ROWS.indices[:0], torch.zeros(1, dtype=torch.int64), ROWS.values[:0])).shape == (0, 4)


def test_rows_are_divided_by_their_norms_and_empty_ones_stay_empty() -> None:
    unit = torch.zeros_like(DENSE)
    unit[ROWS.row_of, ROWS.indices] = ROWS.unit().values
    torch.testing.assert_close(unit, torch.nn.functional.normalize(DENSE, dim=1))
    torch.testing.assert_close(ROWS.sums(), DENSE.sum(dim=1))


def test_a_larger_row_of_the_same_direction_is_encoded_alike() -> None:
    net = vae().eval()
    torch.testing.assert_close(net.encode(rows_of(3 * DENSE)).mean, net.encode(ROWS).mean)


def test_without_training_nothing_is_drawn_and_with_it_noise_and_dropout_are() -> None:
    net = vae(dropout=0.0)
    net.eval()
    assert torch.equal(net(ROWS)[0], net(ROWS)[0])
    net.train()
    assert not torch.equal(net(ROWS)[0], net(ROWS)[0])
    plain = dae(dropout=0.0).train()
    assert torch.equal(plain(ROWS)[0], plain(ROWS)[0])
    dropped = dae(dropout=0.5).train()
    many = rows_of(torch.ones(40, M))  # of few entries the same may be dropped twice
    assert not torch.equal(dropped(many)[0], dropped(many)[0])


def test_rows_are_normalised_before_entries_are_dropped() -> None:
    """What is kept of seven ones is 1 / sqrt(7), scaled by the 1 / 0.75 of dropout, however many are kept."""
    net = vae(dropout=0.25, hidden=(), latent_dim=M).train()
    with torch.no_grad():
        net.encoder_in.bias.zero_()
        net.encoder_in.weight.zero_()
        net.encoder_in.weight[:, :M] = torch.eye(M)  # the mean is the row that the layer is given
        given = net.encode(rows_of(torch.ones(200, M))).mean
    kept = given != 0
    assert 0.7 < kept.float().mean().item() < 0.8
    torch.testing.assert_close(given[kept], torch.full((int(kept.sum()),), 1 / 0.75 / M**0.5))


def test_noise_has_the_standard_deviation_of_the_code() -> None:
    net = vae(dropout=0.0, hidden=(), latent_dim=1)
    with torch.no_grad():
        net.encoder_in.weight.zero_()
        net.encoder_in.bias.copy_(torch.tensor([2.0, np.log(9.0)]))  # mean 2, variance 9
        net.output.weight.fill_(1.0)
        net.output.bias.zero_()
    many = Rows(torch.zeros(20_000, dtype=torch.int64), torch.arange(20_001), torch.ones(20_000))
    drawn = net.train()(many)[0][:, 0]
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.1)
    assert drawn.std().item() == pytest.approx(3.0, abs=0.1)


def test_the_loss_has_the_divergence_by_its_weight() -> None:
    net = vae(dropout=0.0)
    net.eval()
    none, some = net.loss(ROWS, 0.0), net.loss(ROWS, 0.5)
    mean, log_variance = net.encode(ROWS)
    expected = 0.25 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1)
    torch.testing.assert_close(some - none, expected)
    plain = dae(dropout=0.0).eval()
    assert torch.equal(plain.loss(ROWS, 0.0), plain.loss(ROWS, 0.5))


@pytest.mark.parametrize("net", [vae(), vae(hidden=()), dae(), dae(hidden=(6,))])
def test_factors_and_output_layer_give_the_logits(net: MultVAE) -> None:
    net.eval()
    factors, latent = net.factors(ROWS)
    torch.testing.assert_close(factors @ net.output.weight.T + net.output.bias, net(ROWS)[0])
    assert latent.shape == (3, 3) and factors.shape[1] == net.output.in_features


def test_initial_weights_are_xaviers_and_biases_small_and_both_by_the_seed() -> None:
    config = MultVAEConfig(hidden=(50,), latent_dim=20)
    net, again, other = (build_net(200, config, seed) for seed in (1, 1, 2))
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name))
        if name.endswith("bias"):
            assert parameter.abs().max() <= 2 * BIAS_SD
        else:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound


def test_the_weight_of_the_divergence_rises_by_update_to_its_cap() -> None:
    config = MultVAEConfig(anneal_cap=0.2, anneal_steps=100)
    weights = [annealed(config.annealing, step) for step in (0, 50, 100, 500)]
    assert weights == pytest.approx([0.0, 0.1, 0.2, 0.2])
    assert annealed(MultVAEConfig(anneal_steps=0).annealing, 0) == 0.2
    assert annealed(MultDAEConfig().annealing, 1000) == 0.0


def test_a_batch_of_no_rows_has_a_loss_and_gradients_of_zero() -> None:
    net = vae()
    nothing = Rows(ROWS.indices[:0], torch.zeros(1, dtype=torch.int64), ROWS.values[:0])
    net.loss(nothing, 0.1).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())
