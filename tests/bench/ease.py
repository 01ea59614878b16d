"""EASE on the fixed splits of MovieLens: ranking quality, and how far its weights are from a dense float64 solve.

    python -m tests.bench.ease [--quick] [--tune SPLIT]

Strong generalisation (q1). Both settings were picked on the validation part (`--tune` prints the search): plain EASE
(both exponents and the denoising at zero), and all of them free. The test part is measured here once. EASE draws
nothing, so one run tells all. `--quick`: ml-100k-q1 alone. Needs ../shared/data/splits.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

import numpy as np

from sparkcf.config.linear import EASEConfig
from sparkcf.kernels.gram import add_gram
from sparkcf.kernels.metrics import ranking_measures
from sparkcf.kernels.topk import rank_scores
from sparkcf.models.contract_data import Saved, UserBlock
from sparkcf.models.ease import EASEScorer, item_weights
from tests.bench.quality import KS, SHOWN, SPLITS, load, n_users, parts, rows
from tests.bench.report import Goal, finish, print_table

CHOSEN: dict[str, dict[str, dict[str, Any]]] = {
    "ml-100k-q1": {
        "plain": {"regularization": 200.0},
        "free": {"regularization": 20.0, "user_exponent": 0.5, "item_exponent": 0.3, "denoising": 0.3},
    },
    "ml-1m-q1": {
        "plain": {"regularization": 750.0},
        "free": {"regularization": 20.0, "user_exponent": 0.3, "item_exponent": 0.35, "denoising": 0.3},
    },
}
GOALS = {"ml-100k-q1": 0.4521, "ml-1m-q1": 0.4201}  # EASE elsewhere, tuned likewise (the splits' README)
PLAIN_GRID = {"regularization": (50, 100, 150, 200, 300, 500, 750, 1000, 1500)}
FREE_GRID = {
    "regularization": (20, 60, 150),
    "user_exponent": (0.3, 0.5),
    "item_exponent": (0.2, 0.35),
    "denoising": (0.3, 0.5),
}


def gram_of(data: dict[str, np.ndarray], params: EASEConfig) -> tuple[np.ndarray, np.ndarray]:
    m = int(data["n_items"])
    indptr, items, values = rows(data["train"], n_users(data), m)
    gram = np.zeros((m, m))
    add_gram(indptr, items, values, np.diff(indptr).clip(1).astype(float) ** -params.user_exponent, 0, gram)
    return gram, np.bincount(items, minlength=m).astype(float)


def scorer(data: dict[str, np.ndarray], params: EASEConfig) -> EASEScorer:
    m = int(data["n_items"])
    arrays = {"weights": item_weights(*gram_of(data, params), params), "items": np.arange(m, dtype=np.int32)}
    return EASEScorer(Saved(np.zeros((m, 0), np.float32), np.zeros(m, np.float32), np.ones(m, bool), arrays))


def ease(data: dict[str, np.ndarray], part: str, params: EASEConfig) -> dict[tuple[str, int], float]:
    """Mean measures on a part of the split."""
    seen, heldout = parts(data, part)
    n, m = len(seen[0]) - 1, int(data["n_items"])
    scores = scorer(data, params)
    given = (*seen, np.ones_like(seen[2]))
    block = UserBlock(np.zeros((n, 0), np.float32), np.zeros(n, np.float32), np.ones(n, bool), given)

    def score_block(users: slice) -> np.ndarray:
        return scores.score_block(block.take(np.arange(users.start, users.stop)))

    ranked, _ = rank_scores(score_block, n, m, None, seen[0], seen[1], max(KS))
    names, values = ranking_measures(ranked, heldout[0], heldout[1], KS)
    return dict(zip(names, np.nanmean(values, axis=0), strict=True))


def off_dense(data: dict[str, np.ndarray], regularization: float) -> float:
    """The largest difference of a weight of plain EASE from that of a dense float64 inverse."""
    params, m = EASEConfig(regularization=regularization), int(data["n_items"])
    x = np.zeros((n_users(data), m))
    x[data["train"][:, 0], data["train"][:, 1]] = 1
    inverse = np.linalg.inv(x.T @ x + regularization * np.eye(m))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    return float(np.abs(item_weights(*gram_of(data, params), params) - expected).max())


def tune(split: str) -> None:
    data = load(split)
    for grid in (PLAIN_GRID, FREE_GRID):
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            print(f"{ease(data, 'valid', EASEConfig(**chosen))[('ndcg_at_k', 100)]:.4f}  {chosen}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tune", metavar="SPLIT", choices=sorted(CHOSEN))
    parser.add_argument("--size", default="real", help="ignored: the data are real")
    arguments = parser.parse_args()
    if not SPLITS.is_dir():
        sys.exit(f"ease: {SPLITS} is not here: nothing can be measured")
    if arguments.tune:
        tune(arguments.tune)
        return
    goals, table = [], []
    for split in ["ml-100k-q1"] if arguments.quick else sorted(CHOSEN):
        data, ndcg = load(split), {}
        for name, chosen in CHOSEN[split].items():
            figures = ease(data, "test", EASEConfig(**chosen))
            ndcg[name] = figures[("ndcg_at_k", 100)]
            table.append((split, f"EASE, {name}", *(f"{figures[key]:.4f}" for key in SHOWN), chosen))
        goals.append(Goal(f"{split} plain EASE NDCG@100", round(ndcg["plain"], 4), GOALS[split]))  # as it is published
        goals.append(Goal(f"{split} EASE with exponents and denoising less plain", ndcg["free"] - ndcg["plain"], 0.0))
        goals.append(
            Goal(f"{split} weights off a dense solve by", off_dense(data, GOALS_AT[split]), 1e-4, at_least=False)
        )
    print_table(("split", "system", *(f"{m.removesuffix('_at_k')}@{k}" for m, k in SHOWN), ""), table)
    finish("ease", "quick" if arguments.quick else "real", goals)


GOALS_AT = {"ml-100k-q1": 200.0, "ml-1m-q1": 750.0}  # the regularisation of the comparison with a dense solve


if __name__ == "__main__":
    main()
