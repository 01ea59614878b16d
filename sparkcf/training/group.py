"""The processes that train together: rank and size from the environment, as torchrun sets it; else one alone."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Group:
    """`rank` of `size` processes, and the device of this one. Every method is a collective."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums over the ranks, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def summing(self, value: torch.Tensor) -> Callable[[], float]:
        """The sum of a number over the ranks, on its way while other work is done; called, it is waited for."""
        total = value.detach().to(torch.float64, copy=True).reshape(1)
        if self.size == 1:
            return total.item
        under_way = dist.all_reduce(total, async_op=True)

        def waited() -> float:
            under_way.wait()
            return float(total.item())

        return waited

    def merge_rows(self, table: torch.Tensor, own: torch.Tensor) -> None:
        """Give every rank the rows of a table (n, k) that each rank owns.

        Parameters
        ----------
        table : changed in place. own : int64, this rank's rows, which no other rank owns.
        """
        if self.size == 1:
            return
        sent = table.new_zeros((len(table), table.shape[1] + 1))
        sent[own, :-1], sent[own, -1] = table[own], 1.0
        dist.all_reduce(sent)  # a sum with zeros: exact
        changed = sent[:, -1] > 0
        table[changed] = sent[changed, :-1]

    def from_main(self, value: int) -> int:
        """The main rank's value."""
        return int(self.sum(value if self.is_main else 0)[0])

    def first_of(self, text: str) -> str:
        """The first rank's text that is not empty."""
        if self.size == 1:
            return text
        data = torch.zeros(1024, dtype=torch.uint8)
        encoded = text.encode()[:1024]
        data[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else data[:0]
        texts = [torch.zeros_like(data, device=self.device) for _ in range(self.size)]
        dist.all_gather(texts, data.to(self.device))
        found = (bytes(t.cpu().tolist()).rstrip(b"\0").decode(errors="replace") for t in texts)
        return next((t for t in found if t), "")


def device_of(local_rank: int) -> torch.device:
    """The CUDA device of a process on its machine, where there is one, else the CPU."""
    count = torch.cuda.device_count()
    return torch.device("cuda", local_rank % count) if count else torch.device("cpu")


@contextmanager
def joined_from_environment(timeout_s: int, threads: int) -> Iterator[Group]:
    """The group that the environment names (RANK, WORLD_SIZE, LOCAL_RANK), left again whatever happens.

    nccl where every process has a CUDA device, gloo elsewhere. A peer silent for `timeout_s` is taken for dead.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(threads)
    device = device_of(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield Group(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=dt.timedelta(seconds=timeout_s))
    try:
        yield Group(rank, size, device)
    finally:
        dist.destroy_process_group()
