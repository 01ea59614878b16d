"""Sparse gradients: LazyAdam against Adam and SparseAdam, clipping, and the exchange of rows between ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, SparseAdam

from sparkcf.training.group import Group
from sparkcf.training.sparse_gradients import LazyAdam, average, clip
from tests.training.test_loop import ALONE, in_processes

N, K = 5, 3


def table(seed: int = 1) -> nn.Parameter:
    return nn.Parameter(torch.randn(N, K, generator=torch.Generator().manual_seed(seed)))


def rows_of(step: int, rows: list[int]) -> torch.Tensor:
    """A sparse gradient of some rows, of which one may be named twice."""
    values = torch.randn(len(rows), K, generator=torch.Generator().manual_seed(10 + step))
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (N, K), check_invariants=False)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_gradient_of_all_rows_moves_them_as_adam_does(decay: float) -> None:
    plain, lazy, other = table(), table(), nn.Parameter(torch.ones(2))
    adam = Adam([plain], 0.1, weight_decay=decay, eps=0.01)
    optimizer = LazyAdam([lazy, other], 0.1, weight_decay=decay, eps=0.01, fused=True)
    for step in range(4):
        gradient = rows_of(step, [3, 1, 0, 2, 4, 1])
        plain.grad, lazy.grad, other.grad = gradient.to_dense(), gradient, torch.ones(2)
        average([lazy], ALONE)
        adam.step()
        optimizer.step()
        torch.testing.assert_close(lazy, plain)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[lazy][name], adam.state[plain][name])
    assert optimizer.state[lazy]["step"] == 4 and (other != 1).all()


def test_only_the_rows_of_the_gradient_move_as_by_sparse_adam() -> None:
    peer, lazy = table(), table()
    known, optimizer = SparseAdam([peer], 0.1), LazyAdam([lazy], 0.1)
    for step, rows in enumerate([[0, 2], [2], [4, 0, 4], [2, 4]]):
        before = lazy.detach().clone()
        peer.grad, lazy.grad = rows_of(step, rows), rows_of(step, rows)
        average([lazy], ALONE)
        known.step()
        optimizer.step()
        torch.testing.assert_close(lazy, peer)
        rested = [row for row in range(N) if row not in rows]
        assert torch.equal(lazy[rested], before[rested])
        assert (lazy[rows] != before[rows]).all()
    assert not optimizer.state[lazy]["exp_avg"][[1, 3]].any()


def test_the_weight_decay_of_a_row_rests_with_it() -> None:
    lazy = table()
    before = lazy.detach().clone()
    optimizer = LazyAdam([lazy], 0.1, weight_decay=1.0)
    lazy.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.zeros(1, K), (N, K), check_invariants=False)
    average([lazy], ALONE)
    optimizer.step()
    assert torch.equal(lazy[[0, 2, 3, 4]], before[[0, 2, 3, 4]])
    torch.testing.assert_close(lazy[1], before[1] - 0.1 * before[1].sign())


@pytest.mark.parametrize("most", [0.5, 100.0])
def test_sparse_and_dense_gradients_are_clipped_by_their_common_norm(most: float) -> None:
    plain, lazy, others = table(), table(), [nn.Parameter(torch.ones(4)) for _ in range(2)]
    lazy.grad = rows_of(1, [0, 3, 0])
    plain.grad = lazy.grad.to_dense()
    for other in others:
        other.grad = torch.arange(4.0)
    average([lazy], ALONE)
    nn.utils.clip_grad_norm_([plain, others[0]], most)
    clip([lazy, others[1]], most)
    torch.testing.assert_close(lazy.grad.to_dense(), plain.grad)
    assert torch.equal(others[1].grad, others[0].grad)  # type: ignore[arg-type]


PARTS = ([0, 3, 0], [3, 4])  # rows of each rank


def averaged(group: Group, parts: Any) -> dict[str, Any]:
    lazy = table()
    lazy.grad = rows_of(group.rank, parts[group.rank])
    average([lazy], group)
    return {"rows": lazy.grad.indices()[0].tolist(), "values": lazy.grad.values().tolist()}


@pytest.mark.parametrize("parts", [PARTS, ([1], []), ([], [])], ids=["shared rows", "a rank without", "no rows"])
def test_every_rank_has_the_mean_of_all_ranks_rows_each_once(parts: Any) -> None:
    one, two = in_processes(2, averaged, parts)
    assert one == two
    assert one["rows"] == sorted({row for part in parts for row in part})  # as many as were sent, whatever N
    expected = sum(rows_of(rank, part).to_dense() for rank, part in enumerate(parts)) / 2
    torch.testing.assert_close(torch.tensor(one["values"]).view(-1, K), expected[one["rows"]])
