"""A measured value, as readers with and without Spark use it."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A measured value with its bounds and bootstrap replicates, if any: columns of `metrics`."""

    system: str
    metric: str
    k: int | None
    value: float
    lower: float | None
    upper: float | None
    users: int
    segment: str | None = None
    replicates: list[float] | None = None
