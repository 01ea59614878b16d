"""NCF: its scores against plain sums, negatives, the joined start of NeuMF, fold-in, side features, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from sparkcf.config.nets import NCFConfig
from sparkcf.data.packed import PackedRows, fold_in_and_heldout
from sparkcf.kernels import ncf as kernel
from sparkcf.models.contract_data import Saved, UserBlock
from sparkcf.models.nets import ncf as module
from sparkcf.models.nets.collaborative import NCFModel, NCFScorer
from sparkcf.models.nets.ncf import NCF
from sparkcf.models.nets.negatives import draw_negatives
from sparkcf.models.nets.registry import build_net
from sparkcf.training.batch import Rows
from sparkcf.training.checkpoint import Checkpoints, arrays_of
from sparkcf.training.feed import MemoryFeed
from sparkcf.training.group import Group
from sparkcf.training.loop import to_tensors, train
from sparkcf.training.side_features import store_content, store_features, store_item_counts
from sparkcf.training.sparse_gradients import LazyAdam, average
from tests.models.nets.test_multvae import rows_of
from tests.training.test_loop import ALONE, Killed, in_processes, killed_after, rows

N, M = 6, 5
DENSE = torch.tensor(
    [[1.0, 0, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
)
SMALL = {"hidden": (6, 4, 3), "latent_dim": 2, "batch_size": 64, "epochs": 3, "patience": 0, "learning_rate": 0.05}
KINDS = ("gmf", "mlp", "neumf")
OBJECTIVES = ("cross_entropy", "softmax", "rating")


def config(**changes: Any) -> NCFConfig:
    return NCFConfig(**(SMALL | changes))


def net_of(configured: NCFConfig, seed: int = 1, n: int = N, m: int = M, **data: Any) -> NCF:
    return build_net({"n_users": n, "n_items": m} | data, configured, seed)  # type: ignore[return-value]


def with_ids(found: Rows) -> Rows:
    return Rows(found.indices, found.offsets, found.values, torch.arange(len(found)))


ROWS = with_ids(rows_of(DENSE))


def plain_score(net: NCF, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """The score of one pair as the paper writes it."""
    parts, d = net.interaction, net.interaction.gmf_width
    total = torch.zeros(())
    if parts.gmf is not None:
        total = total + parts.gmf.weight[0] @ (user[:d] * item[:d]) + parts.gmf.bias[0]
    if parts.mlp is not None:
        z = torch.cat([user[d:], item[d:]])
        for layer in parts.layers:
            z = torch.relu(layer.weight @ z + layer.bias)  # type: ignore[operator]
        total = total + parts.mlp.weight[0] @ z + parts.mlp.bias[0]
    return total * parts.share[0]


def wide(net: NCF) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of users and items with larger numbers than the initial ones."""
    random = torch.Generator().manual_seed(3)
    return torch.randn(4, net.config.width, generator=random), torch.randn(M, net.config.width, generator=random)


# Scores.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1 << 18, 8])
def test_scores_of_blocks_and_of_pairs_are_those_of_the_paper(kind: str, pairs: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "PAIRS", pairs)
    net = net_of(config(kind=kind)).eval()
    users, items = wide(net)
    expected = torch.stack([torch.stack([plain_score(net, user, item) for item in items]) for user in users])
    scores = net.interaction.scores(net.interaction.blocks(users, items))
    torch.testing.assert_close(scores, expected)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(M))
    single = net.interaction.scores(net.interaction.pairs(users, items, places[:, 0], places[:, 1]))
    torch.testing.assert_close(single.view(4, M), expected)
    scores.sum().backward()
    of_blocks = [parameter.grad.clone() for parameter in net.interaction.parameters() if parameter.grad is not None]
    net.zero_grad()
    expected.sum().backward()
    expected_gradients = [parameter.grad for parameter in net.interaction.parameters() if parameter.grad is not None]
    torch.testing.assert_close(of_blocks, expected_gradients)


