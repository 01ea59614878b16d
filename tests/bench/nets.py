"""Mult-VAE and Mult-DAE: epochs against RecBole's, the feed against memory, two processes, memory, quality.

    python -m tests.bench.nets [--only epoch,feed,processes,memory,prepare,quality] [--rounds N] [--quick]

`prepare` packs 20 M synthetic pairs. epoch, feed and processes train on the train part of ml-1m-q1; quality is measured
on the test parts, with what was picked on validation. `--quick`, and a machine without ../shared/data/splits: small
synthetic pairs, without prepare and quality.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparkcf.data.packed import PackedRows
from sparkcf.training.feed import PetastormFeed
from tests.bench import mllib, peers, quality
from tests.bench.report import Goal, print_table, run
from tests.bench.synthetic import QUICK, Interactions, interactions
from tests.bench.timing import Times, clock, interleaved
from tests.bench.training import EPOCHS, figure, in_processes, packed, pairs_of, seconds, seconds_from, write_files

SIZES: dict[str, dict[str, Any]] = {  # as Liang et al. (2018) have them
    "multvae": {"hidden": (600,), "latent_dim": 200},
    "multdae": {"hidden": (), "latent_dim": 200},
}
ROWS_A_USER = 100  # of the memory's measure

VAE: dict[str, Any] = {"hidden": (), "anneal_steps": 1500}
# Picked on validation NDCG@100; the goals are what the peers reach (the splits' README).
CHOSEN: dict[tuple[str, str], dict[str, Any]] = {
    ("ml-100k-q1", "multvae"): VAE | {"batch_size": 50, "latent_dim": 400, "dropout": 0.7, "anneal_cap": 0.1},
    ("ml-100k-q1", "multdae"): {"batch_size": 50, "weight_decay": 2e-5},
    ("ml-1m-q1", "multvae"): VAE | {"batch_size": 100, "dropout": 0.3, "anneal_cap": 0.2, "anneal_steps": 5000},
    ("ml-1m-q1", "multdae"): {"batch_size": 100, "latent_dim": 400, "weight_decay": 1e-5},
}
GOALS = {
    ("ml-100k-q1", "multvae"): 0.4428,
    ("ml-100k-q1", "multdae"): 0.4470,
    ("ml-1m-q1", "multvae"): 0.41,
    ("ml-1m-q1", "multdae"): 0.41,
}


def epochs(rounds: int, quick: bool, goals: list[Goal]) -> None:
    data = pairs(quick)
    table = []
    with peers.optional_neural(quick) as peer:
        for model in SIZES:
            systems: dict[str, Callable[[], Sequence[float]]] = {
                "sparkcf": lambda model=model: seconds(model, data, **SIZES[model])
            }
            if peer:
                width = SIZES[model] | {"hidden": list(SIZES[model]["hidden"])}
                peer.model(model, data, hidden=width["hidden"], latent=width["latent_dim"], threads=1)
                systems["RecBole"] = lambda: [peer.epoch()["seconds"] for _ in range(EPOCHS)][1:]
            torch.set_num_threads(1)
            times = interleaved(systems, rounds)
            table += [(model, name, time) for name, time in times.items()]
            if peer:
                ratio = times["sparkcf"].median / times["RecBole"].median
                goals.append(Goal(f"{model}: an epoch ÷ RecBole's", ratio, 0.7, at_least=False))
    print("\nan epoch over", f"{data.n_users:,} users, batch 500, one thread")
    print_table(("model", "system", "seconds: median (least–greatest)"), table)


def feeds(rounds: int, quick: bool, goals: list[Goal]) -> None:
    data = pairs(quick)
    torch.set_num_threads(1)
    rows, table = packed(data), []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(rows, Path(folder))
        for model in SIZES:
            systems = {
                "from memory": lambda model=model: seconds(model, data, **SIZES[model]),
                "by petastorm": lambda model=model: seconds_from(
                    model, PetastormFeed(files, "user_idx", 500, 1), data.n_items, **SIZES[model]
                ),
            }
            times: dict[str, Times] = interleaved(systems, rounds)
            table += [(model, name, time) for name, time in times.items()]
            ratio = times["by petastorm"].median / times["from memory"].median
            goals.append(Goal(f"{model}: training from the feed ÷ from memory", ratio, 1.1, at_least=False))
    print(f"\nan epoch over {data.n_users:,} users in {len(files)} files, one thread")
    print_table(("model", "feed", "seconds: median (least–greatest)"), table)


def processes(rounds: int, quick: bool, goals: list[Goal]) -> None:
    data = pairs(quick)
    table = []
    for model in SIZES:
        for name, batch in (("batch 500 together", (500, 250)), ("batch 500 each", (500, 500))):
            systems = {
                n: lambda n=n, batch=batch[n - 1], model=model: in_processes(
                    n, model, data, batch_size=batch, **SIZES[model]
                )
                for n in (1, 2)
            }
            times = interleaved(systems, rounds)
            table += [(model, name, n, time, f"{data.n_users / time.median:,.0f}") for n, time in times.items()]
            if name == "batch 500 each":
                ratio = times[1].median / times[2].median
                goals.append(Goal(f"{model}: users/s of two processes ÷ one, {name}", ratio, 1.6))
    print("\nprocesses of one thread each")
    print_table(("model", "batch", "processes", "seconds an epoch", "users/s"), table)


def memory(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """Peak memory of a process that trains on 1 M and on 4 M rows."""
    peaks, n_items = [], 5_000 if not quick else 200
    sizes = (1_000_000, 4_000_000) if not quick else (10_000, 40_000)
    context = multiprocessing.get_context("spawn")
    for nnz in sizes:
        with tempfile.TemporaryDirectory() as folder:
            random = np.random.default_rng(1)
            n = nnz // ROWS_A_USER
            ends = np.arange(0, nnz + 1, ROWS_A_USER)
            items = random.integers(0, n_items, nnz).astype(np.int32)
            rows = PackedRows(np.arange(n), ends, items, np.ones(nnz, np.float32))
            files = write_files(rows, Path(folder))
            answers = context.Queue()
            process = context.Process(target=_peak, args=(files, n_items, answers))
            process.start()
            peaks.append(answers.get(timeout=600))
            process.join(30)
    print("\npeak memory of a process, Mult-VAE")
    print_table(("rows", "MB"), [(f"{n:,}", f"{peak:,.0f}") for n, peak in zip(sizes, peaks, strict=True)])
    goals.append(Goal("memory of a process, four times the rows ÷ once", peaks[1] / peaks[0], 1.1, at_least=False))


def _peak(files: list[str], n_items: int, answers: Any) -> None:
    torch.set_num_threads(1)
    seconds_from("multvae", PetastormFeed(files, "user_idx", 500, 1), n_items, epochs=2, **SIZES["multvae"])
    answers.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def preparing(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """20 M pairs packed into rows of users, by a driver of 4 GB."""
    from sparkcf.config.load import load_config
    from sparkcf.data.packing import Packing
    from sparkcf.lake.tables import LakeTables

    large = interactions("L")
    with tempfile.TemporaryDirectory() as folder, mllib.session(memory="4g") as spark:
        frame = mllib.pairs_frame(spark, Path(folder, "pairs"), large)
        config = load_config((), ["ds=2024-01-31", "input.path=none", "model=multvae", f"lake.root={folder}/lake"])
        tables = LakeTables(spark, config.lake.root)
        tables.create("user_rows")
        spent = clock(lambda: Packing(tables, "bench", 42).rows(frame, "user", 0.1))
    print(f"\n{len(large):,} pairs packed in {spent:.0f} s, {len(large) / spent:,.0f} pairs/s")
    goals.append(Goal("seconds to pack 20 M pairs", spent * 20_000_000 / len(large), 300, at_least=False))


def qualities(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    torch.set_num_threads(2)
    for (split, model), chosen in CHOSEN.items():
        figures = [figure(split, model, SIZES[model] | chosen, seed) for seed in (1, 2, 3)]
        mean = float(np.mean(figures))
        table.append((split, model, f"{mean:.4f} ± {np.std(figures):.4f}", f"{GOALS[split, model]:.4f}", chosen))
        goals.append(Goal(f"{split} {model} NDCG@100", mean, GOALS[split, model]))
    print("\nquality on the test parts, 3 seeds")
    print_table(("split", "model", "NDCG@100", "peers", "picked on validation"), table)


def pairs(quick: bool) -> Interactions:
    """The pairs that are trained on."""
    return interactions(QUICK) if quick else pairs_of("ml-1m-q1")


MEASURES = {
    "epoch": epochs,
    "feed": feeds,
    "processes": processes,
    "memory": memory,
    "prepare": preparing,
    "quality": qualities,
}
QUICKLY = ("epoch", "feed", "processes", "memory")


def main() -> None:
    run("nets", MEASURES, QUICKLY, __doc__, quality.SPLITS.is_dir())


if __name__ == "__main__":
    main()
