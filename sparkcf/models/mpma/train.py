"""Training of the mixture at one worker of a gang.

    components fitted to the whole matrix ──▶ groups ──▶ rows split by group ──▶ EM: weights, deviations, factors
        ──▶ weights and deviations on held-out ratings ──▶ last sweeps with these ratings

Plain EM overfits: a component is responsible for the training ratings that it already fits. So the default takes
mixture weights and standard deviations from ratings that are held out from the factors, and all training ratings
weigh alike in a component. See `MPMAConfig.responsibilities` for the alternatives.
"""

from __future__ import annotations

import copy as copies
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparkcf.config.factorization import MPMAConfig
from sparkcf.errors import TrainingError
from sparkcf.kernels.random import normal_rows
from sparkcf.models.mpma.entries import fetched, make_copy, split_view, whole_view
from sparkcf.models.mpma.groups import k_means, large_groups
from sparkcf.models.mpma.layout import NAMES
from sparkcf.models.mpma.saved import packed_rows, resume, save
from sparkcf.models.mpma.state import (
    State,
    component_means,
    entry_shares,
    expectation,
    group_weights,
    maximize,
    penalty,
    solve,
)
from sparkcf.models.mpma.weights import ALL_KINDS, KINDS, Kind, Weights
from sparkcf.training.blocks import ITEM, USER, Parts, places, row_ids
from sparkcf.training.gang import Gang
from sparkcf.training.plan import Plan
from sparkcf.training.saved_sweeps import SavedSweeps

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Entry = dict[str, Any]
MixturePlan = Plan[MPMAConfig]
CALIBRATIONS = 6  # EM iterations of weights and deviations alone, on held-out ratings
NOTHING = "no rating to train on"


@dataclass
class Trained:
    """A fit at one worker.

    rows : by side, rows that live here in the layout of `layout`, float32 (n, width).
    present : by side, bool (n,), rows with ratings.
    mean : of all ratings.
    shared : what is the same at all workers: kind, overall, table, sds, user_weights (mixture weights of users by
        group), and by side the groups' centres and sizes.
    log : an entry per sweep.
    """

    rows: list[F32]
    present: list[NDArray[np.bool_]]
    mean: float
    shared: dict[str, NDArray[Any]]
    log: list[Entry]


def train_mixture(
    parts: Parts, given: list[I32 | None], plan: MixturePlan, gang: Gang, saved: SavedSweeps | None = None
) -> Trained:
    """Fit the mixture, at one worker of a gang.

    Parameters
    ----------
    given : by side, the groups of this worker's rows, int32 (n,), -1 for none; None: by k-means.
    saved : checkpoints, written every `save_every` sweeps; training resumes from the newest.

    Raises
    ------
    TrainingError
        At all workers together: no rating, fewer rows than groups, or a factor that is not finite.
    """
    with threadpool_limits(1, user_api="blas"):
        return MixtureTraining(parts, given, plan, gang, saved).run()


