"""Synthetic interactions with power-law users and items and a planted low-rank signal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CACHE = Path(__file__).resolve().parents[2] / ".bench-data"
QUICK = "quick"
SIZES = {"S": (1_000_000, 10_000, 5_000), "M": (5_000_000, 34_623, 13_372), "L": (20_000_000, 138_493, 26_744)}
RANK = 8


@dataclass(frozen=True)
class Interactions:
    """Distinct pairs in random order, int32 (nnz,) each, all of weight 1."""

    users: np.ndarray
    items: np.ndarray
    n_users: int
    n_items: int

    @property
    def values(self) -> np.ndarray:
        return np.ones(len(self.users), np.float32)

    def __len__(self) -> int:
        return len(self.users)


def interactions(size: str) -> Interactions:
    """The pairs of a size, or of "quick"; kept in .bench-data/, since the large ones take minutes."""
    rows, n_users, n_items = (50_000, 1_000, 500) if size == QUICK else SIZES[size]
    if size == QUICK:
        return Interactions(*pairs(rows, n_users, n_items), n_users, n_items)
    file = CACHE / f"pairs-{rows}-{n_users}-{n_items}.npz"
    if not file.is_file():
        users, items = pairs(rows, n_users, n_items)
        CACHE.mkdir(exist_ok=True)
        unfinished = file.with_suffix(".part.npz")
        np.savez(unfinished, users=users, items=items)
        unfinished.rename(file)
    with np.load(file, allow_pickle=False) as archive:
        return Interactions(archive["users"], archive["items"], n_users, n_items)


def pairs(rows: int, n_users: int, n_items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """About `rows` distinct (user, item) pairs, int32, in random order; a user prefers items of a like vector."""
    rng = np.random.default_rng(seed)
    user_weight = rng.permutation((np.arange(n_users) + 10.0) ** -0.6)
    item_weight = rng.permutation((np.arange(n_items) + 5.0) ** -0.8)
    taste, kind = (rng.normal(size=(n, RANK)).astype(np.float32) for n in (n_users, n_items))
    key = np.empty(0, np.int64)
    while len(key) < rows:
        size = 3 * (rows - len(key)) + 1000
        u = rng.choice(n_users, size, p=user_weight / user_weight.sum())
        i = rng.choice(n_items, size, p=item_weight / item_weight.sum())
        liking = 1 / (1 + np.exp(-np.einsum("nk,nk->n", taste[u], kind[i])))
        keep = rng.random(size) < liking
        key = np.unique(np.concatenate([key, u[keep].astype(np.int64) * n_items + i[keep]]))
    key = rng.permutation(key)[:rows]
    return (key // n_items).astype(np.int32), (key % n_items).astype(np.int32)


def write_log(folder: Path, rows: int, n_users: int, n_items: int, files: int = 16, seed: int = 0) -> int:
    """A raw event log as CSV files (user_id, item_id, value, ts) with 1 % broken and 1 % doubled rows; its rows."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    total = 0
    for number in range(files):
        size = rows // files
        user = rng.zipf(1.3, size) % n_users
        item = rng.zipf(1.2, size) % n_items
        value = rng.integers(1, 11, size) / 2
        value[rng.random(size) < 0.01] = 99.0
        ts = 1_500_000_000 + rng.integers(0, 30_000_000, size)
        again = rng.random(size) < 0.01
        columns = {"user_id": user, "item_id": item, "value": value, "ts": ts}
        table = pa.table({name: np.concatenate([c, c[again]]) for name, c in columns.items()})
        pa_csv.write_csv(table, folder / f"events-{number:03}.csv")
        total += table.num_rows
    return total
