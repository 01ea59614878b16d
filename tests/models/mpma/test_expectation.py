"""The E-step's one pass over the ratings beside the same formulas in NumPy, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest

from sparkcf.kernels.mixture import log_joint, log_sum, responsibilities
from sparkcf.models.mpma.state import applies, component_means, entry_shares, expectation, view_means
from sparkcf.models.mpma.train import MixtureTraining
from sparkcf.models.mpma.weights import Weights
from sparkcf.training.blocks import ITEM, USER
from tests.models.mpma.data import config
from tests.models.mpma.test_train import started

KINDS = ("equal", "global", "group", "user_item")


def disturbed(kind: str, threads: int = 1) -> MixtureTraining:
    """A training with uneven weights, deviations and groups of which one is none."""
    steps, rng = started(config(weights="global", base_iterations=2)), np.random.default_rng(3)
    state = steps.state
    state.threads = threads
    n, (g, h) = len(state.config.components), state.weights.table.shape[:2]
    state.weights = Weights(kind, rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n), (g, h)))  # type: ignore[arg-type]
    state.row_weights = [rng.dirichlet(np.ones(n), len(w)) for w in state.row_weights]
    state.sds = rng.uniform(0.3, 1.2, n)
    state.groups[USER][:3] = -1
    state.other_groups[ITEM] = state.groups[USER][state.copies[ITEM].col]
    state.groups[ITEM][:2] = -1
    state.other_groups[USER] = state.groups[ITEM][state.copies[USER].col]
    return steps


def in_numpy(steps: MixtureTraining, side: int, counted: np.ndarray, temperature: float) -> dict[str, np.ndarray]:
    state, part = steps.state, steps.state.copies[side]
    means = component_means(state, side, steps.gang)
    users, items = state.entry_groups(side)
    own, other = state.row_weights[side][part.row], state.row_weights[1 - side][part.col]
    by_side = (own, other) if side == USER else (other, own)
    weights = state.weights.of_pairs(users, items, *by_side, applies(state.config, users, items))
    errors = part.values[:, None] - means.T.astype(np.float64)
    joint = log_joint(weights, errors, state.sds)
    shares = responsibilities(joint, temperature)
    kept = shares[counted]
    table = np.zeros_like(state.weights.table)
    np.add.at(table, (users[counted], items[counted]), kept)  # -1: the last
    by_row = np.zeros((part.places, kept.shape[1]))
    np.add.at(by_row, part.row[counted], kept)
    return {
        "all": shares,
        "shares": kept.sum(axis=0),
        "squares": (kept * errors[counted] ** 2).sum(axis=0),
        "table": table,
        "by_row": by_row,
        "log_likelihood": log_sum(joint)[counted].sum(),
        "squared": (np.einsum("nt,nt->n", weights, errors)[counted] ** 2).sum(),
        "count": counted.sum(),
        "table_counts": np.bincount(
            (users[counted] % table.shape[0]) * table.shape[1] + items[counted] % table.shape[1],
            minlength=table.shape[0] * table.shape[1],
        ).reshape(table.shape[:2]),
        "row_counts": np.bincount(part.row[counted], minlength=part.places),
    }


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("side", [USER, ITEM])
@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_adds_up_what_numpy_does(kind: str, side: int, temperature: float, threads: int) -> None:
    steps = disturbed(kind, threads)
    counted = np.random.default_rng(1).random(len(steps.state.copies[side].row)) < 0.7
    wanted = in_numpy(steps, side, counted, temperature)
    found = expectation(steps.state, side, steps.gang, counted, temperature)
    for name in ("shares", "squares", "table", "table_counts", "by_row", "row_counts", "squared", "count"):
        np.testing.assert_allclose(getattr(found, name), wanted[name], rtol=1e-9, atol=1e-9, err_msg=name)
    assert found.log_likelihood == pytest.approx(wanted["log_likelihood"], rel=1e-9)
    shares = entry_shares(steps.state, side, steps.gang, temperature)
    np.testing.assert_allclose(shares.T, wanted["all"], rtol=1e-5, atol=1e-6)


def test_means_do_not_depend_on_the_threads() -> None:
    state = disturbed("global").state
    view, vectors = state.views[USER][0], state.vectors
    one = view_means(view, vectors[USER][0], vectors[ITEM][0], 1)
    for threads in (2, 3, 50):
        np.testing.assert_array_equal(view_means(view, vectors[USER][0], vectors[ITEM][0], threads), one)
    row, col = state.copies[USER].row, state.copies[USER].col
    own, other = vectors[USER][0][row], vectors[ITEM][0][col]
    wanted = np.einsum("nk,nk->n", own[:, :-1], other[:, :-1]) + own[:, -1] + other[:, -1]
    np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
