"""The fit in one process against dense float64 ALS, known answers and hostile input. No Spark session."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparkcf.config.factorization import ALSConfig
from sparkcf.errors import TrainingError
from sparkcf.kernels.random import normal_rows
from sparkcf.models.als.fit import Factors, FactorScorer, fit_arrays, fold_in
from sparkcf.models.contract_data import Saved, UserBlock
from tests.models.als.dense_als import (
    FORMS,
    Problem,
    by_solver,
    normal_equations,
    objective,
    random_problem,
    settings,
    sweeps,
)

SOLVERS = ("cholesky", "cg", "subspace", "hals")


def fit(problem: Problem, seed: int = 1, **changes: Any) -> Factors:
    solver = changes.pop("solver", problem.config.solver)
    config = by_solver(problem.config, solver, **changes)
    return fit_arrays(*problem.triples(), *problem.seen.shape, config, seed)


def rated(*entries: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, items, values = zip(*entries, strict=True)
    return np.array(users, np.int32), np.array(items, np.int32), np.array(values, np.float32)


def objectives(factors: Factors) -> np.ndarray:
    return np.array([entry["objective"] for entry in factors.log])


@pytest.mark.parametrize("form", FORMS)
def test_fit_equals_dense_als_from_the_same_start(form: str) -> None:
    problem = random_problem(form, n=14, m=11, rank=4, iterations=6)
    found = fit(problem, seed=5)
    start = normal_rows(5, 1, np.arange(11), 4 + problem.config.biases, 0.1 / 2)[:, :4]
    p, q, b, c = sweeps(problem, start, 6)
    np.testing.assert_allclose(found.user, p, atol=1e-4)
    np.testing.assert_allclose(found.item, q, atol=1e-4)
    np.testing.assert_allclose(found.user_bias, b, atol=1e-4)
    np.testing.assert_allclose(found.item_bias, c, atol=1e-4)
    assert found.mean == pytest.approx(problem.mean)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_log_holds_the_objective_by_part(form: str, exponent: float) -> None:
    problem = random_problem(form, seed=2, regularization=0.3, regularization_exponent=exponent)
    for solver in SOLVERS:
        found = fit(problem, solver=solver, iterations=2)
        expected = objective(problem, found.user, found.item, found.user_bias, found.item_bias)
        for part, value in expected.items():
            assert found.log[-1][part] == pytest.approx(value, rel=1e-5, abs=1e-5), part
        parts = [found.log[-1][part] for part in ("observed", "unobserved", "regularization")]
        assert found.log[-1]["objective"] == pytest.approx(sum(parts))


@pytest.mark.parametrize("form", FORMS)
def test_objective_of_the_exact_solver_never_rises(form: str) -> None:
    problem = random_problem(form, n=40, m=30, rank=8, iterations=25, regularization=0.02)
    values = objectives(fit(problem))
    assert len(values) == 25
    assert (np.diff(values) <= 1e-6 * values[:-1]).all()
    assert values[-1] < 0.95 * values[0]


@pytest.mark.parametrize("form", FORMS)
def test_conjugate_gradient_ends_where_the_exact_solver_ends(form: str) -> None:
    problem = random_problem(form, n=40, m=30, rank=4, regularization=0.5)
    exact = fit(problem, iterations=40)
    close = fit(problem, iterations=40, solver="cg")
    assert objectives(close)[-1] == pytest.approx(objectives(exact)[-1], rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_fit_ends_where_every_row_satisfies_its_normal_equations(form: str) -> None:
    problem = random_problem(form, n=20, m=15, iterations=100, regularization=0.5)
    found = fit(problem)
    sides = ((problem, found.user, found.user_bias, found.item, found.item_bias),)
    sides += ((problem.flipped, found.item, found.item_bias, found.user, found.user_bias),)
    for side, own, bias, other, other_bias in sides:
        for row in np.flatnonzero(side.seen.any(axis=1)):
            matrix, right = normal_equations(side, row, other, other_bias)
            solution = np.append(own[row], bias[row]) if problem.config.biases else own[row]
            assert np.abs(matrix @ solution - right).max() < 2e-3 * max(1.0, np.abs(right).max())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rank", [1, 2])
def test_explicit_recovers_a_matrix_of_its_rank(rank: int, solver: str) -> None:
    rng = np.random.default_rng(rank)
    whole = rng.normal(1, 1, (30, rank)) @ rng.normal(1, 1, (rank, 20))
    seen = rng.random(whole.shape) < 0.6
    sweeps = 1500 if solver == "hals" else 80  # a dimension at a time goes far more slowly
    config = settings("explicit", rank=rank, iterations=sweeps, regularization=1e-6, init_sd=1.0)
    found = fit(Problem(np.where(seen, whole, 0.0), seen, config), solver=solver)
    error = found.user @ found.item.T - whole
    assert np.sqrt((error**2).mean()) < 1e-2 * whole.std()  # withheld cells as well


@pytest.mark.parametrize("form", ["ials", "hu_koren", "implicit"])
def test_a_withheld_cell_of_the_checkerboard_scores_above_the_white_ones(form: str) -> None:
    rows, cols = np.indices((20, 20))
    black = (rows + cols) % 2 == 0
    seen = black & (rows != cols)  # the diagonal is black and withheld
    config = settings(form, rank=4, iterations=20, regularization=0.1, alpha=2.0, unobserved_weight=1.0)
    found = fit(Problem(seen.astype(float), seen, config))
    scores = found.user @ found.item.T
    withheld, white = scores[rows == cols], np.where(black, -np.inf, scores).max(axis=1)
    assert (withheld > white).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_value_that_no_factor_can_hold_stops_the_fit_and_names_row_and_cure(solver: str, value: float) -> None:
    pairs = rated((0, 0, 3.0), (0, 1, 1.0), (1, 0, 2.0), (4, 2, value), (4, 0, 1.0), (2, 1, 4.0))
    config = settings("explicit", solver, rank=2)
    with pytest.raises(TrainingError) as told:
        fit_arrays(*pairs, 5, 3, config, 1)
    message = str(told.value)
    assert "\n" not in message
    assert "user row 4 is not finite" in message or (value == 1e30 and "row" in message)
    assert f"raise {config.section}.regularization (now 0.1)" in message


def test_no_pair_at_all_is_told() -> None:
    empty = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    for form in FORMS:
        with pytest.raises(TrainingError, match="no positive interaction"):
            fit_arrays(*empty, 5, 3, settings(form), 1)


@pytest.mark.parametrize("form", FORMS)
def test_rows_without_entries_are_zero_and_not_present(form: str) -> None:
    problem = random_problem(form)
    found = fit(problem)
    assert not found.user[-1].any() and not found.item[2].any()
    assert not found.user_bias[-1] and not found.item_bias[2]
    np.testing.assert_array_equal(found.user_present, problem.seen.any(axis=1))
    np.testing.assert_array_equal(found.item_present, problem.seen.any(axis=0))
    assert not found.user_present[-1] and not found.item_present[2]


@pytest.mark.parametrize("form", FORMS)
def test_absent_rows_change_nothing(form: str) -> None:
    """The regularisation counts the rows that are there: room for more users and items is free."""
    problem = random_problem(form)
    small = fit(problem)
    large = fit_arrays(*problem.triples(), 50, 70, problem.config, 1)
    # BLAS sums as many rows in another order on some CPUs: a few last bits of float32 at values of 3.
    np.testing.assert_allclose(large.user[:12], small.user, atol=5e-6)
    np.testing.assert_allclose(large.item[:9], small.item, atol=5e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_a_side_of_one_row_is_fitted(shape: tuple[int, int], form: str) -> None:
    seen = np.ones(shape, bool)
    seen[-1, -1] = shape == (1, 1)
    values = np.where(seen, 4.0, 0.0)
    found = fit(Problem(values, seen, settings(form, iterations=3)))
    assert np.isfinite(found.user).all() and np.isfinite(found.item).all()
    assert found.user[0].any() or form == "biases"


@pytest.mark.parametrize("form", FORMS)
def test_rank_may_exceed_both_sides(form: str) -> None:
    problem = random_problem(form, n=6, m=5, rank=40)
    values = objectives(fit(problem))
    assert np.isfinite(values).all() and (np.diff(values) <= 1e-6 * values[:-1]).all()


@pytest.mark.parametrize("form", FORMS)
def test_pairs_given_twice_count_as_one_with_their_sum(form: str) -> None:
    problem = random_problem(form, seed=3)
    users, items, values = problem.triples()
    once = fit(problem)
    parts = [np.concatenate([part, part]) for part in (users, items)]
    twice = fit_arrays(*parts, np.concatenate([values / 4, values * 3 / 4]), 12, 9, problem.config, 1)
    np.testing.assert_allclose(twice.user, once.user, atol=1e-6)
    np.testing.assert_allclose(twice.item, once.item, atol=1e-6)


def test_factors_depend_on_the_seed_alone() -> None:
    problem = random_problem("ials", iterations=2)
    one = fit(problem, seed=1)
    np.testing.assert_array_equal(fit(problem, seed=1).item, one.item)
    assert np.abs(fit(problem, seed=2).item - one.item).min(axis=1)[[0, 1, 3]].all()
    users, items, values = problem.triples()
    shuffled = np.random.default_rng(0).permutation(len(users))
    same = fit_arrays(users[shuffled], items[shuffled], values[shuffled], 12, 9, problem.config, 1)
    np.testing.assert_array_equal(same.item, one.item)


@pytest.mark.parametrize("threads", [2, 3])
def test_factors_do_not_depend_on_the_threads(threads: int) -> None:
    problem = random_problem("hu_koren", n=30, m=25)
    one = fit(problem)
    more = fit_arrays(*problem.triples(), 30, 25, problem.config, 1, threads=threads)
    np.testing.assert_array_equal(more.user, one.user)
    np.testing.assert_array_equal(more.item, one.item)


@pytest.mark.parametrize("form", FORMS)
def test_fold_in_is_the_half_sweep_of_the_training(form: str) -> None:
    problem = random_problem(form, n=15, rank=4, iterations=7)
    found = fit(problem)
    users, items, values = problem.triples()
    indptr = np.searchsorted(users, np.arange(16)).astype(np.int64)
    arguments = (indptr, items, values, found.item, found.item_bias, problem.config, int(found.item_present.sum()))
    vectors, biases = fold_in(*arguments, mean=found.mean)
    # The users of the next sweep are solved with these items fixed.
    start = normal_rows(1, 1, np.arange(9), 4 + problem.config.biases, 0.1 / 2)[:, :4]
    p, _, b, _ = sweeps(problem, start, 8)
    np.testing.assert_allclose(vectors, p, atol=1e-4)
    np.testing.assert_allclose(biases, b, atol=1e-4)
    assert not vectors[-1].any() and vectors.dtype == biases.dtype == np.float32
    gram = found.item.T.astype(float) @ found.item
    np.testing.assert_allclose(fold_in(*arguments, mean=found.mean, gram=gram, threads=2)[0], vectors, atol=1e-6)


def test_fit_stops_where_the_objective_falls_too_little() -> None:
    problem = random_problem("ials", n=30, m=20, iterations=20)
    whole = objectives(fit(problem, tolerance=0.0))
    falls = -np.diff(whole) / whole[:-1]
    assert len(whole) == 20 and (np.diff(falls[:12]) < 0).all()
    for last in (5, 10):  # the sweeps with a fall of at least the tolerance
        tolerance = (falls[last - 1] + falls[last]) / 2
        np.testing.assert_array_equal(objectives(fit(problem, tolerance=tolerance)), whole[: last + 2])


def test_every_sweep_is_heard_when_it_is_done() -> None:
    heard: list[dict[str, Any]] = []
    problem = random_problem("ials")
    found = fit_arrays(*problem.triples(), 12, 9, problem.config, 1, on_progress=heard.append)
    assert heard == found.log
    assert [entry["sweep"] for entry in heard] == [1, 2, 3, 4, 5]


def test_singular_rows_are_counted_and_stay_finite() -> None:
    problem = random_problem("explicit", rank=6, regularization=0.0, iterations=4)
    problem.seen[1:4] = np.arange(9) < 2
    problem.values = np.where(problem.seen, np.maximum(problem.values, 1.0), 0.0)
    found = fit(problem)
    assert all(entry["singular_rows"] >= 3 for entry in found.log)
    assert np.isfinite(found.user).all() and np.isfinite(objectives(found)).all()
    assert all(entry["singular_rows"] == 0 for entry in fit(problem, regularization=0.1).log)


def test_negative_weights_are_refused_with_their_number_before_a_sweep() -> None:
    problem = random_problem("ials", n=12, m=9)
    users, items, values = problem.triples()
    values = values.copy()
    values[[2, 5, 7]] = -1.0
    heard: list[dict[str, Any]] = []
    with pytest.raises(TrainingError, match=rf"3 of {len(values)} pairs have a negative weight.*form=ials"):
        fit_arrays(users, items, values, 12, 9, problem.config, 1, on_progress=heard.append)
    assert not heard
    classic = random_problem("hu_koren", n=12, m=9)  # a value below 0 is a confident no there
    fit_arrays(users, items, values, 12, 9, classic.config, 1)


@pytest.mark.parametrize("biases", [False, True])
def test_a_pair_of_an_unknown_user_or_item_is_predicted_as_the_average(biases: bool) -> None:
    """Without biases its product is 0, which is no rating; with them what is known of the other one stays."""
    items = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], np.float32)
    item_bias = np.array([0.5, -0.5, 0.0], np.float32) * biases
    saved = Saved(items, item_bias, np.array([True, True, False]), mean=3.0 * biases, average=3.25)
    scorer = FactorScorer(saved, ALSConfig(mode="explicit", biases=biases, rank=2))
    vectors = np.array([[2.0, 1.0], [2.0, 1.0], [0.0, 0.0], [2.0, 1.0]], np.float32)
    users = UserBlock(vectors, np.zeros(4, np.float32), np.array([True, True, False, True]))
    value, sd = scorer.predict(users, np.array([1, 2, 1, -1], np.int32))
    assert sd is None
    known = 2.0 + 3.0 * biases - 0.5 * biases
    cold = [3.0, 2.5, 3.0] if biases else [3.25, 3.25, 3.25]  # the item, the user, and the item again is unknown
    np.testing.assert_allclose(value, [known, *cold])
