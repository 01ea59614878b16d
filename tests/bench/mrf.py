"""MRF: ranking quality on the fixed splits of MovieLens, and time and memory by size and by kept entries.

    python -m tests.bench.mrf [--size S|M|L] [--only quality,cost] [--quick] [--tune SPLIT]

quality: strong generalisation (q1). Settings were picked on the validation part (`--tune` prints the search), the test
part is measured here once, beside EASE. Nothing is drawn, so one run tells all. cost: synthetic interactions of a size,
and as many for half of the items, by three values of `min_correlation`: CPU seconds of both steps, kept entries
and their memory, in one process. `--quick`: ml-100k-q1 and 50,000 pairs. Needs ../shared/data/splits for quality.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from sparkcf.config.linear import MRFConfig
from sparkcf.kernels.csr import build_csr
from sparkcf.kernels.mrf import multiply_rows
from sparkcf.kernels.topk import rank_scores
from sparkcf.models.linear import Compressed
from sparkcf.models.mrf.items import ItemSums, correlated, item_weights, joined, pairs_of, solve_item
from tests.bench.quality import KS, SHOWN, SPLITS, load, measure_lists, n_users, parts, rows
from tests.bench.report import Goal, finish, print_table
from tests.bench.synthetic import QUICK, SIZES, Interactions, interactions

CHOSEN: dict[str, dict[str, Any]] = {
    "ml-100k-q1": {},
    "ml-1m-q1": {"max_neighbours": 600, "item_exponent": 0.25},
}
EASE_REACHES = {"ml-100k-q1": 0.4521, "ml-1m-q1": 0.4201}  # plain EASE on the test part (the splits' README)
AIM = {"ml-1m-q1": 0.43}
GRID = {
    "max_neighbours": (300, 600),
    "regularization": (10, 20, 60),
    "user_exponent": (0.3, 0.5),
    "item_exponent": (0.25, 0.35),
}
CUTS = (0.2, 0.1, 0.05)  # min_correlation in `cost`
NEIGHBOURS = 100  # max_neighbours in `cost`


def quality(split: str, part: str, params: MRFConfig) -> dict[tuple[str, int], float]:
    """Mean measures on a part of the split."""
    data = load(split)
    m = int(data["n_items"])
    weights = item_weights(rows(data["train"], n_users(data), m), m, params)
    seen, heldout = parts(data, part)

    def score_block(users: slice) -> np.ndarray:
        start, stop = users.start, min(users.stop, len(seen[0]) - 1)
        scores = np.zeros((stop - start, m), np.float32)
        multiply_rows(seen[0][start : stop + 1], seen[1], seen[2], *weights, scores)
        return scores

    ranked, _ = rank_scores(score_block, len(seen[0]) - 1, m, None, seen[0], seen[1], max(KS))
    return measure_lists(ranked, heldout)


def compare(quick: bool, goals: list[Goal]) -> None:
    table = []
    for split in ["ml-100k-q1"] if quick else sorted(CHOSEN):
        begin = time.perf_counter()
        figures = quality(split, "test", MRFConfig(**CHOSEN[split]))
        ndcg = round(figures[("ndcg_at_k", 100)], 4)
        shown = (f"{figures[key]:.4f}" for key in SHOWN)
        table.append((split, "MRF", *shown, f"{time.perf_counter() - begin:.1f} s", CHOSEN[split]))
        goals.append(Goal(f"{split} NDCG@100, EASE's", ndcg, EASE_REACHES[split]))
        if split in AIM:
            goals.append(Goal(f"{split} NDCG@100, aim", ndcg, AIM[split]))
    print_table(("split", "system", *(f"{m.removesuffix('_at_k')}@{k}" for m, k in SHOWN), "", ""), table)


def half(data: Interactions) -> Interactions:
    """The pairs of every other item."""
    kept = data.items % 2 == 0
    return Interactions(data.users[kept], data.items[kept] // 2, data.n_users, (data.n_items + 1) // 2)


def cost(size: str, goals: list[Goal]) -> None:
    whole, table, per_entry = interactions(size), [], []
    for data, cut in itertools.product((half(whole), whole), CUTS):
        params = MRFConfig(min_correlation=cut, max_neighbours=NEIGHBOURS)
        found, solved, entries, kept = timed(data, params)
        if entries >= data.n_items:  # with fewer, what an item costs anyway is all that is measured
            per_entry.append(solved / entries)
        sizes = (f"{8 * entries / 1e6:,.0f} MB", f"{8 * data.n_items**2 / 1e6:,.0f} MB")
        times = (f"{found:.1f}", f"{solved:.1f}", f"{1e6 * solved / entries:.2f}")
        table.append((f"{data.n_items:,}", f"{len(data):,}", cut, f"{entries:,}", f"{kept:,}", *times, *sizes))
    headers = ("items", "pairs", "min_correlation", "entries of G", "of B", "s: G", "s: solves", "µs/entry of G")
    print_table((*headers, "G", "a dense matrix"), table)
    goals.append(
        Goal(
            "greatest ÷ least seconds of the solves by entry of G",
            max(per_entry, default=1) / min(per_entry, default=1),
            2,
            False,
        )
    )


def timed(data: Interactions, params: MRFConfig) -> tuple[float, float, int, int]:
    """CPU seconds to find the pairs and to solve all items; entries of G and of B."""
    begin, m = time.process_time(), data.n_items
    given: Compressed = build_csr(data.users, data.items, data.values, data.n_users, m)
    sums = ItemSums.of(given, m, params.user_exponent)
    pairs = pairs_of(correlated(given, np.arange(m, dtype=np.int32), sums, params), sums, params)
    found = time.process_time()
    weights = joined(((item, *solve_item(pairs, item, params)[:2]) for item in range(m)), m)
    return found - begin, time.process_time() - found, len(pairs.values), len(weights[2])


def tune(split: str) -> None:
    for values in itertools.product(*GRID.values()):
        chosen = dict(zip(GRID, values, strict=True))
        print(f"{quality(split, 'valid', MRFConfig(**chosen))[('ndcg_at_k', 100)]:.4f}  {chosen}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="M")
    parser.add_argument("--only", default="quality,cost")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tune", metavar="SPLIT", choices=sorted(CHOSEN))
    arguments = parser.parse_args()
    goals: list[Goal] = []
    with threadpool_limits(1, user_api="blas"):
        if arguments.tune:
            tune(arguments.tune)
            return
        wanted = arguments.only.split(",")
        if "quality" in wanted and SPLITS.is_dir():
            compare(arguments.quick, goals)
        elif "quality" in wanted:
            print(f"mrf: {SPLITS} is not here: the quality is not measured")
        if "cost" in wanted:
            cost(QUICK if arguments.quick else arguments.size, goals)
    finish("mrf", QUICK if arguments.quick else arguments.size, goals)


if __name__ == "__main__":
    main()
