"""Alternating least squares on Spark: exact row solves (ALS) or one dimension at a time (HALS).

    pairs ──one shuffle──▶ blocks ──▶ [users solved, items solved] × iterations ──▶ factors, log

`fit` trains on Spark by a gang, `fit_arrays` in this process; both call `sparkcf.models.als.sweeps.train`. `fold_in`
solves rows that were not in training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparkcf.config.factorization import ALSConfig, FactorizationConfig, HALSConfig
from sparkcf.data.arrow import vectors_to_arrow
from sparkcf.data.pairs import Reads
from sparkcf.errors import ConfigError
from sparkcf.kernels.als import gramian, work_order
from sparkcf.lake.frames import one_row
from sparkcf.models.als.explain import contributions
from sparkcf.models.als.objective import Objective
from sparkcf.models.als.sweeps import NOTHING, ALSPlan, Side, solve_rows, train
from sparkcf.models.contract import InnerProduct, Model
from sparkcf.models.contract_data import (
    Features,
    FitRun,
    Fitted,
    LocalData,
    LocalFit,
    LocalRun,
    Rows,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.explanation import Explanation, Part, largest, of_items
from sparkcf.spark import DataFrame, F
from sparkcf.training.blocks import ITEM, KINDS, NO_WEIGHTS, USER, Parts, positive_counts, row_ids
from sparkcf.training.gang import Alone, Gang, check_slots, worker_threads
from sparkcf.training.gang_stage import gang_result, text_rows, value_rows
from sparkcf.training.saved_sweeps import SavedSweeps
from sparkcf.training.shuffle import read_parts, shuffled

F32 = NDArray[np.float32]
Configured = TypeVar("Configured", ALSConfig, HALSConfig)
RESULT = "kind string, text string, idx int, factor array<float>, bias float"


@dataclass
class Factors:
    """Fitted factors as arrays. A row without entries has zeros and `present` False."""

    user: F32  # (n_users, rank)
    item: F32
    user_bias: F32  # (n_users,)
    item_bias: F32
    user_present: NDArray[np.bool_]
    item_present: NDArray[np.bool_]
    mean: float
    log: list[dict[str, Any]]


class Factorization(Model[Configured]):
    """Matrix factorization by alternating row solves: base of ALS and HALS."""

    fits_locally = fits_in_parts = True

    @property
    def reads(self) -> Reads:
        return Reads("values" if self.params.mode == "explicit" else "positives")

    @property
    def width(self) -> int:
        return self.params.rank

    @property
    def rounds(self) -> int:
        return self.params.iterations

    def check_settings(self, pairs: DataFrame) -> None:
        _check_weights("weight" in pairs.columns, self.params)
        check_slots(pairs.sparkSession, self.params.workers, self.name)

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """See `fit`; the warm start is ignored if the earlier run has another rank."""
        warm_start = self._warm_start(run)
        sizes, explicit = (data.n_users, data.n_items), self.params.mode == "explicit"
        average = float(one_row(data.pairs.agg(F.avg("value")))[0] or 0.0) if explicit else 0.0
        fitted = fit(data.pairs, *sizes, self.params, self.seed, warm_start, run.on_progress, run.checkpoint_dir)
        return replace(fitted, average=average)

    def _warm_start(self, run: FitRun) -> dict[str, DataFrame] | None:
        """The vectors of an earlier run, with biases the bias as last entry; None if the ranks differ."""
        warm_start = {}
        for side, factors in (run.warm_start or {}).items():
            first = factors.first()
            if first is None or len(first["factor"]) != self.width:
                run.on_progress({"note": "the earlier run has another rank: starting from random factors"})
                return None
            vector = F.concat("factor", F.array("bias")) if self.params.biases else F.col("factor")
            warm_start[side] = factors.select("idx", vector.alias("factor"))
        return warm_start or None

    def fit_local(self, data: LocalData, run: LocalRun) -> LocalFit:
        """Fit in this process; see `fit_arrays`."""
        average = float(data.values.mean(dtype=np.float64)) if self.params.mode == "explicit" else 0.0
        config = self.params.model_copy(update={"iterations": run.rounds or self.rounds})
        start = None
        if run.start is not None:
            users, items = run.start.users, run.start.saved
            sides = ((users.vectors, users.bias), (items.item_vectors, items.item_bias))
            start = [_joined(vectors, bias, config) for vectors, bias in sides]
        pairs, sizes = (data.users, data.items, data.values), (data.n_users, data.n_items)
        found = fit_arrays(*pairs, *sizes, config, self.seed, data.threads, run.on_progress, None, data.weights, start)
        saved = Saved(found.item, found.item_bias, found.item_present, mean=found.mean, average=average)
        return LocalFit(saved, UserBlock(found.user, found.user_bias, found.user_present), found.log)

    def open(self, saved: Saved) -> FactorScorer:
        return FactorScorer(saved, self.params)


class ALS(Factorization[ALSConfig]):
    """Alternating least squares."""

    section = ALSConfig


class HALS(Factorization[HALSConfig]):
    """Hierarchical alternating least squares: one dimension at a time."""

    section = HALSConfig


class FactorScorer(InnerProduct):
    """Inner-product scorer that folds in new users by an exact row solve with the items fixed."""

    def __init__(self, saved: Saved, params: ALSConfig | HALSConfig) -> None:
        super().__init__(saved, None if params.biases else saved.average)
        self.params = params

    @cached_property
    def _gram(self) -> NDArray[np.float64]:
        return gramian(self.item_vectors)

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        indptr, indices, values, weights = rows
        items = (self.item_vectors, self.item_bias, self.params, self.n_known_items, self.mean, self._gram)
        return fold_in(indptr, indices, values, *items, weights=weights)

    def explain(self, user: UserBlock, item: int) -> Explanation:
        """What each item of the history brings; exact for the vector that solves the row with today's items.

        The remainder is how far the stored vector is from that one: training solves the items once more after it, and
        may stop a solve early.
        """
        assert user.rows is not None
        had, listed = user.rows[1], np.array([item], np.int32)
        brought = self._brought(user.vectors[0], user.rows, 0, listed)[:, 0]
        parts = of_items(had, brought)
        if self.item_bias.any():
            parts.append(Part("bias", "item", None, float(self.item_bias[item])))
        score = float(user.vectors[0].astype(np.float64) @ self.item_vectors[item] + self.item_bias[item])
        return Explanation.summing(score, parts)

    def because(self, users: UserBlock, items: NDArray[np.int32]) -> NDArray[np.int32]:
        assert users.rows is not None
        out = np.full(items.shape, -1, np.int32)
        for row, listed in enumerate(items):
            had = users.rows[1][users.rows[0][row] : users.rows[0][row + 1]]
            if len(had):
                out[row] = largest(had, listed, self._brought(users.vectors[row], users.rows, row, listed))
        return out

    def _brought(self, vector: F32, rows: Rows, row: int, listed: NDArray[np.int32]) -> NDArray[np.float64]:
        """What each item of a user's row brings to the score of each listed item, (h, k)."""
        here = slice(rows[0][row], rows[0][row + 1])
        items = (self.item_vectors, self.item_bias, self.n_known_items)
        own = (rows[1][here], rows[2][here], rows[3][here])
        return contributions(own, listed, items, vector, self._gram, self.mean, self.params)


