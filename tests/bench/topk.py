"""Top-100 of 20,000 users, seen items masked: rank_block, the same on Spark, implicit, MLlib, and sgemm alone.

    python -m tests.bench.topk [--size S|M|L] [--ranks 64,128] [--rounds 3] [--quick]

All have the same factors and two threads. MLlib masks nothing, which makes its work less.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from sparkcf.kernels.random import normal_rows
from sparkcf.kernels.topk import rank_block
from sparkcf.models.contract import InnerProduct
from sparkcf.models.contract_data import Saved
from sparkcf.ranking.scorers import share_scorer
from sparkcf.ranking.topk import Catalogue, ranked_lists, share_ranker
from tests.bench import mllib, peers
from tests.bench.report import Goal, finish, print_table
from tests.bench.synthetic import QUICK, SIZES, Interactions, interactions
from tests.bench.timing import Times, clock, interleaved

THREADS = 2
BLOCK = 1_000  # users a call of rank_block
USERS, K = 20_000, 100
KERNEL, SPARK, IMPLICIT, MLLIB, SGEMM = "rank_block", "lists on Spark", "implicit", "MLlib", "sgemm alone"
BLOCKS = "lists by score_block"
GOALS = {
    "MLlib ÷ lists on Spark": (MLLIB, SPARK, 15, True),
    "implicit ÷ rank_block (arrays to arrays)": (IMPLICIT, KERNEL, 2, True),
    "rank_block ÷ sgemm": (KERNEL, SGEMM, 3, False),
    "lists by score_block ÷ lists on Spark": (BLOCKS, SPARK, 1.5, False),
}


class Case:
    """Factors of one rank, the users asked for and what they have seen."""

    def __init__(self, data: Interactions, rank: int, n_users: int, k: int) -> None:
        self.data, self.k = data, k
        self.users, self.items = (
            normal_rows(1, side, np.arange(n), rank, rank**-0.5) for side, n in enumerate((data.n_users, data.n_items))
        )
        self.who = np.sort(np.random.default_rng(0).choice(data.n_users, min(n_users, data.n_users), replace=False))
        shape = (data.n_users, data.n_items)
        known = csr_matrix((data.values, (data.users, data.items)), shape=shape)[self.who]
        self.indptr, self.indices = known.indptr.astype(np.int64), known.indices.astype(np.int32)
        self.vectors = self.users[self.who]

    def kernel(self) -> tuple[np.ndarray, np.ndarray]:
        """Lists by blocks of users in threads: the kernel and sgemm both let go of the interpreter's lock."""

        def rank_part(first: int) -> tuple[np.ndarray, np.ndarray]:
            part = slice(first, first + BLOCK)
            indptr = self.indptr[first : first + BLOCK + 1]
            return rank_block(self.vectors[part], self.items, None, None, indptr, self.indices, self.k)

        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(rank_part, range(0, len(self.who), BLOCK)))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def sgemm(self) -> None:
        """The product by BLAS in threads of its own, into a buffer that stays."""
        buffer = np.empty((BLOCK, len(self.items)), np.float32)
        with threadpool_limits(THREADS, user_api="blas"):
            for first in range(0, len(self.who), BLOCK):
                part = self.vectors[first : first + BLOCK]
                np.dot(part, self.items.T, out=buffer[: len(part)])

    def on_spark(self, spark: Any, folder: Path, fused: bool = True) -> Any:
        """A row a user with its list, as MLlib gives it; the input lies in memory, as MLlib's does."""
        import pyarrow as pa

        seen = pa.ListArray.from_arrays(pa.array(self.indptr.astype(np.int32)), pa.array(self.indices))
        columns = {"user_idx": pa.array(self.who.astype(np.int32)), "factor": mllib.vector_column(self.vectors)}
        users = mllib.table_frame(spark, folder / "users", columns | {"seen": seen}).persist()
        users.count()
        m = len(self.items)
        saved = Saved(self.items, np.zeros(m, np.float32), np.ones(m, bool))
        catalogue = Catalogue(np.ones(m, bool), np.zeros(m, np.float32))
        ranker = share_ranker(spark, share_scorer(spark, InnerProduct, saved), catalogue, fused)
        return ranked_lists(users, ranker, self.items.shape[1], self.k)

    def by_mllib(self, spark: Any, folder: Path) -> Any:
        who = spark.createDataFrame([(int(user),) for user in self.who], "user_idx int").persist()
        who.count()
        return mllib.model_of(spark, folder, self.users, self.items).recommendForUserSubset(who, self.k)

    def to_peer(self, peer: peers.Peer) -> None:
        peer.pairs(self.data)
        peer.als(self.users, self.items, threads=THREADS, alpha=1.0, regularization=0.01, cg_steps=3)


