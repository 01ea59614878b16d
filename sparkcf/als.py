"""Alternating least squares: a gang of workers sweeps over blocks that stay in memory.

    pairs ──one shuffle──▶ blocks ──▶ [users solved, items solved] × iterations ──▶ factors, log
                                       exchange, Gramian summed, one kernel call

`fit` runs it on Spark, `fit_arrays` in this process; both run `train`. The objectives stand in `sparkcf.objective`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from sparkcf.blocks import (
    ITEM,
    KINDS,
    USER,
    Block,
    Parts,
    build_block,
    exchange_routes,
    places,
    read_parts,
    received,
    row_ids,
    shuffled,
)
from sparkcf.config import ALSConfig
from sparkcf.errors import TrainingError
from sparkcf.gang import Alone, Gang, check_slots, joined, listening, worker_threads
from sparkcf.kernels.als import gramian, solve_cg, solve_cholesky, work_order
from sparkcf.kernels.random import normal_rows
from sparkcf.objective import Objective

F32 = NDArray[np.float32]
COLUMNS = ("side", "idx", "factor", "bias", "log")
NOTHING = "no positive interaction to train on: is preference.positive_from too high?"
RESULT = "side string, idx int, factor array<float>, bias float, log string"


@dataclass(frozen=True)
class Plan:
    """All that a worker must know, and nothing of Spark."""

    config: ALSConfig
    n_users: int
    n_items: int
    seed: int
    threads: int
    warm: bool = False

    @property
    def width(self) -> int:
        """Columns of a stored row: the vector, and the bias where there is one."""
        return self.config.rank + self.config.biases


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


@dataclass(frozen=True)
class Fit:
    """Fitted factors as frames (idx, factor, bias) and the log of the sweeps. `release` frees them."""

    user: DataFrame
    item: DataFrame
    log: list[dict[str, Any]]
    kept: DataFrame
    mean: float = 0.0

    def release(self) -> None:
        self.kept.unpersist()


def fit(
    pairs: DataFrame,
    n_users: int,
    n_items: int,
    config: ALSConfig,
    seed: int,
    starts: dict[str, DataFrame] | None = None,
    heard: Callable[[dict[str, Any]], None] = lambda message: None,
) -> Fit:
    """Fit on Spark by a gang of workers in one barrier stage.

    Parameters
    ----------
    pairs : user_idx, item_idx, value; indices dense, below n_users and n_items. A pair that stands twice counts as one
        with the values' sum.
    starts : by side ("user", "item"), frames (idx, factor) to begin from.
    heard : called on the driver with every sweep's log entry, while the sweeps run.

    Raises
    ------
    ConfigError
        Too few task slots, or dynamic allocation is on.
    TrainingError
        A factor is not finite, or there is no pair at all.
    """
    spark = pairs.sparkSession
    workers = check_slots(spark, config.workers)
    warm = bool(starts)
    plan = Plan(config, n_users, n_items, seed, worker_threads(spark), warm)
    with listening(spark, heard) as report_to:

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            with joined(workers, config.timeout_s, report_to) as gang:
                try:
                    sides, log = train(read_parts(batches, warm, plan.width), plan, gang)
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
    log = sorted((json.loads(row["log"]) for row in told), key=lambda entry: entry["sweep"])
    user, item = (kept.where(F.col("side") == name).select("idx", "factor", "bias") for name in KINDS)
    return Fit(user, item, log, kept, log[-1]["mean"])


def fit_arrays(
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    values: F32,
    n_users: int,
    n_items: int,
    config: ALSConfig,
    seed: int,
    threads: int = 1,
    heard: Callable[[dict[str, Any]], None] | None = None,
) -> Factors:
    """The same fit in this process, for notebooks, tests and small data. Arrays (nnz,)."""
    plan = Plan(config, n_users, n_items, seed, threads)
    users, items = users.astype(np.int32), items.astype(np.int32)
    values = values.astype(np.float32)
    parts = Parts([(users, items, values), (items, users, values)], [None, None])
    sides, log = train(parts, plan, Alone(heard))
    (user, user_bias), (item, item_bias) = (_split(side.factors, plan) for side in sides)
    present = [side.block.counts > 0 for side in sides]
    return Factors(user, item, user_bias, item_bias, present[USER], present[ITEM], log[-1]["mean"], log)


@dataclass
class Side:
    """Users or items at one worker."""

    name: str
    block: Block
    weights: F32
    targets: F32
    reg: F32  # (n,)
    factors: F32  # (n, width)
    order: NDArray[np.int64]
    n_present: int  # over all workers
    loss: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.loss = np.zeros(len(self.factors))


def train(parts: Parts, plan: Plan, gang: Gang) -> tuple[list[Side], list[dict[str, Any]]]:
    """All sweeps, at one worker of a gang.

    Returns
    -------
    (sides, log)
        The worker's users and items with their factors; an entry a sweep: objective by part, mu, seconds, rows.
    """
    with threadpool_limits(1, user_api="blas"):
        sides, objective = _build_sides(parts, plan, gang)
        constant = float(gang.sum(np.array([objective.constant(sides[USER].block.values)]))[0])
        log: list[dict[str, Any]] = []
        for sweep in range(1, plan.config.iterations + 1):
            begin = time.perf_counter()
            raised = _solve(sides[USER], sides[ITEM], plan, gang, objective)
            raised += _solve(sides[ITEM], sides[USER], plan, gang, objective)
            entry = {"sweep": sweep, **_objective_parts(sides, gang, objective, constant, plan)}
            entry |= {"mean": objective.mean, "seconds": time.perf_counter() - begin, "singular_rows": raised}
            log.append(entry)
            gang.report(entry)
            if len(log) > 1 and plan.config.tolerance > 0:
                before, now = log[-2]["objective"], entry["objective"]
                if before - now < plan.config.tolerance * abs(before):
                    break
        return sides, log


def _build_sides(parts: Parts, plan: Plan, gang: Gang) -> tuple[list[Side], Objective]:
    sizes = (plan.n_users, plan.n_items)
    blocks = []
    for side in (USER, ITEM):
        n_own = places(sizes[side], gang.rank, gang.size)
        blocks.append(build_block(parts.triples[side], n_own, sizes[1 - side], gang.size))
        parts.triples[side] = (
            np.empty(0, np.int32),
            np.empty(0, np.int32),
            np.empty(0, np.float32),
        )  # free them
    exchange_routes(blocks, gang)
    present = gang.sum(np.array([np.count_nonzero(block.counts) for block in blocks], np.int64))
    if not present.any():
        raise TrainingError(NOTHING)
    values = blocks[USER].values
    total, count = gang.sum(np.array([values.sum(dtype=np.float64), len(values)]))
    objective = Objective.of(plan.config, float(total / count))
    sides = []
    for side, block in enumerate(blocks):
        weights, targets = objective.coefficients(block.values)
        counted = objective.counted(block.indptr, block.values)
        reg = objective.row_regularization(counted, int(present[1 - side]))
        factors = _initial(side, block, parts.starts[side], plan, gang)
        order = work_order(block.indptr)
        sides.append(Side(KINDS[side], block, weights, targets, reg, factors, order, int(present[side])))
    return sides, objective


def _initial(side: int, block: Block, start: Any, plan: Plan, gang: Gang) -> F32:
    n = (plan.n_users, plan.n_items)[side]
    sd = plan.config.init_sd / np.sqrt(plan.config.rank)
    factors = normal_rows(plan.seed, side, row_ids(n, gang.rank, gang.size), plan.width, sd)
    if plan.config.biases:
        factors[:, -1] = 0.0
    if start is not None:
        rows, vectors = start
        factors[rows] = vectors
    factors[block.counts == 0] = 0.0  # they must not stand in the Gramian
    return factors


def _solve(side: Side, other: Side, plan: Plan, gang: Gang, objective: Objective) -> int:
    """Solve one side's rows with the other side fixed; returns the rows that were singular, over all workers."""
    config = plan.config
    fixed = received(side.block, other.factors, gang)
    if objective.alpha0:
        gram = (objective.alpha0 * gang.sum(gramian(other.factors))).astype(np.float32)
    else:
        gram = np.zeros((plan.width, plan.width), np.float32)
    offsets = np.empty(0, np.float32)
    if config.biases:  # a bias is one more dimension against a constant 1
        fixed, offsets = fixed.copy(), fixed[:, -1].copy()
        fixed[:, -1] = 1.0
    arguments = (
        side.block.indptr,
        side.block.indices,
        side.weights,
        side.targets,
        np.ascontiguousarray(fixed),
        offsets,
        gram,
        side.reg,
        side.order,
        plan.threads,
    )
    if config.solver == "cg":
        raised = solve_cg(*arguments, config.cg_steps, side.factors, side.loss)
    else:
        raised = solve_cholesky(*arguments, side.factors, side.loss)
    totals = gang.sum(np.array([side.loss.sum(), float(raised)]))
    if not np.isfinite(totals[0]):
        _raise_not_finite(side, plan, gang)
    return int(totals[1])