def fit(
    pairs: DataFrame,
    n_users: int,
    n_items: int,
    config: ALSConfig | HALSConfig,
    seed: int,
    warm_start: dict[str, DataFrame] | None = None,
    on_progress: Callable[[dict[str, Any]], None] = lambda message: None,
    checkpoint_dir: str | None = None,
) -> Fitted:
    """Fit on Spark by a gang (worker group) in one barrier stage.

    Parameters
    ----------
    pairs : user_idx, item_idx, value; indices dense, below n_users and n_items. The values of a repeated pair are
        summed. With a column weight (explicit only) an entry of weight w counts like w entries of weight 1.
    warm_start : by side ("user", "item"), frames (idx, factor) to start from.
    on_progress : called on the driver with every sweep's log entry, while the sweeps run, or with a "note" to show.
    checkpoint_dir : folder or address where every `config.save_every`-th sweep is saved. A gang that lost a worker
        resumes from the newest; so does a later call with the same folder. Removed after a successful fit.

    Raises
    ------
    ConfigError
        Too few task slots, or dynamic allocation is on.
    TrainingError
        A factor is not finite, or there is no pair.
    """
    spark = pairs.sparkSession
    _check_weights("weight" in pairs.columns, config)
    workers = check_slots(spark, config.workers, config.section)
    warm = bool(warm_start)
    plan = ALSPlan(config, n_users, n_items, seed, worker_threads(spark))
    saved = SavedSweeps(checkpoint_dir) if checkpoint_dir and config.save_every else None

    def work(batches: Iterable[Any], gang: Gang) -> Iterator[Any]:
        sides, log = train(read_parts(batches, warm, config.width), plan, gang, saved)
        yield from _result(sides, log, plan, gang)

    with gang_result(
        shuffled(pairs, workers, warm_start), work, RESULT, workers, config.timeout_s, on_progress, NOTHING
    ) as (cached, messages):
        if saved and (problem := saved.clear()):  # no reason to fail the fit
            on_progress({"note": f"saved sweeps cannot be removed from {checkpoint_dir}: {problem}"})
        log = sorted((json.loads(text) for _, text in messages), key=lambda entry: entry["sweep"])
        user, item = (cached.where(F.col("kind") == name).select("idx", "factor", "bias") for name in KINDS)
        return Fitted(user, item, log, log[-1]["mean"], cached=cached)


