"""The sweeps of a factorization machine at one worker of a gang: numpy and kernels, no Spark.

    noise and hyper-parameters drawn (MCMC) ──▶ w_0 ──▶ users, at the workers of their rows ──▶ items, in the same way
    ──▶ every other field from normal equations summed over the gang ──▶ residuals, a sample kept

Every row of the data is held twice, by the worker of its user and by the worker of its item (`Copy`). A field of ids is
solved by the workers that hold the ids, exactly and by blocks. The features of all other fields are held by every
worker; all workers solve the same small systems. ALS takes the mean of each feature's Gaussian conditional, MCMC draws
from it (Freudenthaler, Schmidt-Thieme, Rendle 2011), each (v_j, w_j) as one block. Draws depend only on the seed, the
sweep and the feature, so that results do not depend on the number of workers, except for rounding.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri
from threadpoolctl import threadpool_limits

from sparkcf.config.fm import FMConfig
from sparkcf.errors import TrainingError
from sparkcf.kernels.fm import (
    draw_features,
    fill_state,
    move_several,
    predict_rows,
    solve_features,
    sum_features,
    sum_several,
)
from sparkcf.kernels.random import normal_rows, uniform_rows
from sparkcf.kernels.threads import in_threads
from sparkcf.models.fm.links import latent_means
from sparkcf.models.fm.rows import Copy, FMPlan, FMRows, Visits, copy_rows, feature_ids, field_visits
from sparkcf.models.fm.samples import Entry, Hyper, Sample, load, save
from sparkcf.training.blocks import ITEM, USER
from sparkcf.training.gang import Gang
from sparkcf.training.saved_sweeps import SavedSweeps

F32 = NDArray[np.float32]
# Streams of random draws: a field's initial vectors, a sweep's noise by field, latent variables by sweep.
INITIAL, SWEEP, LATENT = 16, 4096, 1_000_000
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
SUM_BYTES = 16 << 20  # of normal equations held at once: they are solved while still in the caches
PRIOR_SHAPE = PRIOR_RATE = PRIOR_STRENGTH = 1.0  # priors of the noise and of the hyper-parameters, as in libFM
NO_ROWS = "no row to train on: is there any interaction up to the logical date?"


@dataclass
class State:
    copies: list[Copy]
    visits: list[Visits]
    hypers: list[Hyper]
    w0: float
    noise_precision: float
    n: int  # rows over all workers
    fitted: F64  # a(x) of the user copy's rows
    singular: int = 0


def train_fm(
    rows: list[FMRows], plan: FMPlan, gang: Gang, saved: SavedSweeps | None = None
) -> tuple[list[Sample], list[Entry]]:
    """Run all sweeps, at one worker of a gang; empties `rows` (by side).

    Parameters
    ----------
    saved : checkpoints, written every `save_every` sweeps; training resumes from the newest.

    Returns
    -------
    (samples, log)
        The kept samples (for ALS the last state); one entry per sweep: objective (ALS) or training error, seconds.

    Raises
    ------
    TrainingError
        At all workers together: there is no row, or a parameter is not finite.
    """
    config = plan.config
    with threadpool_limits(1, user_api="blas"):
        state = _begin(rows, plan, gang)
        log: list[Entry] = []
        samples: list[Sample] = []
        if saved and (found := load(saved, plan.sizes, config.rank + 1, gang)):
            (now, *samples), log = found
            _restore(state, now, plan, gang)
        kept = set(config.kept_sweeps())
        while len(log) < config.iterations and not _converged(log, config):
            entry = _sweep(state, plan, gang, len(log) + 1)
            log.append(entry)
            gang.report(entry)
            if len(log) in kept:
                samples.append(_sample(state))
            due = config.save_every and len(log) % config.save_every == 0 and len(log) < config.iterations
            if saved and due and (problem := save(saved, _sample(state), samples, log, plan.sizes, gang)):
                gang.report({"note": f"sweeps cannot be saved in {saved.folder}: {problem}"})  # no reason to fail
                saved = None
        return samples or [_sample(state)], log


def _converged(log: list[Entry], config: FMConfig) -> bool:
    if len(log) < 2 or config.tolerance == 0 or config.learner == "mcmc":
        return False
    before, now = log[-2]["objective"], log[-1]["objective"]
    return bool(before - now < config.tolerance * abs(before))


def _sample(state: State) -> Sample:
    own = [c.table[c.own].copy() if c.own.stop > c.own.start else None for c in state.copies]
    first = state.copies[USER]
    hypers = [Hyper(h.precision.copy(), h.mean.copy()) for h in state.hypers]
    return Sample(state.w0, state.noise_precision, own, first.table[: first.own.start].copy(), hypers)


def _restore(state: State, saved: Sample, plan: FMPlan, gang: Gang) -> None:
    """Set the parameters to those of a checkpoint."""
    state.w0, state.noise_precision, state.hypers = saved.w0, saved.noise_precision, saved.hypers
    for copy, own in zip(state.copies, saved.own, strict=True):
        copy.table[: copy.own.start] = saved.everywhere
        if own is not None:
            copy.table[copy.own] = own
    for side in (USER, ITEM):
        _receive(state, side, gang)
    state.fitted = _predicted(state, state.copies[USER], plan)


def _begin(rows: list[FMRows], plan: FMPlan, gang: Gang) -> State:
    config = plan.config
    copies = [copy_rows(rows, side, plan, gang) for side in (USER, ITEM)]
    n = int(gang.sum(np.array([len(copies[USER].y)]))[0])
    if not n:
        raise TrainingError(NO_ROWS)
    visits = [field_visits(copies, number, plan, gang) for number in range(len(plan.fields))]
    y = copies[USER].y > 0 if config.task == "classification" else copies[USER].y
    mean = float(gang.sum(np.array([y.sum(dtype=np.float64)]))[0]) / n
    width = config.rank + 1
    hypers = []
    for penalties in plan.penalties():
        hypers.append(Hyper(np.repeat(penalties, [config.rank, 1]), np.zeros(width)))
    begin = float(ndtri(np.clip(mean, 1e-3, 1 - 1e-3))) if config.task == "classification" else mean
    state = State(copies, visits, hypers, begin, 1.0, n, np.zeros(len(copies[USER].y)))
    for number, f in enumerate(plan.fields):
        ids = feature_ids(f, plan, gang)
        drawn = np.zeros((len(ids), width), np.float32)
        drawn[:, :-1] = normal_rows(plan.seed, INITIAL + number, ids, config.rank, config.init_sd)
        drawn[~visits[number].present] = 0.0
        _set(state, number, slice(0, len(ids)), drawn, plan)
    for side in (USER, ITEM):
        _receive(state, side, gang)
    state.fitted = _predicted(state, copies[USER], plan)
    return state


def _set(state: State, number: int, where: slice, values: F32, plan: FMPlan) -> None:
    """Write features of a field into the tables of both copies."""
    f = plan.fields[number]
    if f.side is not None:
        begin = state.copies[f.side].own.start
        state.copies[f.side].table[begin + where.start : begin + where.stop] = values
        return
    begin = plan.starts()[number]
    for copy in state.copies:
        copy.table[begin + where.start : begin + where.stop] = values


def _receive(state: State, side: int, gang: Gang) -> None:
    """Update the other side's features in a copy's table. A collective."""
    copy, other = state.copies[side], state.copies[1 - side]
    if gang.size > 1 or copy.received.stop > copy.received.start:
        owned = other.table[other.own]
        copy.table[copy.received] = gang.gather([owned[requested] for requested in copy.sends])


def _predicted(state: State, copy: Copy, plan: FMPlan) -> F64:
    out = np.empty(len(copy.y))
    common = (*copy.entries, copy.table, copy.fields, plan.pairs, state.w0)
    in_threads(plan.threads, lambda t: predict_rows(*common, t, plan.threads, out))
    return out


def _sweep(state: State, plan: FMPlan, gang: Gang, number: int) -> Entry:
    begin, config = time.perf_counter(), plan.config
    mcmc = config.learner == "mcmc"
    rng = np.random.default_rng([plan.seed, number])
    users = state.copies[USER]
    if config.task == "classification":
        for side, copy in enumerate(state.copies):
            fitted = state.fitted if side == USER else _predicted(state, copy, plan)
            copy.targets = _latent(copy, fitted, plan.seed, number, mcmc)
    elif mcmc:
        error = float(gang.sum(np.array([np.square(users.y - state.fitted).sum()]))[0])
        state.noise_precision = rng.gamma((PRIOR_SHAPE + state.n) / 2) / ((PRIOR_RATE + error) / 2)
    if config.intercept:
        left = float(gang.sum(np.array([(users.targets - state.fitted).sum()]))[0]) / state.n
        spread = rng.normal() / np.sqrt(state.noise_precision * state.n)
        state.w0 += left + (spread if mcmc else 0.0)
    state.singular = 0
    for at, f in enumerate(plan.fields):
        if mcmc:
            _draw_hyper(state, at, plan, gang, rng)
        if f.several:
            _solve_several(state, at, plan, gang, number)
        else:
            _solve_field(state, at, plan, gang, number)
        if f.side is not None:
            _receive(state, 1 - f.side, gang)
    state.fitted = _predicted(state, users, plan)
    entry = {"sweep": number, **_figures(state, plan, gang)}
    if not np.isfinite(entry["objective"]):
        raise TrainingError(
            f"the objective is not finite after sweep {number}: raise fm.regularization "
            f"(now {config.regularization}) or look for huge values"
        )
    return entry | {"mean": state.w0, "seconds": time.perf_counter() - begin, "singular_rows": state.singular}


def _latent(copy: Copy, fitted: F64, seed: int, number: int, mcmc: bool) -> F32:
    """The probit's latent variable, z ~ N(a(x), 1) truncated to the label's side of 0: drawn, or its mean (ALS)."""
    if not mcmc:
        return latent_means(copy.y, fitted).astype(np.float32)
    sign = np.where(copy.y > 0, 1.0, -1.0)
    toward = sign * fitted  # oriented so that the label's side is above 0
    u = uniform_rows(seed, LATENT + number, copy.key)
    # Inverted through the lower tail, which keeps its digits; if the tail underflows, z = 0.
    drawn = toward - ndtri(np.maximum(u * ndtr(toward), 1e-300))
    return np.asarray(sign * np.maximum(drawn, 0.0), np.float32)


def _draw_hyper(state: State, number: int, plan: FMPlan, gang: Gang, rng: np.random.Generator) -> None:
    """Draw mu and lambda of each column of a field from their normal-gamma conditional."""
    f, hyper, present = plan.fields[number], state.hypers[number], state.visits[number].present
    copy = state.copies[f.side or USER]
    begin = plan.starts()[number] if f.side is None else copy.own.start
    theta = copy.table[begin : begin + len(present)][present].astype(np.float64)
    sums = np.concatenate([[len(theta)], theta.sum(axis=0), np.square(theta).sum(axis=0)])
    sums = sums if f.side is None else gang.sum(sums)
    n, first, second = sums[0], *np.split(sums[1:], 2)
    off = second - 2 * hyper.mean * first + n * hyper.mean**2
    rate = (PRIOR_RATE + np.maximum(off, 0) + PRIOR_STRENGTH * hyper.mean**2) / 2
    hyper.precision = rng.gamma((PRIOR_SHAPE + n + 1) / 2, size=len(rate)) / rate
    sd = 1 / np.sqrt((n + PRIOR_STRENGTH) * hyper.precision)
    hyper.mean = first / (n + PRIOR_STRENGTH) + sd * rng.normal(size=len(rate))


def _solve_field(state: State, number: int, plan: FMPlan, gang: Gang, sweep: int) -> None:
    """Solve all features of a one-hot field, in slices whose normal equations fit into memory."""
    f, visits, width = plan.fields[number], state.visits[number], plan.config.rank + 1
    copy = state.copies[f.side or USER]
    if f.side is not None and not _uneven(visits.starts, plan.threads):
        return _solve_own(state, number, plan, gang, sweep)
    step = max(1, SUM_BYTES // (8 * width * width))
    size = len(visits.present)
    for low in range(0, size, step):
        high = min(size, low + step)
        a, b = _sum_slice(state, number, copy, plan, low, high)
        if f.side is None:
            a, b = _summed(a, b, gang)
        _draw(state, number, slice(low, high), a, b, plan, gang, sweep)


def _solve_own(state: State, number: int, plan: FMPlan, gang: Gang, sweep: int) -> None:
    """Solve this worker's ids of a field, each summed and solved in one pass; threads get nearly equal visits."""
    f, all_visits, hyper = plan.fields[number], state.visits[number], state.hypers[number]
    copy = state.copies[f.side or USER]
    starts, size = all_visits.starts, len(all_visits.present)
    out = copy.table[copy.own].copy()
    normal = _noise(state, number, slice(0, size), plan, gang, sweep)
    cuts = np.searchsorted(starts, np.linspace(0, starts[-1], plan.threads + 1))
    cuts[-1] = size
    drawn = (state.noise_precision, hyper.precision, hyper.mean)

    def share(thread: int) -> int:
        part = slice(cuts[thread], cuts[thread + 1])
        at = (starts[part.start : part.stop + 1], all_visits.rows, all_visits.entries, copy.targets, copy.entries)
        rest = (copy.table, copy.fields, plan.pairs, state.w0, number, drawn, normal[part], out[part])
        return int(solve_features(*at, *rest))

    state.singular += sum(in_threads(plan.threads, share))
    _set(state, number, slice(0, size), out, plan)


