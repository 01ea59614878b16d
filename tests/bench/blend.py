"""A blend of ALS, EASE and Mult-VAE against its members on the fixed splits of MovieLens.

    python -m tests.bench.blend [--quick] [--only SPLIT] [--members als,ease,multvae]

The members have the settings that were picked on the validation part (`quality`, `ease`, `nets`; on a q2 split those of
q1 for EASE and Mult-VAE). They are fitted on the train part, the blend's weights are learned on the validation part,
and the test part is measured once, with differences paired by user. `--quick`: ml-100k-q1 with ALS and EASE. Needs
../shared/data/splits.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import torch

from sparkcf.config.factorization import ALSConfig
from sparkcf.config.linear import EASEConfig
from sparkcf.config.models import BlendConfig
from sparkcf.data.packed import PackedRows
from sparkcf.kernels.metrics import ranking_measures, summarize
from sparkcf.kernels.topk import rank_scores
from sparkcf.models.als.fit import FactorScorer
from sparkcf.models.blend import BlendScorer, learn
from sparkcf.models.contract import Scorer
from sparkcf.models.contract_data import Features, Rows, Saved, UserBlock
from sparkcf.training.loop import to_tensors
from tests.bench import ease, nets, quality
from tests.bench.report import Goal, finish, print_table
from tests.bench.training import trained

SPLITS = ("ml-100k-q1", "ml-100k-q2", "ml-1m-q1", "ml-1m-q2")
MEMBERS = ("als", "ease", "multvae")
REPLICATES = 2_000


class NetRows(Scorer):
    """A net that scores rows."""

    def __init__(self, net: torch.nn.Module, n_items: int) -> None:
        self.net, self.known_items = net.eval(), np.ones(n_items, bool)

    def score_block(self, users: UserBlock) -> np.ndarray:
        assert users.rows is not None
        indptr, indices, values, _ = users.rows
        with torch.inference_mode():
            rows = to_tensors(PackedRows(np.arange(len(users)), indptr, indices, values), "cpu")
            scores: np.ndarray = self.net(rows)[0].numpy()
        return scores

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[np.ndarray, np.ndarray]:
        n = len(rows[0]) - 1
        return np.zeros((n, 0), np.float32), np.zeros(n, np.float32)


def fitted(name: str, split: str) -> Scorer:
    """A member fitted on the train part."""
    data, twin = quality.load(split), f"{split.rpartition('-')[0]}-q1"
    if name == "als":
        config = ALSConfig(**quality.CHOSEN[split])
        factors = quality.fit(data, config, seed=1)
        return FactorScorer(Saved(factors.item, factors.item_bias, factors.item_present, mean=factors.mean), config)
    if name == "ease":
        return ease.scorer(data, EASEConfig(**ease.CHOSEN[twin]["free"]))
    return NetRows(trained(split, name, nets.CHOSEN[twin, name], 1)[0], int(data["n_items"]))


def blocks(members: list[Scorer], given: quality.Rows) -> list[UserBlock]:
    """The users of rows as each member knows them."""
    rows = (*given, np.ones_like(given[2]))
    n = len(given[0]) - 1
    return [UserBlock(*member.fold_in(rows), np.ones(n, bool), rows) for member in members]


def lists(scorer: Scorer, users: UserBlock, seen: quality.Rows, m: int) -> np.ndarray:
    def score_block(part: slice) -> np.ndarray:
        return np.array(scorer.score_block(users.take(np.arange(part.start, part.stop))))

    return rank_scores(score_block, len(users), m, None, seen[0], seen[1], max(quality.KS))[0]


def by_user(ranked: np.ndarray, heldout: quality.Rows) -> np.ndarray:
    names, values = ranking_measures(ranked, heldout[0], heldout[1], quality.KS)
    return values[:, [names.index(key) for key in quality.SHOWN]]


def measure(split: str, names: list[str]) -> tuple[list[tuple[Any, ...]], list[Goal]]:
    data, config, m = quality.load(split), BlendConfig(), int(quality.load(split)["n_items"])
    begin = time.perf_counter()
    members = [fitted(name, split) for name in names]
    fit_seconds = time.perf_counter() - begin
    seen, heldout = quality.parts(data, "valid")
    begin = time.perf_counter()
    learned = learn(members, blocks(members, seen), heldout[:2], config)
    seconds = time.perf_counter() - begin
    seen, heldout = quality.parts(data, "test")
    given = quality.parts(data, "valid")[0] if "users" in data else seen  # q2: the members see the train part alone
    own = blocks(members, given)
    vectors = np.concatenate([block.vectors for block in own], axis=1)
    blend = BlendScorer(members, [block.vectors.shape[1] for block in own], learned.weights, config, names)
    systems = {name: by_user(lists(*pair, seen, m), heldout) for name, *pair in zip(names, members, own, strict=True)}
    users = UserBlock(vectors, own[0].bias, own[0].known, own[0].rows)
    systems["blend"] = by_user(lists(blend, users, seen, m), heldout)
    validation = {**dict(zip(names, learned.members, strict=True)), "blend": learned.blend or 0.0}
    weights = {**dict(zip(names, learned.weights.round(3).tolist(), strict=True)), "blend": f"{seconds:.1f} s"}
    table, ids = [], np.arange(len(users), dtype=np.int64)
    goals = [Goal(f"{split} blend less its best member, validation", validation["blend"] - max(learned.members), 0.0)]
    for name, values in systems.items():
        mean, low, high = summarize(systems["blend"] - values, ids, 1, REPLICATES).result()
        paired = "" if name == "blend" else f"{mean[0]:+.4f} [{low[0]:+.4f}, {high[0]:+.4f}]"
        shown = [f"{value:.4f}" for value in np.nanmean(values, axis=0)]
        table.append((split, name, f"{validation[name]:.4f}", *shown, paired, weights[name]))
        if name != "blend":
            goals.append(Goal(f"{split} blend less {name}, test, lower bound", float(low[0]), 0.0))
    print(f"{split}: fits {fit_seconds:.0f} s, weights {seconds:.1f} s", flush=True)
    return table, goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", metavar="SPLIT", choices=SPLITS)
    parser.add_argument("--members", default=",".join(MEMBERS))
    parser.add_argument("--size", default="real", help="ignored: the data are real")
    arguments = parser.parse_args()
    if not quality.SPLITS.is_dir():
        sys.exit(f"blend: {quality.SPLITS} is not here: nothing can be measured")
    splits = ["ml-100k-q1"] if arguments.quick else [arguments.only] if arguments.only else list(SPLITS)
    names = ["als", "ease"] if arguments.quick else arguments.members.split(",")
    table, goals = [], []
    for split in splits:
        rows, reached = measure(split, names)
        table += rows
        goals += reached
    shown = (f"{metric.removesuffix('_at_k')}@{k}" for metric, k in quality.SHOWN)
    print_table(("split", "system", "valid ndcg@100", *shown, "blend less it, ndcg@100", "weight"), table)
    finish("blend", "quick" if arguments.quick else "real", goals)


if __name__ == "__main__":
    main()
