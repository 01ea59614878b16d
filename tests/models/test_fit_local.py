"""Fits in one process: those that go on where an earlier one stopped, and what they give a scorer. No Spark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparkcf.config.load import load_config
from sparkcf.config.models import SECTIONS
from sparkcf.models.als.fit import fit_arrays
from sparkcf.models.contract import Model
from sparkcf.models.contract_data import LocalData, LocalFit, LocalRun
from sparkcf.models.registry import implementation, model_of

N, M = 30, 12
RNG = np.random.default_rng(2)
USERS, ITEMS = (a.astype(np.int32) for a in np.nonzero(RNG.random((N, M)) < 0.4))
KEPT = (USERS != 3) & (ITEMS != 5)  # a user and an item without pairs
VALUES = RNG.integers(1, 6, len(USERS)).astype(np.float32)


def pairs(weighted: bool = False) -> LocalData:
    weights = np.linspace(0.5, 2, int(KEPT.sum()), dtype=np.float32) if weighted else None
    return LocalData(USERS[KEPT], ITEMS[KEPT], VALUES[KEPT], N, M, weights)


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
    first = fitted.fit_local(data, LocalRun(rounds=2))
    kept = LocalFit.of_arrays(first.to_arrays(), first.saved.mean, first.saved.average, [])
    parts, whole = fitted.fit_local(data, LocalRun(rounds=4, start=kept)), fitted.fit_local(data, LocalRun())
    arrays = (data.users, data.items, data.values, N, M, fitted.params, fitted.seed)
    expected = fit_arrays(*arrays, weights=data.weights)
    for found in (parts, whole):
        np.testing.assert_allclose(found.users.vectors, expected.user, atol=1e-4)
        np.testing.assert_allclose(found.users.bias, expected.user_bias, atol=1e-4)
        np.testing.assert_allclose(found.saved.item_vectors, expected.item, atol=1e-4)
        np.testing.assert_allclose(found.saved.item_bias, expected.item_bias, atol=1e-4)
        assert found.saved.mean == pytest.approx(expected.mean)
    assert np.abs(first.users.vectors - whole.users.vectors).max() > 1e-3
    assert not whole.users.known[3] and not whole.saved.item_known[5] and whole.users.known.sum() == N - 1


@pytest.mark.parametrize("name", ["ease", "mrf"])
def test_models_of_items_score_users_by_their_rows(name: str) -> None:
    fitted = model(f"model={name}", f"{name}.regularization=2")
    found = fitted.fit_local(pairs(), LocalRun())
    assert not found.users.known[3] and not found.saved.item_known[5] and found.users.vectors.shape == (N, 0)
    rows = (np.array([0, 2]), np.array([1, 5], np.int32), np.ones(2, np.float32), np.ones(2, np.float32))
    block = replace(found.users.take(np.array([0])), rows=rows)
    scores = fitted.open(found.saved).score_block(block)
    assert scores.shape == (1, M) and np.isfinite(scores).all() and scores.any()


@pytest.mark.parametrize("name", ["ease", "mrf"])
def test_models_of_items_read_no_more_of_a_user_than_the_longest_history(name: str) -> None:
    data = pairs()
    most = int(np.bincount(data.users).max())
    fits = [
        model(f"model={name}", f"{name}.max_history={n}").fit_local(data, LocalRun()).saved.arrays
        for n in (most, most - 1, 5_000)
    ]
    weights = [np.concatenate([array.ravel() for array in arrays.values()]) for arrays in fits]
    assert np.array_equal(weights[0], weights[2]) and not np.array_equal(weights[1], weights[2])


def test_these_models_fit_locally_and_in_parts() -> None:
    kinds = {name: implementation(name) for name in SECTIONS}
    assert {name for name, kind in kinds.items() if not kind.fits_locally} == {"fm", "blend"}
    assert {name for name, kind in kinds.items() if kind.fits_in_parts} == {"als", "hals", "ease", "mrf"}
    assert all(kind.fits_locally == (kind.fit_local is not Model.fit_local) for kind in kinds.values())
