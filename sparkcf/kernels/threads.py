"""Work shared by the threads of a process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_threads(threads: int, work: Callable[[int], T]) -> list[T]:
    """Run work(0), …, work(threads - 1) in parallel; returns their results. Kernels and BLAS run without the GIL."""
    if threads == 1:
        return [work(0)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(threads)))
