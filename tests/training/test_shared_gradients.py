"""Gradients averaged in shared memory: the mean at every rank and step, no file left, sockets where it cannot be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparkcf.models.nets.registry import build_net
from sparkcf.training import shared_gradients as module
from sparkcf.training.group import Group
from sparkcf.training.loop import BatchLoss, synchronised
from sparkcf.training.shared_gradients import shared_gradients
from tests.training.test_loop import SEED, M, config, in_processes

N = 11
BUCKETS = (7, 4)  # numbers in each


def gradient(rank: int, step: int, number: int) -> torch.Tensor:
    return torch.full((BUCKETS[number],), 100.0 * rank + 10 * step + number)


def averaged(group: Group, folder: str) -> dict[str, Any]:
    module.MEMORY = Path(folder)
    shared = shared_gradients(group, N)
    left = [path.name for path in Path(folder).glob("*")]
    means = []
    for step in range(5):
        for number in range(len(BUCKETS)):
            own = gradient(group.rank, step, number)
            bucket: Any = SimpleNamespace(index=lambda number=number: number, buffer=lambda own=own: own)
            means.append(shared.hook(None, bucket).value().tolist())
    return {"means": means, "left": left}


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_gets_the_mean_of_every_bucket_and_step(size: int, tmp_path: Path) -> None:
    expected = [
        torch.stack([gradient(rank, step, number) for rank in range(size)]).mean(dim=0).tolist()
        for step in range(5)
        for number in range(len(BUCKETS))
    ]
    for member in in_processes(size, averaged, str(tmp_path)):
        assert member["means"] == expected
    assert list(tmp_path.iterdir()) == []


def offered(group: Group, folder: str, n: int, elsewhere: int | None) -> bool:
    module.MEMORY = Path(folder)
    if group.rank == elsewhere:
        module._opened = lambda *_: None  # as on another machine, where no such file is
    return shared_gradients(group, n) is not None


@pytest.mark.parametrize(
    ("n", "elsewhere", "folder", "expected"),
    [(N, None, "", True), (N, 1, "", False), (N, 0, "", False), (2**57, None, "", False), (N, None, "none", False)],
    ids=["one machine", "a rank elsewhere", "the main rank elsewhere", "no room", "no shared memory"],
)
def test_memory_is_shared_by_all_or_none_and_leaves_no_file(
    n: int, elsewhere: int | None, folder: str, expected: bool, tmp_path: Path
) -> None:
    told = in_processes(2, offered, str(tmp_path / folder) if folder else str(tmp_path), n, elsewhere)
    assert told == [expected, expected]
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_token_or_none_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(4 * N) + b"one")
    assert module._opened(str(path), b"one".hex(), N) is not None
    assert module._opened(str(path), b"two".hex(), N) is None
    assert module._opened(str(tmp_path / "other"), b"one".hex(), N) is None


def gradients_of(group: Group, folder: str) -> list[list[float]]:
    module.MEMORY = Path(folder)
    net = build_net({"n_items": M}, config(), SEED)
    objective = synchronised(BatchLoss(net), group)
    random = torch.Generator().manual_seed(group.rank)
    found = []
    for _ in range(3):  # DDP lays its buckets out anew after the first
        objective.zero_grad(set_to_none=True)
        weights = torch.randn(sum(p.numel() for p in net.parameters()), generator=random)
        flat = torch.cat([p.ravel() for p in net.parameters()])
        objective.module.forward = lambda *_, flat=flat, weights=weights: (flat * weights).sum()
        objective(None, 0.0).backward()
        found.append(torch.cat([p.grad.ravel() for p in net.parameters()]).tolist())
    return found


def test_shared_memory_and_sockets_give_the_same_gradients(tmp_path: Path) -> None:
    shared, sockets = (in_processes(2, gradients_of, str(folder)) for folder in (tmp_path, tmp_path / "none"))
    assert shared[0] == shared[1]
    torch.testing.assert_close(torch.tensor(shared), torch.tensor(sockets))
