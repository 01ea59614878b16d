"""Factors by alternating least squares, exact (ALS) or one dimension at a time (HALS), by a gang on Spark.

    pairs ──one shuffle──▶ blocks ──▶ [users solved, items solved] × iterations ──▶ factors, log

`fit` runs it on Spark, `fit_arrays` in this process; both run `sparkcf.models.als.sweeps.train`. `fold_in` solves rows
that were not in training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from sparkcf.config.models import ALSConfig, FactorizationConfig, HALSConfig
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.kernels.als import gramian, work_order
from sparkcf.models.als.objective import Objective
from sparkcf.models.als.sweeps import NOTHING, Plan, Side, solve_rows, train
from sparkcf.models.contract import Fit
from sparkcf.training.blocks import ITEM, KINDS, NO_WEIGHTS, USER, Parts, positive_counts, row_ids
from sparkcf.training.gang import Alone, Gang, check_slots, joined, listening, worker_threads
from sparkcf.training.saved_sweeps import Snapshots
from sparkcf.training.shuffle import read_parts, shuffled

F32 = NDArray[np.float32]
COLUMNS = ("side", "idx", "factor", "bias", "log")
Configured = TypeVar("Configured", bound=FactorizationConfig)
RESULT = "side string, idx int, factor array<float>, bias float, log string"


@dataclass
class Factors:
    """Fitted factors in this process. A row without entries has zeros and `present` False."""

    user: F32  # (n_users, rank)
    item: F32
    user_bias: F32  # (n_users,)
    item_bias: F32
    user_present: NDArray[np.bool_]
    item_present: NDArray[np.bool_]
    mean: float
    log: list[dict[str, Any]]


def fit(
    pairs: DataFrame,
    n_users: int,
    n_items: int,
    config: ALSConfig | HALSConfig,
    seed: int,
    starts: dict[str, DataFrame] | None = None,
    heard: Callable[[dict[str, Any]], None] = lambda message: None,
    snapshots: str | None = None,
) -> Fit:
    """Fit on Spark by a gang of workers in one barrier stage.

    Parameters
    ----------
    pairs : user_idx, item_idx, value; indices dense, below n_users and n_items. A pair that stands twice counts as one
        with the values' sum. With a column weight (explicit only) an entry counts like so many of weight 1.
    starts : by side ("user", "item"), frames (idx, factor) to begin from.
    heard : called on the driver with every sweep's log entry, while the sweeps run; or with a "note" for people.
    snapshots : folder or address where sweeps are saved every `config.save_every`. A gang that lost a worker goes on
        from the newest; so does a later call with the same folder. It is removed when the fit has ended well.

    Raises
    ------
    ConfigError
        Too few task slots, or dynamic allocation is on.
    TrainingError
        A factor is not finite, or there is no pair at all.
    """
    spark = pairs.sparkSession
    _check_weights("weight" in pairs.columns, config)
    workers = check_slots(spark, config.workers, config.section)
    warm = bool(starts)
    plan = Plan(config, n_users, n_items, seed, worker_threads(spark))
    saved = Snapshots(snapshots) if snapshots and config.save_every else None
    with listening(spark, heard) as report_to:

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            with joined(workers, config.timeout_s, report_to) as gang:
                try:
                    sides, log = train(read_parts(batches, warm, config.width), plan, gang, saved)
                except TrainingError as error:  # raised by all workers at once; a retry would end the same way
                    yield from _failure(error, gang)
                else:
                    yield from _result(sides, log, plan, gang)

        trained = shuffled(pairs, workers, starts).mapInArrow(work, RESULT, barrier=True)
        # With a shuffle behind it Spark starts a failed barrier stage again; without, it gives the job up.
        kept = trained.repartition(max(workers, 1), "idx").persist(StorageLevel.MEMORY_AND_DISK)
        try:
            # Runs the training, fills the cache. Spark starts no worker at all for an input that it knows to be empty.
            told = kept.where("log IS NOT NULL").select("side", "log").collect() or [{"side": "error", "log": NOTHING}]
            for row in told:
                if row["side"] == "error":
                    raise TrainingError(row["log"])
        except BaseException:
            kept.unpersist()
            raise
    if saved and (problem := saved.clear()):  # the fit itself is well
        heard({"note": f"saved sweeps cannot be removed from {snapshots}: {problem}"})
    log = sorted((json.loads(row["log"]) for row in told), key=lambda entry: entry["sweep"])
    user, item = (kept.where(F.col("side") == name).select("idx", "factor", "bias") for name in KINDS)
    return Fit(user, item, log, kept, log[-1]["mean"])


def fit_arrays(
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    values: F32,
    n_users: int,
    n_items: int,
    config: ALSConfig | HALSConfig,
    seed: int,
    threads: int = 1,
    heard: Callable[[dict[str, Any]], None] | None = None,
    snapshots: str | None = None,
    weights: F32 | None = None,
) -> Factors:
    """The same fit in this process, for notebooks, tests and small data. Arrays (nnz,); weights: explicit only."""
    _check_weights(weights is not None, config)
    plan = Plan(config, n_users, n_items, seed, threads)
    users, items = users.astype(np.int32), items.astype(np.int32)
    values = values.astype(np.float32)
    weight = NO_WEIGHTS if weights is None else weights.astype(np.float32)
    parts = Parts([(users, items, values, weight), (items, users, values, weight)], [None, None])
    sides, log = train(parts, plan, Alone(heard), Snapshots(snapshots) if snapshots else None)
    (user, user_bias), (item, item_bias) = (_split(side.factors, config) for side in sides)
    present = [side.block.counts > 0 for side in sides]
    return Factors(user, item, user_bias, item_bias, present[USER], present[ITEM], log[-1]["mean"], log)


def _check_weights(given: bool, config: FactorizationConfig) -> None:
    if given and config.mode == "implicit":
        raise ConfigError(f"weights go with {config.section}.mode=explicit: implicit forms weigh a pair by its value")


def _split(factors: F32, config: FactorizationConfig) -> tuple[F32, F32]:
    if config.biases:
        return np.ascontiguousarray(factors[:, :-1]), factors[:, -1].copy()
    return factors, np.zeros(len(factors), np.float32)


def _result(sides: list[Side], log: list[dict[str, Any]], plan: Plan, gang: Gang) -> Iterator[Any]:
    """A worker's factors, and from the first worker the log, as Arrow batches of RESULT."""
    import pyarrow as pa

    if gang.rank == 0:
        yield _lines("log", [json.dumps(entry) for entry in log])
    for number, side in enumerate(sides):
        factors, bias = _split(side.factors, plan.config)
        present = np.flatnonzero(side.block.counts)
        ids = row_ids(plan.sizes[number], gang.rank, gang.size)
        for first in range(0, len(present), 10_000):
            rows = present[first : first + 10_000]
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array([side.name] * len(rows)),
                    pa.array(ids[rows].astype(np.int32)),
                    vectors_to_arrow(factors[rows]),
                    pa.array(bias[rows]),
                    pa.nulls(len(rows), pa.string()),
                ],
                names=COLUMNS,
            )


