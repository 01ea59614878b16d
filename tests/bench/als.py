"""Speed of ALS: sweeps and whole fits against MLlib and implicit, by skew, by workers; objectives against time.

    python -m tests.bench.als [--size S|M|L] [--only NAME,…] [--ranks 64,128] [--rounds 3] [--sweeps 4]
                              [--cluster] [--quick]

All run with two threads, in turns. On Spark that is local[2], with a gang of two workers of one thread each; with
--cluster a Master and two Workers of one core. A sweep of ours includes the objective that it logs; MLlib's iteration
is the time between its jobs (see mllib.py), implicit's is what its own callback reports: neither computes a loss.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparkcf.kernels.random import normal_rows
from sparkcf.models.als.fit import fit
from tests.bench import cluster, curves, mllib, peers
from tests.bench.report import finish, print_table
from tests.bench.setting import (
    MODEL,
    SEED,
    THREADS,
    Findings,
    Measure,
    Setting,
    configured,
    objective_of,
    on_arrays,
    on_spark,
    steady,
)
from tests.bench.synthetic import QUICK, SIZES, Interactions, interactions
from tests.bench.timing import clock, interleaved

SECONDS = "seconds: median (least–greatest)"
MLLIB = {"alpha": MODEL["alpha"], "regParam": MODEL["regularization"]}
IMPLICIT = {"alpha": MODEL["alpha"], "regularization": MODEL["regularization"]}
SOLVERS = ("cg", "cholesky")
CG_STEPS = 3
SKEW_ROWS = 500_000  # at most: half as many users, and they cost more than the rows


def against_mllib(at: Setting, rank: int, found: Findings) -> None:
    """Sweeps in one session, and the objective after equally many."""
    data, objectives = at.data, {}
    configs = {s: configured(rank, s, at.sweeps, form="hu_koren", cg_steps=CG_STEPS) for s in SOLVERS}

    def judge(name: str, user: Any, item: Any) -> None:
        sides = (mllib.factors_array(side, n, rank) for side, n in ((user, data.n_users), (item, data.n_items)))
        objectives[name] = objective_of(data, *sides, configs["cg"])

    def theirs() -> list[float]:
        model, seconds = mllib.fit_timed(at.spark, at.pairs, mllib.als(rank, at.sweeps, **MLLIB))
        judge("MLlib", model.userFactors, model.itemFactors)
        return seconds

    def ours(solver: str) -> list[float]:
        fitted = fit(at.pairs, data.n_users, data.n_items, configs[solver], SEED)
        judge(solver, fitted.user_factors, fitted.item_factors)
        fitted.release()
        return steady(fitted.log)

    systems = {"MLlib": theirs} | {solver: partial(ours, solver) for solver in SOLVERS}
    times = interleaved(systems, at.rounds, {"MLlib": min(2, at.rounds)})
    found.rows += [(rank, name, seconds, f"{objectives[name]:.6g}") for name, seconds in times.items()]
    for solver, goals in (("cg", (5, 20)), ("cholesky", (1.5, 3))):
        goal = goals[rank >= 128]
        found.ratio(f"MLlib ÷ {solver} sweep, rank {rank}", times["MLlib"].median, times[solver].median, goal, True)
        name = f"{solver} objective ÷ MLlib's after {at.sweeps} sweeps, rank {rank}"
        found.ratio(name, objectives[solver], objectives["MLlib"], 1.001, False)


def whole_fit(at: Setting, rank: int, found: Findings) -> None:
    """From the Delta table to counted factors."""
    iterations = at.sweeps if at.quick else 10

    def table() -> Any:
        return at.spark.read.format("delta").load(at.delta)

    def ours(solver: str) -> None:
        config = configured(rank, solver, iterations, form="hu_koren", cg_steps=CG_STEPS)
        fitted = fit(table(), at.data.n_users, at.data.n_items, config, SEED)
        fitted.user_factors.count(), fitted.item_factors.count()
        fitted.release()

    def theirs() -> None:
        model = mllib.als(rank, iterations, **MLLIB).fit(table())
        model.userFactors.count(), model.itemFactors.count()

    runs = {"MLlib": theirs} | {solver: partial(ours, solver) for solver in SOLVERS}
    runs["cg"]()  # a warm session: Python workers started, kernels compiled, Delta's log read
    times = interleaved({name: lambda run=run: [clock(run)] for name, run in runs.items()}, at.rounds, {"MLlib": 1})
    found.rows += [(rank, name, seconds) for name, seconds in times.items()]
    name = f"MLlib ÷ ours (cg), fit of {iterations} iterations, rank {rank}"
    found.ratio(name, times["MLlib"].median, times["cg"].median, 5, True)


def against_implicit(at: Setting, rank: int, found: Findings) -> None:
    """The library for one machine: same start, same CG steps, same objective."""
    data, peer, objectives = at.data, at.peer, {}
    config = configured(rank, "cg", at.sweeps, form="implicit", cg_steps=CG_STEPS)

    def ours(name: str, run: Callable[[], list[dict[str, Any]]]) -> list[float]:
        log = run()
        objectives[name] = log[-1]["objective"]
        return steady(log)

    def theirs() -> list[float]:
        peer.als(*starts(data, rank), threads=THREADS, cg_steps=CG_STEPS, **IMPLICIT)
        return peer.ask("sweep", n=at.sweeps)["seconds"][at.sweeps > 1 :]

    runs = {"fit_arrays": lambda: on_arrays(data, config).log, "on Spark": lambda: on_spark(at.pairs, data, config)}
    systems = {name: partial(ours, name, run) for name, run in runs.items()}
    if peer:
        peer.pairs(data)
        systems["implicit"] = theirs
    times = interleaved(systems, at.rounds)
    if peer:
        objectives["implicit"] = objective_of(data, peer.array("user_factors"), peer.array("item_factors"), config)
        for name in runs:
            above, below = times[name].median, times["implicit"].median
            found.ratio(f"{name} ÷ implicit, sweep, rank {rank}", above, below, 0.85, False)
    found.rows += [(rank, name, seconds, f"{objectives[name]:.6g}") for name, seconds in times.items()]
    if not peer:
        found.rows.append((rank, "implicit", peers.SKIPPED, ""))


def starts(data: Interactions, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors that our fits begin from."""
    sd = MODEL["init_sd"] / np.sqrt(rank)
    user, item = (
        normal_rows(SEED, side, np.arange(n), rank, sd) for side, n in enumerate((data.n_users, data.n_items))
    )
    return user, item


