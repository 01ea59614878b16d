"""Training of the mixture: steps that never lower the posterior, known weights found, workers, checkpoints, edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparkcf.config.factorization import ALSConfig, MPMAConfig
from sparkcf.errors import TrainingError
from sparkcf.models.als.fit import fit_arrays as fit_als
from sparkcf.models.contract_data import UserBlock
from sparkcf.models.mpma.fit import fit_arrays
from sparkcf.models.mpma.groups import k_means
from sparkcf.models.mpma.layout import NAMES, RowState, packed, unpacked
from sparkcf.models.mpma.state import expectation, penalty
from sparkcf.models.mpma.train import MixturePlan, MixtureTraining, Trained, train_mixture
from sparkcf.training.blocks import ITEM, USER
from sparkcf.training.gang import Alone
from sparkcf.training.saved_sweeps import SavedSweeps
from tests.models.mpma.data import ITEMS, KIND, USERS, VALUES, M, N, config
from tests.training.gangs import in_gang, parts_of


def fit(given: MPMAConfig, **more: Any) -> tuple[Trained, Any]:
    return fit_arrays(USERS, ITEMS, VALUES, N, M, given, 1, **more)


def training(given: MPMAConfig, values: np.ndarray = VALUES, groups: Any = (None, None)) -> MixtureTraining:
    parts = parts_of(USERS, ITEMS, Alone(), values)
    return MixtureTraining(parts, list(groups), MixturePlan(given, N, M, 1, 1), Alone(), None)


def started(given: MPMAConfig) -> MixtureTraining:
    """A training whose components are fitted, grouped and split."""
    steps = training(given)
    for _ in range(given.base_iterations):
        steps._sweep(steps._ones(~steps.held[USER], ~steps.held[ITEM]), np.ones(len(given.components)))
    steps._group()
    steps._split()
    steps._begin_em(given.responsibilities)
    return steps


def log_posterior(steps: MixtureTraining) -> float:
    sums = expectation(steps.state, USER, steps.gang, ~steps.held[USER])
    return sums.log_likelihood - 0.5 * float(penalty(steps.state, steps.gang).sum())


@pytest.mark.parametrize("weights", ["equal", "global", "group"])
def test_exact_steps_of_em_never_lower_the_posterior(weights: str) -> None:
    given = config(responsibilities="plain", weights=weights, weight_prior=0, heldout_share=0, base_iterations=2)
    steps = started(given)
    values = [log_posterior(steps)]
    for _ in range(12):
        steps._em_step("plain")
        values.append(log_posterior(steps))
    assert np.diff(values).min() > -1e-6 * abs(values[0])  # float32 factors
    assert values[-1] > values[0] + 10


def test_gradient_steps_lower_the_posterior_by_no_more_than_a_hundredth() -> None:
    given = config(responsibilities="plain", weights="global", heldout_share=0, factors="sgd", base_iterations=20)
    steps = started(given)
    values = [log_posterior(steps)]
    for _ in range(12):
        steps._em_step("plain")
        values.append(log_posterior(steps))
    assert np.diff(values).min() > -0.01 * abs(values[0])
    assert values[-1] > values[0]


def test_gradient_steps_come_near_the_solved_factors() -> None:
    solved, stepped = (
        fit(config(base_iterations=40, factors=factors, sgd_steps=20))[0].log[-1]["observed"]
        for factors in ("solve", "sgd")
    )
    assert stepped < 1.3 * solved


def test_one_component_is_the_factorization_with_biases_of_als() -> None:
    """The first EM iteration keeps the variance of the sweep before it, and is a sweep of ALS too."""
    plain = {"heldout_share": 0, "responsibilities": "plain", "weights": "global", "iterations": 1}
    given = config(components=("global",), bias_share=1, **plain)
    rows = unpacked(fit(given)[0].rows[USER], "user", given)
    als = ALSConfig(
        mode="explicit",
        biases=True,
        rank=3,
        iterations=given.base_iterations + given.iterations,
        regularization=given.regularization,
        regularization_exponent=0.5,
        solver="cholesky",
    )
    expected = fit_als(USERS, ITEMS, VALUES, N, M, als, 1)
    np.testing.assert_allclose(rows.vectors[0][0][:, :-1], expected.user, atol=1e-3)
    np.testing.assert_allclose(rows.vectors[0][0][:, -1], expected.user_bias, atol=1e-3)


def test_weights_and_deviations_of_simulated_ratings_are_found() -> None:
    """The true means, 1 apart, are given; what remains is closed form."""
    given = config(weights="global", heldout_share=0.5, min_group=1)
    n_users, n_items = 300, 200
    rng = np.random.default_rng(3)
    users, items = (index.astype(np.int32) for index in np.nonzero(np.ones((n_users, n_items), bool)))
    weights, sds, biases = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.6, 0.15]), np.array([-1.0, 0.0, 1.0])
    which = rng.choice(3, len(users), p=weights)
    values = rng.normal(biases[which], sds[which])
    plan = MixturePlan(given, n_users, n_items, 1, 1)
    groups = [np.zeros(n_users, np.int32), np.zeros(n_items, np.int32)]
    steps = MixtureTraining(parts_of(users, items, Alone(), values), list(groups), plan, Alone(), None)
    steps._group()
    steps._split()
    for t in range(3):
        for side in (USER, ITEM):
            steps.state.vectors[side][t][:] = 0
        steps.state.vectors[USER][t][:, -1] = biases[t] - steps.mean
    steps.state.sds = np.full(3, 0.5)
    steps._calibrate("global")
    for _ in range(5):
        steps._calibrate("global")
    np.testing.assert_allclose(steps.state.weights.overall, weights, atol=0.01)
    np.testing.assert_allclose(steps.state.sds, sds, atol=0.02)


@pytest.mark.parametrize("responsibilities", ["plain", "tempered", "held_out", "auto"])
@pytest.mark.parametrize("weights", ["equal", "global", "group", "user_item", "auto"])
def test_every_choice_gives_finite_rows_and_weights_that_sum_to_one(responsibilities: str, weights: str) -> None:
    notes: list[dict[str, Any]] = []
    given = config(responsibilities=responsibilities, weights=weights)
    trained, _ = fit(given, on_progress=notes.append)
    assert all(np.isfinite(rows).all() for rows in trained.rows)
    assert trained.shared["overall"].sum() == pytest.approx(1)
    np.testing.assert_allclose(trained.shared["table"].sum(axis=-1), 1)
    for side, name in enumerate(NAMES):
        np.testing.assert_allclose(unpacked(trained.rows[side], name, given).weights.sum(axis=1), 1, atol=1e-5)
    assert trained.log[-1]["objective"] < trained.log[0]["objective"]
    assert [entry["sweep"] for entry in trained.log] == list(range(1, 12))
    said = " ".join(entry.get("note", "") for entry in notes)
    assert ("mpma.weights:" in said) == (weights == "auto")
    assert ("mpma.responsibilities:" in said) == (responsibilities == "auto")


@pytest.mark.parametrize("weights", ["equal", "global", "group"])
def test_rows_hold_the_weights_that_the_fit_uses(weights: str) -> None:
    """Of `group` the mean over the ratings of a row's group, by a loop over the groups."""
    groups = np.where(np.arange(N) % 10 == 4, -1, KIND).astype(np.int32)
    given = config(weights=weights)
    trained, _ = fit(given, groups=(groups, None))
    users, items = (unpacked(trained.rows[side], name, given) for side, name in enumerate(NAMES))
    assert set(users.groups) == {-1, 0, 1} and set(items.groups[: M - 1]) == {0, 1}
    overall = trained.shared["overall"]
    of_ratings = np.tile(overall, (len(USERS), 1))
    if weights == "group":
        of_ratings = trained.shared["table"][users.groups[USERS], items.groups[ITEMS]]
        assert np.ptp(of_ratings, axis=0).max() > 0.01
    assert np.allclose(overall, 1 / 3) is (weights == "equal")
    for rows, of_rating in ((users, USERS), (items, ITEMS)):
        for group in set(rows.groups[of_rating]):
            own = rows.groups[of_rating] == group
            expected = np.broadcast_to(of_ratings[own].mean(axis=0), (own.sum(), 3))
            np.testing.assert_allclose(rows.weights[of_rating[own]], expected, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("factors", ["solve", "sgd"])
def test_several_workers_fit_what_one_fits(size: int, factors: str) -> None:
    given = config(weights="user_item", factors=factors)
    alone, _ = fit(given)

    def work(gang: Any) -> Trained:
        plan = MixturePlan(given, N, M, 1, 1)
        return train_mixture(parts_of(USERS, ITEMS, gang, VALUES), [None, None], plan, gang)

    for rank, theirs in enumerate(in_gang(size, work)):
        for side in (USER, ITEM):
            np.testing.assert_allclose(theirs.rows[side], alone.rows[side][rank::size], atol=5e-3)
        np.testing.assert_allclose(theirs.shared["overall"], alone.shared["overall"], atol=1e-4)
        assert theirs.log[-1]["objective"] == pytest.approx(alone.log[-1]["objective"], rel=1e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("sweep", [4, 6, 8])  # before the groups, at their making, in EM
def test_a_fit_that_was_cut_short_goes_on_from_its_checkpoint(tmp_path: Path, sweep: int) -> None:
    given = config(save_every=2, weights="group", responsibilities="tempered")

    def kill(entry: dict[str, Any]) -> None:
        if entry.get("sweep") == sweep + 1:
            raise Killed

    whole, _ = fit(given)
    with pytest.raises(Killed):
        fit(given, checkpoint_dir=str(tmp_path), on_progress=kill)
    assert SavedSweeps(str(tmp_path))._sweeps()[0] == sweep
    seen: list[int] = []
    resumed, _ = fit(given, checkpoint_dir=str(tmp_path), on_progress=lambda entry: seen.append(entry["sweep"]))
    assert seen[0] == sweep + 1
    for side in (USER, ITEM):
        np.testing.assert_allclose(resumed.rows[side], whole.rows[side], atol=1e-4)
    np.testing.assert_allclose(resumed.shared["sds"], whole.shared["sds"], atol=1e-5)


def test_given_groups_are_used_and_gaps_have_none() -> None:
    groups = KIND.copy()
    groups[5] = -1
    given = config()
    trained, scorer = fit(given, groups=(groups, None))
    rows = unpacked(trained.rows[USER], "user", given)
    np.testing.assert_array_equal(rows.groups[: N - 1], groups[: N - 1])
    assert trained.shared["user_group_sizes"].tolist() == [1, (KIND[:-1] == 0).sum() - 1, (KIND[:-1] == 1).sum()]
    assert scorer.large.all()


def test_a_group_that_is_too_small_falls_back_to_the_other_components() -> None:
    groups = np.where(np.arange(N) < 3, 1, 0).astype(np.int32)
    given = config(min_group=4)
    trained, _ = fit(given, groups=(groups, None))
    assert (unpacked(trained.rows[USER], "user", given).groups[:3] == -1).all()


def test_groups_of_one_user_each_are_fitted() -> None:
    given = config(user_groups=N, min_group=1, heldout_share=0, responsibilities="plain", weights="global")
    trained, _ = fit(given, groups=(np.arange(N, dtype=np.int32), None))
    assert all(np.isfinite(rows).all() for rows in trained.rows)


def test_ratings_without_spread_are_predicted_as_they_are() -> None:
    given = config()
    trained, scorer = fit_arrays(USERS, ITEMS, np.full(len(USERS), 4.0, np.float32), N, M, given, 1)
    np.testing.assert_allclose(trained.shared["sds"], given.min_sd, atol=1e-6)
    assert all(np.isfinite(rows).all() for rows in trained.rows)
    users = UserBlock(trained.rows[USER][USERS], np.zeros(len(USERS), np.float32), trained.present[USER][USERS])
    value, sd = scorer.predict(users, ITEMS)
    np.testing.assert_allclose(value, 4.0, atol=1e-6)
    np.testing.assert_allclose(sd, given.min_sd, atol=1e-6)


@pytest.mark.parametrize("side", ["user", "item"])
def test_more_groups_than_rows_are_refused_by_name(side: str) -> None:
    with pytest.raises(TrainingError, match=rf"mpma.{side}_groups=500, but only \d+ rows have ratings: lower it"):
        fit(config(**{f"{side}_groups": 500}))


def test_no_rating_at_all_is_refused() -> None:
    nothing = np.empty(0, np.int32)
    with pytest.raises(TrainingError, match="no rating to train on"):
        fit_arrays(nothing, nothing, np.empty(0, np.float32), 3, 3, config(), 1)


def test_steps_that_are_too_large_are_named() -> None:
    with pytest.raises(TrainingError, match=r"not finite in sweep 1: .*lower mpma.sgd_learning_rate"):
        fit(config(factors="sgd", sgd_learning_rate=1e6))


def test_k_means_finds_separate_groups_whoever_holds_the_rows() -> None:
    rng = np.random.default_rng(5)
    kinds = rng.integers(0, 3, 200)
    points = (10 * np.eye(3)[kinds] + rng.normal(size=(200, 3))).astype(np.float32)
    ids = np.arange(200)
    assigned, centres = k_means(points, ids, 3, 1, "mpma.user_groups", Alone())
    assert len({(a, b) for a, b in zip(kinds, assigned, strict=True)}) == 3
    for rank, (theirs, same) in enumerate(
        in_gang(2, lambda gang: k_means(points[gang.rank :: 2], ids[gang.rank :: 2], 3, 1, "g", gang))
    ):
        np.testing.assert_array_equal(theirs, assigned[rank::2])
        np.testing.assert_allclose(same, centres, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_unpacked_as_they_were_packed(name: Any) -> None:
    given, rng = config(user_groups=3, item_groups=2), np.random.default_rng(1)
    blocks, split = given.blocks(name), given.split(name)
    vectors = [rng.normal(size=(b, 5, 4)).astype(np.float32) for b in blocks]
    shared = [rng.normal(size=(5, 4)).astype(np.float32) if s else None for s in split]
    rows = RowState(vectors, shared, rng.random((5, 3)), np.array([0, -1, 2, 1, 0], np.int32))
    table = packed(rows)
    assert table.shape == (5, given.width_of(name))
    again = unpacked(table, name, given)
    for mine, theirs in zip([*vectors, *shared], [*again.vectors, *again.shared], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(again.groups, rows.groups)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"components": ("user_local", "item_local")}, "leave out global"),
        ({"components": ("global", "global")}, "repeat a name"),
        ({"heldout_share": 0}, "heldout_share=0 leaves no ratings for"),
        ({"temperature": 0.5}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**wrong)