def _sum_slice(state: State, number: int, copy: Copy, plan: FMPlan, low: int, high: int) -> tuple[F64, F64]:
    """Normal equations of the features low to high; threads get nearly equal numbers of visits.

    The visits of a feature go to one thread, unless they are so many that the other threads would wait.
    """
    all_visits, threads, width = state.visits[number], plan.threads, plan.config.rank + 1
    starts = all_visits.starts[low : high + 1]
    cuts = np.linspace(starts[0], starts[-1], threads + 1).astype(np.int64)
    divided = _uneven(starts, threads)
    if not divided:
        cuts[1:-1] = starts[np.searchsorted(starts, cuts[1:-1])]
    a = np.zeros((threads if divided else 1, high - low, width, width))
    b = np.zeros(a.shape[:3])

    def share(thread: int) -> None:
        part, own = slice(cuts[thread], cuts[thread + 1]), thread if divided else 0
        at = (all_visits.rows[part], all_visits.entries[part], all_visits.places[part] - low, copy.targets)
        sum_features(*at, copy.entries, copy.table, copy.fields, plan.pairs, state.w0, number, a[own], b[own])

    in_threads(threads, share)
    return (a.sum(axis=0), b.sum(axis=0)) if divided and threads > 1 else (a[0], b[0])


def _uneven(starts: I64, threads: int) -> bool:
    """Whether a feature has so many visits that the other threads would wait for its thread."""
    return threads > 1 and int(np.diff(starts).max(initial=0)) * 4 * threads > starts[-1] - starts[0]