def skew(at: Setting, rank: int, found: Findings) -> None:
    """Half of all rows are one item's; and as many rows, users and items without it."""
    cases = skewed_and_even(min(len(at.data), SKEW_ROWS), at.data.n_items)
    frames = {name: at.frame(data, f"{name}-{rank}") for name, data in cases.items()}
    for solver in SOLVERS:
        config = configured(rank, solver, at.sweeps)
        runs = {
            "fit_arrays": lambda name, config=config: on_arrays(cases[name], config).log,
            "on Spark": lambda name, config=config: on_spark(frames[name], cases[name], config),
        }
        systems = {(where, n): lambda run=run, n=n: steady(run(n)) for where, run in runs.items() for n in cases}
        times = interleaved(systems, at.rounds)
        found.rows += [(rank, solver, where, name, seconds) for (where, name), seconds in times.items()]
        for where in runs:
            above, below = times[where, "skewed"].median, times[where, "even"].median
            found.ratio(f"skewed ÷ even, {solver} {where}, rank {rank}", above, below, 1.5, False)
    for frame in frames.values():
        frame.unpersist()


def skewed_and_even(rows: int, n_items: int) -> dict[str, Interactions]:
    """Every user has item 0 and one other; or two others."""
    n_users = rows // 2
    rng = np.random.default_rng(0)
    users = np.tile(np.arange(n_users, dtype=np.int32), 2)
    first, step = rng.integers(1, n_items, n_users), rng.integers(1, n_items - 1, n_users)
    other = 1 + (first - 1 + step) % (n_items - 1)  # never the first
    pairs = {"skewed": np.zeros(n_users, np.int64), "even": other}
    return {
        name: Interactions(users, np.concatenate([first, column]).astype(np.int32), n_users, n_items)
        for name, column in pairs.items()
    }


def workers(at: Setting, rank: int, found: Findings) -> None:
    """A gang of one and of two, one thread each."""

    def run(solver: str, n: int) -> list[float]:
        return steady(on_spark(at.pairs, at.data, configured(rank, solver, at.sweeps, workers=n)))

    for solver in SOLVERS:
        times = interleaved({n: partial(run, solver, n) for n in (1, 2)}, at.rounds)
        found.rows += [(rank, solver, n, seconds) for n, seconds in times.items()]
        found.ratio(f"1 → 2 workers, {solver} sweep, rank {rank}", times[1].median, times[2].median, 1.6, True)


JUDGED = ("rank", "system", SECONDS, "objective")
MEASURES = {
    "mllib": Measure("sweeps of MLlib and ours on Spark", JUDGED, (64, 128), against_mllib),
    "fit": Measure("whole fits from a Delta table", ("rank", "system", SECONDS), (64,), whole_fit),
    "implicit": Measure(f"sweeps by CG of {CG_STEPS} steps", JUDGED, (64, 128, 256), against_implicit),
    "subspace": Measure("objective against time by solver", curves.HEADERS, (256, 512), curves.subspace),
    "hals": Measure("objective against time of HALS and ALS", curves.HEADERS, (256, 512), curves.hals),
    "nmf": Measure("non-negative factors, |X - P Q^T|^2 against time", ("data", *curves.HEADERS), (64,), curves.nmf),
    "skew": Measure("one item in half of the rows", ("rank", "solver", "where", "rows", SECONDS), (64,), skew),
    "workers": Measure("a gang of one and of two", ("rank", "solver", "workers", SECONDS), (64, 128), workers),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="M")
    parser.add_argument("--only", default=",".join(MEASURES), help="of %(default)s")
    parser.add_argument("--ranks", help="for all measures; each has its own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweeps", type=int, default=4, help="in one turn of a system")
    parser.add_argument("--cluster", action="store_true", help="a Master and two Workers instead of local[2]")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - MEASURES.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(MEASURES)}")
    if arguments.sweeps < 2:
        parser.error("--sweeps: at least 2, since the first is left out")
    size, rounds, sweeps = arguments.size, arguments.rounds, arguments.sweeps
    given = [int(rank) for rank in arguments.ranks.split(",")] if arguments.ranks else None
    if arguments.quick:
        size, rounds, sweeps, given = QUICK, 1, 2, [8]
    goals = []
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster.standalone(Path(folder)) if arguments.cluster else nullcontext("local[2]") as master,
        mllib.session(master) as spark,
        peers.optional(arguments.quick) as peer,
    ):
        at = Setting(interactions(size), spark, peer, Path(folder), rounds, sweeps, arguments.quick)
        print(f"{len(at.data):,} pairs of {at.data.n_users:,} users and {at.data.n_items:,} items on {master}")
        print(f"MLlib's BLAS: {mllib.blas_in_use(spark)}")
        for name in names:
            measure, found = MEASURES[name], Findings()
            for rank in given or measure.ranks:
                measure.run(at, rank, found)
            print(f"\n{name}: {measure.title}")
            print_table(measure.headers, found.rows)
            goals += found.goals
    finish("als", size, goals)


if __name__ == "__main__":
    main()
