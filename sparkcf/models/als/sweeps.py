"""The sweeps of ALS and HALS at one worker of a gang: numpy and kernels, no Spark.

    for each sweep: users solved with the items fixed, then items with the users fixed
        fixed rows received ──▶ Gramian summed over the gang ──▶ one kernel call a thread ──▶ hot rows, summed

See `sparkcf.models.als.objective` for the objectives and `sparkcf.kernels.als` for the row problem.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparkcf.config.factorization import ALSConfig, FactorizationConfig, HALSConfig
from sparkcf.errors import TrainingError
from sparkcf.kernels.als import gramian, normal_equations, solve_summed, work_order
from sparkcf.kernels.cg import solve_cg
from sparkcf.kernels.cholesky import solve_cholesky, solve_subspace
from sparkcf.kernels.hals import solve_hals, solve_hals_unweighted
from sparkcf.kernels.random import normal_rows
from sparkcf.kernels.threads import in_threads
from sparkcf.models.als.objective import Objective
from sparkcf.training.blocks import (
    ITEM,
    KINDS,
    USER,
    Block,
    Hot,
    Parts,
    build_blocks,
    exchange_routes,
    received,
    row_ids,
)
from sparkcf.training.gang import Gang
from sparkcf.training.plan import Plan
from sparkcf.training.saved_sweeps import SavedSweep, SavedSweeps

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Entry = dict[str, Any]
ALSPlan = Plan[ALSConfig | HALSConfig]
NOTHING = "no positive interaction to train on: is preference.positive_from too high?"


@dataclass
class HotRows:
    """The hot rows of a side; `reg` and `factors` are the same at all workers."""

    entries: Hot
    weights: F32
    targets: F32
    reg: F64  # (h,)
    factors: F64  # (h, width)
    mine: NDArray[np.int64]  # positions of this worker's rows
    places: NDArray[np.int64]  # places of these rows


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
    hot: HotRows
    gram: F64  # (width, width), of all workers' factors; zeros if the objective does not need it
    loss: F64 = field(init=False)
    constant: float | None = None  # cached result of `_constant`

    def __post_init__(self) -> None:
        self.loss = np.zeros(len(self.factors))


def train(parts: Parts, plan: ALSPlan, gang: Gang, saved: SavedSweeps | None = None) -> tuple[list[Side], list[Entry]]:
    """Run all sweeps, at one worker of a gang.

    Parameters
    ----------
    saved : checkpoints, written every `save_every` sweeps; training resumes from the newest.

    Returns
    -------
    (sides, log)
        The worker's users and items with their factors; one entry per sweep: objective by part, mu, seconds, of these
        the seconds of exchange, singular rows.

    Raises
    ------
    TrainingError
        At all workers together: there is no entry, or a factor is not finite.
    """
    config = plan.config
    with threadpool_limits(1, user_api="blas"):
        sides, objective = _build_sides(parts, plan, gang)
        log: list[Entry] = []
        newest = saved.load(gang, plan.sizes, config.width) if saved else None
        if newest:
            _resume(sides, newest, objective, gang)
            log = newest.log
        while len(log) < config.iterations and not _converged(log, config.tolerance):
            entry = _sweep(sides, plan, gang, objective, len(log) + 1)
            log.append(entry)
            gang.report(entry)
            if saved and config.save_every and len(log) % config.save_every == 0 and len(log) < config.iterations:
                problem = saved.save(gang, SavedSweep([side.factors for side in sides], log))
                if problem:  # no reason to fail the fit
                    gang.report({"note": f"sweeps cannot be saved in {saved.folder}: {problem}"})
                    saved = None
        return sides, log


def _converged(log: list[Entry], tolerance: float) -> bool:
    if len(log) < 2 or tolerance == 0:
        return False
    before, now = log[-2]["objective"], log[-1]["objective"]
    return bool(before - now < tolerance * abs(before))


def _sweep(sides: list[Side], plan: ALSPlan, gang: Gang, objective: Objective, number: int) -> Entry:
    begin = time.perf_counter()
    exchange = raised = 0.0
    for side in (USER, ITEM):
        seconds, singular = _solve(sides[side], sides[1 - side], plan, gang, objective)
        exchange += seconds
        raised += singular
    entry = {"sweep": number, **_objective_parts(sides, gang, objective, plan)}
    seconds = time.perf_counter() - begin
    return entry | {"mean": objective.mean, "seconds": seconds, "exchange": exchange, "singular_rows": int(raised)}


def _resume(sides: list[Side], saved: SavedSweep, objective: Objective, gang: Gang) -> None:
    for side, factors in zip(sides, saved.factors, strict=True):
        side.factors[:] = factors
        side.gram = _gramian(factors, objective, gang)
        side.hot.factors = _hot_values(side.hot, side.factors, gang)


def _build_sides(parts: Parts, plan: ALSPlan, gang: Gang) -> tuple[list[Side], Objective]:
    config = plan.config
    blocks = build_blocks(parts, plan.sizes, config.width, gang)
    exchange_routes(blocks, gang)
    present = gang.sum(np.array([np.count_nonzero(block.counts) for block in blocks], np.int64))
    if not present.any():
        raise TrainingError(NOTHING)
    objective = Objective.of(config, _mean(blocks[USER], gang))
    _check_values(blocks[USER], objective, config.section, gang)
    sides = []
    for side, block in enumerate(blocks):
        weights, targets = objective.coefficients(block.values, block.weights)
        counted = objective.counted(block.counts, block.positives)
        reg = objective.row_regularization(counted, int(present[1 - side]))
        factors = _initial(side, block, parts.warm_start[side], plan, gang)
        mine, places = block.hot.here(gang.rank, gang.size)
        nothing = np.zeros((len(block.hot.rows), config.width))
        hot_coefficients = objective.coefficients(block.hot.values, block.hot.weights)
        hot = HotRows(block.hot, *hot_coefficients, nothing[:, 0], nothing, mine, places)
        hot.reg = _hot_values(hot, reg[:, None], gang)[:, 0]
        hot.factors = _hot_values(hot, factors, gang)
        order = work_order(block.counts)
        order = order[~np.isin(order, places)] if len(places) else order
        gram = _gramian(factors, objective, gang)
        sides.append(Side(KINDS[side], block, weights, targets, reg, factors, order, hot, gram))
    return sides, objective


def _check_values(users: Block, objective: Objective, section: str, gang: Gang) -> None:
    """Raise TrainingError, at all workers, for values that make the objective unbounded."""
    wrong, whole = gang.sum(
        np.array([[objective.refused(part.values), len(part.values)] for part in (users, users.hot)]).sum(axis=0)
    )
    if wrong:
        raise TrainingError(
            f"{wrong:,} of {whole:,} pairs have a negative weight, for which {section}.form={objective.form} has no "
            f"minimum: set preference.weight=one, preference.positive_from, or {section}.form=hu_koren"
        )


def _mean(users: Block, gang: Gang) -> float:
    """The weighted mean value over all workers."""
    sums = np.zeros(2)
    for part in (users, users.hot):
        weights = part.weights if len(part.weights) else np.ones(1, np.float32)
        sums += np.sum(weights * part.values, dtype=np.float64), len(part.values) * np.mean(weights, dtype=np.float64)
    total, weight = gang.sum(sums)
    return float(total / weight) if weight else 0.0


def _hot_values(hot: HotRows, own: NDArray[Any], gang: Gang) -> F64:
    """Send the hot rows of `own` (n, w) from their owners to every worker: float64 (h, w)."""
    shared = np.zeros((len(hot.entries.rows), own.shape[1]))
    shared[hot.mine] = own[hot.places]
    return gang.sum(shared) if len(shared) else shared


def _initial(side: int, block: Block, warm_start: Any, plan: ALSPlan, gang: Gang) -> F32:
    config = plan.config
    sd = config.init_sd / np.sqrt(config.rank)
    factors = normal_rows(plan.seed, side, row_ids(plan.sizes[side], gang.rank, gang.size), config.width, sd)
    if config.nonnegative:
        np.abs(factors, out=factors)
    if config.biases:
        factors[:, -1] = 0.0
    if warm_start is not None:
        rows, vectors = warm_start
        factors[rows] = np.maximum(vectors, 0) if config.nonnegative else vectors
    factors[block.counts == 0] = 0.0  # rows without entries must not count in the Gramian
    return factors


def _solve(side: Side, other: Side, plan: ALSPlan, gang: Gang, objective: Objective) -> tuple[float, int]:
    """Solve one side's rows with the other side fixed.

    Returns the seconds spent in exchange, and the number of singular rows over all workers.
    """
    config = plan.config
    begin = time.perf_counter()
    fixed = received(side.block, other.factors, gang)
    seconds = time.perf_counter() - begin
    gram = objective.alpha0 * other.gram
    fixed, offsets = _with_constant(fixed, config)
    block = side.block
    raised = solve_rows(
        (block.indptr, block.indices, side.weights, side.targets),
        (fixed, offsets, gram.astype(np.float32)),
        side.reg,
        side.order,
        config,
        plan.threads,
        side.factors,
        side.loss,
    )
    if len(side.hot.entries.rows):
        _solve_hot(side, other, gram, plan, gang)
    begin = time.perf_counter()
    totals = gang.sum(np.array([side.loss.sum(), float(raised)]))
    if not np.isfinite(totals[0]):
        _raise_not_finite(side, plan, gang)
    seconds += time.perf_counter() - begin
    side.gram = _gramian(side.factors, objective, gang)
    return seconds, int(totals[1])


def _gramian(factors: F32, objective: Objective, gang: Gang) -> F64:
    """Gramian of all workers' rows; zeros if the objective has no sum over unobserved pairs."""
    k = factors.shape[1]
    return gang.sum(gramian(factors)) if objective.alpha0 else np.zeros((k, k))


