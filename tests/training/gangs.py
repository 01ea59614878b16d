"""A gang of threads in this process: what several workers do together, without Spark or sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import numpy as np

from sparkcf.errors import TrainingError
from sparkcf.training.blocks import NO_WEIGHTS, Parts
from sparkcf.training.gang import Gang

T = TypeVar("T")


class ThreadGang:
    """One worker of a gang whose workers are threads."""

    def __init__(self, rank: int, size: int, barrier: Barrier, board: list[Any]) -> None:
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def sum(self, array: np.ndarray) -> np.ndarray:
        return np.sum(self._all(array), axis=0, dtype=array.dtype)

    def exchange(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [theirs[self.rank].copy() for theirs in self._all(parts)]

    def gather(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(self.exchange(parts))

    def report(self, message: dict[str, Any]) -> None:
        pass

    def _all(self, mine: Any) -> list[Any]:
        self._board[self.rank] = mine
        self._barrier.wait()
        everyone = list(self._board)
        self._barrier.wait()
        return everyone


def in_gang(size: int, work: Callable[[Gang], T]) -> list[T]:
    """What `work` returns at each of the workers."""
    barrier, board = Barrier(size, timeout=60), [None] * size

    def begin(rank: int) -> T:
        try:
            return work(ThreadGang(rank, size, barrier, board))
        except TrainingError:  # raised by all workers at once
            raise
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(begin, range(size)))


def parts_of(
    users: np.ndarray,
    items: np.ndarray,
    gang: Gang,
    values: np.ndarray | None = None,
    weights: np.ndarray = NO_WEIGHTS,
) -> Parts:
    """What the shuffle brings to a worker of these pairs."""
    values = np.ones(len(users), np.float32) if values is None else values.astype(np.float32)
    triples = []
    for row, col in ((users, items), (items, users)):
        here = row % gang.size == gang.rank
        triples.append(
            (
                (row[here] // gang.size).astype(np.int32),
                col[here].astype(np.int32),
                values[here],
                weights[here] if len(weights) else weights,
            )
        )
    return Parts(triples, [None, None])
