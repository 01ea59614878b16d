"""Factorization machines against myFM: quality, time a sweep, frappe; against explicit ALS; rows of size M and L.

    python -m tests.bench.fm [--only quality,sweep,frappe,als,size] [--rounds 3] [--quick]

quality: RMSE of ml-100k-q3 and ml-1m-q3, fitted on train and valid as myFM's figures are (the splits' README), with
and without side features, by both in the same run. sweep: ml-1m, rank 32, one thread each, in turns; then two workers
on local[2]. frappe: trained on the validation file, tested on the test file. als: two one-hot fields, the same problem.
size: ALS with two large and three small fields on synthetic rows. Needs ../shared/data; `--quick`: synthetic rows only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sparkcf.config.factorization import ALSConfig
from sparkcf.config.fm import FMConfig
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.models.als.fit import fit_arrays
from sparkcf.models.contract_data import FitRun, TrainingData
from sparkcf.models.fm.arrays import FMFit, entries_of, fit_fm_arrays
from sparkcf.models.fm.libfm import SparseRows, read_libfm
from sparkcf.models.fm.rows import Field, FMData, make_plan
from sparkcf.models.registry import model_of
from tests.bench import mllib, peers
from tests.bench.report import Goal, finish, print_table
from tests.bench.synthetic import QUICK, interactions
from tests.bench.timing import Times, interleaved

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SEEDS = (0, 1, 2)
FRAPPE = (("user", 957), ("item", 4082), ("daytime", 7), ("weekday", 7), ("isweekend", 2), ("homework", 3))
FRAPPE += (("cost", 2), ("weather", 9), ("country", 80), ("city", 233))
# Chosen on a tenth of the rows that are trained on here.
DESCENT: dict[str, dict[str, Any]] = {
    "regression": {"regularization": 1.0, "linear_regularization": 1.0, "init_sd": 0.05}
    | {"sgd": {"epochs": 12, "batch_size": 500, "learning_rate": 0.005}},
    "classification": {"regularization": 4.0, "linear_regularization": 1.0, "init_sd": 0.1}
    | {"sgd": {"epochs": 24, "batch_size": 200, "learning_rate": 0.001}},
}


@dataclass(frozen=True)
class Case:
    """Rows to train on and to test on, their fields, and what the values are clipped to."""

    train: FMData
    test: FMData
    fields: tuple[Field, ...]
    clip: tuple[float, float]

    @property
    def sizes(self) -> tuple[int, int]:
        return self.fields[0].size, self.fields[1].size

    def ours(self, config: FMConfig, seed: int, threads: int = 2) -> tuple[FMFit, np.ndarray]:
        fit = fit_fm_arrays(self.train, self.fields, *self.sizes, config, seed, threads)
        return fit, fit.predict(self.test)[0].clip(*self.clip)

    def theirs(self, peer: peers.MachinePeer, config: FMConfig, seed: int) -> tuple[list[float], np.ndarray]:
        plan = make_plan(config, self.fields, *self.sizes, 0, 1)
        arrays = {"train_y": self.train.y}
        for part, data in (("train", self.train), ("test", self.test)):
            (ptr, feat, val), _ = entries_of(data, plan)
            arrays |= {f"{part}_ptr": ptr, f"{part}_feat": feat, f"{part}_val": val}
        given = {"shapes": [f.size for f in self.fields], "rank": config.rank, "task": config.task, "seed": seed}
        answer = peer.ask("fm", arrays, iterations=config.iterations, burn_in=config.burn_in, **given)
        return answer["seconds"], peer.array("predicted").clip(*self.clip)


def mcmc(rank: int, iterations: int, **more: Any) -> FMConfig:
    """All sweeps after the burn-in are kept, as myFM keeps them."""
    return FMConfig(rank=rank, iterations=iterations, burn_in=min(20, iterations // 2), samples=iterations, **more)


def movielens(name: str, features: bool) -> Case:
    """The q3 split of ml-100k or ml-1m, with what is known of users and items where asked for."""
    with np.load(SHARED / "splits" / f"{name}-q3.npz", allow_pickle=False) as archive:
        split = {key: archive[key] for key in archive.files}
    fields = [Field("user", int(split["n_users"]), side=0), Field("item", int(split["n_items"]), side=1, of_item=True)]
    sides: list[tuple[int, list[list[str]], bool]] = []
    if features:
        users, items = attributes(name)
        for column in range(len(next(iter(users.values())))):
            sides.append((0, [[users[int(u)][column]] for u in split["users"]], False))
        sides.append((1, [items[int(i)] for i in split["items"]], True))
    known: list[tuple[int, list[list[int]]]] = []
    begin = 0
    for number, (side, values, several) in enumerate(sides):
        names = sorted({value for row in values for value in row})
        place = {value: begin + at for at, value in enumerate(names)}
        known.append((side, [[place[value] for value in row] for row in values]))
        fields.append(Field(f"side{number}", len(names), several, of_item=side == 1))
        begin += len(names)

    def rows(*parts: str) -> FMData:
        pairs = np.concatenate([split[part] for part in parts])
        y = np.concatenate([split[f"{part}_rating"] for part in parts])
        data = FMData.of_pairs(pairs[:, 0], pairs[:, 1], y)
        if not known:
            return data
        lists = [[feature for side, of in known for feature in of[row[side]]] for row in pairs]
        ptr = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
        feat = np.concatenate(lists).astype(np.int32)
        return replace(data, ptr=ptr, feat=feat, val=np.ones(len(feat), np.float32))

    return Case(rows("train", "valid"), rows("test"), tuple(fields), (1, 5))


def attributes(name: str) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Of every user age, gender and occupation; of every item its genres; by their ids."""
    folder = SHARED / name
    if name == "ml-1m":
        users = [line.split("::") for line in (folder / "users.dat").read_text("latin-1").splitlines()]
        items = [line.split("::") for line in (folder / "movies.dat").read_text("latin-1").splitlines()]
        of_user = {int(u[0]): [f"age {u[2]}", f"gender {u[1]}", f"job {u[3]}"] for u in users}
        return of_user, {int(i[0]): i[2].split("|") for i in items}
    users = [line.split("|") for line in (folder / "u.user").read_text("latin-1").splitlines()]
    items = [line.split("|") for line in (folder / "u.item").read_text("latin-1").splitlines()]
    of_user = {int(u[0]): [f"age {int(u[1]) // 10}", f"gender {u[2]}", f"job {u[3]}"] for u in users}
    return of_user, {int(i[0]): [f"genre {g}" for g, has in enumerate(i[5:]) if has == "1"] for i in items}