def _with_constant(fixed: F32, config: FactorizationConfig) -> tuple[F32, F32]:
    """Fixed rows and their offsets; with biases the fixed bias becomes the offset and its column the constant 1."""
    if not config.biases:
        return fixed, np.empty(0, np.float32)
    fixed, offsets = fixed.copy(), fixed[:, -1].copy()
    fixed[:, -1] = 1.0
    return fixed, offsets


def solve_rows(
    rows: tuple[NDArray[np.int64], NDArray[np.int32], F32, F32],
    against: tuple[F32, F32, F32],
    reg: F32,
    order: NDArray[np.int64],
    config: ALSConfig | HALSConfig,
    threads: int,
    out: F32,
    loss: F64,
) -> int:
    """Solve rows of a block by the configured solver; returns the number of singular rows.

    Parameters
    ----------
    rows : indptr, indices, weights, targets; see `solve_cholesky`.
    against : fixed rows, their offsets, Gramian.
    out : (n, width), initial values and result.
    loss : (n,), result.
    """
    common = (*rows, *against, reg, order)

    def share(first: int) -> int:
        if config.solver == "cholesky":
            return solve_cholesky(*common, first, threads, config.nonnegative, out, loss)
        if config.solver == "cg":
            return solve_cg(*common, first, threads, config.steps, scale, out, loss)
        if config.solver == "subspace":
            return solve_subspace(*common, first, threads, config.steps, out, loss)
        if config.mode == "explicit" or config.form != "frobenius":
            return solve_hals(*common, first, threads, config.steps, config.nonnegative, out, loss)
        unweighted = (rows[0], rows[1], rows[3], fixed, against[2], reg, order)
        return solve_hals_unweighted(*unweighted, first, threads, config.steps, config.nonnegative, out, loss)

    fixed = against[0]
    scale = np.float32(np.vdot(fixed, fixed) / max(1, len(fixed)))
    return sum(in_threads(threads, share))


