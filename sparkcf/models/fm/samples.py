"""Samples of a factorization machine's parameters, and checkpoints: the parameters of now, the samples kept so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.training.blocks import row_ids
from sparkcf.training.gang import Gang
from sparkcf.training.saved_sweeps import SavedSweep, SavedSweeps

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Entry = dict[str, Any]


@dataclass
class Hyper:
    """A field's prior: precision lambda and mean mu of each of its k + 1 columns."""

    precision: F64
    mean: F64


@dataclass
class Sample:
    """One draw (or the optimum) of all parameters at a worker.

    own : by side, this worker's ids, float32 (n, k + 1); None if there is no field of these ids.
    everywhere : float32 (m, k + 1), the features held by every worker.
    hypers : the fields' priors.
    """

    w0: float
    noise_precision: float
    own: list[F32 | None]
    everywhere: F32
    hypers: list[Hyper]


def save(
    saved: SavedSweeps, now: Sample, samples: list[Sample], log: list[Entry], sizes: tuple[int, int], gang: Gang
) -> str | None:
    """Save a sweep; returns an error message if that failed. A collective.

    Parameters
    ----------
    now : the parameters after the last sweep of the log.
    sizes : users and items over all workers.
    """
    states = [now, *samples]
    own = []
    for side, n in enumerate(sizes):
        tables = [table for state in states if (table := state.own[side]) is not None]
        none = np.zeros((len(row_ids(n, gang.rank, gang.size)), 0), np.float32)  # no field has these ids
        own.append(np.concatenate(tables, axis=1) if tables else none)
    shared = {
        "w0": np.array([state.w0 for state in states]),
        "noise_precision": np.array([state.noise_precision for state in states]),
        "everywhere": np.stack([state.everywhere for state in states]),
        "precision": np.array([[hyper.precision for hyper in state.hypers] for state in states]),
        "mean": np.array([[hyper.mean for hyper in state.hypers] for state in states]),
    }
    return saved.save(gang, SavedSweep(own, log, shared))


def load(saved: SavedSweeps, sizes: tuple[int, int], width: int, gang: Gang) -> tuple[list[Sample], list[Entry]] | None:
    """The newest checkpoint: the parameters of its last sweep, the samples kept until then, and the log. A collective.

    Parameters
    ----------
    sizes : users and items over all workers.
    width : columns of a feature, k + 1.
    """
    newest = saved.load(gang, sizes, None)
    if newest is None:
        return None
    shared = newest.shared
    states = []
    for at, w0 in enumerate(shared["w0"]):
        columns = slice(at * width, (at + 1) * width)
        own: list[F32 | None] = [rows[:, columns].copy() if rows.shape[1] else None for rows in newest.factors]
        priors = zip(shared["precision"][at], shared["mean"][at], strict=True)
        hypers = [Hyper(precision.copy(), mean.copy()) for precision, mean in priors]
        states.append(
            Sample(float(w0), float(shared["noise_precision"][at]), own, shared["everywhere"][at].copy(), hypers)
        )
    return states, newest.log