def consume(lists: Any) -> None:
    """Compute every row of a frame and drop it."""
    lists.write.format("noop").mode("overwrite").save()


def measure(
    spark: Any, peer: peers.Peer | None, case: Case, rounds: int, slow_rounds: int
) -> tuple[dict[str, Times], dict[str, float]]:
    """Seconds by system, and how far the lists are from the peer's."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = case.on_spark(spark, Path(folder, "fused")), case.by_mllib(spark, Path(folder))
        by_blocks = case.on_spark(spark, Path(folder, "blocks"), fused=False)
        systems = {
            KERNEL: lambda: [clock(case.kernel)],
            SPARK: lambda: [clock(lambda: consume(ours))],
            BLOCKS: lambda: [clock(lambda: consume(by_blocks))],
            SGEMM: lambda: [clock(case.sgemm)],
            MLLIB: lambda: [clock(lambda: consume(theirs))],
        }
        if peer:
            case.to_peer(peer)
            systems[IMPLICIT] = lambda: [peer.ask("topk", {"who": case.who}, k=case.k, batch=0)["seconds"]]
        for name in systems.keys() - {MLLIB}:  # compile, start the workers, fill the caches
            systems[name]()
        times = interleaved(systems, rounds, {MLLIB: slow_rounds})
        spark.catalog.clearCache()
    if not peer:
        return times, {}
    (indices, scores), (their_indices, their_scores) = case.kernel(), (peer.array("indices"), peer.array("scores"))
    listed = indices >= 0  # implicit fills a short list with masked items
    same = np.mean([np.isin(a[a >= 0], b).mean() for a, b in zip(indices, their_indices, strict=True) if a[0] >= 0])
    return times, {"score off implicit's by": float(np.abs(scores - their_scores)[listed].max()), "same": float(same)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="M")
    parser.add_argument("--ranks", default="64,128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else arguments.size
    n_users, k, ranks, rounds = USERS, K, [int(r) for r in arguments.ranks.split(",")], arguments.rounds
    if arguments.quick:
        n_users, k, ranks, rounds = 500, 20, [16], 1
    data = interactions(size)
    goals, table = [], []
    with mllib.session() as spark, peers.optional(arguments.quick) as peer:
        blas = mllib.blas_in_use(spark)
        for rank in ranks:
            case = Case(data, rank, n_users, k)
            times, distance = measure(spark, peer, case, rounds, slow_rounds=min(2, rounds))
            table += [(rank, name, seconds) for name, seconds in times.items()]
            if not peer:
                table.append((rank, IMPLICIT, peers.SKIPPED))
            for name, (above, below, goal, at_least) in GOALS.items():
                if above in times and below in times:
                    value = times[above].median / times[below].median
                    goals.append(Goal(f"{name}, rank {rank}", value, goal, at_least))
            if distance:
                off = distance["score off implicit's by"]
                goals.append(Goal(f"largest score off implicit's by, rank {rank}", off, 1e-5, at_least=False))
                goals.append(Goal(f"share of items that implicit lists too, rank {rank}", distance["same"], 0.9999))
    print(f"top-{k} of {len(case.who):,} users × {data.n_items:,} items; MLlib's BLAS: {blas}; {rounds} rounds")
    print_table(("rank", "system", "seconds: median (least–greatest)"), table)
    finish("topk", size, goals)


if __name__ == "__main__":
    main()
