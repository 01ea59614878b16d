"""MCMC draws from the right distribution: the joint-distribution test of Geweke (2004), "Getting it right".

Values are drawn anew given the parameters before each sweep. Then the chain's stationary distribution is the joint one
of parameters and values, and the parameters have their prior's moments. An error in any conditional shifts them.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from sparkcf.config.fm import FMConfig
from sparkcf.models.fm import sweeps
from sparkcf.models.fm.rows import Field, FMPlan, FMRows, make_plan
from sparkcf.models.fm.sweeps import State, _begin, _sweep
from sparkcf.training.gang import Alone

N, M, TAGS, ROWS, RANK = 8, 6, 5, 24, 2
SIZES = (N, M, TAGS)
FIELD_OF = np.repeat(np.arange(3), SIZES)
SHAPE, RATE, STRENGTH = 16.0, 4.0, 3.0  # priors with moments: libFM's have none
BATCHES, BURN_IN, SEED = 24, 100, 2


@pytest.fixture(autouse=True)
def priors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SHAPE", SHAPE), ("RATE", RATE), ("STRENGTH", STRENGTH)):
        monkeypatch.setattr(sweeps, f"PRIOR_{name}", value)


def machine(task: str, intercept: bool) -> tuple[State, FMPlan, np.ndarray]:
    """A machine with a field of which rows have several features, before its first sweep; its rows written out."""
    rng = np.random.default_rng(7)
    users, items = np.arange(ROWS) % N, np.arange(ROWS) % M
    tags = rng.random((M, TAGS)) < 0.3
    tags[np.arange(TAGS), np.arange(TAGS)] = True
    values = (tags * rng.uniform(0.5, 1.0, tags.shape))[items]
    fields = (Field("user", N, side=0), Field("item", M, side=1, of_item=True), Field("tags", TAGS, True, of_item=True))
    config = FMConfig.model_validate(
        {
            "rank": RANK, "task": task, "intercept": intercept, "iterations": 2, "burn_in": 1, "samples": 1,
            "fields": [{"name": n, "of": of} for n, of in (("user", "user"), ("item", "item"), ("tags", "categories"))],
        }
    )  # fmt: skip
    plan = make_plan(config, fields, N, M, SEED, 1)
    ptr = np.concatenate([[0], np.cumsum((values > 0).sum(axis=1))]).astype(np.int64)
    feat, val = np.nonzero(values)[1].astype(np.int32), values[values > 0].astype(np.float32)
    rest = (np.zeros(ROWS, np.float32), np.arange(ROWS), ptr, feat, val)
    index = users.astype(np.int32), items.astype(np.int32)
    state = _begin([FMRows(*index, *rest), FMRows(*index[::-1], *rest)], plan, Alone())
    state.w0 = 0.0
    return state, plan, np.column_stack([np.eye(N)[users], np.eye(M)[items], values]).astype(np.float32)


def deviations(task: str, n: int, intercept: bool = False) -> dict[str, float]:
    """By how many standard errors the means over n sweeps, each after fresh values, are off the prior's."""
    state, plan, dense = machine(task, intercept)
    rng = np.random.default_rng(SEED)
    found: dict[str, list[float]] = {}
    for number in range(1, BURN_IN + n + 1):
        users, w0 = state.copies[0], state.w0
        latent = np.empty(ROWS)
        latent[users.key] = state.fitted + rng.normal(size=ROWS) / np.sqrt(state.noise_precision)
        for copy in state.copies:
            copy.y = (latent if task == "regression" else latent > 0)[copy.key].astype(np.float32)
            copy.targets = copy.y.copy()
        _sweep(state, plan, Alone(), number)
        if number > BURN_IN:  # the prior is reached
            figures = statistics(state, plan)
            if intercept:  # flat in the prior: w_0 moves to the mean of fresh residuals, and a draw's spread
                figures = {"w0": (state.w0 - w0) ** 2 * state.noise_precision * ROWS}
            for name, value in figures.items():
                found.setdefault(name, []).append(value)
    means = expected(dense)
    return {name: _deviation(np.array(values), means[name]) for name, values in found.items()}


