"""Times of systems that take turns on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Times:
    """Seconds of one system over the rounds: shown as the median, and the least and greatest in brackets."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({min(self.seconds):.3g}–{max(self.seconds):.3g})"


def clock(action: Callable[[], Any]) -> float:
    """Seconds that an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def interleaved(
    systems: Mapping[Name, Callable[[], Sequence[float]]], rounds: int, less: Mapping[Name, int] | None = None
) -> dict[Name, Times]:
    """Let the systems take turns, so that whatever else the machine does falls on all of them.

    Parameters
    ----------
    systems : by name, one turn: it returns its seconds, one figure or one for each sweep.
    less : rounds of those that are too slow for all.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in systems}
    for turn in range(rounds):
        for name, run in systems.items():
            if turn < (less or {}).get(name, rounds):
                seconds[name] += run()
    return {name: Times(tuple(figures)) for name, figures in seconds.items()}
