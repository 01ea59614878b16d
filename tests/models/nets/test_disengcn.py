"""DisenGCN: routing against plain loops, means, sampled neighbours, losses, fold-in, training, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparkcf.config.nets import DisenGCNConfig
from sparkcf.data.packed import NO_ROWS, PackedRows, fold_in_and_heldout
from sparkcf.errors import TrainingError
from sparkcf.models.contract_data import Saved
from sparkcf.models.nets import disengcn as module
from sparkcf.models.nets import routing
from sparkcf.models.nets.disengcn import DisenGCN, among, distinct
from sparkcf.models.nets.disentangled import BIAS, ITEMS, OWN, DisenGCNModel
from sparkcf.models.nets.registry import build_net
from sparkcf.models.nets.routing import route, unit
from sparkcf.training.batch import Rows
from sparkcf.training.checkpoint import Checkpoints, arrays_of
from sparkcf.training.feed import MemoryFeed
from sparkcf.training.graph import Neighbours, graph_of, read_rows, sampled
from sparkcf.training.group import Group
from sparkcf.training.loop import to_tensors, train, validate
from tests.bench.training import write_files
from tests.models.nets.test_multvae import rows_of
from tests.training.test_loop import ALONE, Killed, in_processes, killed_after, rows

N, M = 6, 5
DENSE = torch.tensor(
    [[1.0, 0, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
)
PLAIN = {"dropout": 0.0, "own_dropout": 0.0, "init_sd": 0.5}
SMALL = PLAIN | {"latent_dim": 6, "channels": 3, "batch_size": 64, "epochs": 3, "patience": 0, "learning_rate": 0.05}


def config(**changes: Any) -> DisenGCNConfig:
    return DisenGCNConfig(**(SMALL | changes))


def packed(dense: torch.Tensor = DENSE) -> PackedRows:
    found = rows_of(dense)
    return PackedRows(
        np.arange(len(dense)), found.offsets.numpy(), found.indices.int().numpy(), found.values.numpy().copy()
    )


def net_of(configured: DisenGCNConfig, given: PackedRows | None = None, n: int = N, m: int = M) -> DisenGCN:
    data = {"n_users": n, "n_items": m, "rows": packed() if given is None else given}
    return build_net(data, configured, 1)  # type: ignore[return-value]


def edges(offsets: list[int], indices: list[int]) -> Rows:
    return Rows(torch.tensor(indices), torch.tensor(offsets), torch.zeros(0))


EDGES = edges([0, 3, 3, 4, 8], [4, 0, 2, 1, 0, 1, 3, 4])  # the second node has no neighbour
WEIGHTS = torch.tensor([1.0, 1.0, 0.5, 2.0])


def vectors(k: int, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """z of the four nodes of EDGES and of their five neighbours."""
    random = torch.Generator().manual_seed(k)
    return torch.randn(4, k, d, generator=random), torch.randn(5, k, d, generator=random)


def plainly(own: torch.Tensor, sources: torch.Tensor, rounds: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """c (4, K, d) as algorithm 1 has it, one edge after the other, and the shares of the last round."""
    found, shares = [], []
    for node in range(4):
        near = EDGES.indices[EDGES.offsets[node] : EDGES.offsets[node + 1]].tolist()
        c = own[node]
        for number in range(rounds):
            total = torch.zeros_like(c)
            for v in near:
                products = (unit(sources[v]) * unit(c)).sum(dim=1)
                p = products.softmax(dim=0).detach() if number else torch.full_like(products, 1 / len(products))
                total = total + p[:, None] * sources[v]
                if number == rounds - 1:
                    shares.append(p)
            c_next = own[node] + WEIGHTS[node] * total
            c = c_next if number == rounds - 1 else c_next.detach()
        found.append(c)
    return torch.stack(found), shares


# Routing.


@pytest.mark.parametrize("block", [1 << 14, 2])
@pytest.mark.parametrize(("k", "rounds"), [(1, 1), (1, 3), (3, 1), (3, 2), (3, 6)])
def test_routing_and_its_gradient_are_those_of_plain_loops(k: int, rounds: int, block: int, monkeypatch) -> None:
    monkeypatch.setattr(routing, "EDGES", block)
    own, sources = (z.requires_grad_() for z in vectors(k))
    expected, _ = plainly(own, sources, rounds)
    c = route(own, sources, EDGES, rounds, WEIGHTS)
    torch.testing.assert_close(c, expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    wanted = torch.autograd.grad((expected * upstream).sum(), (own, sources))
    torch.testing.assert_close(torch.autograd.grad((c * upstream).sum(), (own, sources)), wanted)


def test_shares_sum_to_one_and_prefer_the_channel_that_agrees() -> None:
    """The node's neighbours agree with it in the second channel alone."""
    own = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    sources = torch.tensor([[[-1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
    near = edges([0, 2], [0, 1])
    shares = routing._shares(own, sources, near, 4, torch.tensor([1.0]))
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(2))
    assert (shares[1] > 0.8).all()


@pytest.mark.parametrize("unit_vectors", [True, False])
def test_one_channel_and_one_round_are_a_mean_aggregator(unit_vectors: bool) -> None:
    """z_u + the mean of z_v over u's neighbours; z are the embeddings, divided by their lengths if unit_vectors."""
    net = net_of(config(channels=1, rounds=1, unit_vectors=unit_vectors)).eval()
    users, items = (net.own[side].detach() for side in ("user", "item"))
    if unit_vectors:
        users, items = F.normalize(users, dim=1), F.normalize(items, dim=1)
    has = (DENSE.sum(dim=1) > 0)[:, None]
    of_users = users * has + DENSE @ items / DENSE.sum(dim=1, keepdim=True).clamp_min(1)
    of_items = items + DENSE.T @ users / DENSE.sum(dim=0)[:, None]
    torch.testing.assert_close(net.tables().item_vectors.flatten(1), of_items)
    scores, found = net(user_rows())
    torch.testing.assert_close(found, net.log_scale.exp() * of_users)
    torch.testing.assert_close(scores, found @ of_items.T + net.item_bias)


def test_one_round_of_many_channels_is_the_same_as_one_channel() -> None:
    scores = [net_of(config(channels=k, rounds=t)).eval()(user_rows())[0] for k, t in ((1, 1), (3, 1), (3, 4))]
    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2], atol=1e-3)


def test_two_layers_are_two_aggregations() -> None:
    net = net_of(config(channels=1, layers=2)).eval()
    z = [net.own["user"].detach() * (DENSE.sum(dim=1) > 0)[:, None], net.own["item"].detach()]
    mean = [DENSE / DENSE.sum(dim=1, keepdim=True).clamp_min(1), DENSE.T / DENSE.sum(dim=0)[:, None]]
    z = [F.relu(z[0] + mean[0] @ z[1]), F.relu(z[1] + mean[1] @ z[0])]
    scores, found = net(user_rows())
    torch.testing.assert_close(found, net.log_scale.exp() * (z[0] + mean[0] @ z[1]))
    torch.testing.assert_close(scores, found @ (z[1] + mean[1] @ z[0]).T + net.item_bias)


def user_rows(dense: torch.Tensor = DENSE) -> Rows:
    found = rows_of(dense)
    return Rows(found.indices, found.offsets, found.values, torch.arange(len(found)))


# The graph and its samples.


def test_the_graph_is_that_of_the_examples() -> None:
    small = PackedRows(np.arange(3), np.array([0, 2, 2, 3]), np.array([1, 4, 1], np.int32), np.ones(3, np.float32))
    graph = graph_of(small, 3, 5, "disengcn")
    assert graph["user"].indptr.tolist() == [0, 2, 2, 3] and graph["user"].indices.tolist() == [1, 4, 1]
    assert graph["item"].indptr.tolist() == [0, 0, 2, 2, 2, 3] and graph["item"].indices.tolist() == [0, 2, 0]
    assert graph["item"].degrees.tolist() == [0, 2, 0, 0, 1]
    assert not net_of(config()).graph.state_dict()  # no part of a checkpoint


def test_rows_read_from_files_are_the_rows_that_were_packed(tmp_path) -> None:
    whole = rows(700)
    found = read_rows(write_files(whole, tmp_path))
    order = np.argsort(found.ids)
    again = found.take(order)
    assert (again.ids == whole.ids).all() and (again.indptr == whole.indptr).all()
    assert (again.indices == whole.indices).all()


TABLE = torch.arange(30)
FIRST, LAST = torch.tensor([0, 2, 2, 20]), torch.tensor([2, 2, 20, 30])


def test_short_rows_are_whole_and_long_ones_have_as_many_entries_as_asked() -> None:
    found = sampled(TABLE, FIRST, LAST, 4)
    assert found.offsets.tolist() == [0, 2, 2, 6, 10]
    assert found.indices[:2].tolist() == [0, 1]
    assert (found.indices[2:6] >= 2).all() and (found.indices[2:6] < 20).all()
    assert found.row_of.tolist() == [0, 0, 2, 2, 2, 2, 3, 3, 3, 3]
    assert sampled(TABLE, FIRST, LAST, 18).indices.tolist() == TABLE.tolist()


def test_samples_depend_on_the_seed_alone() -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sampled(TABLE, FIRST, LAST, 4).indices.tolist())
    assert draws[0] == draws[1] != draws[2]


