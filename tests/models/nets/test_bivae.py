"""BiVAE: its bound, the turns of its sides, priors from side features, sampled likelihoods."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.distributions import Bernoulli, Normal, kl_divergence

from sparkcf.config.nets import BiVAEConfig
from sparkcf.data.packed import PackedRows
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.models.nets import blocks
from sparkcf.models.nets.bivae import BiVAE
from sparkcf.models.nets.registry import build_net
from sparkcf.training.batch import Rows
from sparkcf.training.checkpoint import Checkpoints, arrays_of
from sparkcf.training.feed import MemoryFeed
from sparkcf.training.group import Group
from sparkcf.training.loop import train
from sparkcf.training.side_features import store_features
from tests.models.nets.test_multvae import rows_of
from tests.training.test_loop import ALONE, in_processes, rows

N, M, K = 6, 5, 3
DENSE = torch.tensor(
    [[1.0, 0, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [1, 0, 1, 1, 0], [0, 1, 1, 0, 1]]
)
SMALL = {"hidden": (4,), "latent_dim": K, "batch_size": 64, "epochs": 3, "patience": 0, "learning_rate": 0.05}


def config(**changes) -> BiVAEConfig:
    return BiVAEConfig(**(SMALL | changes))


def net_of(configured: BiVAEConfig, **data) -> BiVAE:
    return build_net({"n_users": N, "n_items": M} | data, configured, 1)  # type: ignore[return-value]


def sided(side: str) -> Rows:
    rows = rows_of(DENSE if side == "user" else DENSE.T.contiguous())
    return Rows(rows.indices, rows.offsets, rows.values, torch.arange(len(rows)))


def packed(side: str) -> PackedRows:
    rows = sided(side)
    return PackedRows(np.arange(len(rows)), rows.offsets.numpy(), rows.indices.int().numpy(), rows.values.numpy())


def trained(group: Group, configured: BiVAEConfig, folder=None, on_progress=print, **data):
    net = net_of(configured, **data)
    feeds = [MemoryFeed(packed(side), -(-64 // group.size), 3, group.rank, group.size) for side in ("user", "item")]
    saved = Checkpoints(str(folder)) if folder else None
    log = train(net, feeds[0], configured, 3, group, None, saved, on_progress, feeds[1])
    return arrays_of(net), log


def test_the_bound_is_that_of_torchs_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of(config(likelihood="bernoulli"))
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    rows = sided("user")
    with torch.no_grad():
        net.user.others.normal_()
        mean, log_variance = net.user.encode(rows)
        q = Normal(mean, (0.5 * log_variance).exp())
        logits = (mean + q.scale) @ net.user.others.T
        expected = 0.7 * kl_divergence(q, Normal(0.0, 1.0)).sum(dim=1) - Bernoulli(logits=logits).log_prob(DENSE).sum(
            dim=1
        )
        torch.testing.assert_close(net.user.loss(rows, 0.7), expected)
        assert (q.scale < 1).all()


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli", "gaussian"])
def test_the_likelihood_in_blocks_is_the_likelihood(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, rows, z = net_of(config(likelihood=likelihood)), sided("user"), torch.randn(N, K)
    net.user.others.normal_()
    whole = net.user.log_likelihood(z, rows)
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", 2 * N)
    torch.testing.assert_close(net.user.log_likelihood(z, rows), whole)


def test_a_sampled_likelihood_is_unbiased_and_without_its_scale_is_not() -> None:
    rows, z = sided("user"), torch.randn(N, K, generator=torch.Generator().manual_seed(4))
    whole, sampled = (net_of(config(likelihood="poisson", sampled_rows=s)) for s in (None, 2))
    others = torch.randn(M, K, generator=torch.Generator().manual_seed(5))
    for net in (whole, sampled):
        net.user.others.copy_(others)
    exact = whole.user.log_likelihood(z, rows)
    torch.manual_seed(1)
    draws = torch.stack([sampled.user.log_likelihood(z, rows) for _ in range(4000)])
    error = draws.std(dim=0) / 4000**0.5
    assert (draws.mean(dim=0) - exact).abs().div(error).max() < 4.5
    observed = rows_of_observed(whole, z, rows)
    unscaled = observed - (observed - draws.mean(dim=0)) * 2 / M  # what forgetting n / sampled would give
    assert (unscaled - exact).abs().div(error).max() > 20


def rows_of_observed(net: BiVAE, z: torch.Tensor, rows: Rows) -> torch.Tensor:
    f = z @ net.user.others.T
    return (DENSE * torch.nn.functional.logsigmoid(f)).sum(dim=1)


def test_a_phase_moves_its_own_side_alone() -> None:
    net = net_of(config())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    net.train()
    net.part("item").loss(sided("item"), 1.0).sum().backward()
    optimizer.step()
    net.store("item", sided("item"))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"item", "user", "item_means"}
    assert {name for name in moved if name.startswith("user")} == {"user.others"}  # the items' vectors
    assert "item.others" not in moved


def test_vectors_of_a_step_are_stored_as_samples_or_as_means() -> None:
    rows = sided("item").take(torch.tensor([1, 3]))
    rows = Rows(rows.indices, rows.offsets, rows.values, torch.tensor([1, 3]))
    for other_side in ("means", "samples"):
        net = net_of(config(other_side=other_side))
        before = net.user.others.clone()
        net.store("item", rows)
        mean, _ = net.item.encode(rows)
        torch.testing.assert_close(net.item_means[[1, 3]], mean)
        assert torch.equal(net.user.others[[0, 2, 4]], before[[0, 2, 4]])
        assert torch.allclose(net.user.others[[1, 3]], mean) is (other_side == "means")


def test_vectors_are_stored_of_whole_rows_and_training_drops_entries() -> None:
    net = net_of(config(other_side="means", dropout=0.5)).train()
    rows = sided("item")
    whole, _ = net.item.encode(rows)
    net.store("item", rows)
    torch.testing.assert_close(net.item_means, whole)
    assert not torch.equal(net.item.encode(rows, drops=True)[0], whole)


def test_training_lowers_both_sides_losses() -> None:
    """Users of two tastes; the mean of five epochs, since an epoch's bound is over drawn vectors."""
    users = rows(200)
    matrix = csr_matrix((users.values, users.indices, users.indptr), shape=(200, 12)).T.tocsr()
    items = PackedRows(np.arange(12), matrix.indptr.astype(np.int64), matrix.indices, matrix.data)
    configured = config(epochs=40, likelihood="bernoulli", batch_size=20, learning_rate=0.01)
    net = build_net({"n_users": 200, "n_items": 12}, configured, 1)
    log = train(net, MemoryFeed(users, 20, 1), configured, 1, ALONE, item_feed=MemoryFeed(items, 20, 1))
    for name in ("loss", "item_loss"):
        first, last = (np.mean([entry[name] for entry in part]) for part in (log[:5], log[-5:]))
        assert last < 0.9 * first
    assert log[-1]["rows"] == 212
    assert {"active_units", "kl", "item_active_units", "item_kl"} <= log[-1].keys()
    assert len(log[-1]["kl_by_dimension"]) == K