def test_gmf_with_weights_of_one_is_the_inner_product() -> None:
    net = net_of(config(kind="gmf"))
    with torch.no_grad():
        net.interaction.gmf.weight.fill_(1.0)  # type: ignore[union-attr]
        net.interaction.gmf.bias.zero_()  # type: ignore[union-attr]
    users, items = wide(net)
    torch.testing.assert_close(net.interaction.scores(net.interaction.blocks(users, items)), users @ items.T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1 << 14, 3])
def test_a_scorers_blocks_and_pairs_are_the_forward_pass(kind: str, pairs: int, monkeypatch) -> None:
    monkeypatch.setattr(kernel, "PAIRS", pairs)
    net = net_of(config(kind=kind, pretrain_epochs=1 if kind == "neumf" else 0)).eval()
    users, items = wide(net)
    scorer = scorer_of(net, items)
    expected = net.interaction.scores(net.interaction.blocks(users, items)).detach().numpy()
    block = UserBlock(users.numpy(), np.zeros(4, np.float32), np.ones(4, bool))
    found = scorer.score_block(block)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for item in range(M):
        value, spread = scorer.predict(block, np.full(4, item, np.int32))
        np.testing.assert_allclose(value, expected[:, item], atol=1e-5)
        assert spread is None


def scorer_of(net: NCF, items: torch.Tensor) -> NCFScorer:
    model = NCFModel(net.config, 1)
    n_features = 0 if net.users.of_features is None else len(net.users.of_features)
    served = model.net_to_serve({"n_items": len(items), "n_user_features": n_features}).state_dict()
    state = {name: array for name, array in arrays_of(net).items() if name in served}
    assert state.keys() == served.keys()
    vectors = items.detach().numpy().astype(np.float32)
    return NCFScorer(Saved(vectors, np.zeros(len(items), np.float32), np.ones(len(items), bool), state), model)


def test_the_initial_weights_are_those_of_the_authors() -> None:
    net = net_of(NCFConfig(), n=2000, m=1000)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["users.own"] == (2000, 8 + 32) and shapes["items.own"] == (1000, 8 + 32)
    assert [shapes[f"interaction.layers.{n}.weight"] for n in range(3)] == [(32, 64), (16, 32), (8, 16)]
    assert net.users.own.std().item() == pytest.approx(0.01, rel=0.02)  # type: ignore[union-attr]
    assert not net.users.shared.any() and not net.items.shared.any()


# Objectives.


def test_the_cross_entropy_is_that_of_positives_and_drawn_negatives() -> None:
    net = net_of(config(negatives=2, init_sd=1.0))
    torch.manual_seed(5)
    found = net.loss(ROWS, 0.0)
    torch.manual_seed(5)
    negatives, _ = draw_negatives(ROWS, net.mass, 2)
    vectors, items = net.users(torch.arange(N)), net.items(torch.arange(M))
    expected = torch.zeros(N)
    for entry, (user, item) in enumerate(zip(ROWS.row_of.tolist(), ROWS.indices.tolist(), strict=True)):
        expected[user] -= plain_score(net, vectors[user], items[item]).sigmoid().log()
        for negative in negatives[entry].tolist():
            expected[user] -= (1 - plain_score(net, vectors[user], items[negative]).sigmoid()).log()
    torch.testing.assert_close(found, expected)


def test_the_softmax_is_over_the_items_of_the_batch() -> None:
    net = net_of(config(objective="softmax", init_sd=1.0), m=M + 3)  # three items that no row has
    vectors, items = net.users(torch.arange(N)), net.items(torch.arange(M))
    logits = torch.stack([torch.stack([plain_score(net, user, item) for item in items]) for user in vectors])
    torch.testing.assert_close(net.loss(ROWS, 0.0), -(DENSE * logits.log_softmax(dim=1)).sum(dim=1))


def test_ratings_start_at_their_mean_and_cost_their_squared_errors() -> None:
    for changes in ({"kind": "gmf"}, {"kind": "neumf"}, {"kind": "neumf", "pretrain_epochs": 1}):
        net = net_of(config(objective="rating", init_sd=1e-6, **changes), average=3.5)
        values = ROWS.with_values(torch.arange(1.0, len(ROWS.indices) + 1))
        expected = torch.zeros(N).index_add_(0, ROWS.row_of, (values.values - 3.5).square())
        torch.testing.assert_close(net.loss(values, 0.0), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_rank_without_rows_has_a_loss_and_gradients_of_zero(objective: str) -> None:
    """Of fewer files than ranks one rank has no row, and DDP waits for its gradients."""
    net = net_of(config(objective=objective)).train()
    nobody = Rows(ROWS.indices[:0], torch.zeros(1, dtype=torch.int64), ROWS.values[:0], ROWS.indices[:0])
    net.loss(nobody, 0.0).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in net.parameters())
    assert net.eval()(nobody)[0].shape == (0, M)