def rmse(predicted: np.ndarray, data: FMData, chosen: np.ndarray | slice = slice(None)) -> float:
    return float(np.sqrt(np.mean(np.square(predicted[chosen] - data.y[chosen], dtype=np.float64))))


def quality(peer: peers.MachinePeer | None, arguments: argparse.Namespace, goals: list[Goal]) -> None:
    table = []
    cases = [("ml-100k", 8, 300, False, SEEDS), ("ml-100k", 8, 300, True, SEEDS)]
    cases += [("ml-1m", 32, 150, False, (0,)), ("ml-1m", 32, 150, True, (0,))]
    few_by_features = {}
    for name, rank, iterations, features, seeds in cases:
        case, config = movielens(name, features), mcmc(rank, iterations)
        rated = np.bincount(case.train.items, minlength=case.sizes[1])
        few = rated[case.test.items] < 5
        found: dict[str, list[np.ndarray]] = {"sparkcf": [case.ours(config, seed)[1] for seed in seeds]}
        if peer:
            found["myFM"] = [case.theirs(peer, config, seed)[1] for seed in seeds]
        for system, predictions in found.items():
            whole = [rmse(p, case.test) for p in predictions]
            of_few = float(np.mean([rmse(p, case.test, few) for p in predictions]))
            figures = [f"{value:.4f}" for value in (np.mean(whole), np.std(whole), of_few)]
            table.append((name, rank, "yes" if features else "no", system, *figures, int(few.sum())))
            found[system] = [np.array(np.mean(whole)), np.array(of_few)]
        few_by_features[name, features] = float(found["sparkcf"][1])
        if peer:
            off = float(found["sparkcf"][0] - found["myFM"][0])
            label = f"{name}, rank {rank}, {'with' if features else 'without'} side features: RMSE less myFM's"
            goals.append(Goal(label, off, 0.0005 if name == "ml-1m" else 0.001, False))
    for name in ("ml-100k", "ml-1m"):
        gain = few_by_features[name, False] - few_by_features[name, True]
        goals.append(Goal(f"{name}: fall of RMSE by side features, items with fewer than 5 ratings", gain, 0.0))
    print("\nquality: MCMC, q3")
    print_table(
        ("data", "rank", "side features", "system", "RMSE", "sd", "RMSE of items with < 5 ratings", "rows"), table
    )