def _noise(state: State, number: int, where: slice, plan: FMPlan, gang: Gang, sweep: int) -> F32:
    """Normal noise that MCMC adds to the means of features, float32 (n, k + 1); zeros for ALS."""
    shape = where.stop - where.start, plan.config.rank + 1
    if plan.config.learner != "mcmc":
        return np.zeros(shape, np.float32)
    ids = feature_ids(plan.fields[number], plan, gang)[where]
    normal = normal_rows(plan.seed, SWEEP * sweep + number, ids, shape[1], 1.0)
    normal[~state.visits[number].present[where]] = 0.0  # features without rows: the field's mean
    return normal


def _draw(state: State, number: int, where: slice, a: F64, b: F64, plan: FMPlan, gang: Gang, sweep: int) -> None:
    """Draw (or solve) features of a one-hot field from their normal equations and store them."""
    f, hyper = plan.fields[number], state.hypers[number]
    copy = state.copies[f.side or USER]
    begin = (plan.starts()[number] if f.side is None else copy.own.start) + where.start
    theta = copy.table[begin : begin + len(b)].copy()
    normal = _noise(state, number, where, plan, gang, sweep)

    def share(thread: int) -> int:
        part = slice(thread * len(b) // plan.threads, (thread + 1) * len(b) // plan.threads)
        drawn = (state.noise_precision, hyper.precision, hyper.mean, normal[part])
        return int(draw_features(a[part], b[part], *drawn, theta[part]))

    state.singular += sum(in_threads(plan.threads, share))
    _set(state, number, where, theta, plan)


def _solve_several(state: State, number: int, plan: FMPlan, gang: Gang, sweep: int) -> None:
    """Solve a field of which rows may have several features, group by group; residuals and contexts are updated.

    No row has two features of a group, so that solving a group at once equals solving its features in turn.
    """
    copy, visits, hyper = state.copies[USER], state.visits[number], state.hypers[number]
    size, width = len(visits.present), plan.config.rank + 1
    contexts = np.empty((len(copy.y), width - 1), np.float32)
    residual = np.empty(len(copy.y))
    common = (*copy.entries, copy.table, copy.fields, plan.pairs, state.w0, number, copy.targets)
    in_threads(plan.threads, lambda t: fill_state(*common, t, plan.threads, contexts, residual))
    begin, every = plan.starts()[number], slice(0, size)
    theta = copy.table[begin : begin + size].copy()
    normal = _noise(state, number, every, plan, gang, sweep)
    at = (visits.starts, visits.rows, copy.val[visits.entries], theta)
    kept = (bool(plan.pairs[number, number]), contexts, residual)
    step = max(1, SUM_BYTES // (8 * width * width))
    for group in visits.groups:
        for low in range(0, len(group), step):
            features = group[low : low + step]
            a, b = np.zeros((len(features), width, width)), np.zeros((len(features), width))
            sum_several(features, *at, *kept, a, b)
            a, b = _summed(a, b, gang)
            new = theta[features]
            drawn = (state.noise_precision, hyper.precision, hyper.mean, normal[features])
            state.singular += int(draw_features(a, b, *drawn, new))
            move_several(features, *at, new, *kept)
    theta[~visits.present] = hyper.mean
    _set(state, number, every, theta, plan)


def _summed(a: F64, b: F64, gang: Gang) -> tuple[F64, F64]:
    """Sum two arrays over the workers, in one collective."""
    both = gang.sum(np.concatenate([a.ravel(), b.ravel()]))
    return both[: a.size].reshape(a.shape), both[a.size :].reshape(b.shape)


def _figures(state: State, plan: FMPlan, gang: Gang) -> dict[str, float]:
    """The objective of ALS; for MCMC only the error (twice the negative log-likelihood) of the current draw."""
    users = state.copies[USER]
    if plan.config.task == "classification":
        own_loss = -2 * log_ndtr(np.where(users.y > 0, 1.0, -1.0) * state.fitted).sum()
    else:
        own_loss = np.square(users.y - state.fitted).sum()
    loss = float(gang.sum(np.array([own_loss]))[0])
    penalty = 0.0
    for number, f in enumerate(plan.fields):
        copy, hyper = state.copies[f.side or USER], state.hypers[number]
        begin = plan.starts()[number] if f.side is None else copy.own.start
        theta = copy.table[begin : begin + len(state.visits[number].present)].astype(np.float64)
        own = np.array([float((np.square(theta - hyper.mean) @ hyper.precision).sum())])
        penalty += float(gang.sum(own)[0]) if f.side is not None else float(own[0])
    mcmc = plan.config.learner == "mcmc"
    total = loss if mcmc else loss + penalty
    return {"objective": total, "observed": loss, "regularization": penalty}
