"""Fits on arrays that go on where an earlier one stopped, and what they give a scorer. No Spark."""

from __future__ import annotations

import numpy as np
import pytest

from sparkcf.config.load import load_config
from sparkcf.models.als.fit import fit_arrays
from sparkcf.models.contract import ArrayFit, Model, PairArrays, UserBlock
from sparkcf.models.registry import model_of

N, M = 30, 12
RNG = np.random.default_rng(2)
USERS, ITEMS = (a.astype(np.int32) for a in np.nonzero(RNG.random((N, M)) < 0.4))
KEPT = (USERS != 3) & (ITEMS != 5)  # a user and an item without pairs
VALUES = RNG.integers(1, 6, len(USERS)).astype(np.float32)


def pairs(weighted: bool = False) -> PairArrays:
    weights = np.linspace(0.5, 2, int(KEPT.sum()), dtype=np.float32) if weighted else None
    return PairArrays(USERS[KEPT], ITEMS[KEPT], VALUES[KEPT], weights, N, M)


def model(*overrides: str) -> Model:
    return model_of(load_config((), ["ds=2024-01-31", "input.path=none", *overrides]))


ALS = ("als.rank=4", "als.iterations=6", "als.regularization=0.1")
CASES = {
    "als": ALS,
    "als, exact": (*ALS, "als.solver=cholesky"),
    "als, explicit with biases": (*ALS, "als.mode=explicit", "als.biases=true"),
    "hals": ("model=hals", "hals.rank=4", "hals.iterations=6", "hals.regularization=0.1"),
}


@pytest.mark.parametrize("case", CASES)
def test_sweeps_in_parts_are_those_of_one_fit(case: str) -> None:
    fitted, data = model(*CASES[case]), pairs(weighted="explicit" in case)
    first = fitted.fit_sweeps(data, 2, None, 1)
    parts, whole = fitted.fit_sweeps(data, 4, first, 1), fitted.fit_sweeps(data, 6, None, 1)
    arrays = (data.users, data.items, data.values, N, M, fitted.params, fitted.seed)
    expected = fit_arrays(*arrays, weights=data.weights)
    for found in (parts, whole):
        np.testing.assert_allclose(found.user_vectors, expected.user, atol=1e-4)
        np.testing.assert_allclose(found.saved.item_vectors, expected.item, atol=1e-4)
        np.testing.assert_allclose(found.saved.item_bias, expected.item_bias, atol=1e-4)
        assert found.saved.mean == pytest.approx(expected.mean)
    assert np.abs(first.user_vectors - whole.user_vectors).max() > 1e-3
    assert not whole.user_known[3] and not whole.saved.item_known[5] and whole.user_known.sum() == N - 1


@pytest.mark.parametrize("name", ["ease", "mrf"])
def test_models_of_items_score_users_by_their_rows(name: str) -> None:
    fitted = model(f"model={name}", f"{name}.regularization=2")
    found: ArrayFit = fitted.fit_sweeps(pairs(), fitted.rounds, None, 1)
    assert not found.user_known[3] and not found.saved.item_known[5] and found.user_vectors.shape == (N, 0)
    rows = (np.array([0, 2]), np.array([1, 5], np.int32), np.ones(2, np.float32), np.ones(2, np.float32))
    block = UserBlock(np.zeros((1, 0), np.float32), np.zeros(1, np.float32), np.ones(1, bool), rows)
    scores = fitted.open(found.saved).score_block(block)
    assert scores.shape == (1, M) and np.isfinite(scores).all() and scores.any()


def test_only_these_models_fit_arrays() -> None:
    assert [n for n in ("als", "hals", "ease", "mrf", "multvae", "fm") if model(f"model={n}").fits_arrays] == [
        "als",
        "hals",
        "ease",
        "mrf",
    ]