def _solve_hot(side: Side, other: Side, gram: F64, plan: ALSPlan, gang: Gang) -> None:
    """Solve the hot rows: sum the normal equations over threads and workers; every worker solves the same systems."""
    hot, config = side.hot, plan.config
    vectors, offsets = _with_constant(other.factors, config)
    for h in range(len(hot.entries.rows)):
        places = np.array_split(np.arange(hot.entries.indptr[h], hot.entries.indptr[h + 1]), plan.threads)

        def summed(thread: int, places: list[NDArray[np.int64]] = places) -> tuple[F64, F64]:
            entries = places[thread]
            rows, weights, targets = hot.entries.places[entries], hot.weights[entries], hot.targets[entries]
            if config.biases:
                targets = targets - weights * offsets[rows]
            return normal_equations(vectors, rows, weights, targets)

        shares = in_threads(plan.threads, summed)
        a = gang.sum(np.sum([share[0] for share in shares], axis=0)) + gram
        b = gang.sum(np.sum([share[1] for share in shares], axis=0))
        a[np.diag_indices_from(a)] += hot.reg[h]
        hot.factors[h], value = solve_summed(a, b, hot.factors[h], config.solver, config.steps, config.nonnegative)
        if h in hot.mine:
            place = hot.places[np.searchsorted(hot.mine, h)]
            side.factors[place], side.loss[place] = hot.factors[h], value


