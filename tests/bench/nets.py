"""Mult-VAE and Mult-DAE: epochs against RecBole's, the feed against memory, two processes, memory, quality.

    python -m tests.bench.nets [--only epoch,feed,processes,memory,prepare,quality] [--rounds N] [--quick]

`prepare` packs 20 M synthetic pairs. epoch, feed and processes train on the train part of ml-1m-q1, where
../shared/data/splits is, else on synthetic pairs; quality is measured on the test parts, with what was picked on
validation. `--quick`: small synthetic pairs, one round, without prepare and quality.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sparkcf.config.models import MultDAEConfig, MultVAEConfig
from sparkcf.data.packed import PackedRows
from sparkcf.data.packing import EVEN_FILES, LEAST_ROWS
from sparkcf.kernels.metrics import ranking_measures
from sparkcf.models.nets.registry import build_net
from sparkcf.training.feed import MemoryFeed, PetastormFeed
from sparkcf.training.group import Group, joined_from_environment
from sparkcf.training.loop import to_tensors, train
from tests.bench import mllib, peers, quality
from tests.bench.report import Goal, finish, print_table
from tests.bench.synthetic import QUICK, Interactions, interactions
from tests.bench.timing import Times, clock, interleaved

ALONE = Group(0, 1, torch.device("cpu"))
EPOCHS = 4  # a turn, of which the first is left out: it warms up
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


def section(model: str, **changes: Any) -> MultVAEConfig | MultDAEConfig:
    kind = MultVAEConfig if model == "multvae" else MultDAEConfig
    return kind(**(SIZES[model] | {"epochs": EPOCHS, "patience": 0, "batch_size": 500} | changes))


def packed(data: Interactions) -> PackedRows:
    rows = quality.rows(np.column_stack([data.users, data.items]), data.n_users, data.n_items)
    return PackedRows(np.arange(data.n_users), *rows)


def write_files(rows: PackedRows, folder: Path) -> list[str]:
    """The rows as the prepare job lays them down: dealt by index to files of one row group."""
    written, files = [], min(-(-len(rows) // LEAST_ROWS), EVEN_FILES)
    for number in range(files):
        part = rows.take(np.arange(number, len(rows), files))
        ends = part.indptr
        columns = {
            "user_idx": pa.array(part.ids.astype(np.int32)),
            "items": [part.indices[a:b].tobytes() for a, b in pairwise(ends)],
            "values": [part.values[a:b].tobytes() for a, b in pairwise(ends)],
        }
        path = folder / f"part-{number:03}.parquet"
        pq.write_table(pa.table(columns), path)
        written.append(path.as_uri())
    return written


def seconds(model: str, feed: Any, n_items: int, group: Group = ALONE, **changes: Any) -> list[float]:
    """Of the epochs of one training, without the first."""
    config = section(model, **changes)
    log = train(build_net({"n_items": n_items}, config, 1), feed, config, 1, group)
    return [entry["seconds"] for entry in log[1:]]


def epochs(data: Interactions, rounds: int, quick: bool, goals: list[Goal]) -> None:
    rows = packed(data)
    table = []
    with peers.optional_neural(quick) as peer:
        for model in SIZES:
            systems: dict[str, Callable[[], Sequence[float]]] = {
                "sparkcf": lambda model=model: seconds(model, MemoryFeed(rows, 500, 1), data.n_items)
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


def feeds(data: Interactions, rounds: int, quick: bool, goals: list[Goal]) -> None:
    torch.set_num_threads(1)
    rows, table = packed(data), []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(rows, Path(folder))
        for model in SIZES:
            systems = {
                "from memory": lambda model=model: seconds(model, MemoryFeed(rows, 500, 1), data.n_items),
                "by petastorm": lambda model=model: seconds(
                    model, PetastormFeed(files, "user_idx", 500, 1), data.n_items
                ),
            }
            times: dict[str, Times] = interleaved(systems, rounds)
            table += [(model, name, time) for name, time in times.items()]
            ratio = times["by petastorm"].median / times["from memory"].median
            goals.append(Goal(f"{model}: training from the feed ÷ from memory", ratio, 1.1, at_least=False))
    print(f"\nan epoch over {data.n_users:,} users in {len(files)} files, one thread")
    print_table(("model", "feed", "seconds: median (least–greatest)"), table)


def processes(data: Interactions, rounds: int, quick: bool, goals: list[Goal]) -> None:
    rows, table = packed(data), []
    for model in SIZES:
        for name, batch in (("batch 500 together", (500, 250)), ("batch 500 each", (500, 500))):
            systems = {
                n: lambda n=n, batch=batch[n - 1], model=model: in_processes(n, model, rows, batch, data.n_items)
                for n in (1, 2)
            }
            times = interleaved(systems, rounds)
            table += [(model, name, n, time, f"{data.n_users / time.median:,.0f}") for n, time in times.items()]
            if name == "batch 500 each":
                ratio = times[1].median / times[2].median
                goals.append(Goal(f"{model}: users/s of two processes ÷ one, {name}", ratio, 1.6))
    print("\nprocesses of one thread each")
    print_table(("model", "batch", "processes", "seconds an epoch", "users/s"), table)


def in_processes(size: int, model: str, rows: PackedRows, batch: int, n_items: int) -> list[float]:
    """Seconds of epochs that so many processes train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    given = (model, rows, batch, n_items)
    members = [context.Process(target=_member, args=(r, size, port, answers, *given)) for r in range(size)]
    for member in members:
        member.start()
    found = [answers.get(timeout=600) for _ in members]
    for member in members:
        member.join(30)
    return found[0]