# Negatives.


MASS = torch.tensor([2, 3, 1, 1, 2, 0])
SEEN = with_ids(rows_of(torch.tensor([[0.0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0]])))


def without_the_move(found: Rows, mass: torch.Tensor, count: int) -> torch.Tensor:
    """A wrong twin: points of the line without own items, which are not moved over these."""
    left = int(mass.sum()) - torch.zeros(len(found), dtype=torch.int64).index_add_(0, found.row_of, mass[found.indices])
    points = (torch.rand(len(found.indices), count) * left[found.row_of][:, None]).long()
    return torch.searchsorted(mass.cumsum(0), points, right=True)


def p_value(items: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the chi-square test that the items have these probabilities; 0 if an item of probability 0 was drawn."""
    counts = torch.bincount(items.flatten(), minlength=len(expected)).numpy()
    possible = expected.numpy() > 0
    if counts[~possible].any():
        return 0.0
    share = expected.double().numpy()[possible]
    return float(chisquare(counts[possible], share / share.sum() * counts.sum()).pvalue)


def test_negatives_are_never_seen_items_and_follow_their_distribution() -> None:
    torch.manual_seed(7)
    items, drawn = draw_negatives(SEEN, MASS, 20_000)
    wrong = without_the_move(SEEN, MASS, 20_000)
    for row, has in enumerate(([1, 3], [0, 5])):
        expected = MASS.double()
        expected[has] = 0.0
        of_row = SEEN.row_of == row
        assert drawn[of_row].all()
        assert p_value(items[of_row], expected / expected.sum()) > 1e-3
        assert p_value(wrong[of_row], expected / expected.sum()) < 1e-6
        assert p_value(items[of_row], (expected > 0) / (expected > 0).sum()) < 1e-6  # not uniform
    assert not drawn[SEEN.row_of == 2].any()  # who has every item


def test_seen_items_are_drawn_where_a_setting_allows_it() -> None:
    torch.manual_seed(7)
    items, drawn = draw_negatives(SEEN, MASS, 20_000, seen=True)
    assert drawn.all() and p_value(items, MASS / MASS.sum()) > 1e-3


def test_the_distribution_is_a_setting_and_leaves_out_items_without_events(tmp_path: Path) -> None:
    counts = {"counts": store_item_counts(str(tmp_path), np.array([3, 1, 0, 2, 5]))}
    assert net_of(config(), **counts).mass.tolist() == [1, 1, 0, 1, 1]
    assert net_of(config(negative_distribution="popularity"), **counts).mass.tolist() == [3, 1, 0, 2, 5]


def test_negatives_are_drawn_anew_every_epoch_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[int]] = []

    def heard_draw(*arguments: Any) -> Any:
        found = draw_negatives(*arguments)
        heard.append(found[0].flatten().tolist())
        return found

    monkeypatch.setattr(module, "draw_negatives", heard_draw)
    for _ in range(2):
        trained(ALONE, config(epochs=2))
    assert heard[:2] == heard[2:] and heard[0] != heard[1]


# NeuMF from GMF and MLP.


def test_the_pretrained_start_is_the_mean_of_both_parts() -> None:
    net = net_of(config(pretrain_epochs=2, epochs=3)).eval()
    users, items = wide(net)
    net.begin_epoch(2)
    gmf, mlp = net.interaction.blocks(users, items)
    torch.testing.assert_close(net.interaction.scores([gmf, mlp]), (gmf + mlp) / 2)
    weights = [head.weight.clone() for head in net.interaction.heads]
    net.begin_epoch(3)
    halves = net.interaction.blocks(users, items)
    torch.testing.assert_close(net.interaction.scores(halves), (gmf + mlp) / 2)
    torch.testing.assert_close(sum(halves), (gmf + mlp) / 2)
    for head, before in zip(net.interaction.heads, weights, strict=True):
        torch.testing.assert_close(head.weight, before / 2)
    net.begin_epoch(4)
    torch.testing.assert_close(net.interaction.scores(net.interaction.blocks(users, items)), (gmf + mlp) / 2)


def test_parts_that_train_apart_are_those_trained_alone() -> None:
    """One optimizer over two losses: Adam's steps of one part do not depend on the other."""
    both = net_of(config(pretrain_epochs=2, epochs=3, objective="rating"))
    start = arrays_of(both)
    both.begin_epoch(1)
    parts = {"gmf": slice(0, 2), "mlp": slice(2, 5)}
    for kind, columns in parts.items():
        alone = net_of(config(kind=kind, objective="rating"))
        state = {}
        for name in alone.state_dict():
            given = torch.from_numpy(start[name])
            state[name] = given[..., columns] if name.startswith(("users", "items")) else given
        alone.load_state_dict(state | {"interaction.share": torch.ones(1)})
        together = net_of(config(pretrain_epochs=2, epochs=3, objective="rating"))
        together.begin_epoch(1)
        for net in (alone, together):
            optimizer = torch.optim.Adam(net.parameters(), 0.05, eps=1e-12)
            for _ in range(3):
                optimizer.zero_grad()
                net.loss(ROWS, 0.0).sum().backward()
                optimizer.step()
        found = together.state_dict()
        for name, tensor in alone.state_dict().items():
            if name.startswith(("users", "items")):
                torch.testing.assert_close(found[name][..., columns], tensor, atol=1e-4, rtol=1e-4)
            elif name.startswith(f"interaction.{kind}"):
                torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4)


