"""BiVAE: epochs and quality beside cornac's BiVAECF, priors of side features, processes, memory.

    python -m tests.bench.bivae [--only epoch,quality,priors,processes,memory] [--rounds N] [--quick]

Trained on the fixed q2 splits of ml-100k and ml-1m, where ../shared/data is; what was picked was picked on validation.
`--quick`: epochs on small synthetic pairs, one round.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch

from sparkcf.data.packed import PackedRows
from sparkcf.training.side_features import store_features
from tests.bench import peers, quality
from tests.bench.macridvae import genres_of
from tests.bench.report import Goal, print_table, run
from tests.bench.synthetic import Interactions
from tests.bench.timing import Times, interleaved
from tests.bench.training import (
    EPOCHS,
    ITEM_COUNTS,
    MEASURES_SHOWN,
    SEEDS,
    catalogue,
    datasets,
    in_processes,
    pairs_of,
    part,
    peak_memory,
    seconds,
    test_measures,
    trained,
)

SPLITS = ("ml-100k-q2", "ml-1m-q2")
# cornac's own sizes: k 20, [40], tanh, Poisson with a sigmoid, its batches of 100, Adam 1e-3; every row every epoch.
EQUAL: dict[str, Any] = {
    "latent_dim": 20,
    "hidden": (40,),
    "likelihood": "poisson",
    "learning_rate": 1e-3,
    "patience": 0,
}
BATCH = {"ml-100k-q2": 100, "ml-1m-q2": 128, "synthetic": 100}
EQUAL_EPOCHS = {"ml-100k-q2": 200, "ml-1m-q2": 50}
# Picked on validation NDCG@100.
CHOSEN: dict[str, dict[str, Any]] = {
    "ml-100k-q2": {
        **{"latent_dim": 40, "hidden": (100,), "learning_rate": 3e-3, "batch_size": 500},
        **{"anneal_cap": 0.7, "dropout": 0.2, "epochs": 400, "patience": 50},
    },
    "ml-1m-q2": {
        **{"latent_dim": 40, "hidden": (200,), "learning_rate": 3e-3, "batch_size": 500},
        **{"anneal_cap": 0.7, "dropout": 0.2, "epochs": 200, "patience": 30},
    },
}
AIM = {"ml-100k-q2": 0.43, "ml-1m-q2": 0.2458}
KNOWN = {  # of our other models and the splits' README
    "ml-100k-q2": {"sparkcf ALS": 0.4431, "RecBole MultiVAE": 0.4211},
    "ml-1m-q2": {"sparkcf ALS": 0.4185},
}
FEW = 5  # ratings of an item


def epochs(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    torch.set_num_threads(1)
    with peers.optional_cornac(quick) as peer:
        for name, data in datasets(SPLITS, quick).items():
            equal = EQUAL | {"batch_size": BATCH[name]}
            systems: dict[str, Any] = {"sparkcf": lambda data=data, equal=equal: seconds("bivae", data, **equal)}
            if peer:
                peer_model(peer, data, BATCH[name], 1)
                systems["cornac"] = lambda: [peer.epoch()["seconds"] for _ in range(EPOCHS)][1:]
            times: dict[str, Times] = interleaved(systems, rounds)
            table += [(name, system, time) for system, time in times.items()]
            if peer:
                ratio = times["sparkcf"].median / times["cornac"].median
                goals.append(Goal(f"{name}: an epoch ÷ cornac's", ratio, 0.5, at_least=False))
            else:
                goals.append(Goal(f"{name}: seconds an epoch", times["sparkcf"].median, 1e9, at_least=False))
    print("\nan epoch of both sides, k 20, [40], one thread")
    print_table(("data", "system", "seconds: median (least–greatest)"), table)


def peer_model(peer: Any, data: Interactions, batch: int, seed: int) -> None:
    sizes = {"k": 20, "encoder_structure": [40], "act_fn": "tanh", "likelihood": "pois", "beta_kl": 1.0}
    peer.model(data, batch_size=batch, learning_rate=1e-3, threads=1, seed=seed, **sizes)


def qualities(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """The same settings and epochs in both systems, the last epoch of each; then ours as picked."""
    table = []
    with peers.optional_cornac(quick) as peer:
        for split in SPLITS:
            torch.set_num_threads(1)
            archive, data, n_epochs = quality.load(split), pairs_of(split), EQUAL_EPOCHS[split]
            found: dict[str, list[dict[tuple[str, int], float]]] = {"cornac": [], "equal": [], "picked": []}
            equal = EQUAL | {"batch_size": BATCH[split], "epochs": n_epochs}
            for seed in SEEDS:
                if peer:
                    peer_model(peer, data, BATCH[split], seed)
                    for _ in range(n_epochs):
                        peer.epoch()
                    seen, heldout = quality.parts(archive, "test")
                    found["cornac"].append(quality.measure_lists(peer.lists(seen, k=100), heldout))
                for name, settings in (("equal", equal), ("picked", CHOSEN[split])):
                    found[name].append(test_measures(split, trained(split, "bivae", settings, seed)[0]))
                print(
                    split, seed, {name: round(each[-1][("ndcg_at_k", 100)], 4) for name, each in found.items() if each}
                )
            means = {
                name: [np.mean([e[m] for e in each]) for m in MEASURES_SHOWN] for name, each in found.items() if each
            }
            for name, label in (
                ("cornac", f"cornac, {n_epochs} epochs"),
                ("equal", "sparkcf, the same settings and epochs"),
                ("picked", "sparkcf, picked on validation"),
            ):
                if name in means:
                    spread = np.std([each[MEASURES_SHOWN[0]] for each in found[name]])
                    figures = (f"{means[name][0]:.4f} ± {spread:.4f}", *(f"{m:.4f}" for m in means[name][1:]))
                    table.append((split, label, *figures))
            table += [(split, name, f"{value:.4f}", "", "") for name, value in KNOWN[split].items()]
            if peer:
                for measure, ours, theirs in zip(MEASURES_SHOWN, means["equal"], means["cornac"], strict=True):
                    name = f"{split} {measure[0]}@{measure[1]} ÷ cornac's, equal settings"
                    goals.append(Goal(name, float(ours / theirs), 1.0))
                ratio = float(means["picked"][0] / means["cornac"][0])
                goals.append(Goal(f"{split} NDCG@100 ÷ cornac's, picked", ratio, 1.0))
            goals.append(Goal(f"{split} NDCG@100, the aim", float(means["picked"][0]), AIM[split]))
    print("\nquality on the test parts, 3 seeds")
    print_table(("split", "system", "NDCG@100", "NDCG@20", "Recall@20"), table)


def priors(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """Genres as the items' prior against none: NDCG@100 of all items, and recall of those of few ratings."""
    torch.set_num_threads(2)
    table = []
    for split in SPLITS:
        archive = quality.load(split)
        genres = genres_of(split.removesuffix("-q2"), archive["items"])
        names = {name: number for number, name in enumerate(sorted({g for each in genres for g in each}))}
        flat = np.array([names[g] for each in genres for g in each], np.int32)
        indptr = np.concatenate([[0], np.cumsum([len(each) for each in genres])])
        features = {"item": ((indptr, flat, np.ones(len(flat), np.float32)), len(names))}
        few = np.bincount(archive["train"][:, 1], minlength=int(archive["n_items"])) < FEW
        found: dict[str, list[tuple[float, float]]] = {"without": [], "with genres": []}
        with tempfile.TemporaryDirectory() as folder:
            given = {"without": {}, "with genres": {"features": store_features(folder, features)}}
            for name, data in given.items():
                for seed in SEEDS:
                    net, _ = trained(split, "bivae", CHOSEN[split], seed, **data)
                    found[name].append((test_measures(split, net)[("ndcg_at_k", 100)], rank_of_few(split, net, few)))
        for name, each in found.items():
            all_items, rare = np.mean(each, axis=0)
            table.append((split, name, f"{all_items:.4f}", f"{rare:.4f} ± {np.std([r for _, r in each]):.4f}"))
        ratio = np.mean([r for _, r in found["with genres"]]) / np.mean([r for _, r in found["without"]])
        goals.append(Goal(f"{split}: rank of items with few ratings, with genres ÷ without", float(ratio), 1.0))
    print(
        f"\nitems' prior, 3 seeds; the last column: mean share of unseen items below a held-out one of < {FEW} ratings"
    )
    print_table(("split", "prior", "NDCG@100", "percentile of rare items"), table)