def _raise_not_finite(side: Side, plan: ALSPlan, gang: Gang) -> None:
    """Raise TrainingError, at every worker the same, that names the first row which is not finite."""
    rows = np.flatnonzero(~np.isfinite(side.factors).all(axis=1) | ~np.isfinite(side.loss))
    first = np.zeros(gang.size, np.int64)
    first[gang.rank] = 1 + rows[0] * gang.size + gang.rank if len(rows) else 0
    first = gang.sum(first)
    where = f"{side.name} row {first[first > 0].min() - 1}" if first.any() else f"the sum over the {side.name}s"
    key, now = f"{plan.config.section}.regularization", plan.config.regularization
    raise TrainingError(f"{where} is not finite: raise {key} (now {now}) or look for huge values")


def _objective_parts(sides: list[Side], gang: Gang, objective: Objective, plan: ALSPlan) -> dict[str, float]:
    """The objective after a sweep, whole and by part. The items' losses include all parts but the users' penalty."""
    penalties = [
        float(np.einsum("n,nk,nk->", s.reg.astype(np.float64), s.factors, s.factors, dtype=np.float64)) for s in sides
    ]
    mine = np.array([sides[ITEM].loss.sum(), *penalties, _constant(sides[USER], objective, plan.config)])
    loss, user_penalty, item_penalty, constant = (float(v) for v in gang.sum(mine))
    unobserved = objective.alpha0 * float(np.vdot(sides[USER].gram, sides[ITEM].gram))
    total = loss + constant + user_penalty
    return {
        "objective": total,
        "observed": total - unobserved - user_penalty - item_penalty,
        "unobserved": unobserved,
        "regularization": user_penalty + item_penalty,
    }


def _constant(users: Side, objective: Objective, config: FactorizationConfig) -> float:
    """The constant part of the observed sum, which the items' losses leave out, at this worker.

    With biases the constant depends on the users' biases, which were subtracted from the items' targets.
    """
    if users.constant is not None and not config.biases:
        return users.constant
    block, hot = users.block, users.hot
    total = 0.0
    for part, factors in ((block, users.factors), (hot.entries, hot.factors)):
        offsets = np.repeat(factors[:, -1], np.diff(part.indptr)) if config.biases else None
        total += objective.constant(part.values, part.weights, offsets)
    users.constant = total
    return total