def sweep(peer: peers.MachinePeer | None, arguments: argparse.Namespace, goals: list[Goal]) -> None:
    """Seconds a sweep, one thread each; then the gang's."""
    case, sweeps = (synthetic(QUICK), 3) if arguments.quick else (movielens("ml-1m", False), 8)
    config = mcmc(8 if arguments.quick else 32, sweeps)
    systems: dict[str, Callable[[], Sequence[float]]] = {
        "sparkcf, one thread": lambda: [e["seconds"] for e in case.ours(config, 0, 1)[0].log[1:]],
    }
    if peer:
        systems["myFM, one thread"] = lambda: case.theirs(peer, config, 0)[0]
    with mllib.session() as spark:
        data = case.train
        columns = {"user_idx": data.users, "item_idx": data.items, "value": data.y}
        import pandas as pd

        pairs = spark.createDataFrame(pd.DataFrame(columns), "user_idx int, item_idx int, value float").persist()
        pairs.count()
        configured: Config = load_config((), ["ds=2024-01-31", "input.path=none", "model=fm"])
        configured = configured.model_copy(update={"fm": config})

        def by_workers() -> Sequence[float]:
            fit = model_of(configured).fit(TrainingData(pairs, *case.sizes), FitRun())
            fit.release()
            return [entry["seconds"] for entry in fit.log[1:]]

        systems["sparkcf, two workers on local[2]"] = by_workers
        systems["sparkcf, one thread"]()
        times: dict[str, Times] = interleaved(systems, arguments.rounds)
    print(f"\nsweep: MCMC, rank {config.rank}, {len(case.train.y):,} rows")
    print_table(("system", "seconds a sweep"), list(times.items()))
    if peer:
        theirs = times["myFM, one thread"].median
        goals.append(Goal("sparkcf ÷ myFM, one thread each", times["sparkcf, one thread"].median / theirs, 0.5, False))
        both = times["sparkcf, two workers on local[2]"].median
        goals.append(Goal("sparkcf with two workers ÷ myFM", both / theirs, 0.3, False))