def rank_of_few(split: str, net: torch.nn.Module, few: np.ndarray) -> float:
    """Mean share of a user's unseen items that score below a held-out item with few ratings."""
    from sparkcf.training.loop import to_tensors

    archive = quality.load(split)
    seen, heldout = part(archive, "test")
    with torch.inference_mode():
        scores = net.eval()(to_tensors(part(archive, "valid")[0], "cpu"))[0].numpy()
    shares = []
    for user in range(len(heldout)):
        found = items_of(heldout, user)
        rare = found[few[found]]
        if len(rare):
            unseen = np.ones(scores.shape[1], bool)
            unseen[items_of(seen, user)] = False
            own = scores[user]
            shares += [float((own[unseen] < own[item]).mean()) for item in rare]
    return float(np.mean(shares))


def items_of(rows: PackedRows, user: int) -> np.ndarray:
    return rows.indices[rows.indptr[user] : rows.indptr[user + 1]]


def processes(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    for name, data in list(datasets(SPLITS, quick).items())[-1:]:
        settings = EQUAL | {"batch_size": 500}
        systems: dict[int, Any] = {
            n: lambda n=n, data=data, settings=settings: in_processes(n, "bivae", data, **settings) for n in (1, 2)
        }
        times = interleaved(systems, rounds)
        table += [(name, n, time, f"{data.n_users / time.median:,.0f}") for n, time in times.items()]
        ratio = times[1].median / times[2].median
        goals.append(Goal(f"{name}: users/s of two processes ÷ one, batch 500 each", ratio, 1.5))
    print("\nprocesses of one thread each, batch 500 each")
    print_table(("data", "processes", "seconds an epoch", "users/s"), table)


def memory(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    for n_items in ITEM_COUNTS:
        settings = {"latent_dim": 20, "hidden": (40,), "batch_size": 500}
        stated, peak = stated_mib(n_items), peak_memory("bivae", catalogue(n_items), **settings)
        table.append((f"{n_items:,}", f"{stated:,.0f}", f"{peak:,.0f}"))
        goals.append(Goal(f"{n_items:,} items: peak MiB ÷ stated", peak / stated, 1.0, at_least=False))
    print("\nMiB of a process, k 20, [40], batch 500: 5 blocks + 8 copies of (40 + 2 · 20 numbers an item) + 300")
    print_table(("items", "stated", "measured"), table)


def stated_mib(n_items: int) -> float:
    """Blocks of products, then weights, gradients, moments, the best epoch and copies on their way, and vectors."""
    from sparkcf.models.nets.blocks import BLOCK_NUMBERS

    blocks = 5 * min(BLOCK_NUMBERS, 500 * n_items) * 4
    return (blocks + 8 * 4 * n_items * (40 + 2 * 20)) / 2**20 + 300


MEASURES = {"epoch": epochs, "quality": qualities, "priors": priors, "processes": processes, "memory": memory}
QUICKLY = ("epoch",)


def main() -> None:
    run("bivae", MEASURES, QUICKLY, __doc__, quality.SPLITS.is_dir())


if __name__ == "__main__":
    main()
