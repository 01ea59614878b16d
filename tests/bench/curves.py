"""Objectives against time: the solvers at high ranks, HALS, and non-negative factors against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.bench import peers
from tests.bench.setting import Findings, Setting, configured, on_arrays
from tests.bench.synthetic import Interactions, interactions

ML_1M = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ml-1m" / "ratings.parquet"
SWEEPS = 8
HEADERS = ("rank", "system", "seconds to the same objective", "sweep: objective at seconds")
SKLEARN = "scikit-learn cd"

Curve = list[tuple[float, float]]  # seconds since the first sweep began, objective


def curve_of(log: list[dict[str, Any]]) -> Curve:
    seconds = np.cumsum([entry["seconds"] for entry in log])
    return [(float(s), entry["objective"]) for s, entry in zip(seconds, log, strict=True)]


def taking_turns(runs: Mapping[str, Callable[[], Curve]], rounds: int) -> dict[str, Curve]:
    """A curve a system: its seconds are the medians over the rounds, its objectives the same in all of them."""
    turns = [{name: run() for name, run in runs.items()} for _ in range(rounds)]

    def median(name: str) -> Curve:
        seconds = np.median([[s for s, _ in turn[name]] for turn in turns], axis=0)
        return [(float(s), value) for s, (_, value) in zip(seconds, turns[0][name], strict=True)]

    return {name: median(name) for name in runs}


def sweep_seconds(curve: Curve) -> float:
    """The median sweep, the first left out."""
    return float(np.median(np.diff([seconds for seconds, _ in curve])))


def time_to(curve: Curve, target: float) -> float:
    """Seconds until the objective fell to the target, in a straight line between sweeps."""
    seconds, values = np.array([(0.0, np.inf), *curve]).T
    first = int(np.argmax(values <= target))
    if first == 1:
        return float(seconds[1])
    share = (values[first - 1] - target) / (values[first - 1] - values[first])
    return float(seconds[first - 1] + share * (seconds[first] - seconds[first - 1]))


def same_objective(curves: dict[str, Curve]) -> dict[str, float]:
    """Seconds by system to the lowest objective that all of them reach."""
    target = max(min(value for _, value in curve) for curve in curves.values())
    return {name: time_to(curve, target) for name, curve in curves.items()}


def curve_rows(label: Any, curves: dict[str, Curve]) -> list[Sequence[Any]]:
    """A row a system: its time to the common objective, and the curve at sweeps 1, 2, 4, 8, …"""
    reached = same_objective(curves)
    rows = []
    for name, curve in curves.items():
        shown = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < len(curve)] + [len(curve)]
        points = "  ".join(f"{n}: {curve[n - 1][1]:.6g} at {curve[n - 1][0]:.3g} s" for n in shown)
        rows.append((label, name, f"{reached[name]:.3g}", points))
    return rows


def warmed(config: Any) -> Any:
    """The configuration, its kernels compiled: in a curve the first sweep counts too."""
    two = np.array([0, 1], np.int32)
    on_arrays(Interactions(two, two, 2, 2), type(config)(**config.model_dump() | {"iterations": 1}))
    return config


def subspace(at: Setting, rank: int, found: Findings) -> None:
    """The three solvers of one objective, from the same start."""
    sweeps = at.sweeps if at.quick else SWEEPS
    configs = {solver: warmed(configured(rank, solver, sweeps)) for solver in ("cg", "cholesky", "subspace")}
    curves = ours_taking_turns(at, configs)
    found.rows += curve_rows(rank, curves)
    seconds = same_objective(curves)
    name = f"subspace ÷ Cholesky, time to the same objective, rank {rank}"
    found.ratio(name, seconds["subspace"], seconds["cholesky"], 1, False)


def hals(at: Setting, rank: int, found: Findings) -> None:
    """A sweep of HALS beside those of ALS, and their objectives against time."""
    configs = {name: warmed(configured(rank, name, at.sweeps)) for name in ("hals", "cg", "cholesky")}
    curves = ours_taking_turns(at, configs)
    found.rows += curve_rows(rank, curves)
    seconds = {name: sweep_seconds(curve) for name, curve in curves.items()}
    for other, goal in (("cg", 1.5), ("cholesky", 0.4)):
        found.ratio(f"HALS ÷ {other} sweep, rank {rank}", seconds["hals"], seconds[other], goal, False)


def ours_taking_turns(at: Setting, configs: Mapping[str, Any]) -> dict[str, Curve]:
    def run(config: Any) -> Curve:
        return curve_of(on_arrays(at.data, config).log)

    return taking_turns({name: partial(run, config) for name, config in configs.items()}, at.rounds)


def nmf(at: Setting, rank: int, found: Findings) -> None:
    """Non-negative factors of the whole matrix of zeros and ones, one thread each: scikit-learn's has no more."""
    sweeps = at.sweeps if at.quick else 4 * SWEEPS
    for case, data in ({"quick": at.data} if at.quick else {"S": interactions("S")} | movielens()).items():
        scale = np.sqrt(len(data) / (data.n_users * data.n_items) / rank)  # entries at the start: scikit-learn's own
        plain = {"form": "frobenius", "regularization": 0.0, "nonnegative": True, "init_sd": scale * np.sqrt(rank)}
        config = warmed(configured(rank, "hals", sweeps, **plain))
        runs = {"hals": partial(nmf_by_us, data, config)}
        if at.peer:
            at.peer.pairs(data)
            runs[SKLEARN] = partial(nmf_by_peer, at.peer, data, rank, scale, sweeps)
        curves = taking_turns(runs, at.rounds)
        if at.peer:
            seconds = same_objective(curves)
            name = f"HALS ÷ scikit-learn, time to the same objective, {case}, rank {rank}"
            found.ratio(name, seconds["hals"], seconds[SKLEARN], 0.5, False)
        found.rows += [(case, *row) for row in curve_rows(rank, curves)]
        if not at.peer:
            found.rows.append((case, rank, SKLEARN, peers.SKIPPED, ""))


def nmf_by_us(data: Interactions, config: Any) -> Curve:
    return curve_of(on_arrays(data, config, threads=1).log)


def nmf_by_peer(peer: peers.Peer, data: Interactions, rank: int, scale: float, sweeps: int) -> Curve:
    rng, shapes = np.random.default_rng(0), {"W": (data.n_users, rank), "H": (rank, data.n_items)}
    arrays = {name: scale * np.abs(rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    return [(seconds, value) for seconds, value in peer.ask("nmf", arrays, iterations=sweeps)["curve"]]


def movielens() -> dict[str, Interactions]:
    """MovieLens 1M, every rating a one, where it lies beside the checkout."""
    if not ML_1M.is_file():
        return {}
    table = pq.read_table(ML_1M)
    columns = (np.unique(table.column(name).to_numpy(), return_inverse=True) for name in table.column_names[:2])
    (users, user), (items, item) = columns
    return {"ml-1m": Interactions(user.astype(np.int32), item.astype(np.int32), len(users), len(items))}
