"""Factorization machines by gradient descent: the same machine and objective as by exact solves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparkcf.config.fm import FMConfig
from sparkcf.models.fm.net import net_of, split
from sparkcf.models.fm.rows import make_plan
from sparkcf.models.fm.sgd import examples_of, net_data
from sparkcf.training.loop import to_tensors
from tests.models.fm.test_fit import PAIRS, M, N, as_labels, configured, double_loop, fitted, make


def descending(**changes: Any) -> FMConfig:
    sgd = {"epochs": 3, "batch_size": 40, "learning_rate": 0.02} | changes.pop("sgd", {})
    return configured(learner="sgd", sgd=sgd, **changes)


@pytest.mark.parametrize("pairs", PAIRS)
def test_the_module_is_the_machine_that_the_kernels_predict_with(pairs) -> None:
    made = make()
    config = descending(pairs=pairs)
    fit = fitted(made, config)
    (w0, table), plan = fit.samples[0], fit.plan
    expected = double_loop(made.dense, w0, table, made.field_of, plan.pairs)
    np.testing.assert_allclose(fit.predict(made.data)[0], expected, atol=1e-4)
    net = net_of(net_data(plan, 0.0, 1), config, 3)
    targets, features = split(to_tensors(examples_of(made.data, plan), "cpu"))
    np.testing.assert_array_equal(targets.numpy(), made.data.y)
    # The module's order: what stands everywhere, then the ids.
    order = np.concatenate([np.arange(N + M, len(table)), np.arange(N + M)])
    with torch.no_grad():
        net.table.copy_(torch.from_numpy(table[order]))
        net.w0.fill_(w0)
        np.testing.assert_allclose(net(features).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("pairs", PAIRS)
def test_gradients_are_those_of_the_objective(task, pairs) -> None:
    """Against differences of a dense objective, at a few parameters."""
    made = make(rows=30)
    made = as_labels(made) if task == "classification" else made
    config = descending(task=task, pairs=pairs, regularization=2.0, linear_regularization=5.0)
    plan = make_plan(config, made.fields, N, M, 1, 1)
    net = net_of(net_data(plan, 0.5, len(made.data.y)), config, 3).double()
    rows = to_tensors(examples_of(made.data, plan), "cpu")
    rows = type(rows)(rows.indices, rows.offsets, rows.values.double())
    net.loss(rows, 0.0).sum().backward()
    order = np.concatenate([np.arange(N + M, made.dense.shape[1]), np.arange(N + M)])
    back = np.argsort(order)

    def objective(table: np.ndarray) -> float:
        fitted = double_loop(made.dense, float(net.w0.detach()), table[back], made.field_of, plan.pairs)
        sign = np.where(made.data.y > 0, 1, -1)
        lost = np.square(made.data.y - fitted) if task == "regression" else 2 * np.logaddexp(0, -sign * fitted)
        return lost.sum() + 2 * np.square(table[:, :-1]).sum() + 5 * np.square(table[:, -1]).sum()

    table = net.table.detach().numpy().copy()
    for place in ((0, 0), (0, 3), (4, 1), (len(table) - 2, 2), (len(table) - 2, 3)):
        moved = [table.copy(), table.copy()]
        moved[0][place] += 1e-4
        moved[1][place] -= 1e-4
        slope = (objective(moved[0]) - objective(moved[1])) / 2e-4
        assert float(net.table.grad[place]) == pytest.approx(slope, rel=5e-3, abs=5e-3)


def test_descent_comes_near_the_objective_of_exact_solves() -> None:
    made = make(several=False)
    shared = {"rank": 2, "regularization": 3.0, "linear_regularization": 3.0}
    exact = fitted(made, configured(iterations=100, **shared))
    near = fitted(made, descending(sgd={"epochs": 400, "batch_size": 100, "learning_rate": 0.01}, **shared))
    least = exact.log[-1]["objective"] / len(made.data.y)
    assert least * 0.999 < near.log[-1]["loss"] < least * 1.03
    np.testing.assert_allclose(near.predict(made.data)[0], exact.predict(made.data)[0], atol=0.25)


def test_labels_get_probabilities_of_the_logistic_function() -> None:
    made = as_labels(make())
    config = descending(task="classification", regularization=0.1, sgd={"epochs": 30})
    fit = fitted(made, config)
    probabilities, spread = fit.predict(made.data)
    w0, table = fit.samples[0]
    values = double_loop(made.dense, w0, table, made.field_of, fit.plan.pairs)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-values)), atol=1e-5)
    assert probabilities[made.data.y > 0].mean() > probabilities[made.data.y == 0].mean() + 0.3
    assert not spread.any()


def test_what_no_row_has_adds_nothing() -> None:
    made = make()
    fit = fitted(made, descending())
    table = fit.samples[0][1]
    assert not table[N - 1].any()  # a user without rows
    assert not table[(made.dense != 0).sum(axis=0) == 0].any()
    assert table[(made.dense != 0).sum(axis=0) > 0].any(axis=1).all()


def test_the_same_seed_gives_the_same_and_another_seed_another() -> None:
    made = make()
    one, again = fitted(made, descending()), fitted(made, descending())
    np.testing.assert_array_equal(one.samples[0][1], again.samples[0][1])
    assert np.abs(fitted(made, descending(), seed=2).samples[0][1] - one.samples[0][1]).max() > 1e-3