# Users and items that are not in training.


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_folding_in_moves_a_user_towards_the_own_items(kind: str, objective: str) -> None:
    net = net_of(config(kind=kind, objective=objective, init_sd=0.5, fold_in_items=M)).eval()
    items = net.item_vectors()
    values = ROWS.with_values(4.0 * ROWS.values) if objective == "rating" else ROWS
    start = net.users.cold(torch.arange(N))
    found = net.fold_in(values, start, items)
    at, costs, gaps = net._representatives(), [], []
    for vectors in (start, found):
        scores = net.interaction.scores(net.interaction.blocks(vectors, items)).detach()
        own = scores[values.row_of, values.indices]
        costs.append(net._fold_in_loss(values, own, vectors, items[at], net._weights(values, at)).detach())
        has = DENSE > 0
        gaps.append(torch.stack([row[mine].mean() - row[~mine].mean() for row, mine in zip(scores, has, strict=True)]))
    assert (costs[1][:5] < costs[0][:5]).all()
    if kind == "gmf" and objective != "rating":  # an untrained MLP may not tell a user's items from others
        assert (gaps[1][:5] > gaps[0][:5]).all()
    torch.testing.assert_close(found[5], start[5])  # without items


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_users_folded_in_together_have_the_vectors_of_each_alone(objective: str, monkeypatch) -> None:
    net = net_of(config(objective=objective, init_sd=0.5, fold_in_items=3)).eval()
    items, start = net.item_vectors(), net.users.cold(torch.arange(N))
    whole = net.fold_in(ROWS, start, items)
    for row in range(N):
        torch.testing.assert_close(net.fold_in(ROWS.take(torch.tensor([row])), start[:1], items)[0], whole[row])
    monkeypatch.setattr(module, "PAIRS", 9)
    torch.testing.assert_close(net.fold_in(ROWS, start, items), whole)


def test_the_fold_in_objective_is_the_mean_of_the_drawn_one() -> None:
    """With all items as representatives the expected cross-entropy over draws of negatives."""
    net = net_of(config(init_sd=1.0, negatives=3, fold_in_items=M)).eval()
    vectors, items = net.users(torch.arange(N)).detach(), net.items(torch.arange(M)).detach()
    at = net._representatives()
    own = net.interaction.scores(net.interaction.pairs(vectors, items, ROWS.row_of, ROWS.indices))
    expected = net._fold_in_loss(ROWS, own, vectors, items[at], net._weights(ROWS, at)).detach()
    torch.manual_seed(2)
    with torch.no_grad():
        draws = torch.stack([net.loss(ROWS, 0.0) for _ in range(4000)])
    error = (draws.std(dim=0) / 4000**0.5).clamp_min(1e-4)
    assert ((draws.mean(dim=0) - expected).abs() / error).max() < 4.5