def _member(rank: int, size: int, port: int, answers: Any, model: str, rows: PackedRows, batch: int, m: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined_from_environment(60, 1) as group:
        answers.put(seconds(model, MemoryFeed(rows, batch, 1, rank, size), m, group))


def memory(data: Interactions, rounds: int, quick: bool, goals: list[Goal]) -> None:
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
    seconds("multvae", PetastormFeed(files, "user_idx", 500, 1), n_items, epochs=2)
    answers.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def preparing(data: Interactions, rounds: int, quick: bool, goals: list[Goal]) -> None:
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


def qualities(data: Interactions, rounds: int, quick: bool, goals: list[Goal]) -> None:
    if not quality.SPLITS.is_dir():
        print(f"\nquality: {quality.SPLITS} is not here: nothing can be measured")
        return
    table = []
    torch.set_num_threads(2)
    for (split, model), chosen in CHOSEN.items():
        figures = [figure(split, model, chosen, seed) for seed in (1, 2, 3)]
        mean = float(np.mean(figures))
        table.append((split, model, f"{mean:.4f} ± {np.std(figures):.4f}", f"{GOALS[split, model]:.4f}", chosen))
        goals.append(Goal(f"{split} {model} NDCG@100", mean, GOALS[split, model]))
    print("\nquality on the test parts, 3 seeds")
    print_table(("split", "model", "NDCG@100", "peers", "picked on validation"), table)


def figure(split: str, model: str, chosen: dict[str, Any], seed: int) -> float:
    """NDCG@100 of the test users, of the epoch that validation users like best."""
    archive = quality.load(split)
    n_items, n = int(archive["n_items"]), len(archive["train_users"])
    config = section(model, **({"epochs": 200, "patience": 15} | chosen))
    rows = PackedRows(np.arange(n), *quality.rows(archive["train"], n, n_items))
    net = build_net({"n_items": n_items}, config, seed)

    def part(name: str) -> tuple[PackedRows, PackedRows]:
        known, heldout = quality.parts(archive, name)
        ids = np.arange(len(known[0]) - 1)
        return PackedRows(ids, *known), PackedRows(ids, *heldout)

    def validation() -> Iterator[tuple[PackedRows, PackedRows]]:
        yield part("valid")

    train(net, MemoryFeed(rows, config.batch_size, seed), config, seed, ALONE, validation)
    known, heldout = part("test")
    tensors = to_tensors(known, "cpu")
    with torch.inference_mode():
        logits = net.eval()(tensors)[0]
        logits[tensors.row_of, tensors.indices] = -torch.inf
        ranked = logits.topk(100, dim=1).indices.int().numpy()
    names, values = ranking_measures(ranked, heldout.indptr, heldout.indices, (100,))
    return float(np.nanmean(values[:, names.index(("ndcg_at_k", 100))]))


MEASURES = {
    "epoch": epochs,
    "feed": feeds,
    "processes": processes,
    "memory": memory,
    "prepare": preparing,
    "quality": qualities,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="real", help="ignored: the data are real where they are here")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(MEASURES):
        sys.exit(f"nets: --only {','.join(sorted(unknown))}: known are {', '.join(MEASURES)}")
    if arguments.quick:
        wanted = [name for name in wanted if name not in ("prepare", "quality")]
    goals: list[Goal] = []
    data = pairs(arguments.quick)
    for name in wanted:
        MEASURES[name](data, 1 if arguments.quick else arguments.rounds, arguments.quick, goals)
    finish("nets", "quick" if arguments.quick else "real", goals)


def pairs(quick: bool) -> Interactions:
    """The pairs that are trained on."""
    if quick or not quality.SPLITS.is_dir():
        return interactions(QUICK if quick else "S")
    archive = quality.load("ml-1m-q1")
    users, items = (archive["train"][:, column].astype(np.int32) for column in (0, 1))
    return Interactions(users, items, len(archive["train_users"]), int(archive["n_items"]))


if __name__ == "__main__":
    main()
