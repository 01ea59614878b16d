"""DDP communication hook: averages the gradients of processes on one machine through shared memory, not sockets.

    every rank's gradient ──▶ its own slot │ every rank adds up all slots, in the order of ranks

The bar is a barrier. Steps alternate between two sets of slots. A rank that writes to a set has passed the barrier of
the previous step, which every rank reaches only after it has read that set.
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
TOKEN = 16  # random bytes by which a rank checks that it opened the right file
FLOAT = 4  # bytes
SETS = 2


class SharedGradients:
    """Gradient slots, float32 (2, ranks, n), in memory that all ranks of a group have mapped."""

    def __init__(self, memory: Tensor, group: Group) -> None:
        self.slots = memory.view(SETS, group.size, -1)
        self.group = group
        self.turn = 0
        self.filled = 0  # gradient entries of this step so far

    def hook(self, state: object, bucket: dist.GradBucket) -> Future[Tensor]:
        """Average a bucket of gradients; DDP calls it in the same order at every rank."""
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
    """Shared memory for n gradient entries; None if the ranks are on several machines or the memory is too small.

    The file behind the memory is deleted before this returns.
    """
    token, length = secrets.token_bytes(TOKEN), SETS * group.size * n
    path = _created(token, length * FLOAT) if group.is_main else ""
    try:
        message = group.first_of(f"{path} {token.hex()}" if path else "")
        main_path, _, main_token = message.partition(" ")
        memory = _opened(main_path, main_token, length) if message else None
        all_opened = group.sum(float(memory is not None))[0] == group.size
    finally:
        if path:
            os.unlink(path)
    return SharedGradients(memory, group) if all_opened and memory is not None else None


def _created(token: bytes, size: int) -> str:
    """Path of a new file of `size` bytes followed by the token, or "" if shared memory has no room."""
    try:
        handle, path = tempfile.mkstemp(prefix="sparkcf-", dir=MEMORY)
    except OSError:
        return ""
    with os.fdopen(handle, "wb") as file:
        try:
            os.posix_fallocate(handle, 0, size + TOKEN)  # without it, a write beyond free memory kills the process
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