def _raise_not_finite(side: Side, plan: Plan, gang: Gang) -> None:
    """Every worker names the same row: the first, over all of them."""
    rows = np.flatnonzero(~np.isfinite(side.factors).all(axis=1) | ~np.isfinite(side.loss))
    first = np.zeros(gang.size, np.int64)
    first[gang.rank] = 1 + rows[0] * gang.size + gang.rank if len(rows) else 0
    first = gang.sum(first)
    where = f"{side.name} row {first[first > 0].min() - 1}" if first.any() else f"the sum over the {side.name}s"
    raise TrainingError(
        f"{where} is not finite: raise als.regularization (now {plan.config.regularization}) or look for huge values"
    )


def _objective_parts(
    sides: list[Side], gang: Gang, objective: Objective, constant: float, plan: Plan
) -> dict[str, float]:
    """The objective after a sweep, whole and by part. The items' losses hold everything but the users' penalty."""
    item = sides[ITEM]
    penalties = [
        float(np.einsum("n,nk,nk->", s.reg.astype(np.float64), s.factors, s.factors, dtype=np.float64)) for s in sides
    ]
    mine = np.array([item.loss.sum(), *penalties, _offset_constant(sides, plan, gang)])
    loss, user_penalty, item_penalty, moved = (float(v) for v in gang.sum(mine))
    unobserved = 0.0
    if objective.alpha0:
        grams = [gang.sum(gramian(s.factors)) for s in sides]
        unobserved = objective.alpha0 * float(np.sum(grams[0] * grams[1]))
    constant = moved if plan.config.biases else constant
    total = loss + constant + user_penalty
    return {
        "objective": total,
        "observed": total - unobserved - user_penalty - item_penalty,
        "unobserved": unobserved,
        "regularization": user_penalty + item_penalty,
    }


