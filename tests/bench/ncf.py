"""NCF: seconds of epochs by kind and objective, and quality beside ALS.

    python -m tests.bench.ncf [--only epoch,sparse,quality,known,cold,parity] [--rounds N] [--quick]

Trained on fixed splits of ml-100k and ml-1m, where ../shared/data is. On q1 users of the test part are folded in; on q2
their own vectors are scored. `--quick`: epochs on small synthetic pairs, one round.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch

from sparkcf.data.packed import PackedRows
from sparkcf.kernels.csr import build_csr
from sparkcf.models.nets.registry import build_net
from sparkcf.training.feed import MemoryFeed
from sparkcf.training.loop import train
from sparkcf.training.side_features import store_features
from tests.bench import peers, quality
from tests.bench.macridvae import genres_of
from tests.bench.parity import parity
from tests.bench.report import Goal, print_table, run
from tests.bench.synthetic import Interactions
from tests.bench.timing import Times, interleaved
from tests.bench.training import (
    ALONE,
    EPOCHS,
    MEASURES_SHOWN,
    SEEDS,
    datasets,
    in_processes,
    packed,
    pairs_of,
    seconds,
    section,
    test_measures,
    trained,
)

SPLITS = ("ml-100k-q1", "ml-1m-q1")
KNOWN = ("ml-100k-q2", "ml-1m-q2")  # splits whose test users are in training
PEER = {"ml-100k-q2": 0.3984}  # NDCG@100 of RecBole's NeuMF, tuned
AUTHORS: dict[str, Any] = {"latent_dim": 8, "hidden": (64, 32, 16, 8), "negatives": 4, "batch_size": 20}
TIMED: dict[str, dict[str, Any]] = {
    "GMF": {"kind": "gmf"},
    "MLP": {"kind": "mlp"},
    "NeuMF": {"kind": "neumf"},
    "NeuMF, softmax": {"kind": "neumf", "objective": "softmax"},
}
TUNED: dict[str, Any] = {"latent_dim": 8, "learning_rate": 0.005, "batch_size": 20, "epochs": 60, "patience": 8}
SPARSE: dict[str, Any] = {"sparse_embeddings": True, "batch_size": 100}
LARGE: dict[str, Any] = {"epochs": 2, "batch_size": 100}
MEASURED: dict[str, dict[str, Any]] = {
    "GMF": TUNED | {"kind": "gmf", "latent_dim": 32},
    "GMF, softmax": TUNED | {"kind": "gmf", "latent_dim": 32, "objective": "softmax", "batch_size": 100},
    "GMF, softmax, sparse": TUNED | SPARSE | {"kind": "gmf", "latent_dim": 32, "objective": "softmax"},
    "MLP": TUNED | {"kind": "mlp"},
    "NeuMF": TUNED,  # conf/models/ncf.yaml
    "NeuMF from GMF and MLP": TUNED | {"pretrain_epochs": 15},
    "NeuMF, softmax": TUNED | {"objective": "softmax"},
}
SOFTMAX: dict[str, Any] = {"objective": "softmax", "latent_dim": 32, "learning_rate": 0.005, "batch_size": 100}
OF_KNOWN: dict[str, dict[str, Any]] = {
    "GMF, softmax": SOFTMAX | {"kind": "gmf", "epochs": 40},
    "NeuMF, softmax": SOFTMAX | {"kind": "neumf", "hidden": (64, 32), "epochs": 40},
}
RECBOLE = "RecBole's NeuMF"
FEW = 5  # ratings of an item
RATING: dict[str, Any] = {  # by validation
    **{"objective": "rating", "kind": "gmf", "latent_dim": 16, "learning_rate": 0.002, "weight_decay": 1e-4},
    **{"batch_size": 20, "epochs": 30},
}
ALS = {"ml-100k-q1": 0.4661, "ml-1m-q1": 0.4305, "ml-100k-q2": 0.4431, "ml-1m-q2": 0.4185}  # NDCG@100


def epochs(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """RecBole's batches have as many pairs as ours of 20 users have on average."""
    table = []
    torch.set_num_threads(1)
    with peers.optional_neural(quick) as peer:
        for name, data in datasets(SPLITS, quick).items():
            systems: dict[str, Any] = {
                kind: lambda data=data, given=given: seconds("ncf", data, **AUTHORS, **given)
                for kind, given in TIMED.items()
            }
            if peer:
                batch = 20 * len(data.users) // data.n_users * (1 + AUTHORS["negatives"])
                peer.model("neumf", data, batch=batch, threads=1, dropout=0.0, hidden=[32, 16, 8])
                systems[RECBOLE] = lambda: [peer.epoch()["seconds"] for _ in range(EPOCHS)][1:]
            times: dict[str, Times] = interleaved(systems, rounds)
            for kind, time in times.items():
                table.append((name, kind, time, f"{data.n_users / time.median:,.0f}"))
                if kind != RECBOLE:
                    goals.append(Goal(f"{name}, {kind}: seconds an epoch", time.median, 1e9, at_least=False))
            if peer:
                ratio = times["NeuMF"].median / times[RECBOLE].median
                goals.append(Goal(f"{name}: an epoch of NeuMF ÷ RecBole's", ratio, 0.7, at_least=False))
    print("\nan epoch, GMF of 8, MLP [64, 32, 16, 8], 4 negatives, batch 20, one thread")
    print_table(("data", "kind", "seconds: median (least–greatest)", "users/s"), table)


