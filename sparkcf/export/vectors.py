"""A run's vectors as .npy files with their ids, and an index of the items for approximate search.

user_vectors.npy  float32 (n, d)    item_vectors.npy  float32 (m, d)
user_bias.npy     float32 (n,)      item_bias.npy     float32 (m,)
user_ids.parquet, item_ids.parquet  column id: row i belongs to row i of the vectors
items.faiss                         where asked for
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparkcf.errors import ConfigError, LakeError, NotFoundError
from sparkcf.export.lists import TABLE, Run
from sparkcf.lake.query import Lake

F32 = NDArray[np.float32]
ROWS = 1 << 16  # of a batch that is read
COMPARED = 200  # users whose scores are computed again
CLOSE = 1e-3  # largest difference of a score, relative to the largest score
NEIGHBOURS, CONSTRUCTION, SEARCH = 32, 100, 128  # of the HNSW graph
RECALL_AT, RECALL_USERS = 20, 1_000


def write_vectors(lake: Lake, run: Run, folder: Path, faiss: bool = False) -> dict[str, Any]:
    """Write both sides and what they are good for; returns facts for the manifest.

    `inner_product` says whether user vector · item vector + item bias gives the scores of the run's lists: some of
    them are computed again from the files.

    Raises
    ------
    NotFoundError
        The run's scores do not come from vectors; with `faiss`, the run has no lists to compare scores with.
    ConfigError
        With `faiss`: the scores are no inner products.
    LakeError
        Vectors of unequal length.
    """
    users, width = _write_side(lake, run, "user", folder)
    items, item_width = _write_side(lake, run, "item", folder)
    facts: dict[str, Any] = {"users": users, "items": items, "width": width}
    facts |= _compare_scores(lake, run, folder)
    if faiss:
        if not facts["compared"] and width == item_width:
            raise NotFoundError(
                f"--faiss: run {run.run_id} of {run.model} has no lists by the model to compare scores with: run its "
                "recommend step first"
            )
        if not facts["inner_product"]:
            raise ConfigError(f"--faiss: scores of {run.model} are no inner products, which the index searches by")
        facts |= write_index(folder)
    return facts


def _write_side(lake: Lake, run: Run, side: str, folder: Path) -> tuple[int, int]:
    """Write one side; returns its rows and their width."""
    name = f"{side}_factors"
    columns = (f"{side}_id", "factor", "bias")
    n = lake.count(name, run.partition)
    vectors = bias = None
    at = width = 0
    with pq.ParquetWriter(folder / f"{side}_ids.parquet", pa.schema([("id", pa.string())])) as ids:
        for batch in lake.stream(name, run.partition, ROWS, columns):
            factor = batch["factor"].combine_chunks()
            block = factor.flatten().to_numpy()
            if vectors is None:
                width = len(block) // len(factor)
                if not width:
                    break
                vectors = np.lib.format.open_memmap(folder / f"{side}_vectors.npy", "w+", np.float32, (n, width))
                bias = np.lib.format.open_memmap(folder / f"{side}_bias.npy", "w+", np.float32, (n,))
            if (np.diff(factor.offsets.to_numpy()) != width).any():
                raise LakeError(f"table {name} has vectors of unequal length in run {run.run_id}: train again")
            assert bias is not None
            vectors[at : at + len(factor)] = block.reshape(-1, width)
            bias[at : at + len(factor)] = batch["bias"].to_numpy()
            ids.write_table(pa.table({"id": batch[f"{side}_id"].cast(pa.string())}))
            at += len(factor)
    if vectors is None or bias is None:
        raise NotFoundError(f"run {run.run_id} has no vectors: scores of {run.model} do not come from vectors")
    vectors.flush()
    bias.flush()
    back = np.load(folder / f"{side}_vectors.npy", mmap_mode="r", allow_pickle=False)
    if at != n or len(pq.read_metadata(folder / f"{side}_ids.parquet").schema) != 1 or len(back) != n:
        raise LakeError(f"{at:,} of {n:,} {side}s were written: export again")
    return n, width


def _compare_scores(lake: Lake, run: Run, folder: Path) -> dict[str, Any]:
    """Compute the scores of some lists again from the written files."""
    ids = {side: pq.read_table(folder / f"{side}_ids.parquet")["id"].to_pylist() for side in ("user", "item")}
    place = {side: {name: at for at, name in enumerate(names)} for side, names in ids.items()}
    step = max(1, len(ids["user"]) // COMPARED)
    lists = lake.read(TABLE, ("user_id", ids["user"][::step][:COMPARED]), run.partition).to_pylist()
    rows = [row for row in lists if row["reason"] != "fallback" and row["item_id"] in place["item"]]
    users, items, bias = (_open(folder, name) for name in ("user_vectors", "item_vectors", "item_bias"))
    if not rows or users.shape[1] != items.shape[1]:
        return {"inner_product": False, "compared": 0}
    of_user = np.array([place["user"][row["user_id"]] for row in rows])
    of_item = np.array([place["item"][row["item_id"]] for row in rows])
    scores = np.array([row["score"] for row in rows])
    again = np.einsum("nk,nk->n", users[of_user], items[of_item], dtype=np.float64) + bias[of_item]
    apart = float(np.abs(again - scores).max())
    return {
        "inner_product": bool(apart <= CLOSE * max(1e-9, float(np.abs(scores).max()))),
        "compared": len(rows),
        "largest_difference": apart,
    }


def write_index(folder: Path) -> dict[str, Any]:
    """Write an HNSW index of the items by inner product, the bias as a last dimension; measure it against exact search.

    A query is a user's vector with a 1 behind it.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError("--faiss needs the package faiss: pip install 'sparkcf[faiss]'") from None
    users, items, bias = (_open(folder, name) for name in ("user_vectors", "item_vectors", "item_bias"))
    base = np.ascontiguousarray(np.column_stack([items, bias]), dtype=np.float32)
    index = faiss.IndexHNSWFlat(base.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = CONSTRUCTION, SEARCH
    index.add(base)
    faiss.write_index(index, str(folder / "items.faiss"))
    chosen = np.linspace(0, len(users) - 1, min(len(users), RECALL_USERS)).astype(np.int64)
    queries = np.column_stack([users[chosen], np.ones(len(chosen))]).astype(np.float32)
    k = min(RECALL_AT, len(base))
    found = index.search(queries, k)[1]
    return {"faiss": "items.faiss", f"recall_at_{k}": recall(queries, base, found), "recall_users": len(chosen)}


def recall(queries: F32, base: F32, found: NDArray[np.int64]) -> float:
    """Share of the exact nearest rows of `base` (m, d) by inner product that are among those found (n, k)."""
    k = found.shape[1]
    hits = 0
    for start in range(0, len(queries), 100):  # 100 rows of scores at a time
        scores = queries[start : start + 100] @ base.T
        exact = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        block = found[start : start + 100]
        hits += sum(len(np.intersect1d(e, f)) for e, f in zip(exact, block, strict=True))
    return hits / (len(queries) * k)


def _open(folder: Path, name: str) -> F32:
    opened: F32 = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return opened