def test_the_softmax_of_fold_in_is_over_all_items() -> None:
    net = net_of(config(objective="softmax", init_sd=1.0, fold_in_items=M)).eval()
    vectors, items = net.users(torch.arange(N)).detach(), net.items(torch.arange(M)).detach()
    at = net._representatives()
    own = net.interaction.scores(net.interaction.pairs(vectors, items, ROWS.row_of, ROWS.indices))
    logits = net.interaction.scores(net.interaction.blocks(vectors, items))
    found = net._fold_in_loss(ROWS, own, vectors, items[at], net._weights(ROWS, at))
    torch.testing.assert_close(found, -(DENSE * logits.log_softmax(dim=1)).sum(dim=1))


def features_of(folder: Path) -> dict[str, Any]:
    """Users 0, 2 and 4 have feature 0, the others feature 1; items 0 and 2 feature 0; item 4 both."""
    user = (np.arange(N + 1), np.array([0, 1, 0, 1, 0, 1], np.int32), np.ones(N, np.float32))
    item = (np.array([0, 1, 2, 3, 4, 6]), np.array([0, 1, 0, 1, 0, 1], np.int32), np.ones(6, np.float32))
    return {
        "features": store_features(str(folder), {"user": (user, 2), "item": (item, 2)}),
        "scales": {"user": [[0.0, 1.0]], "item": [[0.0, 1.0]]},
        "counts": store_item_counts(str(folder), np.array([3, 3, 2, 3, 0])),
    }


FEATURES = {"user_features": [{"of": "attribute", "column": "group"}], "item_features": [{"of": "categories"}]}