def _failure(error: TrainingError, gang: Gang) -> Iterator[Any]:
    if gang.rank == 0:
        yield _lines("error", [str(error)])


def _lines(side: str, lines: list[str]) -> Any:
    """Text for the driver as an Arrow batch of RESULT."""
    import pyarrow as pa

    n, vectors = len(lines), pa.list_(pa.float32())
    nothing = (pa.nulls(n, pa.int32()), pa.nulls(n, vectors), pa.nulls(n, pa.float32()))
    return pa.RecordBatch.from_arrays([pa.array([side] * n), *nothing, pa.array(lines)], names=COLUMNS)


def vectors_to_arrow(vectors: F32) -> Any:
    """A (n, k) array as an Arrow list column."""
    import pyarrow as pa

    n, k = vectors.shape
    offsets = np.arange(0, (n + 1) * k, k, dtype=np.int32) if k else np.zeros(n + 1, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(vectors).reshape(-1)))


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
    """Factors of rows that were not in training, by the training's own exact row solve with the items fixed.

    Parameters
    ----------
    indptr, indices, values : compressed rows over the items, (n + 1,), (nnz,), (nnz,).
    items : (n_items, rank); item_bias : (n_items,). gram : items^T items, where it is known already.
    n_items_present : items that were in training: it scales the regularisation of form `ials`.
    weights : of the entries, (nnz,), or (0,) where all are 1; explicit only, implicit forms weigh by the value.

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


def with_defaults(config: Configured, **changes: Any) -> Configured:
    """The configuration with some keys changed, checked again."""
    return type(config).model_validate(config.model_dump() | changes)