def _without_noise(group: Group, configured: BiVAEConfig):
    torch.randn_like = torch.zeros_like  # in a process of its own
    return trained(group, configured)


def test_two_ranks_train_what_one_trains_on_the_joined_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, and a batch is all rows: then the exchange of vectors is all that the ranks add."""
    plain = config(other_side="means")
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    alone, log = trained(ALONE, plain)
    for state, theirs in in_processes(2, _without_noise, plain):
        for name, array in alone.items():
            np.testing.assert_allclose(state[name], array, atol=2e-5, err_msg=name)
        for mine, other in zip(log, theirs, strict=True):
            assert other["loss"] == pytest.approx(mine["loss"], rel=1e-4)
            assert other["kl"] == pytest.approx(mine["kl"], rel=1e-4)


def test_a_training_that_was_cut_short_goes_on_along_the_same_losses(tmp_path) -> None:
    """The vectors that either side trains against are part of what is saved."""
    configured = config(epochs=6, likelihood="bernoulli")
    whole, log = trained(ALONE, configured)

    def killed_after_three(entry: dict) -> None:
        if entry.get("epoch") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(ALONE, configured, tmp_path, killed_after_three)
    resumed, again = trained(ALONE, configured, tmp_path)
    for name in ("loss", "item_loss", "kl"):
        assert [entry[name] for entry in again] == pytest.approx([entry[name] for entry in log], rel=1e-5)
    for name, array in whole.items():
        np.testing.assert_allclose(resumed[name], array, atol=1e-5, err_msg=name)


def test_a_loss_that_is_not_finite_names_the_side_and_its_rows() -> None:
    with pytest.raises(
        TrainingError, match=r"epoch \d+, step 1, whose rows begin with user_idx 1, 2.*bivae\.learning_rate"
    ):
        trained(ALONE, config(likelihood="poisson", link="exp", learning_rate=1e6, epochs=9))


def features_of(tmp_path) -> dict:
    """Users 0, 2 and 4 have feature 0, like the items 0 and 2 that they have more of; all others feature 1."""
    kinds = {"user": [0, 1, 0, 1, 0, 1], "item": [0, 1, 0, 1, 1]}
    rows = {
        side: (np.arange(len(of) + 1), np.array(of, np.int32), np.ones(len(of), np.float32))
        for side, of in kinds.items()
    }
    return {"features": store_features(str(tmp_path), {side: (each, 2) for side, each in rows.items()})}


def test_a_prior_of_side_features_costs_the_distance_from_its_mean(tmp_path) -> None:
    net = net_of(config(), **features_of(tmp_path))
    rows = sided("user")
    mean, log_variance = net.user.encode(rows)
    prior = net.user.prior_mean(rows)
    assert torch.equal(prior[0], prior[2]) and not torch.equal(prior[0], prior[1])
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(prior, torch.ones_like(prior)))
    torch.testing.assert_close(net.user.posterior(rows)[1], expected)
    served = build_net({"n_users": N, "n_items": M}, config(), 1, trains=False).state_dict()
    assert not [name for name in served if "prior" in name or "others" in name or "means" in name]


def test_a_prior_or_a_lower_weight_revives_a_collapsed_posterior(tmp_path) -> None:
    """Under a heavy divergence the posterior says nothing of a row; both cures make it say something again."""
    heavy = config(anneal_cap=3.0, epochs=150, likelihood="bernoulli")
    collapsed = trained(ALONE, heavy)[1][-1]
    assert collapsed["active_units"] == 0
    assert trained(ALONE, config(anneal_cap=0.05, epochs=150, likelihood="bernoulli"))[1][-1]["active_units"] > 0
    assert trained(ALONE, heavy, **features_of(tmp_path))[1][-1]["active_units"] > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"likelihood": "bernoulli", "link": "exp"},
            "link=exp does not go with likelihood=bernoulli: set link=sigmoid",
        ),
        ({"user_prior": [{"of": "categories"}]}, "user_prior names categories"),
        ({"item_prior": [{"of": "attribute"}]}, "column goes with"),
    ],
)
def test_settings_that_do_not_go_together_are_named(wrong: dict, said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        config(**wrong)