class MixtureTraining:
    """The steps of a fit and what they share."""

    def __init__(
        self, parts: Parts, given: list[I32 | None], plan: MixturePlan, gang: Gang, saved: SavedSweeps | None
    ) -> None:
        self.plan, self.config, self.gang, self.saved = plan, plan.config, gang, saved
        self.given, self.log = given, list[Entry]()
        self.own = [places(n, gang.rank, gang.size) for n in plan.sizes]
        data = [
            make_copy(parts.triples[side], side, plan.sizes, self.config.heldout_share, plan.seed, gang)
            for side in (USER, ITEM)
        ]
        total, count = gang.sum(np.array([data[USER].values.sum(dtype=np.float64), len(data[USER].values)]))
        if not count:
            raise TrainingError(NOTHING)
        self.mean = float(total / count)
        for part in data:
            part.values = (part.values - np.float32(self.mean)).astype(np.float32)
        self.held = [part.held for part in data]
        self.any_held = bool(gang.sum(np.array([self.held[USER].sum()], np.int64))[0])
        whole = [whole_view(part, gang) for part in data]
        n = len(self.config.components)
        weights = Weights.equal("equal", n, self.config.user_groups, self.config.item_groups)
        none = [np.full(part.places, -1, np.int32) for part in data]
        self.state = State(
            self.config,
            plan.threads,
            data,
            whole,
            [[view] * n for view in whole],
            [[self._initial(side, t, whole[side].counts) for t in range(n)] for side in (USER, ITEM)],
            [[None] * n, [None] * n],
            none,
            weights,
            [np.full((part.places, n), 1.0 / n) for part in data],
            np.ones(n),
            np.ones(n),
            [np.zeros(len(part.row), np.int32) for part in data],
        )
        self.state.groups = [np.zeros(part.places, np.int32) for part in data]  # until the split every one applies
        self.extra: dict[str, NDArray[Any]] = {}
        self.user_means: F32 | None = None  # of all components for the users' copy, after the last sweep

    def _initial(self, side: int, t: int, counts: NDArray[np.int64]) -> F32:
        config, n = self.config, self.own[side]
        ids = row_ids(self.plan.sizes[side], self.gang.rank, self.gang.size)
        rows = np.zeros((len(counts), config.rank + 1), np.float32)
        sd = config.init_sd / np.sqrt(config.rank)
        rows[:n] = normal_rows(self.plan.seed, 2 * t + side, ids, config.rank + 1, sd)
        rows[:, -1] = 0.0
        rows[counts == 0] = 0.0
        return rows

    def run(self) -> Trained:
        resumed = self._resume()
        while len(self.log) < self.config.base_iterations:
            self._sweep(self._ones(~self.held[USER], ~self.held[ITEM]), np.ones(len(self.config.components)))
        if resumed < self.config.base_iterations:
            self._group()
        self._split()
        done = len(self.log) - self.config.base_iterations
        if self.config.responsibilities == "auto":
            self._choose_responsibilities()
        else:
            if not done:
                self._begin_em(self.config.responsibilities)
            for _ in range(done, self.config.iterations):
                self._em_step(self.config.responsibilities)
            self._calibrate(self._kind())
        self._choose_weights()
        for _ in range(self.config.refit_iterations if self.any_held else 0):
            self._refit_sweep()
        return self._trained()

    def _ones(self, users: NDArray[np.bool_], items: NDArray[np.bool_]) -> list[F32]:
        n = len(self.config.components)
        return [np.tile(mask.astype(np.float32), (n, 1)) for mask in (users, items)]

    def _sweep(self, weights: list[F32], scales: F64, save: bool = True) -> None:
        """One sweep of all components, with weights (T, nnz) of the entries of both copies."""
        begin, state, gang = time.perf_counter(), self.state, self.gang
        state.scales, singular = scales, 0
        for t in range(len(self.config.components)):
            for side in (USER, ITEM):
                singular += solve(state, side, t, weights[side][t], gang)
        finite = all(np.isfinite(v).all() for vectors in state.vectors for v in vectors)
        wrong, raised = gang.sum(np.array([not finite, singular], np.int64))
        if wrong:
            cure = "mpma.sgd_learning_rate" if self.config.factors == "sgd" else "values that are huge"
            raise TrainingError(
                f"a factor is not finite in sweep {len(self.log) + 1}: raise mpma.regularization (now "
                f"{self.config.regularization}) or lower {cure}"
            )
        trained = weights[USER].sum(axis=0) > 0
        self.user_means = component_means(state, USER, gang)
        sums = expectation(state, USER, gang, trained, means=self.user_means)
        scaled = penalty(state, gang) / np.maximum(scales, 1e-30)
        entry: Entry = {
            "sweep": len(self.log) + 1,
            "objective": float(sums.squared + scaled.mean()) / max(sums.count, 1.0),
            "observed": sums.squared / max(sums.count, 1.0),
            "log_likelihood": sums.log_likelihood / max(sums.count, 1.0),
            "seconds": time.perf_counter() - begin,
            "singular_rows": int(raised),
        }
        self.log.append(entry)
        gang.report(entry)
        if save:
            self._save()

    def _group(self) -> None:
        """Assign groups by k-means on the first component's vectors, or as given; small groups become none."""
        for side, (groups, name) in enumerate(zip(self._numbers(), NAMES, strict=True)):
            n, here = self.own[side], self.given[side]
            present = self.state.whole[side].counts[:n] > 0
            found = np.full(self.state.copies[side].places, -1, np.int32)
            centres = np.zeros((groups, self.config.rank))
            if not any(self.config.split(NAMES[1 - side])):
                found[:n] = -1
            elif here is not None:
                found[:n] = here
            else:
                points = self.state.vectors[side][0][:n, :-1][present]
                ids = row_ids(self.plan.sizes[side], self.gang.rank, self.gang.size)[present]
                what = f"mpma.{name}_groups"
                found[:n][present], centres = k_means(points, ids, groups, self.plan.seed, what, self.gang)
            large = large_groups(found[:n], present, groups, self.config.min_group, self.gang)
            found[(found >= 0) & ~large[found]] = -1
            self.state.groups[side] = found
            counted = np.bincount(found[:n][present] + 1, minlength=groups + 1)
            self.extra[f"{name}_centres"], self.extra[f"{name}_large"] = centres, large
            self.extra[f"{name}_group_sizes"] = self.gang.sum(counted.astype(np.int64))

    def _numbers(self) -> tuple[int, int]:
        return self.config.user_groups, self.config.item_groups

    def _split(self) -> None:
        """Give split sides a vector for each group, each beginning at the row's shared vector."""
        state, gang, self.user_means = self.state, self.gang, None
        state.other_groups = [
            fetched(state.whole[side], state.groups[1 - side], gang)[state.whole[side].indices] for side in (USER, ITEM)
        ]
        for side in (USER, ITEM):
            for t in range(len(self.config.components)):
                for splitter, split in ((side, 1 - side), (1 - side, side)):
                    if not self.config.split(NAMES[split])[t]:
                        continue
                    of_other = split == side
                    groups = state.other_groups[side] if of_other else state.groups[side][state.copies[side].row]
                    number = self._numbers()[splitter]
                    state.views[side][t] = split_view(state.copies[side], groups, of_other, number, gang)
                    if of_other and state.shared[side][t] is None:
                        state.shared[side][t] = state.vectors[side][t]
                        state.vectors[side][t] = np.tile(state.vectors[side][t], (number, 1))

    def _kind(self) -> Kind:
        return "global" if self.config.weights == "auto" else self.config.weights

    def _fit_set(self, mode: str) -> list[NDArray[np.bool_]]:
        """The ratings that weights and deviations are estimated on."""
        return self.held if mode == "held_out" and self.any_held else [~held for held in self.held]

    def _begin_em(self, mode: str) -> None:
        """Weights and deviations from the fitted components, and the scale of the priors, which then stays."""
        self._equal_weights(self._kind())
        state = self.state
        counted = self._fit_set(mode)
        means = component_means(state, USER, self.gang)
        errors = (state.copies[USER].values - means)[:, counted[USER]].astype(np.float64) ** 2
        total = self.gang.sum(np.append(errors.sum(axis=1), counted[USER].sum()))
        state.sds = np.sqrt(np.maximum(total[:-1] / max(total[-1], 1.0), self.config.min_sd**2))
        state.scales = state.weights.overall / state.sds**2

    def _em_step(self, mode: str, save: bool = True) -> None:
        """E-step, M-steps of weights and deviations, one weighted sweep of the factors."""
        state, counted, shares = self.state, self._fit_set(mode), list[F32]()
        temperature = self.config.temperature if mode == "tempered" else 1.0
        means = [self.user_means, None]  # of the users' copy known from the sweep before, if there was one
        sides = (USER, ITEM) if state.weights.kind == "user_item" else (USER,)
        found = [expectation(state, s, self.gang, counted[s], temperature, means[s]) for s in sides]
        if mode != "held_out":
            shares = [entry_shares(state, side, self.gang, temperature) for side in (USER, ITEM)]
        maximize(state, found)
        if mode == "held_out":  # no step of EM on these ratings: the priors follow the weights of the ratings
            shares = [entry_shares(state, side, self.gang, None) for side in (USER, ITEM)]
            state.scales = state.weights.overall / state.sds**2
        self._sweep(self._weighted(shares, [~held for held in self.held]), state.scales, save)

    def _weighted(self, shares: list[F32], masks: list[NDArray[np.bool_]]) -> list[F32]:
        """Weights of the entries in the factors: shares / sigma^2, 0 outside the mask."""
        precision = (1.0 / self.state.sds**2).astype(np.float32)[:, None]
        both = zip(shares, masks, strict=True)
        return [np.multiply(share * precision, mask, dtype=np.float32) for share, mask in both]

    def _calibrate(self, kind: Kind, counted: list[NDArray[np.bool_]] | None = None, means: Any = None) -> None:
        """Estimate weights and deviations on held-out ratings with the factors fixed; without these, nothing changes.

        `means` : by copy, result of `component_means`, if it is known.
        """
        if not self.any_held:
            return
        self._equal_weights(kind)
        counted, means = counted or self.held, means or self._means()
        for _ in range(CALIBRATIONS):
            maximize(
                self.state, [expectation(self.state, s, self.gang, counted[s], means=means[s]) for s in (USER, ITEM)]
            )

    def _equal_weights(self, kind: Kind) -> None:
        """Begin weights of a kind: those of the components equal."""
        state, n = self.state, len(self.config.components)
        state.weights = Weights.equal(kind, n, self.config.user_groups, self.config.item_groups)
        state.row_weights = [np.full_like(w, 1.0 / n) for w in state.row_weights]

    def _means(self) -> list[F32]:
        return [component_means(self.state, side, self.gang) for side in (USER, ITEM)]

    def _likelihood(self, counted: NDArray[np.bool_], means: F32 | None = None) -> float:
        sums = expectation(self.state, USER, self.gang, counted, means=means)
        return sums.log_likelihood / max(sums.count, 1.0)

    def _choose_responsibilities(self) -> None:
        """Run EM with each kind of responsibilities, and keep the one that is likeliest on held-out ratings."""
        start, best = copies.deepcopy(self._changing()), None
        log = list(self.log)
        for mode in ("held_out", "tempered", "plain"):
            self._restore(copies.deepcopy(start))
            self.log = list(log)
            self._begin_em(mode)
            for _ in range(self.config.iterations):
                self._em_step(mode, save=False)
            self._calibrate(self._kind())
            likelihood = self._likelihood(self.held[USER])
            if best is None or likelihood > best[0]:
                best = (likelihood, mode, copies.deepcopy(self._changing()), self.log)
        assert best is not None
        self._restore(best[2])
        self.log = best[3]
        self.gang.report(
            {"note": f"mpma.responsibilities: {best[1]}, log-likelihood {best[0]:.4f} on held-out ratings"}
        )

    def _choose_weights(self) -> None:
        """With `weights: auto`, the kind that predicts one half of the held-out ratings best from the other half."""
        if self.config.weights != "auto":
            return
        half = [self._half(side) for side in (USER, ITEM)]
        found, means = dict[Kind, float](), self._means()
        for kind in KINDS:
            total = 0.0
            for fitted in (True, False):
                self._calibrate(kind, [h & (mask == fitted) for h, mask in zip(self.held, half, strict=True)], means)
                total += self._likelihood(self.held[USER] & (half[USER] != fitted), means[USER]) / 2
            found[kind] = total
        best = max(KINDS, key=lambda kind: found[kind])
        self._calibrate(best, means=means)
        listed = ", ".join(f"{kind} {value:.4f}" for kind, value in found.items())
        self.gang.report({"note": f"mpma.weights: {best}; log-likelihood on held-out ratings: {listed}"})

    def _half(self, side: int) -> NDArray[np.bool_]:
        """A half of the ratings by user and item, the same in both copies."""
        part = self.state.copies[side]
        own = part.row.astype(np.int64) * self.gang.size + self.gang.rank
        half: NDArray[np.bool_] = (own * 31 + part.col) % 2 == 0 if side == USER else (part.col * 31 + own) % 2 == 0
        return half

    def _refit_sweep(self) -> None:
        """A sweep with all ratings, which weigh alike; weights and deviations stay."""
        everything = [np.ones(len(held), bool) for held in self.held]
        found = [entry_shares(self.state, s, self.gang, None) for s in (USER, ITEM)]
        self.state.scales = self.state.weights.overall / self.state.sds**2
        self._sweep(self._weighted(found, everything), self.state.scales, save=False)

    def _changing(self) -> tuple[Any, ...]:
        state = self.state
        return state.vectors, state.weights, state.row_weights, state.sds, state.scales

    def _restore(self, kept: tuple[Any, ...]) -> None:
        state, self.user_means = self.state, None
        state.vectors, state.weights, state.row_weights, state.sds, state.scales = kept

    def _save(self) -> None:
        every = self.config.save_every
        if not self.saved or not every or len(self.log) % every:
            return
        problem = save(self.saved, self.state, self.own, self.extra, self.log, self.gang)
        if problem:  # no reason to fail the fit
            self.gang.report({"note": f"sweeps cannot be saved in {self.saved.folder}: {problem}"})
            self.saved = None

    def _resume(self) -> int:
        """Continue from the newest checkpoint; returns the number of its sweeps if its rows are split, else 0."""
        if not self.saved or not self.config.save_every:
            return 0
        self.log, self.extra = resume(self.saved, self.state, self.own, self.plan.sizes, self.gang)
        return len(self.log) if len(self.log) > self.config.base_iterations else 0

    def _trained(self) -> Trained:
        state = self.state
        present = [state.whole[side].counts[: self.own[side]] > 0 for side in (USER, ITEM)]
        by_group = group_weights(state, self.gang)
        if state.weights.kind != "user_item":  # these are fitted by row
            state.row_weights = [by_group[side][state.groups[side]] for side in (USER, ITEM)]
        shared = {"overall": state.weights.overall, "table": state.weights.table, "sds": state.sds}
        shared["user_weights"] = by_group[USER]
        shared["kind"] = np.array([ALL_KINDS.index(state.weights.kind)])
        return Trained(packed_rows(state, self.own), present, self.mean, shared | self.extra, self.log)
