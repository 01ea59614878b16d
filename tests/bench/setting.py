"""What the measures of `als` share: the data, the session, the peer; our fits on it; the objective of any factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparkcf.config.factorization import ALSConfig, HALSConfig
from sparkcf.models.als.fit import fit, fit_arrays
from tests.bench import mllib, peers
from tests.bench.report import Goal
from tests.bench.synthetic import Interactions

THREADS = 2
SEED = 1
# One model for all: plain confidence, some regularisation. Ours begin from the library's own small random factors,
# MLlib from its own of length 1. From such, and items first as MLlib's, ours go the same way as MLlib's within 0.1 %.
MODEL: dict[str, Any] = {"alpha": 1.0, "regularization": 0.01, "init_sd": 0.1, "timeout_s": 600}
SLICE = 1_000_000  # pairs that are scored at a time


@dataclass(frozen=True)
class Setting:
    """Where a measure runs. `rounds`: turns of each system; `sweeps`: in a turn."""

    data: Interactions
    spark: Any
    peer: peers.Peer | None
    folder: Path
    rounds: int
    sweeps: int
    quick: bool

    @cached_property
    def pairs(self) -> Any:
        """The data as a frame in memory."""
        return self.frame(self.data, "pairs")

    @cached_property
    def delta(self) -> str:
        """The data as a Delta table: its path."""
        path = str(self.folder / "delta")
        self.pairs.write.format("delta").save(path)
        return path

    def frame(self, data: Interactions, name: str) -> Any:
        frame = mllib.pairs_frame(self.spark, self.folder / name, data).persist()
        frame.count()
        return frame


@dataclass
class Findings:
    """A measure's rows of a table, and its goals."""

    rows: list[Sequence[Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def ratio(self, name: str, above: float, below: float, goal: float, at_least: bool) -> None:
        self.goals.append(Goal(name, above / below, goal, at_least))


@dataclass(frozen=True)
class Measure:
    """What can be asked for by name; `run` adds to the findings what it finds at one rank."""

    title: str
    headers: Sequence[str]
    ranks: Sequence[int]
    run: Callable[[Setting, int, Findings], None]


def configured(rank: int, solver: str, sweeps: int, **changes: Any) -> Any:
    """MODEL at a rank, by a solver of ALS or by "hals"."""
    settings = MODEL | {"rank": rank, "iterations": sweeps} | changes
    return HALSConfig(**settings) if solver == "hals" else ALSConfig(solver=solver, **settings)


def steady(log: list[dict[str, Any]]) -> list[float]:
    """Seconds of the sweeps, less the first where there are more: it may load or compile the kernel."""
    return [entry["seconds"] for entry in log][len(log) > 1 :]


def on_arrays(data: Interactions, config: Any, threads: int = THREADS) -> Any:
    return fit_arrays(data.users, data.items, data.values, data.n_users, data.n_items, config, SEED, threads)


def on_spark(frame: Any, data: Interactions, config: Any) -> list[dict[str, Any]]:
    """The log of a fit on Spark, whose factors are dropped."""
    fitted = fit(frame, data.n_users, data.n_items, config, SEED)
    fitted.release()
    return fitted.log


def objective_of(data: Interactions, user: np.ndarray, item: np.ndarray, config: ALSConfig) -> float:
    """The objective of any factors, whoever fitted them, from its formula; float64, all zeros by way of the Gramians.

    sum_{all u,i} s^2 + sum_{pairs} (c (1 - s)^2 - s^2) + lambda (sum_u n_u |p_u|^2 + sum_i n_i |q_i|^2)
    with c = 1 + alpha in form hu_koren; c = alpha, and every n 1, in form implicit.
    """
    plain = config.form == "implicit"
    confidence = config.alpha if plain else 1 + config.alpha
    user, item = user.astype(np.float64), item.astype(np.float64)
    total = float(np.sum((user.T @ user) * (item.T @ item)))
    for first in range(0, len(data), SLICE):
        part = slice(first, first + SLICE)
        score = np.einsum("nk,nk->n", user[data.users[part]], item[data.items[part]])
        total += float(np.sum(confidence * (1 - score) ** 2 - score**2))
    for rows, factors in ((data.users, user), (data.items, item)):
        counts = np.ones(len(factors)) if plain else np.bincount(rows, minlength=len(factors))
        total += config.regularization * float(np.einsum("n,nk,nk->", counts, factors, factors))
    return total
