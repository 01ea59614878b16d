"""Users a second of `sparkcf export`, on a made-up lake of lists: python -m tests.bench.export --users 1000000

Redis is measured where the program redis-server is installed. Times are of the whole export: reading the lake, writing,
reading back, switching. `cpu` is the time that the process itself computes, which does not depend on what else the
machine does; of Redis the server's own is not in it.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa

from sparkcf.export.export import TARGETS, export_run
from sparkcf.export.lists import find_run
from sparkcf.lake.query import Lake
from tests.bench.report import Goal, finish
from tests.export.redis_server import redis_server
from tests.lake.test_query import MAY_2, publish, write, write_items

K, CATALOGUE, RANK = 20, 20_000, 64
USERS_A_FILE = 50_000
GOALS = {"sqlite": 50_000, "redis": 20_000}  # users a second


def build(root: Path, users: int, k: int = K, rank: int = RANK, catalogue: int = CATALOGUE) -> None:
    """A published run with `users` lists of k items, titles, and vectors whose products are the lists' scores."""
    random = np.random.default_rng(0)
    items = np.array([f"i{n:06}" for n in range(catalogue)])
    write_items(root, {item: f"The title of item {item}" for item in items})
    item_vectors = random.standard_normal((catalogue, rank)).astype(np.float32)
    _write_factors(root, "item", items, item_vectors)
    for start in range(0, users, USERS_A_FILE):
        n = min(USERS_A_FILE, users - start)
        ids = np.array([f"u{number:09}" for number in range(start, start + n)])
        vectors = random.standard_normal((n, rank)).astype(np.float32)
        chosen = random.integers(0, catalogue, (n, k))
        _write_factors(root, "user", ids, vectors)
        scores = np.einsum("nr,nkr->nk", vectors, item_vectors[chosen])
        order = np.argsort(-scores, axis=1)
        chosen, scores = np.take_along_axis(chosen, order, 1), np.take_along_axis(scores, order, 1)
        columns = {
            "ds": pa.array(np.full(n * k, np.datetime64(MAY_2))),
            "user_id": np.repeat(ids, k),
            "position": pa.array(np.tile(np.arange(1, k + 1), n), pa.int32()),
            "item_id": items[chosen.ravel()],
            "score": pa.array(scores.ravel().astype(np.float32)),
            "reason": np.full(n * k, "model"),
            "model": np.full(n * k, "als"),
            "run_id": np.full(n * k, "r"),
        }
        write(root, "recommendations", columns, ["model", "run_id"])
    publish(root, "als", MAY_2, 1, "r")


def _write_factors(root: Path, side: str, ids: np.ndarray, vectors: np.ndarray) -> None:
    n, rank = vectors.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * rank)
    columns = {
        f"{side}_idx": pa.array(np.arange(n), pa.int32()),
        f"{side}_id": ids,
        "factor": pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel())),
        "bias": pa.array(np.zeros(n, np.float32)),
        "model": np.full(n, "als"),
        "run_id": np.full(n, "r"),
    }
    write(root, f"{side}_factors", columns, ["model", "run_id"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument(
        "--to", default=",".join(t for t in TARGETS if t != "encoder"), help="targets, separated by commas"
    )
    parser.add_argument("--quick", action="store_true", help="few users: only whether it runs")
    arguments = parser.parse_args()
    users = 2_000 if arguments.quick else arguments.users
    folder = Path(tempfile.mkdtemp(prefix="sparkcf-export-"))
    try:
        build(folder / "lake", users)
        print(f"{users:,} users, {K} items each, {CATALOGUE:,} items, rank {RANK}")
        rates = {to: rate for to in arguments.to.split(",") if (rate := measure(folder, to, users)) is not None}
    finally:
        shutil.rmtree(folder)
    goals = [Goal(f"{to}: users/s", rate, GOALS[to]) for to, rate in rates.items() if to in GOALS]
    finish("export", str(users), goals)


def measure(folder: Path, to: str, users: int) -> float | None:
    """Users a second of one target; None where it cannot be measured."""
    with redis_server(folder / "redis") if to == "redis" else nullcontext(str(folder / to)) as at:
        if at is None:
            print("redis      redis-server is not installed")
            return None
        lake, cpu = Lake(folder / "lake"), time.process_time()
        done = export_run(lake, find_run(lake), to, at, faiss=False)
        cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = users / done.seconds
    print(f"{to:<8} {done.seconds:8.1f} s {rate:>10,.0f} users/s   cpu {cpu:6.1f} s   peak so far {peak:,.0f} MiB")
    return rate


if __name__ == "__main__":
    main()
