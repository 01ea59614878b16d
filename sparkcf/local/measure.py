"""Figures of a fitted model on held-out pairs, by the formulas of `sparkcf.kernels.metrics`, as the evaluate job."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparkcf.config.root import EvaluationConfig
from sparkcf.kernels.metrics import Summary, mae, merge, ranking_measures, rating_errors, rmse, summarize
from sparkcf.lake.figures import Figure
from sparkcf.models.contract_data import F64, I32, I64, UserBlock
from sparkcf.ranking.topk import Ranker, Seen

BLOCK = 2_000  # users ranked at once
SYSTEMS = ("model", "popularity")


@dataclass(frozen=True)
class Evaluation:
    """Figures of the model and of the popularity baseline.

    protocol : q1, q2, q3, q4, or test: pairs that were given.
    note : description of the held-out part.
    figures : one for each system, measure and k.
    """

    protocol: str
    note: str
    figures: list[Figure]

    def value(self, metric: str, k: int | None = None, system: str = "model") -> float:
        """One figure, such as `value("ndcg_at_k", 10)`. Raises KeyError if it was not measured."""
        for figure in self.figures:
            if (figure.system, figure.metric, figure.k) == (system, metric, k):
                return figure.value
        raise KeyError(f"{metric} at k={k} of {system} was not measured")

    @property
    def table(self) -> pd.DataFrame:
        """system, metric, k, value, lower, upper (95 % bounds over users), users."""
        rows = [figure._asdict() for figure in self.figures]
        columns = ["system", "metric", "k", "value", "lower", "upper", "users"]
        return pd.DataFrame(rows)[columns].astype({"k": "Int64"})


def ranking_figures(
    ranker: Ranker,
    users: UserBlock,
    ids: I64,
    seen: Seen,
    heldout: tuple[I64, I32],
    n_trained: int,
    evaluation: EvaluationConfig,
    seed: int,
) -> list[Figure]:
    """Measure the lists of tested users.

    Parameters
    ----------
    ids : int64 (n,), dense indices of the users, by which bootstrap draws are paired.
    seen : compressed rows of items that are not listed.
    heldout : compressed rows of the held-out items; an item beyond the catalogue is a miss.
    n_trained : number of users in training, of whom novelty takes the items' shares; it is not measured where no item
        has one.
    """
    share = np.minimum(ranker.catalogue.popularity.astype(np.float64) / max(n_trained, 1), 1.0)
    depth, n_items = max(evaluation.ks), len(share)
    shares = share if share.any() else None
    parts: dict[str, list[Summary]] = {system: [] for system in SYSTEMS}
    listed = {system: np.zeros((len(evaluation.ks), n_items), bool) for system in SYSTEMS}
    names: list[tuple[str, int]] = []
    with threadpool_limits(1, user_api="blas"):
        for first in range(0, len(ids), BLOCK):
            at = np.arange(first, min(first + BLOCK, len(ids)))
            block, held, had = users.take(at), cut(*heldout, at), cut(*seen, at)
            unknown = replace(block, known=np.zeros(len(block), bool))
            for system, tested in zip(SYSTEMS, (block, unknown), strict=True):
                ranked, _ = ranker.rank(tested, had, depth)
                names, values = ranking_measures(ranked, *held, evaluation.ks, shares)
                parts[system].append(summarize(values, ids[at], seed, evaluation.bootstrap))
                for place, k in enumerate(evaluation.ks):
                    top = ranked[:, :k]
                    listed[system][place][top[top >= 0]] = True
    figures, n_known = [], max(int(ranker.scorer.known_items.sum()), 1)
    for system in SYSTEMS:
        summary = merge(parts[system])
        mean, lower, upper = summary.result()
        for column, (metric, k) in enumerate(names):
            bounds = _bounds(lower[column], upper[column])
            figures.append(Figure(system, metric, k, float(mean[column]), *bounds, summary.counted))
        for place, k in enumerate(evaluation.ks):
            coverage = float(listed[system][place].sum()) / n_known
            figures.append(Figure(system, "coverage_at_k", k, coverage, None, None, summary.counted))
    return figures


def rating_figures(
    predicted: F64, actual: F64, average: float, users: NDArray[np.int64], seed: int, bootstrap: int
) -> list[Figure]:
    """RMSE and MAE of predicted values (n,); the baseline predicts `average`, the mean of the training values."""
    figures = []
    for system, guess in zip(SYSTEMS, (predicted, np.full(len(actual), average)), strict=True):
        summary = summarize(rating_errors(actual, guess), users, seed, bootstrap)
        for name, measure in (("rmse", rmse), ("mae", mae)):
            value, lower, upper = measure(summary)
            figures.append(Figure(system, name, None, value, *_bounds(lower, upper), summary.counted))
    return figures


def cut(indptr: I64, indices: I32, rows: NDArray[np.int64]) -> tuple[I64, I32]:
    """Consecutive compressed rows."""
    begin, end = int(indptr[rows[0]]), int(indptr[rows[-1] + 1])
    return indptr[rows[0] : rows[-1] + 2] - begin, indices[begin:end]


def _bounds(lower: float, upper: float) -> tuple[float | None, float | None]:
    return (None, None) if np.isnan(lower) else (float(lower), float(upper))