def test_sampled_means_are_unbiased_and_those_of_the_first_neighbours_or_of_the_degree_are_not() -> None:
    """Through the net, one round: the mean over many draws against the sum over all neighbours."""
    liked = torch.zeros(20, 9)
    liked[:, 0] = 1.0  # item 0 has 20 users, of whom a step sees 4
    liked[3, 1] = 1.0
    net = net_of(config(rounds=1, neighbours=4), packed(liked), 20, 9).train()
    items, graph = torch.tensor([0, 1]), net.neighbours("item")

    def convolved(found: Rows, ids: torch.Tensor = items) -> torch.Tensor:
        return net._convolved("item", ids, found, 1).detach()

    exact = convolved(graph.sample(items, 20))
    torch.testing.assert_close(exact, net._whole("item", entering(net))[:2])
    torch.manual_seed(1)
    many = items.repeat(3000)
    draws = convolved(graph.sample(many, 4), many).unflatten(0, (3000, 2))
    error = draws[:, 0].std(dim=0) / 3000**0.5
    assert ((draws[:, 0].mean(dim=0) - exact[0]).abs() / error).max() < 4.5
    torch.testing.assert_close(draws[:, 1].mean(dim=0), exact[1])  # a single neighbour: nothing is drawn
    first = graph.indices.long()[graph.indptr[0] :][:4]
    wrong = convolved(Rows(torch.cat([first, torch.tensor([3])]), torch.tensor([0, 4, 5]), torch.zeros(0)))
    assert ((wrong[0] - exact[0]).abs() / error).max() > 20
    own = net._entering("item", items, 1).detach()[0]
    by_degree = own + (draws[:, 0].mean(dim=0) - own) * 4 / 20  # what dividing by the degree would give
    assert ((by_degree - exact[0]).abs() / error).max() > 20


