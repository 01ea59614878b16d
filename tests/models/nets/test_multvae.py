"""Mult-VAE and Mult-DAE: sizes, details that quality hangs on, and the inner product that they end in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkcf.config.nets import MultDAEConfig, MultVAEConfig
from sparkcf.models.nets.layers import BIAS_SD, SparseLinear
from sparkcf.models.nets.multvae import MultVAE, divergence
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
    return build_net({"n_items": M}, MultVAEConfig(**{"hidden": (6, 5), "latent_dim": 3} | changes), 1)  # type: ignore[return-value]


def dae(**changes) -> MultVAE:
    return build_net({"n_items": M}, MultDAEConfig(**{"latent_dim": 3} | changes), 1)  # type: ignore[return-value]


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_parameters_are_those_of_the_architecture() -> None:
    encoder = M * 6 + 6 + 6 * 5 + 5 + 5 * 6 + 6  # means and log-variances
    decoder = 3 * 5 + 5 + 5 * 6 + 6 + 6 * M + M
    assert count(vae()) == encoder + decoder
    assert count(dae()) == M * 3 + 3 + 3 * M + M
    assert count(build_net({"n_items": 20_108}, MultVAEConfig(), 1)) == 2 * 20_108 * 600 + 20_108 + 600 * 600 + 1600


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
        net.encoder.input.bias.zero_()
        net.encoder.input.weight.zero_()
        net.encoder.input.weight[:, :M] = torch.eye(M)  # the mean is the row that the layer is given
        given = net.encode(rows_of(torch.ones(200, M))).mean
    kept = given != 0
    assert 0.7 < kept.float().mean().item() < 0.8
    torch.testing.assert_close(given[kept], torch.full((int(kept.sum()),), 1 / 0.75 / M**0.5))


def test_noise_has_the_standard_deviation_of_the_code() -> None:
    net = vae(dropout=0.0, hidden=(), latent_dim=1)
    with torch.no_grad():
        net.encoder.input.weight.zero_()
        net.encoder.input.bias.copy_(torch.tensor([2.0, np.log(9.0)]))  # mean 2, variance 9
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
    net, again, other = (build_net({"n_items": 200}, config, seed) for seed in (1, 1, 2))
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


def recvae(**changes) -> MultVAE:
    parts = {"encoder": "dense", "dense_layers": 3, "prior": "composite", "kl_per_item": 0.005, "encoder_epochs": 3}
    return vae(**({"hidden": (6,)} | parts | changes))


def test_the_dense_encoder_adds_every_layer_to_the_next() -> None:
    net = recvae().eval()
    encoder = net.encoder
    x = torch.nn.functional.normalize(DENSE, dim=1)
    swish, weights = torch.nn.functional.silu, [encoder.input, *encoder.layers]

    def norm(h: Tensor, at: int) -> Tensor:
        spread = ((h - h.mean(dim=1, keepdim=True)) ** 2).mean(dim=1, keepdim=True)
        unit = (h - h.mean(dim=1, keepdim=True)) / torch.sqrt(spread + 0.1)
        return unit * encoder.norms[at].weight + encoder.norms[at].bias

    one = norm(swish(x @ weights[0].weight + weights[0].bias), 0)
    two = norm(swish(weights[1](one) + one), 1)
    three = norm(swish(weights[2](two) + one + two), 2)
    expected = encoder.output(three).chunk(2, dim=1)
    torch.testing.assert_close(net.encode(ROWS).mean, expected[0])
    torch.testing.assert_close(net.encode(ROWS).log_variance, expected[1])
    assert len(net.decoder) == 0 and net.output.weight.shape == (M, 3)


def test_the_composite_prior_is_a_mixture_whose_estimate_has_the_mean_of_its_divergence() -> None:
    net = recvae(encoder="mlp", kl_per_item=1.0, dropout=0.0).train()
    net.begin_epoch(1)
    with torch.no_grad():
        for parameter in net.encoder.parameters():
            parameter.add_(0.3)  # the encoder moves on, its copy stays
        encoded = net.encode(ROWS)
        old = net._encoded(net.old_encoder, ROWS.unit())
        assert not torch.allclose(old.mean, encoded.mean)
        normal = torch.distributions.Normal
        own = normal(encoded.mean, (0.5 * encoded.log_variance).exp())
        torch.manual_seed(0)
        drawn = own.sample((4000,))
        parts = [normal(0.0, 1.0), normal(old.mean, (0.5 * old.log_variance).exp()), normal(0.0, float(np.exp(5.0)))]
        mixed = sum(share * part.log_prob(drawn).exp() for share, part in zip((0.15, 0.75, 0.1), parts, strict=True))
        expected = (own.log_prob(drawn) - mixed.log()).sum(dim=2).mean(dim=0)
        found = torch.stack([net._composite_divergence(ROWS, encoded, z) for z in drawn[:2000]])
    error = found.std(dim=0) / 2000**0.5
    assert ((found.mean(dim=0) - expected).abs() < 5 * error + 1e-6).all()


def test_a_rows_divergence_weighs_the_sum_of_its_values() -> None:
    net = recvae(encoder="mlp", prior="normal", kl_per_item=0.01).eval()
    encoded = net.encode(ROWS)
    plain = -net.log_likelihood(net(ROWS)[0], ROWS)
    expected = plain + 0.01 * DENSE.sum(dim=1) * divergence(*encoded)
    torch.testing.assert_close(net.loss(ROWS, 123.0), expected)  # whatever the annealing says
    torch.testing.assert_close(vae().eval().loss(ROWS, 0.0).shape, expected.shape)


def test_three_epochs_of_the_encoder_come_before_one_of_the_decoder() -> None:
    net = recvae(dropout=0.9)
    sides = {"encoder": set(net.encoder.parameters()), "decoder": {*net.decoder.parameters(), *net.output.parameters()}}
    frozen = [set(net.begin_epoch(number)) for number in range(1, 9)]
    assert frozen == [sides["decoder"]] * 3 + [sides["encoder"]] + [sides["decoder"]] * 3 + [sides["encoder"]]
    net.train().begin_epoch(4)
    torch.testing.assert_close(net.encode(ROWS).mean, net.encode(ROWS).mean)  # nothing is dropped
    net.begin_epoch(5)
    assert not torch.equal(net.encode(rows_of(torch.ones(9, M))).mean, net.encode(rows_of(torch.ones(9, M))).mean)
    assert recvae(encoder_epochs=0).begin_epoch(1) == []


def test_the_encoder_of_before_is_taken_when_the_decoders_turn_comes() -> None:
    net = recvae()
    net.begin_epoch(1)
    first = net.old_encoder.input.weight.clone()
    with torch.no_grad():
        net.encoder.input.weight.add_(1.0)
    for number in (2, 3):
        net.begin_epoch(number)
        assert torch.equal(net.old_encoder.input.weight, first)
    net.begin_epoch(4)
    assert torch.equal(net.old_encoder.input.weight, net.encoder.input.weight)
    assert not [name for name, _ in net.named_parameters() if name.startswith("old_encoder")]


def test_what_scores_has_no_encoder_of_before() -> None:
    config = MultVAEConfig(prior="composite", hidden=(6,), latent_dim=3)
    names = [
        {name.split(".")[0] for name in build_net({"n_items": M}, config, 1, trains).state_dict()}
        for trains in (True, False)
    ]
    assert names[0] - names[1] == {"old_encoder"}


@pytest.mark.parametrize("part", ["encoder", "prior", "kl_per_item", "encoder_epochs"])
def test_every_part_of_recvae_may_be_set_alone(part: str) -> None:
    values = {"encoder": "dense", "prior": "composite", "kl_per_item": 0.01, "encoder_epochs": 2}
    net = vae(hidden=(6,), **{part: values[part]}).train()
    net.begin_epoch(1)
    loss = net.loss(ROWS, 0.2)
    assert loss.shape == (3,) and torch.isfinite(loss).all()
    loss.sum().backward()


def test_a_dense_encoder_wants_a_width() -> None:
    with pytest.raises(ValueError, match="encoder=dense needs hidden"):
        MultVAEConfig(encoder="dense", hidden=())
