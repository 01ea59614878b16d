"""MacridVAE: epochs and quality beside RecBole's and Mult-VAE, what its concepts have of genres, processes, memory.

    python -m tests.bench.macridvae [--only epoch,quality,concepts,processes,memory] [--rounds N] [--quick]

Trained on the fixed q1 splits of ml-100k and ml-1m, where ../shared/data is. Settings were picked on the validation of
one seed, from eight and five trials; RecBole's figures on these splits come from 0 to 4. `--quick`: epochs on
small synthetic pairs, one round.
"""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import torch

from sparkcf.kernels.concepts import assignments, normalised_mutual_information
from sparkcf.kernels.vectors import unit_rows
from tests.bench import peers, quality
from tests.bench.report import Goal, print_table, run
from tests.bench.timing import Times, interleaved
from tests.bench.training import (
    EPOCHS,
    ITEM_COUNTS,
    MEASURES_SHOWN,
    SEEDS,
    catalogue,
    datasets,
    in_processes,
    peak_memory,
    seconds,
    test_measures,
    trained,
)

SPLITS = ("ml-100k-q1", "ml-1m-q1")
PAPER = {"concepts": 7, "latent_dim": 100, "hidden": (600,), "batch_size": 500}  # epochs are timed with RecBole's sizes
CHOSEN: dict[str, dict[str, Any]] = {
    "ml-100k-q1": {"batch_size": 100, "anneal_steps": 500, "dropout": 0.7, "temperature": 0.15, "patience": 20},
    "ml-1m-q1": {"batch_size": 100, "anneal_steps": 1000, "temperature": 0.15, "patience": 10},
}
PEER_SETTINGS: dict[str, Any] = {
    "hidden": [600],
    "latent": 100,
    "dropout": 0.5,
    "beta_cap": 0.2,
    "anneal_steps": 200_000,
    "batch": 500,
    "kfac": 7,
    "tau": 0.1,
    "std": 0.01,
}
GOALS = {"ml-100k-q1": (0.4490, 0.4661), "ml-1m-q1": (0.4022, 0.4305)}  # RecBole's, and the aim: our ALS
MULTVAE = {"ml-100k-q1": 0.4479, "ml-1m-q1": 0.4151}  # python -m tests.bench.nets --only quality
CONCEPT_SEEDS = (1, 2, 3, 4, 5)