def sparse(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """NeuMF with large tables of embeddings: 250,000 rows of 40 numbers, and ten items a user."""
    torch.set_num_threads(1)
    n_users, n_items = (2_000, 500) if quick else (200_000, 50_000)
    drawn = np.random.default_rng(1).integers(0, n_items, (n_users, 10))
    users = np.repeat(np.arange(n_users, dtype=np.int32), 10)
    pairs = np.unique(np.column_stack([users, drawn.ravel().astype(np.int32)]), axis=0)
    data = Interactions(pairs[:, 0].copy(), pairs[:, 1].copy(), n_users, n_items)
    systems: dict[str, Any] = {}
    for label, given in (("all", LARGE), ("of the batch", LARGE | {"sparse_embeddings": True})):
        each = given | {"batch_size": LARGE["batch_size"] // 2}  # of a rank
        systems[f"{label}, 1"] = lambda given=given: seconds("ncf", data, **given)
        systems[f"{label}, 2"] = lambda given=each: in_processes(2, "ncf", data, **given)
    times: dict[str, Times] = interleaved(systems, rounds)
    sizes = f"{n_users:,} users, {n_items:,} items, {len(data):,} pairs"
    print(f"\nan epoch, NeuMF, {sizes}, batches of {LARGE['batch_size']} users, one thread")
    print_table(
        ("embeddings moved in a step, processes", "seconds: median (least–greatest)", "users/s"),
        [(label, time, f"{n_users / time.median:,.0f}") for label, time in times.items()],
    )
    for processes in () if quick else (1, 2):  # small tables gain nothing
        ratio = times[f"of the batch, {processes}"].median / times[f"all, {processes}"].median
        goals.append(Goal(f"sparse ÷ dense embeddings, processes: {processes}", ratio, 1.0, at_least=False))


def qualities(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """Means over seeds; `--rounds` 1: one seed."""
    torch.set_num_threads(2)
    table = []
    for split in SPLITS:
        for kind, given in MEASURED.items():
            found = [test_measures(split, trained(split, "ncf", given, seed)[0]) for seed in SEEDS[:rounds]]
            means = [float(np.mean([each[measure] for each in found])) for measure in MEASURES_SHOWN]
            spread = np.std([each[MEASURES_SHOWN[0]] for each in found])
            table.append((split, kind, f"{means[0]:.4f} ± {spread:.4f}", *(f"{mean:.4f}" for mean in means[1:])))
        table.append((split, "sparkcf ALS", f"{ALS[split]:.4f}", "", ""))
    print("\nquality on the test parts")
    print_table(("split", "kind", "NDCG@100", "NDCG@20", "Recall@20"), table)


def known(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """Means over seeds on q2, whose test users are in training."""
    torch.set_num_threads(1)
    table = []
    for split in KNOWN:
        best = 0.0
        for kind, given in OF_KNOWN.items():
            found = [known_measures(split, given, seed) for seed in SEEDS[:rounds]]
            means = [float(np.mean([each[measure] for each in found])) for measure in MEASURES_SHOWN]
            spread = np.std([each[MEASURES_SHOWN[0]] for each in found])
            table.append((split, kind, f"{means[0]:.4f} ± {spread:.4f}", *(f"{mean:.4f}" for mean in means[1:])))
            best = max(best, means[0]) if kind.startswith("NeuMF") else best
        if split in PEER:
            table.append((split, "RecBole NeuMF", f"{PEER[split]:.4f}", "", ""))
            goals.append(Goal(f"{split}: NDCG@100 of NeuMF", best, PEER[split]))
        table.append((split, "sparkcf ALS", f"{ALS[split]:.4f}", "", ""))
    print("\nquality on the test parts, known users")
    print_table(("split", "kind", "NDCG@100", "NDCG@20", "Recall@20"), table)


def known_measures(split: str, given: dict[str, Any], seed: int) -> dict[tuple[str, int], float]:
    """Measures of the epoch that ranks known users' validation items best; nobody is folded in."""
    archive, config = quality.load(split), section("ncf", **given)
    feed = MemoryFeed(packed(pairs_of(split)), config.batch_size, seed)
    n_users, n_items = quality.n_users(archive), int(archive["n_items"])
    net: Any = build_net({"n_users": n_users, "n_items": n_items}, config, seed)
    best: dict[tuple[str, int], float] = {}
    most = 0.0

    def measured(name: str) -> dict[tuple[str, int], float]:
        seen, heldout = quality.parts(archive, name)
        with torch.inference_mode():
            vectors = net.users(torch.arange(n_users)), net.item_vectors()
            scores = net.interaction.scores(net.interaction.blocks(*vectors))
            scores[np.repeat(np.arange(n_users), np.diff(seen[0])), seen[1]] = -torch.inf
            ranked = scores.topk(100, dim=1).indices.int().numpy()
        return quality.measure_lists(ranked, heldout)

    def keep(_: dict[str, Any]) -> None:
        nonlocal best, most
        net.eval()
        if (value := measured("valid")[MEASURES_SHOWN[0]]) > most:
            best, most = measured("test"), value
        net.train()

    train(net, feed, config, seed, ALONE, on_progress=keep)
    return best


def cold(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """RMSE of the ratings of items with few of them, with the items' genres as features and without."""
    torch.set_num_threads(1)
    table = []
    for name in ("ml-100k", "ml-1m"):
        archive = quality.load(f"{name}-q3")
        few = np.bincount(archive["train"][:, 1], minlength=int(archive["n_items"])) < FEW
        genres, n_genres = genre_rows(genres_of(name, archive["items"]))
        found: dict[str, list[tuple[float, float]]] = {"without features": [], "with genres": []}
        with tempfile.TemporaryDirectory() as folder:
            stored = {
                "features": store_features(folder, {"item": (genres, n_genres)}),
                "scales": {"item": [[0.0, 1.0]]},
            }
            for label, given in (("without features", {}), ("with genres", stored)):
                for seed in SEEDS[:rounds]:
                    errors = rating_errors(archive, given, seed)
                    rare = errors[few[archive["test"][:, 1]]]
                    found[label].append((rms(errors), rms(rare)))
        n = int(few[archive["test"][:, 1]].sum())
        for label, each in found.items():
            table.append((name, label, *(f"{m:.4f} ± {s:.4f}" for m, s in zip(*summary(each), strict=True)), n))
        gain = summary(found["without features"])[0][1] - summary(found["with genres"])[0][1]
        goals.append(Goal(f"{name}: RMSE of rare items less with genres", float(gain), 0.0))
    print(f"\nq3, GMF of {RATING['latent_dim']}, items of fewer than {FEW} ratings")
    print_table(("data", "features", "RMSE", "RMSE of rare items", "their ratings"), table)


def rating_errors(archive: dict[str, np.ndarray], given: dict[str, Any], seed: int) -> np.ndarray:
    """Errors of the test ratings, of the epoch that has the least on the validation ratings."""
    n_users, n_items = int(archive["n_users"]), int(archive["n_items"])
    config = section("ncf", **RATING, item_features=({"of": "categories"},) if given else ())
    values = archive["train_rating"].astype(np.float32)
    rows = build_csr(*archive["train"].astype(np.int32).T, values, n_users, n_items)
    feed = MemoryFeed(PackedRows(np.arange(n_users), *rows), config.batch_size, seed)
    average = float(values.mean())
    net: Any = build_net({"n_items": n_items, "n_users": n_users, "average": average} | given, config, seed)
    best: tuple[float, np.ndarray] = (np.inf, values)

    def measured(_: dict[str, Any]) -> None:
        nonlocal best
        errors = {}
        for part in ("valid", "test"):
            users, items = torch.from_numpy(archive[part].astype(np.int64)).T
            with torch.inference_mode():
                pairs = net.interaction.pairs(net.users(torch.arange(n_users)), net.item_vectors(), users, items)
                scores = net.interaction.scores(pairs).numpy()
            errors[part] = np.clip(scores, 1, 5) - archive[f"{part}_rating"]
        if rms(errors["valid"]) < best[0]:
            best = rms(errors["valid"]), errors["test"]

    train(net, feed, config, seed, ALONE, on_progress=measured)
    return best[1]


def genre_rows(genres: list[list[str]]) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """Compressed rows of the items' genres, and their number."""
    names = {name: number for number, name in enumerate(sorted({g for each in genres for g in each}))}
    flat = np.array([names[g] for each in genres for g in each], np.int32)
    indptr = np.concatenate([[0], np.cumsum([len(each) for each in genres])]).astype(np.int64)
    return (indptr, flat, np.ones(len(flat), np.float32)), len(names)


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def summary(found: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations over seeds."""
    return np.mean(found, axis=0), np.std(found, axis=0)


MEASURES = {"epoch": epochs, "sparse": sparse, "quality": qualities, "known": known, "cold": cold, "parity": parity}
QUICKLY = ("epoch",)


def main() -> None:
    run("ncf", MEASURES, QUICKLY, __doc__, quality.SPLITS.is_dir())


if __name__ == "__main__":
    main()