def test_a_cold_item_or_user_is_scored_by_its_features(tmp_path: Path) -> None:
    net = net_of(config(**FEATURES, init_sd=1.0), **features_of(tmp_path)).eval()
    with torch.no_grad():
        net.items.shared.normal_()
    of_item = net.items.of_features
    assert of_item is not None and net.items.own is not None
    vectors = net.item_vectors()
    torch.testing.assert_close(vectors[4], net.items.shared + of_item[0] + of_item[1])  # nobody has it
    torch.testing.assert_close(vectors[2], net.items.shared + of_item[0] + net.items.own[2])
    scorer = scorer_of(net, vectors)
    nothing = (np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    features = (np.array([0, 1]), np.array([1], np.int32), np.ones(1, np.float32))
    folded, bias = scorer.fold_in((*nothing, nothing[2]), features)
    assert not bias.any()
    expected = net.users.shared + net.users.of_features[1]  # type: ignore[index]
    torch.testing.assert_close(torch.from_numpy(folded[0]), expected.detach())
    unknown, _ = scorer.fold_in((*nothing, nothing[2]))
    torch.testing.assert_close(torch.from_numpy(unknown[0]), net.users.shared.detach())


def test_features_of_an_item_without_events_learn_from_items_with_them(tmp_path: Path) -> None:
    """Even users have the items of feature 0: a new item of that feature is for them."""
    random = np.random.default_rng(1)
    lists = [np.sort(random.choice(6, 4, replace=False)) * 2 + user % 2 for user in range(60)]
    indptr = np.arange(0, 4 * 60 + 1, 4)
    packed = PackedRows(np.arange(60), indptr, np.concatenate(lists).astype(np.int32), np.ones(240, np.float32))
    item = (np.arange(15), np.arange(14, dtype=np.int32) % 2, np.ones(14, np.float32))  # 12 and 13 are new
    counts = np.bincount(packed.indices, minlength=14)
    data = {
        "features": store_features(str(tmp_path), {"item": (item, 2)}),
        "scales": {"item": [[0.0, 1.0]]},
        "counts": store_item_counts(str(tmp_path), counts),
    }
    configured = config(item_features=[{"of": "categories"}], epochs=20, batch_size=20)
    net = net_of(configured, n=60, m=14, **data)
    train(net, MemoryFeed(packed, 20, 1), configured, 1, ALONE)
    scores = net.eval()(to_tensors(packed, "cpu"))[0]
    right = scores[:, 12] > scores[:, 13]
    assert (right == (torch.arange(60) % 2 == 0)).float().mean() > 0.9


def test_content_of_an_item_without_events_learns_from_items_with_it(tmp_path: Path) -> None:
    """As above, by vectors of content: those of even items lie on one side of a plane, the others on the other side."""
    random = np.random.default_rng(1)
    lists = [np.sort(random.choice(6, 4, replace=False)) * 2 + user % 2 for user in range(60)]
    indptr = np.arange(0, 4 * 60 + 1, 4)
    packed = PackedRows(np.arange(60), indptr, np.concatenate(lists).astype(np.int32), np.ones(240, np.float32))
    content = random.normal(0.0, 0.1, (15, 5)).astype(np.float32)
    content[:, 0] = np.where(np.arange(15) % 2 == 0, 2.0, -2.0)  # 12 and 13 are new; 14 has no content
    has = np.arange(15) < 14
    data = {
        "content": store_content(str(tmp_path), content, has),
        "counts": store_item_counts(str(tmp_path), np.bincount(packed.indices, minlength=15)),
    }
    configured = config(item_content="image", content_layers=[6], epochs=20, batch_size=20)
    net = net_of(configured, n=60, m=15, **data)
    before = {name: p.detach().clone() for name, p in net.items.content.named_parameters()}
    train(net, MemoryFeed(packed, 20, 1), configured, 1, ALONE)
    assert all((p != before[name]).any() for name, p in net.items.content.named_parameters())  # end to end
    scores = net.eval()(to_tensors(packed, "cpu"))[0]
    right = scores[:, 12] > scores[:, 13]
    assert (right == (torch.arange(60) % 2 == 0)).float().mean() > 0.9
    torch.testing.assert_close(net.item_vectors()[14], net.items.shared.detach())
    assert not [name for name in net.state_dict() if "vectors" in name or "has" in name]  # of the data, not of the net


# Training.


def halves() -> list[tuple[PackedRows, PackedRows]]:
    return [fold_in_and_heldout(rows(), 0.5, 1)]


def trained(group: Group, configured: NCFConfig, folder: Any = None, on_progress: Any = print) -> Any:
    net = net_of(configured, n=40, m=12)
    feed = MemoryFeed(rows(), -(-configured.batch_size // group.size), 3, group.rank, group.size)
    saved = Checkpoints(str(folder)) if folder else None
    log = train(net, feed, configured, 3, group, halves, saved, on_progress)
    return arrays_of(net), log


@pytest.mark.parametrize("objective", ["cross_entropy", "softmax"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_finds_the_two_tastes(kind: str, objective: str) -> None:
    wider = {"hidden": (16, 8), "init_sd": 0.1, "latent_dim": 4}
    log = trained(ALONE, config(kind=kind, objective=objective, epochs=25, batch_size=20, **wider))[1]
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert max(entry["ndcg_at_100"] for entry in log) > 0.75  # by chance 0.55


def test_training_on_ratings_lowers_their_error() -> None:
    log = trained(ALONE, config(objective="rating", epochs=30, batch_size=10))[1]
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]


@pytest.mark.parametrize(
    "given", [{"pretrain_epochs": 0}, {"pretrain_epochs": 3}, {"sparse_embeddings": True}], ids=str
)
def test_a_training_that_was_cut_short_goes_on_along_the_same_losses(tmp_path: Path, given: dict[str, Any]) -> None:
    configured = config(epochs=6, batch_size=10, **given)
    whole, log = trained(ALONE, configured)
    for epoch in (3, 4):  # before and after the parts are joined
        with pytest.raises(Killed):
            trained(ALONE, configured, tmp_path, killed_after(epoch))
    resumed, again = trained(ALONE, configured, tmp_path)
    for name in ("loss", "ndcg_at_100"):
        assert [entry[name] for entry in again] == pytest.approx([entry[name] for entry in log], rel=1e-5)
    for name, array in whole.items():
        np.testing.assert_allclose(resumed[name], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("sparse", [False, True])
def test_two_ranks_train_what_one_trains_on_the_joined_batches(sparse: bool) -> None:
    """Nothing is drawn, and a batch is all rows: then the processes are all that differs."""
    plain = config(objective="rating", pretrain_epochs=1, sparse_embeddings=sparse)
    alone, log = trained(ALONE, plain)
    for state, theirs in in_processes(2, trained, plain):
        for name, array in alone.items():
            np.testing.assert_allclose(state[name], array, atol=2e-5, err_msg=name)
        for mine, other in zip(log, theirs, strict=True):
            assert other["loss"] == pytest.approx(mine["loss"], rel=1e-4)


def test_two_ranks_draw_negatives_of_their_own_and_stay_equal() -> None:
    one, two = in_processes(2, trained, config(batch_size=10))
    for name, array in one[0].items():
        np.testing.assert_allclose(two[0][name], array, atol=1e-6, err_msg=name)
    assert [entry["loss"] for entry in one[1]] == [entry["loss"] for entry in two[1]]


@pytest.mark.parametrize("given", [{}, {"weight_decay": 0.01}, {"clip_norm": 0.1}], ids=str)
@pytest.mark.parametrize("objective", ["cross_entropy", "rating"])
def test_sparse_embeddings_train_as_others_where_a_step_has_all_rows(objective: str, given: dict[str, Any]) -> None:
    dense, sparse = (trained(ALONE, config(objective=objective, sparse_embeddings=s, **given)) for s in (False, True))
    for name, array in dense[0].items():
        np.testing.assert_allclose(sparse[0][name], array, atol=1e-5, err_msg=name)
    assert [e["loss"] for e in sparse[1]] == pytest.approx([e["loss"] for e in dense[1]], rel=1e-5)


def test_a_step_of_sparse_embeddings_touches_the_rows_of_its_batch_alone() -> None:
    """Numbers of a gradient are counted in two nets, of which one has a thousand times the users and items."""
    numbers = []
    for n, m in ((N, M), (1000 * N, 1000 * M)):
        net = net_of(config(sparse_embeddings=True, objective="softmax"), n=n, m=m)
        tables = net.sparse_parameters()
        assert tables == [net.users.own, net.items.own]
        start = [table.detach().clone() for table in tables]
        optimizer = LazyAdam(net.parameters(), 0.1, weight_decay=0.1)
        net.loss(ROWS, 0.0).sum().backward()
        average(tables, ALONE)
        optimizer.step()
        for table, before, touched in zip(tables, start, (N, M), strict=True):
            assert torch.equal(table[touched:], before[touched:]) and (table[:touched] != before[:touched]).any(1).all()
        numbers.append([p.grad._nnz() if p.grad.is_sparse else p.grad.numel() for p in net.parameters()])
    assert numbers[0] == numbers[1]


def one_user(group: Group, configured: NCFConfig) -> Any:
    net = net_of(configured, n=40, m=12)
    train(net, MemoryFeed(rows(1), 1, 3, group.rank, group.size), configured, 3, group)
    return arrays_of(net)


def test_a_rank_without_rows_takes_part_in_a_step_of_sparse_embeddings() -> None:
    configured = config(objective="rating", sparse_embeddings=True)
    alone = one_user(ALONE, configured)
    for state in in_processes(2, one_user, configured):
        for name, array in alone.items():
            np.testing.assert_allclose(state[name], array, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hidden": (7, 4)}, r"hidden=\[7, 4\] begins with both embeddings.*an even number"),
        ({"hidden": (8,)}, r"hidden=\[8\].*at least one layer"),
        ({"kind": "gmf", "pretrain_epochs": 1}, "pretrain_epochs goes with kind=neumf, not gmf"),
        ({"pretrain_epochs": 3}, "pretrain_epochs=3 leaves none of 3 epochs"),
        ({"user_features": [{"of": "categories"}]}, "user_features names categories"),
        ({"latent_dim": 5000}, "less than or equal to 4096"),
    ],
)
def test_settings_that_do_not_go_together_are_named(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**wrong)