def epochs(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    torch.set_num_threads(1)
    with peers.optional_neural(quick) as peer:
        for name, data in datasets(SPLITS, quick).items():
            systems: dict[str, Any] = {"sparkcf": lambda data=data: seconds("macridvae", data, **PAPER)}
            if peer:
                peer.model("macridvae", data, threads=1, **PEER_SETTINGS)
                systems["RecBole"] = lambda: [peer.epoch()["seconds"] for _ in range(EPOCHS)][1:]
            times: dict[str, Times] = interleaved(systems, rounds)
            table += [(name, system, time) for system, time in times.items()]
            if peer:
                ratio = times["sparkcf"].median / times["RecBole"].median
                goals.append(Goal(f"{name}: an epoch ÷ RecBole's", ratio, 0.7, at_least=False))
            else:
                goals.append(Goal(f"{name}: seconds an epoch", times["sparkcf"].median, 1e9, at_least=False))
    print("\nan epoch, batch 500, 7 concepts, [600], one thread")
    print_table(("data", "system", "seconds: median (least–greatest)"), table)


def qualities(rounds: int, quick: bool, goals: list[Goal]) -> None:
    torch.set_num_threads(2)
    table = []
    for split in SPLITS:
        nets = [trained(split, "macridvae", CHOSEN[split], seed)[0] for seed in SEEDS]
        found = [test_measures(split, net) for net in nets]
        means = [np.mean([each[measure] for each in found]) for measure in MEASURES_SHOWN]
        spread = np.std([each[MEASURES_SHOWN[0]] for each in found])
        table.append((split, "sparkcf MacridVAE", f"{means[0]:.4f} ± {spread:.4f}", *(f"{m:.4f}" for m in means[1:])))
        table.append((split, "RecBole MacridVAE, the goal", f"{GOALS[split][0]:.4f}", "", ""))
        table.append((split, "sparkcf Mult-VAE", f"{MULTVAE[split]:.4f}", "", ""))
        table.append((split, "sparkcf ALS, the aim", f"{GOALS[split][1]:.4f}", "", ""))
        goals.append(Goal(f"{split} NDCG@100", float(means[0]), GOALS[split][0]))
        goals.append(Goal(f"{split} NDCG@100 above Mult-VAE's", float(means[0]), MULTVAE[split]))
    print("\nquality on the test parts, 3 seeds")
    print_table(("split", "system", "NDCG@100", "NDCG@20", "Recall@20"), table)


def concepts(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """Mutual information of items' concepts with their genres, against shuffled concepts and between seeds."""
    torch.set_num_threads(2)
    table = []
    for name, split in (("ml-1m", "ml-1m-q1"), ("ml-100k", "ml-100k-q1")):
        genres = genres_of(name, quality.load(split)["items"])
        labels = []
        for seed in CONCEPT_SEEDS:
            net, _ = trained(split, "macridvae", CHOSEN[split] | {"epochs": 40}, seed)
            items, prototypes = (unit_rows(getattr(net, part).detach().numpy()) for part in ("items", "prototypes"))
            labels.append(assignments(items, prototypes, net.temperature).argmax(axis=1))  # type: ignore[arg-type]
        own = [with_genres(label, genres) for label in labels]
        random = np.random.default_rng(1)
        shuffled = [with_genres(random.permutation(label), genres) for label in labels]
        alike = [normalised_mutual_information(a, b) for i, a in enumerate(labels) for b in labels[:i]]
        table.append((name, *(f"{np.mean(x):.4f} ± {np.std(x):.4f}" for x in (own, shuffled, alike))))
        goals.append(
            Goal(f"{name}: information of concept and genre ÷ shuffled", np.mean(own) / np.mean(shuffled), 1.0)
        )
    print(f"\nnormalised mutual information, {len(CONCEPT_SEEDS)} seeds")
    print_table(("data", "concept and genre", "shuffled and genre", "stability: two seeds"), table)


def with_genres(labels: np.ndarray, genres: list[list[str]]) -> float:
    """Normalised mutual information over the (item, genre) pairs."""
    names = {name: number for number, name in enumerate(sorted({g for each in genres for g in each}))}
    at = [(labels[item], names[genre]) for item, each in enumerate(genres) for genre in each]
    return normalised_mutual_information(*np.array(at).T)


def genres_of(name: str, ids: np.ndarray) -> list[list[str]]:
    """Genres of the items of a split."""
    folder = quality.SPLITS.parent / name
    found: dict[str, list[str]] = {}
    if name == "ml-1m":
        with open(folder / "movies.dat", encoding="latin-1") as file:
            for line in file:
                item, _, genres = line.rstrip("\n").split("::")
                found[item] = genres.split("|")
    else:
        with open(folder / "u.item", encoding="latin-1") as file:
            for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE):
                found[row[0]] = [str(number) for number, flag in enumerate(row[5:]) if flag == "1"]
    return [found.get(str(item), []) for item in ids]


def processes(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    for name, data in list(datasets(SPLITS, quick).items())[-1:]:
        systems: dict[int, Any] = {
            n: lambda n=n, data=data: in_processes(n, "macridvae", data, **PAPER) for n in (1, 2)
        }
        times = interleaved(systems, rounds)
        table += [(name, n, time, f"{data.n_users / time.median:,.0f}") for n, time in times.items()]
        ratio = times[1].median / times[2].median
        goals.append(Goal(f"{name}: users/s of two processes ÷ one, batch 500 each", ratio, 1.5))
    print("\nprocesses of one thread each, batch 500 each")
    print_table(("data", "processes", "seconds an epoch", "users/s"), table)


def memory(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """Peak of a process against what its parameters need."""
    table = []
    for n_items in ITEM_COUNTS:
        data = catalogue(n_items)
        sizes = {"concepts": 7, "latent_dim": 100, "hidden": (100,), "batch_size": 100, "anneal_steps": 0}
        stated, peak = stated_mib(n_items), peak_memory("macridvae", data, **sizes)
        table.append((f"{n_items:,}", f"{stated:,.0f}", f"{peak:,.0f}"))
        goals.append(Goal(f"{n_items:,} items: peak MiB ÷ stated", peak / stated, 1.0, at_least=False))
    print("\nMiB of a process, d 100, [100], batch 100, 7 concepts: 5 blocks + 8 copies of (200 numbers an item) + 300")
    print_table(("items", "stated", "measured"), table)


def stated_mib(n_items: int) -> float:
    """Blocks of products, then parameters, gradients, moments, the best epoch and copies on their way."""
    from sparkcf.models.nets.blocks import BLOCK_NUMBERS

    blocks = 5 * min(BLOCK_NUMBERS, 100 * 7 * n_items) * 4
    return (blocks + 8 * 4 * n_items * (100 + 100)) / 2**20 + 300


MEASURES = {
    "epoch": epochs,
    "quality": qualities,
    "concepts": concepts,
    "processes": processes,
    "memory": memory,
}
QUICKLY = ("epoch",)


def main() -> None:
    run("macridvae", MEASURES, QUICKLY, __doc__, quality.SPLITS.is_dir())


if __name__ == "__main__":
    main()
