"""DisenGCN: quality beside one channel, Mult-VAE and ALS; seconds of an epoch and memory by the number of edges.

    python -m tests.bench.disengcn [--only quality,epoch,memory] [--rounds N] [--quick]

Quality is measured on the fixed q2 splits of ml-100k and ml-1m, where ../shared/data is; what was picked was picked on
validation. Epochs and memory are those of the synthetic sizes S and M (1 M and 5 M edges). `--quick`: epochs on small
synthetic pairs, one round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparkcf.config.factorization import ALSConfig
from tests.bench import quality
from tests.bench.report import Goal, print_table, run
from tests.bench.synthetic import QUICK, Interactions, interactions
from tests.bench.timing import Times, interleaved
from tests.bench.training import MEASURES_SHOWN, SEEDS, peak_memory, seconds, test_measures, trained

SPLITS = ("ml-100k-q2", "ml-1m-q2")
# Picked on validation NDCG@100; conf/models/disengcn.yaml.
CHOSEN: dict[str, dict[str, Any]] = {
    "ml-100k-q2": {"epochs": 100, "patience": 15, "batch_size": 200, "learning_rate": 0.01},
    "ml-1m-q2": {"epochs": 40, "patience": 6, "batch_size": 200, "learning_rate": 0.01},
}
MODELS: dict[str, dict[str, Any]] = {
    "DisenGCN, 4 channels": {},
    "one channel": {"channels": 1},
}
# Mult-VAE as tests/bench/nets.py has it for q1.
MULTVAE: dict[str, dict[str, Any]] = {
    "ml-100k-q2": {"batch_size": 50, "latent_dim": 400, "dropout": 0.7, "anneal_cap": 0.1, "anneal_steps": 1500},
    "ml-1m-q2": {"batch_size": 100, "latent_dim": 200, "dropout": 0.3, "anneal_cap": 0.2, "anneal_steps": 5000},
}
TIMED: dict[str, Any] = {"batch_size": 500, "epochs": 2}
SIZES = ("S", "M")
LINEAR = 1.3  # an epoch or memory an edge at M ÷ at S, at most


def qualities(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """Means over seeds; `--rounds` 1: one seed."""
    torch.set_num_threads(1)
    table, seeds = [], SEEDS[:rounds]
    for split in SPLITS:
        found: dict[str, list[dict[tuple[str, int], float]]] = {}
        for name, given in MODELS.items():
            settings = CHOSEN[split] | given
            found[name] = [test_measures(split, trained(split, "disengcn", settings, seed)[0]) for seed in seeds]
        vae: dict[str, Any] = {"hidden": ()} | MULTVAE[split]
        found["Mult-VAE"] = [test_measures(split, trained(split, "multvae", vae, seed)[0]) for seed in seeds]
        archive, als = quality.load(split), ALSConfig(**quality.CHOSEN[split])
        found["ALS"] = [quality.als(archive, "test", als, seed) for seed in seeds]
        first = {name: [each[MEASURES_SHOWN[0]] for each in all_seeds] for name, all_seeds in found.items()}
        for name, all_seeds in found.items():
            more = (f"{np.mean([each[measure] for each in all_seeds]):.4f}" for measure in MEASURES_SHOWN[1:])
            table.append((split, name, f"{np.mean(first[name]):.4f} ± {np.std(first[name]):.4f}", *more))
        routed, plain = first["DisenGCN, 4 channels"], first["one channel"]
        spread = float(max(np.std(routed), np.std(plain)))
        goals.append(Goal(f"{split}: NDCG@100 − one channel's", float(np.mean(routed) - np.mean(plain)), spread))
        above = float(np.mean(routed) - np.mean(first["Mult-VAE"]))
        goals.append(Goal(f"{split}: NDCG@100 − Mult-VAE's", above, 0.0))
    print(f"\nquality on the test parts, {len(seeds)} seeds")
    print_table(("split", "system", "NDCG@100", "NDCG@20", "Recall@20"), table)


def sized(quick: bool) -> dict[str, Interactions]:
    return {QUICK: interactions(QUICK)} if quick else {size: interactions(size) for size in SIZES}


def epochs(rounds: int, quick: bool, goals: list[Goal]) -> None:
    torch.set_num_threads(1)
    table, an_edge = [], {}
    for size, data in sized(quick).items():
        systems: dict[str, Any] = {
            name: lambda data=data, given=given: seconds("disengcn", data, **TIMED, **given)
            for name, given in MODELS.items()
        }
        times: dict[str, Times] = interleaved(systems, rounds)
        for name, time in times.items():
            table.append((size, f"{len(data):,}", name, time, f"{1e6 * time.median / len(data):.2f}"))
            goals.append(Goal(f"{size}, {name}: seconds an epoch", time.median, 1e9, at_least=False))
            an_edge[size, name] = time.median / len(data)
    print("\nan epoch, 64 numbers, 3 rounds, 30 neighbours, 4,096 candidates, batch 500, one thread")
    print_table(("size", "edges", "model", "seconds: median (least–greatest)", "s a million edges"), table)
    for name in MODELS if not quick else ():
        ratio = an_edge["M", name] / an_edge["S", name]
        goals.append(Goal(f"{name}: an edge at M ÷ at S", ratio, LINEAR, at_least=False))


def memory(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    for size, data in sized(quick).items():
        stated = stated_mib(data, TIMED["batch_size"])
        peak = peak_memory("disengcn", data, **(TIMED | {"epochs": 1}))
        table.append((size, f"{len(data):,}", f"{stated:,.0f}", f"{peak:,.0f}"))
        goals.append(Goal(f"{size}: peak MiB ÷ stated", peak / stated, 1.0, at_least=False))
    print("\nMiB of a process: 100 bytes an edge (reading) + 8 copies of the embeddings + a step")
    print_table(("size", "edges", "stated", "measured"), table)


def stated_mib(data: Interactions, batch: int, latent_dim: int = 64, neighbours: int = 30) -> float:
    """MiB: the edges; weights, gradients, moments, the best epoch and copies on their way; a step; 300 beside."""
    nodes = data.n_users + data.n_items
    candidates = min(4096, data.n_items)
    step = (batch + candidates) * neighbours * (4 * 8 + 12 * 8) + 6 * 4 * batch * candidates
    return (100 * len(data) + 8 * 4 * latent_dim * nodes + step) / 2**20 + 300


MEASURES = {"quality": qualities, "epoch": epochs, "memory": memory}
QUICKLY = ("epoch",)


def main() -> None:
    run("disengcn", MEASURES, QUICKLY, __doc__, quality.SPLITS.is_dir())


if __name__ == "__main__":
    main()
