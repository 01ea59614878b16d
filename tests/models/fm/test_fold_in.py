"""Users folded into a machine: modes of their posteriors, against scipy and a machine written out in dense numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_ndtr

from sparkcf.config.fm import FMConfig
from sparkcf.kernels.fm import IDENTITY, LOGISTIC, PROBIT, fold_in_users
from sparkcf.models.fm.factors import fold_in_fm, folded
from sparkcf.models.fm.rows import Field, make_plan
from tests.models.fm.test_fit import double_loop

LINKS = {"identity": IDENTITY, "probit": PROBIT, "logistic": LOGISTIC}


def mode(h: np.ndarray, g: np.ndarray, y: np.ndarray, given: Any, link: int) -> np.ndarray:
    """Minus the log posterior minimised by scipy."""
    alpha, precision, mean = given
    sign = np.where(y > 0, 1.0, -1.0)

    def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a = g + h @ theta
        if link == IDENTITY:
            loss, slope = np.square(y - a) / 2, a - y
        elif link == PROBIT:
            loss = -log_ndtr(sign * a)
            slope = -sign * np.exp(-np.square(a) / 2 - np.log(2 * np.pi) / 2 + loss)
        else:
            loss, slope = -log_expit(sign * a), -sign * expit(-sign * a)
        off = theta - mean
        return alpha * loss.sum() + off**2 @ precision / 2, alpha * h.T @ slope + precision * off

    theta = mean
    for _ in range(3):  # a new start lets it forget a poor estimate of the curvature
        theta = minimize(cost, theta, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 10_000}).x
    assert np.abs(cost(theta)[1]).max() < 1e-6
    return theta


@pytest.mark.parametrize("sd", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("name", LINKS)
def test_parameters_of_users_are_the_modes_of_their_posteriors(name, sd) -> None:
    rng = np.random.default_rng(4)
    link, n, m, k, rows = LINKS[name], 8, 40, 8, 30
    parts, contexts = sd * rng.normal(size=(m, k)), 0.1 * rng.normal(size=(n, k))
    items, rest = rng.normal(size=(m, 3)).astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32)
    given = (1.0 if link else 2.5, rng.uniform(0.5, 2.0, k + 1), 0.3 * rng.normal(size=k + 1))
    indptr = np.append(np.arange(n) * rows, [(n - 1) * rows + 1])  # the last user has one row
    indptr = np.insert(indptr, 1, 0)  # the first has none
    n += 1
    rest, contexts = np.vstack([rest[:1], rest]), np.vstack([contexts[:1], contexts])
    indices = np.concatenate([rng.permutation(m)[:size] for size in np.diff(indptr)]).astype(np.int32)
    values = (rng.normal(size=len(indices)) if link == IDENTITY else rng.random(len(indices)) < 0.6).astype(np.float32)
    out = np.full((n, k + 1), np.nan)
    fold_in_users(indptr, indices, values, items, rest, parts, contexts, given, link, out)
    assert not out[0].any()
    for user in range(1, n):
        mine = slice(indptr[user], indptr[user + 1])
        seen = indices[mine]
        h = np.column_stack([parts[seen] + contexts[user], np.ones(len(seen))])
        g = items[seen].astype(np.float64) @ rest[user]
        np.testing.assert_allclose(h @ out[user], h @ mode(h, g, values[mine], given, link), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "learner, task", [("mcmc", "regression"), ("mcmc", "classification"), ("sgd", "classification")]
)
@pytest.mark.parametrize("pairs", [None, [["user", "item"], ["had", "item"], ["user", "had"], ["genres", "had"]]])
def test_folded_in_users_score_as_the_machine_with_the_mode_of_their_parameters(learner, task, pairs) -> None:
    """Every sample has its own parameters and prior; a user's history is a field of the user."""
    rng = np.random.default_rng(1)
    m, genres, k, samples = 7, 3, 2, 1 if learner == "sgd" else 2
    names = {"user": "user", "item": "item", "genres": "categories", "had": "history"}
    config = FMConfig.model_validate(
        {
            "learner": learner, "task": task, "rank": k, "iterations": 9, "burn_in": 1, "samples": samples,
            "fields": [{"name": name, "of": of} for name, of in names.items()], "pairs": pairs,
        }
    )  # fmt: skip
    fields = (Field("user", 1, side=0), Field("item", m, side=1, of_item=True))
    fields += (Field("genres", genres, True, of_item=True), Field("had", m, True))
    plan = make_plan(config, fields, 1, m, 0, 1)
    w0, tables = rng.normal(size=samples), rng.normal(size=(samples, 1 + m + genres + m, k + 1)).astype(np.float32)
    of_items = (rng.random((m, genres)) < 0.5).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(of_items.sum(axis=1))]).astype(np.int64)
    entries = (indptr, np.nonzero(of_items)[1].astype(np.int32), np.ones(indptr[-1], np.float32))
    everywhere = np.ascontiguousarray(tables[:, 1 + m :])
    own = np.ascontiguousarray(tables[:, 1 : 1 + m].transpose(1, 0, 2))
    items = folded(True, own, entries, w0, everywhere, plan)
    state = {
        "w0": w0, "noise_precision": np.array([1.0, 1.0] if task == "classification" else [0.5, 2.0])[:samples],
        "precision": rng.uniform(0.5, 2, (samples, k + 1)), "mean": rng.normal(size=(samples, k + 1)),
        "everywhere": everywhere, "sizes": np.array([1, m, genres, m]),
    }  # fmt: skip
    had = np.array([0, 2, 3, 6], np.int32)
    y = np.array([1, 0, 1, 1], np.float32)
    dense = np.column_stack([np.ones(m), np.eye(m), of_items, np.zeros((m, m))])
    dense[:, 1 + m + genres + had] = 1 / np.sqrt(len(had))
    field_of = np.repeat(np.arange(4), [1, m, genres, m])
    scores = np.zeros(m)
    for s in range(samples):
        table = tables[s].copy()

        def values(theta: np.ndarray, s: int = s, table: np.ndarray = table) -> np.ndarray:
            table[0] = theta
            return double_loop(dense, w0[s], table, field_of, plan.pairs)

        g = values(np.zeros(k + 1))
        h = np.column_stack([values(unit) - g for unit in np.eye(k + 1)])
        given = (state["noise_precision"][s], state["precision"][s], state["mean"][s])
        link = IDENTITY if task == "regression" else LOGISTIC if learner == "sgd" else PROBIT
        scores += (g + h @ mode(h[had], g[had], y, given, link)) / samples
    vector = fold_in_fm((np.array([0, len(had)]), had, y), items, state, config)[0]
    np.testing.assert_allclose(items @ vector, scores, atol=1e-4)
