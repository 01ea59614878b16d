"""Gradients of processes on one machine, averaged through its shared memory instead of sockets: a hook of DDP.

    every rank's gradient ──▶ its own slot │ every rank adds up all slots, in the order of ranks

The bar is a barrier. Steps take turns with two sets of slots: a rank that writes to one has passed the barrier of the
step before, which all reach only when they have read what the set held.
"""

import os
import secrets
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from sparkcf.training.group import Group

MEMORY = Path("/dev/shm")
TOKEN = 16  # random bytes by which ranks know that they opened the same file
FLOAT = 4  # bytes
SETS = 2


class SharedGradients:
    """Slots float32 (2, ranks, n) in memory that all ranks of a group have mapped."""

    def __init__(self, memory: Tensor, group: Group) -> None:
        self.slots = memory.view(SETS, group.size, -1)
        self.group = group
        self.turn = 0
        self.filled = 0  # numbers of this step's buckets so far

    def hook(self, state: object, bucket: dist.GradBucket) -> Future[Tensor]:
        """DDP's communication hook: called with every bucket of gradients, in the same order at every rank."""
        gradient = bucket.buffer()
        if bucket.index() == 0:
            self.turn, self.filled = 1 - self.turn, 0
        begin, self.filled = self.filled, self.filled + len(gradient)
        self._average(gradient, self.slots[self.turn, :, begin : self.filled])
        done: Future[Tensor] = Future()
        done.set_result(gradient)
        return done

    def _average(self, gradient: Tensor, slots: Tensor) -> None:
        slots[self.group.rank].copy_(gradient)
        dist.barrier()
        torch.add(slots[0], slots[1], out=gradient)
        for slot in slots[2:]:
            gradient += slot
        gradient /= self.group.size


def shared_gradients(group: Group, n: int) -> SharedGradients | None:
    """Memory for gradients of n numbers; None where the ranks do not all share a machine's, or it has no room.

    The file that names the memory is gone when this returns.
    """
    token, length = secrets.token_bytes(TOKEN), SETS * group.size * n
    path = _created(token, length * FLOAT) if group.is_main else ""
    try:
        told = group.first_of(f"{path} {token.hex()}" if path else "")
        where, _, expected = told.partition(" ")
        memory = _opened(where, expected, length) if told else None
        everywhere = group.sum(float(memory is not None))[0] == group.size
    finally:
        if path:
            os.unlink(path)
    return SharedGradients(memory, group) if everywhere and memory is not None else None


def _created(token: bytes, size: int) -> str:
    """A file of so many bytes and the token behind them, or "" where shared memory cannot have it."""
    try:
        handle, path = tempfile.mkstemp(prefix="sparkcf-", dir=MEMORY)
    except OSError:
        return ""
    with os.fdopen(handle, "wb") as file:
        try:
            os.posix_fallocate(handle, 0, size + TOKEN)  # else writing to memory that is not there kills the process
        except OSError:
            os.unlink(path)
            return ""
        file.seek(size)
        file.write(token)
    return path


def _opened(path: str, token: str, length: int) -> Tensor | None:
    try:
        with open(path, "rb") as file:
            file.seek(length * FLOAT)
            if file.read().hex() != token:
                return None
        return torch.from_file(path, shared=True, size=length, dtype=torch.float32)
    except (OSError, RuntimeError):
        return None
