"""Process group of a training, and the device of each of its processes."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from sparkcf.training.gang import Meeting


@dataclass(frozen=True)
class Group:
    """A process's rank, the number of processes, and this process's device. Every method is a collective."""

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
        """Start to sum a number over the ranks; returns a function that waits for the sum and returns it."""
        total = value.detach().to(torch.float64, copy=True).reshape(1)
        if self.size == 1:
            return total.item
        pending = dist.all_reduce(total, async_op=True)

        def wait() -> float:
            pending.wait()
            return float(total.item())

        return wait

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

    def gather_rows(self, *tables: torch.Tensor) -> list[torch.Tensor]:
        """The rows of all ranks, in the order of ranks, of each table (n, …). The ranks' numbers of rows may differ."""
        if self.size == 1:
            return list(tables)
        own = torch.tensor([len(table) for table in tables], device=self.device)
        counts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(counts, own)
        gathered = []
        for table, lengths in zip(tables, torch.stack(counts, dim=1).tolist(), strict=True):
            sent = table.new_zeros((max(lengths), *table.shape[1:]))
            sent[: len(table)] = table
            parts = [torch.empty_like(sent) for _ in range(self.size)]
            if len(sent):
                dist.all_gather(parts, sent)
            gathered.append(torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]))
        return gathered

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
    """The CUDA device of a process by its local rank, or the CPU if there is no CUDA device."""
    count = torch.cuda.device_count()
    return torch.device("cuda", local_rank % count) if count else torch.device("cpu")


def from_environment() -> tuple[Meeting, torch.device]:
    """Rank, size and device as torchrun sets them in the environment; without them a single process."""
    rank, size, local_rank = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    return Meeting(rank, size), device_of(local_rank)


@contextmanager
def joined_group(meeting: Meeting, device: torch.device, timeout_s: int, threads: int) -> Iterator[Group]:
    """Join the group of the ranks that meet; leave it on exit, also after an error.

    Uses nccl on CUDA devices, gloo on CPUs. A peer that is silent for `timeout_s` counts as dead.
    """
    rank, size = meeting.rank, meeting.size
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield Group(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = dt.timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=meeting.store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield Group(rank, size, device)
    finally:
        dist.destroy_process_group()