def _deviation(values: np.ndarray, mean: float) -> float:
    batches = values.reshape(BATCHES, -1).mean(axis=1)
    return float((batches.mean() - mean) / max(batches.std(ddof=1) / np.sqrt(BATCHES), 1e-9))


def statistics(state: State, plan: FMPlan) -> dict[str, float]:
    """Functions of a draw whose prior means are known."""
    everywhere = state.copies[0].table[: plan.everywhere]
    tables = [*(copy.table[copy.own] for copy in state.copies), everywhere]
    found = {}
    if plan.config.task == "regression":
        log = np.log(state.noise_precision)
        found = {"log alpha": log, "log alpha, squared": log**2}
    for f, theta, hyper in zip(plan.fields, tables, state.hypers, strict=True):
        log, scale = np.log(hyper.precision), np.sqrt(hyper.precision)
        off, mean = scale * (theta - hyper.mean), np.sqrt(STRENGTH) * scale * hyper.mean
        for part, at in (("v", slice(0, RANK)), ("w", slice(RANK, None))):
            for name, values in (
                ("log lambda", log), ("log lambda, squared", log**2), ("mu", mean), ("mu, squared", mean**2),
                ("theta, squared", off**2), ("theta mu", off * mean),
            ):  # fmt: skip
                found[f"{name} of {f.name} {part}"] = values[..., at].mean()
    squashed = np.tanh(state.fitted - state.w0)
    return found | {"a": squashed.mean(), "a, squared": squashed.var()}


def expected(dense: np.ndarray) -> dict[str, float]:
    """The prior's means: by formula; of functions of a(x) over many draws."""
    log = digamma(SHAPE / 2) - np.log(RATE / 2)
    squared = log**2 + polygamma(1, SHAPE / 2)
    found = {"w0": 2.0, "log alpha": log, "log alpha, squared": squared}
    by_name = {"log lambda": log, "log lambda, squared": squared, "mu": 0.0, "mu, squared": 1.0}
    by_name |= {"theta, squared": 1.0, "theta mu": 0.0}
    for name, value in by_name.items():
        found |= {f"{name} of {field} {part}": value for field in ("user", "item", "tags") for part in "vw"}
    rng = np.random.default_rng(1)
    means = []
    for _ in range(10_000):
        precision = rng.gamma(SHAPE / 2, 2 / RATE, (3, RANK + 1))
        mean = rng.normal(size=precision.shape) / np.sqrt(STRENGTH * precision)
        spread = rng.normal(size=(len(FIELD_OF), RANK + 1)) / np.sqrt(precision)[FIELD_OF]
        table = mean[FIELD_OF] + spread
        sums, own = dense @ table[:, :-1], np.square(dense) @ np.square(table[:, :-1]).sum(axis=1)
        squashed = np.tanh(dense @ table[:, -1] + (np.square(sums).sum(axis=1) - own) / 2)
        means.append((squashed.mean(), squashed.var()))
    return found | dict(zip(("a", "a, squared"), np.mean(means, axis=0), strict=True))


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_parameters_have_their_priors_moments_when_values_are_drawn_given_them(task) -> None:
    off = deviations(task, 3600) | deviations(task, 480, intercept=True)
    assert max(map(abs, off.values())) < 4, off


class NoSpread(np.random.Generator):
    def normal(self, *given, **named):
        return 0.0 * super().normal(*given, **named)


def precision_fixed(draw):
    def mutant(state, number, *rest):
        draw(state, number, *rest)
        state.hypers[number].precision[:] = 1.0

    return mutant


def mean_without_spread(draw):
    return lambda state, number, plan, gang, rng: draw(state, number, plan, gang, NoSpread(rng.bit_generator))


@pytest.mark.parametrize("mutant", [precision_fixed, mean_without_spread])
def test_a_wrong_draw_of_the_prior_is_noticed(monkeypatch, mutant) -> None:
    monkeypatch.setattr(sweeps, "_draw_hyper", mutant(sweeps._draw_hyper))
    assert max(map(abs, deviations("regression", 480).values())) > 5


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_an_intercept_without_spread_is_noticed(monkeypatch, task) -> None:
    monkeypatch.setattr(sweeps.np.random, "default_rng", lambda seed: NoSpread(np.random.PCG64(seed)))
    assert abs(deviations(task, 480, intercept=True)["w0"]) > 5