def frappe(peer: peers.MachinePeer | None, arguments: argparse.Namespace, goals: list[Goal]) -> None:
    train, test = (read_libfm(SHARED / "frappe" / f"frappe.{part}.libfm.gz") for part in ("validation", "test"))
    fields = tuple(Field(n, size, side={"user": 0, "item": 1}.get(n), of_item=n == "item") for n, size in FRAPPE)
    table = []
    for task in ("regression", "classification"):
        clip = (-1.0, 1.0) if task == "regression" else (0.0, 1.0)
        case = Case(frappe_rows(train, task), frappe_rows(test, task), fields, clip)
        config = mcmc(32, 100, task=task)
        exact = {"learner": "als", "iterations": 10, "regularization": 25.0, "linear_regularization": 10.0}
        als = FMConfig.model_validate({"rank": 32, "task": task} | exact)
        sgd = FMConfig.model_validate({"rank": 32, "task": task, "learner": "sgd"} | DESCENT[task])
        found = {"sparkcf mcmc": case.ours(config, 0)[1]}
        found |= {"sparkcf als": case.ours(als, 0)[1], "sparkcf sgd": case.ours(sgd, 0)[1]}
        if peer:
            found["myFM mcmc"] = case.theirs(peer, config, 0)[1]
        figures = {system: figures_of(p, case.test.y, task) for system, p in found.items()}
        table += [(task, system, *(f"{v:.4f}" for v in values.values())) for system, values in figures.items()]
        if peer:
            for system, measure in product(found, figures["myFM mcmc"]):
                off = figures[system][measure] - figures["myFM mcmc"][measure]
                if system != "myFM mcmc" and np.isfinite(off):
                    better = measure == "AUC"
                    label = f"frappe {task}, {system}: {measure} less myFM's"
                    goals.append(Goal(label, off, -0.002 if better else 0.002, better))
    print("\nfrappe: trained on its validation rows, tested on its test rows")
    print_table(("task", "system", "RMSE", "AUC", "log-loss"), table)


def frappe_rows(rows: SparseRows, task: str) -> FMData:
    """User and item are the first two features of each row; the others stand everywhere."""
    feat = rows.feat.reshape(len(rows.y), len(FRAPPE))
    users, items = FRAPPE[0][1], FRAPPE[1][1]
    rest = np.ascontiguousarray(feat[:, 2:] - users - items, np.int32)
    ptr = np.arange(0, rest.size + 1, rest.shape[1], dtype=np.int64)
    y = rows.y if task == "regression" else (rows.y > 0).astype(np.float32)
    return FMData(feat[:, 0], feat[:, 1] - users, y, ptr, rest.ravel(), np.ones(rest.size, np.float32))


def figures_of(predicted: np.ndarray, y: np.ndarray, task: str) -> dict[str, float]:
    order = np.argsort(predicted, kind="stable")
    ranks = np.empty(len(y))
    ranks[order] = np.arange(1, len(y) + 1)
    good = y > 0
    area = (ranks[good].sum() - good.sum() * (good.sum() + 1) / 2) / (good.sum() * (~good).sum())
    error, lost = float(np.sqrt(np.mean(np.square(predicted - y)))), np.nan
    if task == "classification":
        likely = np.clip(predicted, 1e-6, 1 - 1e-6)
        error, lost = np.nan, float(-np.mean(np.where(good, np.log(likely), np.log(1 - likely))))
    return {"RMSE": error, "AUC": float(area), "log-loss": lost}


def als(peer: peers.MachinePeer | None, arguments: argparse.Namespace, goals: list[Goal]) -> None:
    """Two one-hot fields are explicit ALS with biases, the mean held: the same optimum, and the time of a sweep.

    So much regularisation that fewer than `rank` dimensions are left: then there is one optimum. With less, two starts
    end in two optima, on ml-1m 1e-4 apart at 10.
    """
    case = without_features(synthetic(QUICK)) if arguments.quick else movielens("ml-1m", False)
    rank, sweeps, regularization = (8, 40, 10.0) if arguments.quick else (32, 200, 25.0)
    data = case.train
    ours = FMConfig(
        learner="als", rank=rank, iterations=sweeps, intercept=False,
        regularization=regularization, linear_regularization=regularization,
    )  # fmt: skip
    twin = ALSConfig(
        mode="explicit", biases=True, rank=rank, iterations=sweeps, solver="cholesky", init_sd=0.1 * np.sqrt(rank),
        regularization=regularization, regularization_exponent=0.0,
    )  # fmt: skip
    logs: dict[str, Any] = {}

    def by_fm() -> Sequence[float]:
        logs["fm"] = case.ours(ours, 0)[0].log
        return [entry["seconds"] for entry in logs["fm"][1:]]

    def by_als() -> Sequence[float]:
        logs["als"] = fit_arrays(data.users, data.items, data.y, *case.sizes, twin, 0, 2).log
        return [entry["seconds"] for entry in logs["als"][1:]]

    times = interleaved({"fm by als": by_fm, "explicit als": by_als}, 1)
    print(f"\nals: two one-hot fields, rank {rank}, two threads")
    values = {name: logs[key][-1]["objective"] for name, key in (("fm by als", "fm"), ("explicit als", "als"))}
    print_table(("system", "seconds a sweep", "objective"), [(n, times[n], f"{values[n]:,.1f}") for n in times])
    goals.append(Goal("fm ÷ explicit als, a sweep", times["fm by als"].median / times["explicit als"].median, 2, False))
    off = abs(values["fm by als"] / values["explicit als"] - 1)
    goals.append(Goal("objectives apart by, relative", off, 1e-4 if not arguments.quick else 1e-2, False))


