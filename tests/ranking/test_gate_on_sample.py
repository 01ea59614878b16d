"""The gate on the packaged sample: the same model from other seeds is published, spoilt models are refused."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import sparkcf
from sparkcf.config.load import load_config
from sparkcf.config.root import GateConfig
from sparkcf.errors import GateRefused
from sparkcf.kernels.metrics import ranking_measures, summarize
from sparkcf.lake.metrics import Figure
from sparkcf.models.als.fit import fit_arrays
from sparkcf.ranking.gate import Measured, check_quality

SAMPLE = Path(sparkcf.__file__).parent / "sample" / "ratings.csv.gz"
K, REPLICATES = 100, 200
SETTINGS = load_config(("conf/sample.yaml",), ["als.iterations=8", "als.rank=32"])
AT_ALL_COSTS = GateConfig(allow_below_popularity=True)  # so that what refuses is the comparison
Spoil = Callable[[NDArray, np.random.Generator], NDArray]


@dataclass(frozen=True)
class Fit:
    """A test and what it is answered with: scores (users, items) with the seen ones masked, and the counts."""

    seed: int
    scores: NDArray[np.float64]  # of users without a vector: how popular the items are, as lists have it
    known: NDArray[np.bool_]  # users with a vector
    popular: NDArray[np.float64]
    heldout: tuple[NDArray, NDArray]

    def measured(self, scores: NDArray, half: bool = False) -> Measured:
        figures = {}
        for system, given in (("model", scores), ("popularity", np.where(np.isinf(scores), scores, self.popular))):
            best = np.sort(np.argpartition(-given, K, axis=1)[:, :K], axis=1)  # of equals the first
            order = np.argsort(-np.take_along_axis(given, best, axis=1), axis=1, kind="stable")
            ranked = np.take_along_axis(best, order, axis=1).astype(np.int32)
            values = ranking_measures(ranked, *self.heldout, [K])[1][:, :1]
            values = values / 2 if half and system == "model" else values
            everyone = summarize(values, np.arange(len(values)), self.seed, REPLICATES)
            known = np.flatnonzero(self.known)
            warm = everyone if self.known.all() else summarize(values[known], known, self.seed, REPLICATES)
            for segment, summary in ((None, everyone), ("warm", warm)):
                mean, lower, upper = (float(x[0]) for x in summary.result())
                drawn = summary.replicate_means()[:, 0].tolist()
                bounds = (mean, lower, upper, summary.counted, segment, drawn)
                figures[system, segment] = Figure(system, "ndcg_at_k", K, *bounds)
        return Measured(f"seed-{self.seed}", "q2", {"seed": self.seed, "bootstrap": REPLICATES}, figures)


@cache
def liked() -> tuple[NDArray, NDArray, int, int]:
    with gzip.open(SAMPLE, "rt") as file:
        rows = [(row["userId"], row["movieId"]) for row in csv.DictReader(file) if float(row["rating"]) >= 4]
    users, items = (np.unique(side, return_inverse=True)[1].astype(np.int32) for side in zip(*rows, strict=True))
    return users, items, int(users.max()) + 1, int(items.max()) + 1


def fit(seed: int, shuffled: bool = False, share: float = 1.0) -> Fit:
    """The sample's model on nine tenths of every user's liked items, or a share of these; the rest is to be found."""
    users, items, n, m = liked()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(users))
    order = order[np.argsort(users[order], kind="stable")]
    counts = np.bincount(users, minlength=n)
    place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(users), bool)
    held[order] = (place < np.round(0.1 * counts)[users[order]]) & (counts[users[order]] >= 5)
    trained = items[~held]
    if shuffled:
        trained = rng.permutation(trained)
    some = rng.random(len(trained)) < share
    of_some = users[~held][some], trained[some]
    fitted = fit_arrays(*of_some, np.ones(int(some.sum()), np.float32), n, m, SETTINGS.als, seed)
    popular = np.bincount(of_some[1], minlength=m).astype(np.float64)
    tested = np.flatnonzero(np.bincount(users[held], minlength=n))
    known = np.bincount(of_some[0], minlength=n)[tested] > 0
    scores = np.where(known[:, None], fitted.user[tested].astype(np.float64) @ fitted.item.T, popular)
    rows = np.searchsorted(tested, users[~held])
    inside = np.isin(users[~held], tested)
    scores[rows[inside], items[~held][inside]] = -np.inf
    place = np.argsort(users[held], kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(users[held], minlength=n)[tested])])
    return Fit(seed, scores, known, popular, (indptr.astype(np.int64), items[held][place]))


@pytest.fixture(scope="module")
def published() -> Fit:
    return fit(42)


def refused(new: Measured, old: Measured, gate: GateConfig) -> bool:
    try:
        check_quality(new, old, gate)
    except GateRefused:
        return True
    return False


def test_the_same_model_from_thirty_other_seeds_is_published(published: Fit) -> None:
    old = published.measured(published.scores)
    fits = [fit(seed) for seed in range(30)]
    assert [f.seed for f in fits if refused(f.measured(f.scores), old, GateConfig())] == []


KINDS = ("half of the vectors shuffled", "trained on shuffled items", "trained on a hundredth", "half the quality")


@pytest.mark.parametrize("kind", KINDS)
def test_ten_spoilt_models_of_a_kind_are_refused(published: Fit, kind: str) -> None:
    old = published.measured(published.scores)
    passed = []
    for draw in range(10):
        rng = np.random.default_rng(draw)
        if kind == "half of the vectors shuffled":
            n = len(published.scores)
            wrong = rng.permutation(n)[: n // 2]
            given = published.scores.copy()
            given[wrong] = given[rng.permutation(wrong)]
            given[np.isinf(published.scores)] = -np.inf  # still nobody gets what they had
            new = published.measured(np.where(np.isinf(given) & ~np.isinf(published.scores), 0.0, given))
        elif kind == "trained on shuffled items":
            other = fit(draw, shuffled=True)
            new = other.measured(other.scores)
        elif kind == "trained on a hundredth":
            other = fit(draw, share=0.01)
            new = other.measured(other.scores)
        else:
            other = fit(100 + draw)
            new = other.measured(other.scores, half=True)
        if not refused(new, old, AT_ALL_COSTS):
            passed.append(draw)
    assert passed == []