def _offset_constant(sides: list[Side], plan: Plan, gang: Gang) -> float:
    """With biases the items' targets were moved by the users' biases: sum of (r - mu - b_u)^2 here."""
    if not plan.config.biases:
        return 0.0
    item = sides[ITEM]
    bias = received(item.block, sides[USER].factors[:, -1:], gang)[:, 0]
    moved = item.targets - bias[item.block.indices]
    return float(np.square(moved, dtype=np.float64).sum())


def _split(factors: F32, plan: Plan) -> tuple[F32, F32]:
    if plan.config.biases:
        return np.ascontiguousarray(factors[:, :-1]), factors[:, -1].copy()
    return factors, np.zeros(len(factors), np.float32)


def _result(sides: list[Side], log: list[dict[str, Any]], plan: Plan, gang: Gang) -> Iterator[Any]:
    """A worker's factors, and from the first worker the log, as Arrow batches of RESULT."""
    import pyarrow as pa

    if gang.rank == 0:
        yield _lines("log", [json.dumps(entry) for entry in log])
    for number, side_ in enumerate(sides):
        factors, bias = _split(side_.factors, plan)
        present = np.flatnonzero(side_.block.counts)
        ids = row_ids((plan.n_users, plan.n_items)[number], gang.rank, gang.size)
        for first in range(0, len(present), 10_000):
            rows = present[first : first + 10_000]
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array([side_.name] * len(rows)),
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
    config: ALSConfig,
    n_items_present: int,
    mean: float = 0.0,
    gram: NDArray[np.float64] | None = None,
    threads: int = 1,
) -> tuple[F32, F32]:
    """Factors of rows that were not in training, by the training's own exact row solve with the items fixed.

    Parameters
    ----------
    indptr, indices, values : compressed rows over the items, (n + 1,), (nnz,), (nnz,).
    items : (n_items, rank); item_bias : (n_items,). gram : items^T items, where it is known already.
    n_items_present : items that were in training: it scales the regularisation of form `ials`.

    Returns
    -------
    (vectors, biases)
        float32 (n, rank) and (n,). A row without entries has zeros.
    """
    objective = Objective.of(config, mean)
    n, width = len(indptr) - 1, config.rank + config.biases
    weights, targets = objective.coefficients(values)
    reg = objective.row_regularization(objective.counted(indptr, values), n_items_present)
    matrix = np.zeros((width, width), np.float32)
    if objective.alpha0:
        matrix = (objective.alpha0 * (gramian(items) if gram is None else gram)).astype(np.float32)
    fixed, offsets = np.ascontiguousarray(items, np.float32), np.empty(0, np.float32)
    if config.biases:
        fixed = np.concatenate([fixed, np.ones((len(items), 1), np.float32)], axis=1)
        offsets = item_bias.astype(np.float32)
    out, loss = np.zeros((n, width), np.float32), np.zeros(n)
    with threadpool_limits(1, user_api="blas"):
        solve_cholesky(
            indptr,
            indices,
            weights,
            targets,
            fixed,
            offsets,
            matrix,
            reg,
            work_order(indptr),
            threads,
            out,
            loss,
        )
    return _split(out, Plan(config, n, len(items), 0, threads))


def with_defaults(config: ALSConfig, **changes: Any) -> ALSConfig:
    """The configuration with some keys changed, checked again."""
    return ALSConfig.model_validate(config.model_dump() | changes)