def fit_arrays(
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    values: F32,
    n_users: int,
    n_items: int,
    config: ALSConfig | HALSConfig,
    seed: int,
    threads: int = 1,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    checkpoint_dir: str | None = None,
    weights: F32 | None = None,
    start: Sequence[F32] | None = None,
) -> Factors:
    """Fit in this process, for notebooks, tests and small data.

    Parameters
    ----------
    users, items, values : (nnz,).
    weights : (nnz,); mode explicit only.
    start : initial rows of users and of items, (n, width) each; None: drawn from the seed.
    """
    _check_weights(weights is not None, config)
    plan = ALSPlan(config, n_users, n_items, seed, threads)
    users, items = users.astype(np.int32, copy=False), items.astype(np.int32, copy=False)
    values = values.astype(np.float32, copy=False)
    weight = NO_WEIGHTS if weights is None else weights.astype(np.float32, copy=False)
    warm: list[Any] = [None, None] if start is None else [(np.arange(len(rows)), rows) for rows in start]
    parts = Parts([(users, items, values, weight), (items, users, values, weight)], warm)
    sides, log = train(parts, plan, Alone(on_progress), SavedSweeps(checkpoint_dir) if checkpoint_dir else None)
    (user, user_bias), (item, item_bias) = (_split(side.factors, config) for side in sides)
    present = [side.block.counts > 0 for side in sides]
    return Factors(user, item, user_bias, item_bias, present[USER], present[ITEM], log[-1]["mean"], log)


def _check_weights(has_weights: bool, config: FactorizationConfig) -> None:
    if has_weights and config.mode == "implicit":
        raise ConfigError(f"weights need {config.section}.mode=explicit: implicit forms weigh a pair by its value")


def _split(factors: F32, config: FactorizationConfig) -> tuple[F32, F32]:
    if config.biases:
        return np.ascontiguousarray(factors[:, :-1]), factors[:, -1].copy()
    return factors, np.zeros(len(factors), np.float32)


def _joined(vectors: F32, bias: F32, config: FactorizationConfig) -> F32:
    """The inverse of `_split`."""
    return np.concatenate([vectors, bias[:, None]], axis=1) if config.biases else vectors


def _result(sides: list[Side], log: list[dict[str, Any]], plan: ALSPlan, gang: Gang) -> Iterator[Any]:
    """A worker's factors, and the log from the first worker, as Arrow batches of RESULT."""
    import pyarrow as pa

    if gang.rank == 0:
        yield text_rows(RESULT, "log", [json.dumps(entry) for entry in log])
    for number, side in enumerate(sides):
        factors, bias = _split(side.factors, plan.config)
        present = np.flatnonzero(side.block.counts)
        ids = row_ids(plan.sizes[number], gang.rank, gang.size)
        for first in range(0, len(present), 10_000):
            rows = present[first : first + 10_000]
            values = (pa.array(ids[rows].astype(np.int32)), vectors_to_arrow(factors[rows]), pa.array(bias[rows]))
            yield value_rows(RESULT, side.name, *values)


def fold_in(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: F32,
    items: F32,
    item_bias: F32,
    config: ALSConfig | HALSConfig,
    n_items_present: int,
    mean: float = 0.0,
    gram: NDArray[np.float64] | None = None,
    threads: int = 1,
    weights: F32 = NO_WEIGHTS,
) -> tuple[F32, F32]:
    """Factors of rows that were not in training: an exact row solve of the objective with the items fixed.

    Parameters
    ----------
    indptr, indices, values : compressed rows over the items, (n + 1,), (nnz,), (nnz,).
    items : (n_items, rank).
    item_bias : (n_items,).
    n_items_present : number of items in training; scales the regularisation of form `ials`.
    gram : items^T items, if already computed.
    weights : of the entries, (nnz,), or (0,) where all are 1; mode explicit only.

    Returns
    -------
    (vectors, biases)
        float32 (n, rank) and (n,). A row without entries has zeros.
    """
    shared = config.model_dump(include=set(FactorizationConfig.model_fields))
    exact = ALSConfig.model_validate(shared | {"solver": "cholesky"})
    objective = Objective.of(config, mean)
    counts = np.diff(indptr)
    weights, targets = objective.coefficients(values, weights)
    reg = objective.row_regularization(objective.counted(counts, positive_counts(indptr, values)), n_items_present)
    matrix = np.zeros((config.width, config.width), np.float32)
    if objective.alpha0:
        matrix = (objective.alpha0 * (gramian(items) if gram is None else gram)).astype(np.float32)
    fixed, offsets = np.ascontiguousarray(items, np.float32), np.empty(0, np.float32)
    if config.biases:
        fixed = np.concatenate([fixed, np.ones((len(items), 1), np.float32)], axis=1)
        offsets = item_bias.astype(np.float32)
    out, loss = np.zeros((len(counts), config.width), np.float32), np.zeros(len(counts))
    rows = (indptr, indices, weights, targets)
    with threadpool_limits(1, user_api="blas"):
        solve_rows(rows, (fixed, offsets, matrix), reg, work_order(counts), exact, threads, out, loss)
    return _split(out, config)