def entering(net: DisenGCN) -> dict[str, torch.Tensor]:
    return {side: net._channels(table.detach()) for side, table in net.own.items()}


def test_every_entry_is_drawn_equally_often() -> None:
    torch.manual_seed(1)
    ends = torch.full((6000,), 7)
    found = sampled(TABLE, ends * 0, ends, 3)
    counts = F.one_hot(found.indices, 7).view(6000, 3, 7).sum(dim=1).float()
    error = counts.std(dim=0) / 6000**0.5
    assert ((counts.mean(dim=0) - 3 / 7).abs() / error).max() < 4.5


def test_distinct_ones_and_their_places() -> None:
    found, places = distinct(torch.tensor([4, 1, 4, 0]), 6)
    assert found.tolist() == [0, 1, 4] and places.tolist() == [2, 1, 2, 0]


# Losses.


def test_the_softmax_is_over_the_items_with_edges() -> None:
    net = net_of(config()).eval()  # nothing is dropped, and 30 neighbours are all
    scores, _ = net(user_rows())
    expected = -(DENSE * scores.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(net.loss(user_rows(), 0.0)[:5], expected[:5])  # user 5 has an embedding and no edge


def test_bpr_compares_with_an_item_that_the_user_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of(config(loss="bpr")).eval()
    scores, _ = net(user_rows())
    drawn = []

    def draw(*given: Any) -> Any:
        drawn.append(module_draw(*given))
        return drawn[-1]

    module_draw = module.draw_negatives
    monkeypatch.setattr(module, "draw_negatives", draw)
    losses = net.loss(user_rows(), 0.0)
    negatives, found = drawn[0][0][:, 0], user_rows()
    assert not DENSE[found.row_of, negatives].any()
    differences = scores[found.row_of, found.indices] - scores[found.row_of, negatives]
    expected = torch.zeros(N).index_add_(0, found.row_of, F.softplus(-differences))
    torch.testing.assert_close(losses, expected)


def test_a_user_of_all_items_has_no_pair_to_compare() -> None:
    dense = DENSE.clone()
    dense[0] = 1.0
    losses = net_of(config(loss="bpr"), packed(dense)).loss(user_rows(dense), 0.0)
    assert losses[0] == 0 and torch.isfinite(losses).all() and (losses[1:5] > 0).all()


def test_candidates_are_those_of_the_batch_first_and_only_items_with_edges() -> None:
    dense = torch.zeros(3, 40)
    dense[0, [3, 5]], dense[1, 10:20], dense[2, 30:40] = 1.0, 1.0, 1.0
    net = net_of(config(candidates=12), packed(dense), 3, 40)
    first = user_rows(dense[:1])
    draws = [net.candidates(first).tolist() for _ in range(20)]
    assert all(len(set(found)) == 12 and {3, 5} <= set(found) and found == sorted(found) for found in draws)
    assert set().union(*draws) == {3, 5, *range(10, 20), *range(30, 40)}
    assert {len(set(net.candidates(user_rows(dense)).tolist())) for _ in range(5)} == {12}
    assert len(net_of(config(candidates=22), packed(dense), 3, 40).candidates(first)) == 22


def test_entries_among_candidates() -> None:
    found = among(user_rows(), torch.tensor([1, 3, 4]), M)
    assert found.offsets.tolist() == [0, 0, 3, 4, 6, 7, 7]
    assert found.indices.tolist() == [0, 1, 2, 0, 1, 2, 1]


def test_a_step_routes_edges_in_proportion_to_the_batch_whatever_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = []

    def counting(own: torch.Tensor, sources: torch.Tensor, found: Rows, *more: Any) -> torch.Tensor:
        routed.append(len(found.indices))
        return route(own, sources, found, *more)

    monkeypatch.setattr(module, "route", counting)
    random = np.random.default_rng(1)
    for n in (200, 2000):
        dense = torch.from_numpy((random.random((n, 300)) < 0.2).astype(np.float32))
        net = net_of(config(neighbours=5, candidates=50, layers=1), packed(dense), n, 300)
        routed.clear()
        net.loss(user_rows(dense[:20]), 0.0)
        assert sum(routed) <= 5 * (20 + 50)


# Serving.


def served(net: DisenGCN) -> dict[str, np.ndarray]:
    return DisenGCNModel(net.config, 1).learned(net, arrays_of(net), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [1, 2])
def test_stored_vectors_give_the_scores_of_the_net_and_fold_in_needs_the_items_alone(layers: int) -> None:
    net, model = net_of(config(layers=layers)).eval(), DisenGCNModel(config(layers=layers), 1)
    state = served(net)
    scores, found = net(user_rows())
    np.testing.assert_allclose(model.encoder(state)(packed())[0], found.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.numpy() @ state[ITEMS].T + state[BIAS], scores.numpy(), atol=1e-5)
    stored = {name: array for name, array in state.items() if name not in (OWN, ITEMS, BIAS)}
    saved = Saved(state[ITEMS], state[BIAS], np.ones(M, bool), stored)
    given = packed()
    vectors, _ = model.open(saved).fold_in((given.indptr, given.indices, given.values, given.values))
    stranger = to_tensors(PackedRows(np.full(N, 5), given.indptr, given.indices, given.values), "cpu")
    np.testing.assert_allclose(vectors, net(stranger)[1].numpy(), atol=1e-5)  # user 5 has no edge
    assert not np.allclose(vectors[0], found[0].numpy(), atol=1e-3) and not vectors[5].any()


def test_vectors_of_all_nodes_are_found_again_after_a_step() -> None:
    net = net_of(config()).eval()
    before = net.tables()
    assert net.tables() is before
    net.train().loss(user_rows(), 0.0).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert not torch.equal(net.eval().tables().item_vectors, before.item_vectors)


# Training.


def trained(group: Group, configured: DisenGCNConfig, folder: Any = None, on_progress: Any = print) -> Any:
    net = net_of(configured, rows(), 40, 12)
    feed = MemoryFeed(rows(), -(-configured.batch_size // group.size), 3, group.rank, group.size)
    saved = Checkpoints(str(folder)) if folder else None
    log = train(net, feed, configured, 3, group, None, saved, on_progress)
    return arrays_of(net), log


@pytest.mark.parametrize("changes", [{}, {"layers": 2}, {"unit_vectors": True}, {"loss": "bpr"}, {"channels": 1}])
def test_training_tells_two_tastes_apart_also_for_users_who_are_folded_in(changes: dict[str, Any]) -> None:
    configured = config(**({"epochs": 25, "batch_size": 20, "own_dropout": 0.5} | changes))
    net = net_of(configured, rows(), 60, 12)  # users 40 to 59 have no edge
    log = train(net, MemoryFeed(rows(), 10, 3), configured, 3, ALONE)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    whole = rows(60).take(np.arange(40, 60))
    assert validate(net, [fold_in_and_heldout(whole, 0.5, 1)], ALONE) > 0.6
    scores = net.eval()(to_tensors(whole, "cpu"))[0].numpy()
    own, other = scores[::2, :6].mean(), scores[::2, 6:].mean()
    assert own > other + 1.0


@pytest.mark.parametrize("layers", [1, 2])
def test_two_ranks_train_what_one_trains_on_the_joined_batches(layers: int) -> None:
    """Nothing is drawn: all neighbours, all items, nothing dropped."""
    plain = config(layers=layers)
    alone, log = trained(ALONE, plain)
    for state, theirs in in_processes(2, trained, plain):
        for name, array in alone.items():
            np.testing.assert_allclose(state[name], array, atol=2e-5, err_msg=name)
        for mine, other in zip(log, theirs, strict=True):
            assert other["loss"] == pytest.approx(mine["loss"], rel=1e-5)


def test_a_rank_without_rows_in_a_step_takes_part_in_it() -> None:
    configured = config(layers=2, loss="bpr", batch_size=2, neighbours=2, candidates=3)
    for _, log in in_processes(2, _of_three_users, configured):
        assert [entry["rows"] for entry in log] == [3, 3, 3]
        assert np.isfinite([entry["loss"] for entry in log]).all()


def _of_three_users(group: Group, configured: DisenGCNConfig) -> Any:
    net = net_of(configured, rows(3), 3, 12)
    return None, train(net, MemoryFeed(rows(3), 1, 3, group.rank, group.size), configured, 3, group)


@pytest.mark.parametrize("changes", [{}, {"loss": "bpr", "candidates": 8}])
def test_a_training_that_was_cut_short_goes_on_along_the_same_losses(changes: dict[str, Any], tmp_path) -> None:
    """Also where neighbours, candidates and what is dropped are drawn."""
    drawn = config(**({"epochs": 6, "batch_size": 10, "neighbours": 2, "dropout": 0.3, "own_dropout": 0.3} | changes))
    whole, log = trained(ALONE, drawn)
    with pytest.raises(Killed):
        trained(ALONE, drawn, tmp_path, killed_after(3))
    resumed, again = trained(ALONE, drawn, tmp_path)
    assert [entry["loss"] for entry in again] == pytest.approx([entry["loss"] for entry in log], rel=1e-5)
    for name, array in whole.items():
        np.testing.assert_allclose(resumed[name], array, atol=1e-5, err_msg=name)


# Bad input.


@pytest.mark.parametrize("given", [NO_ROWS, packed(torch.zeros(3, M))])
def test_a_graph_without_an_edge_is_an_error_of_one_line(given: PackedRows) -> None:
    with pytest.raises(TrainingError, match=r"graph of disengcn has no edge.*check preference\.positive_from") as error:
        net_of(config(), given)
    assert "\n" not in str(error.value)


def test_a_user_or_an_item_without_an_edge_has_a_defined_vector() -> None:
    lonely = DENSE.clone()
    lonely[:, 4] = 0.0
    net = net_of(config(), packed(lonely)).eval()
    scores, found = net(user_rows(lonely))
    assert torch.isfinite(scores).all() and not found[5].any()
    torch.testing.assert_close(net.tables().item_vectors[4], entering(net)["item"][4])
    assert net.item_bias[4] < net.item_bias[:4].min()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"channels": 4}, "channels=4 does not divide latent_dim=6: set latent_dim to a multiple"),
        ({"channels": 6, "unit_vectors": True}, "lower channels"),
        ({"hidden": (3,)}, "at most 0 items"),
        ({"neighbours": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**wrong)


def test_neighbours_follow_their_net_to_a_device() -> None:
    graph = graph_of(packed(), N, M, "disengcn")
    assert all(isinstance(each, Neighbours) for each in graph.values())
    assert {name.split(".")[-1] for name, _ in net_of(config()).named_buffers()} == {"indptr", "indices"}