def synthetic(size: str) -> Case:
    """Pairs of a size with made-up values, and three fields of few values."""
    data, rng = interactions(size), np.random.default_rng(0)
    p, q = rng.normal(size=(data.n_users, 4)), rng.normal(size=(data.n_items, 4))
    small = (("hour", 24), ("weekday", 7), ("device", 5))
    n, begin, columns = len(data), 0, []
    for _, values in small:
        columns.append(begin + rng.integers(0, values, n))
        begin += values
    feat = np.stack(columns, axis=1).astype(np.int32)
    y = (3 + np.einsum("nk,nk->n", p[data.users], q[data.items]) / 2 + rng.normal(size=n)).astype(np.float32)
    ptr = np.arange(0, feat.size + 1, len(small), dtype=np.int64)
    rows = FMData(data.users, data.items, y, ptr, feat.ravel(), np.ones(feat.size, np.float32))
    fields = (Field("user", data.n_users, side=0), Field("item", data.n_items, side=1, of_item=True))
    fields += tuple(Field(name, values) for name, values in small)
    first = slice(0, min(n, 1_000))
    entries = (ptr[: first.stop + 1], feat[first].ravel(), np.ones(len(small) * first.stop, np.float32))
    few = FMData(data.users[first], data.items[first], y[first], *entries)
    return Case(rows, few, fields, (-np.inf, np.inf))


def without_features(case: Case) -> Case:
    train, test = (FMData.of_pairs(part.users, part.items, part.y) for part in (case.train, case.test))
    return Case(train, test, case.fields[:2], case.clip)


def size(peer: peers.MachinePeer | None, arguments: argparse.Namespace, goals: list[Goal]) -> None:
    """Cost of a row in an ALS sweep with two large fields and three small ones, two threads."""
    config = FMConfig(learner="als", rank=8 if arguments.quick else 32, iterations=3, regularization=10.0)
    costs, table = {}, []
    for name in [QUICK] if arguments.quick else ["M", "L"]:
        case = synthetic(name)
        log = case.ours(config, 0)[0].log
        seconds = float(np.median([entry["seconds"] for entry in log[1:]]))
        costs[name] = seconds / len(case.train.y)
        table.append((name, f"{len(case.train.y):,}", f"{seconds:.2f}", f"{costs[name] * 1e6:.2f}"))
    print(f"\nsize: ALS, rank {config.rank}, two fields of ids and three of few values")
    print_table(("size", "rows", "seconds a sweep", "µs a row"), table)
    if not arguments.quick:
        goals.append(Goal("cost of a row, L ÷ M", costs["L"] / costs["M"], 1.3, False))


MEASURES: dict[str, Callable[[peers.MachinePeer | None, argparse.Namespace, list[Goal]], None]] = {
    "sweep": sweep,
    "als": als,
    "frappe": frappe,
    "quality": quality,
    "size": size,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MEASURES), help="of %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - MEASURES.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(MEASURES)}")
    if arguments.quick:
        arguments.rounds = 1
        names = [name for name in names if name not in ("frappe", "quality")]
    goals: list[Goal] = []
    with peers.optional_machine(arguments.quick) as peer:
        for name in names:
            MEASURES[name](peer, arguments, goals)
    finish("fm", "quick" if arguments.quick else "real", goals)


if __name__ == "__main__":
    main()
