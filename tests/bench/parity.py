"""Leave-one-out with sampled negatives, as the NCF paper measures: parity with published figures, nothing else.

Every user's last rating of ml-1m is held out and ranked among 99 items that the user never rated, drawn once; the one
before it picks epochs and settings. Sampled measures can order models otherwise than full rankings do (Krichene, Rendle
2020, "On sampled metrics for item recommendation", KDD). Only users are measured whose last timestamp is exact (see the
data's README).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from sparkcf.config.factorization import ALSConfig
from sparkcf.data.packed import PackedRows
from sparkcf.models.als.fit import fit_arrays
from sparkcf.models.nets.registry import build_net
from sparkcf.training.feed import MemoryFeed
from sparkcf.training.loop import train
from tests.bench import quality
from tests.bench.report import Goal, print_table
from tests.bench.training import ALONE, SEEDS, section

NEGATIVES, AT = 99, 10
NEUMF: dict[str, Any] = {
    **{"latent_dim": 16, "hidden": (64, 32, 16), "negatives": 4, "learning_rate": 0.002, "batch_size": 20},
    **{"epochs": 30, "weight_decay": 0.0},
}
DOT: dict[str, Any] = NEUMF | {"kind": "gmf", "latent_dim": 64, "objective": "softmax", "batch_size": 100}
ALS: dict[str, Any] = quality.FAST | {"rank": 192, "regularization": 0.008, "unobserved_weight": 0.2}
GOALS = {"HR@10": 0.70, "NDCG@10": 0.42}  # of NeuMF
Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]  # users (n,), items (n, c) -> (n, c)


class Held(NamedTuple):
    """One held-out item a user, in the first column, and its negatives. users : (n,). items : (n, 1 + NEGATIVES)."""

    users: np.ndarray
    items: np.ndarray


class LeaveOneOut(NamedTuple):
    rows: PackedRows
    n_items: int
    valid: Held
    test: Held


@cache
def leave_one_out() -> LeaveOneOut:
    table = pq.read_table(quality.SPLITS.parent / "ml-1m" / "ratings.parquet")
    columns = (table[name].to_numpy() for name in ("userID", "movieID", "timestamp", "ts_exact"))
    user_ids, item_ids, ts, exact = columns
    users, items = np.unique(user_ids, return_inverse=True)[1], np.unique(item_ids, return_inverse=True)[1]
    order = np.lexsort((items, ts, users))
    users, items, exact = users[order], items[order], exact[order]
    n_users, n_items = int(users.max()) + 1, int(items.max()) + 1
    last = np.append(users[1:] != users[:-1], True).nonzero()[0]
    seen = np.zeros((n_users, n_items), bool)
    seen[users, items] = True
    random = np.random.default_rng(1)
    negatives = np.stack([random.choice(np.flatnonzero(~row), NEGATIVES, replace=False) for row in seen])

    def held(at: np.ndarray, chosen: np.ndarray) -> Held:
        return Held(chosen, np.column_stack([items[at], negatives[users[at]]])[chosen])

    keep = np.ones(len(users), bool)
    keep[last] = keep[last - 1] = False
    rows = quality.rows(np.column_stack([users[keep], items[keep]]), n_users, n_items)
    everyone = np.arange(n_users)
    valid, test = held(last - 1, everyone), held(last, everyone[exact[last]])
    return LeaveOneOut(PackedRows(everyone, *rows), n_items, valid, test)


def hits(scores: Scores, held: Held) -> tuple[float, float]:
    """HR@10 and NDCG@10; of equal scores the held-out item is last."""
    found = scores(held.users, held.items)
    rank = (found[:, 1:] >= found[:, :1]).sum(axis=1)
    inside = rank < AT
    return float(inside.mean()), float(np.where(inside, 1 / np.log2(rank + 2), 0.0).mean())


def of_net(given: dict[str, Any], seed: int) -> tuple[float, float]:
    """Of the epoch that is best on the items before the last."""
    data, config = leave_one_out(), section("ncf", **given)
    n_users = len(data.rows.ids)
    net: Any = build_net({"n_users": n_users, "n_items": data.n_items}, config, seed)
    best: tuple[float, float] = (0.0, 0.0)
    most = 0.0

    def scores(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            user_of = torch.from_numpy(np.repeat(users, items.shape[1]))
            vectors = net.users(torch.arange(n_users)), net.item_vectors()
            pairs = net.interaction.pairs(*vectors, user_of, torch.from_numpy(items.reshape(-1)))
            return net.interaction.scores(pairs).numpy().reshape(items.shape)

    def keep(_: dict[str, Any]) -> None:
        nonlocal best, most
        net.eval()
        if (reached := hits(scores, data.valid)[0]) > most:
            best, most = hits(scores, data.test), reached
        net.train()

    train(net, MemoryFeed(data.rows, config.batch_size, seed), config, seed, ALONE, on_progress=keep)
    return best


def of_als(part: str, seed: int, **given: Any) -> tuple[float, float]:
    data = leave_one_out()
    rows = data.rows
    users = np.repeat(rows.ids, np.diff(rows.indptr)).astype(np.int32)
    config = ALSConfig(**(ALS | given))
    fitted = fit_arrays(users, rows.indices, rows.values, len(rows.ids), data.n_items, config, seed, threads=1)

    def scores(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.einsum("nk,nck->nc", fitted.user[users], fitted.item[items])

    return hits(scores, getattr(data, part))


def parity(rounds: int, quick: bool, goals: list[Goal]) -> None:
    torch.set_num_threads(1)
    systems: dict[str, Callable[[int], tuple[float, float]]] = {
        "NeuMF": lambda seed: of_net(NEUMF, seed),
        "GMF by a softmax": lambda seed: of_net(DOT, seed),
        "ALS": lambda seed: of_als("test", seed),
    }
    table = []
    for name, measured in systems.items():
        found = np.array([measured(seed) for seed in SEEDS[:rounds]])
        means, spread = found.mean(axis=0), found.std(axis=0)
        table.append((name, *(f"{m:.4f} ± {s:.4f}" for m, s in zip(means, spread, strict=True))))
        if name == "NeuMF":
            for (measure, goal), mean in zip(GOALS.items(), means, strict=True):
                goals.append(Goal(f"NeuMF, leave-one-out: {measure}", float(mean), goal))
    print(f"\nml-1m, last item of {len(leave_one_out().test.users):,} users among {NEGATIVES} sampled ones")
    print_table(("system", *GOALS), table)
