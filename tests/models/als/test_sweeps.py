"""Gangs of several workers in threads: equal results, hot rows, saved sweeps; non-negative factors. No Spark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparkcf.errors import ConfigError, TrainingError
from sparkcf.models.als.fit import fit_arrays, fold_in
from sparkcf.models.als.sweeps import ALSPlan, train
from sparkcf.training import blocks, saved_sweeps
from sparkcf.training.blocks import ITEM, USER, build_blocks
from sparkcf.training.gang import Alone
from sparkcf.training.saved_sweeps import SavedSweeps
from tests.models.als.dense_als import FORMS, Problem, by_solver, objective, random_problem, with_defaults
from tests.training.gangs import in_gang, parts_of

SOLVERS = ("cholesky", "cg", "subspace", "hals")


def fit_by(problem: Problem, config: Any, workers: int, seed: int = 1, saved: str | None = None) -> tuple[Any, ...]:
    """(users, items, log) of a gang, the rows of all workers put together."""
    users, items, values = problem.triples()
    n_users, n_items = problem.seen.shape
    plan = ALSPlan(config, n_users, n_items, seed, 2)

    def work(gang: Any) -> Any:
        keep = SavedSweeps(saved) if saved else None
        return train(parts_of(users, items, gang, values), plan, gang, keep)

    results = in_gang(workers, work)
    factors = [np.empty((n, config.width), np.float32) for n in plan.sizes]
    for rank, (sides, _) in enumerate(results):
        for side in (USER, ITEM):
            factors[side][rank::workers] = sides[side].factors
    return *factors, results[0][1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_any_number_of_workers_fits_the_same(solver: str, form: str) -> None:
    problem = random_problem(form, n=40, m=25, rank=4)
    config = by_solver(problem.config, solver, iterations=4)
    alone = fit_by(problem, config, 1)
    for workers in (3, 8):
        users, items, log = fit_by(problem, config, workers)
        np.testing.assert_allclose(users, alone[0], rtol=1e-5, atol=5e-5)
        np.testing.assert_allclose(items, alone[1], rtol=1e-5, atol=5e-5)
        # The factors agree to some 1e-5, as float32 allows by the CPU's order of sums; the objective no better.
        assert log[-1]["objective"] == pytest.approx(alone[2][-1]["objective"], rel=1e-5)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_summed_over_the_gang_are_fitted_as_any_other(
    solver: str, form: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(form, n=40, m=25, rank=4)
    problem.seen[3, np.arange(25) != 2] = problem.seen[:-1, 5] = True  # almost all of a row, of a column
    problem.values = np.where(problem.seen & (problem.values == 0), 2.0, problem.values)
    config = by_solver(problem.config, solver, iterations=4)
    expected = fit_by(problem, config, workers)
    monkeypatch.setattr(blocks, "HOT_BYTES", 20 * 4 * config.width)
    users, items = problem.triples()[:2]
    found = build_blocks(parts_of(users, items, Alone()), (40, 25), config.width, Alone())
    assert 3 in found[USER].hot.rows and 5 in found[ITEM].hot.rows
    assert len(found[USER].hot.values) == sum(problem.seen[u].sum() for u in found[USER].hot.rows)
    shared = fit_by(problem, config, workers)
    np.testing.assert_allclose(shared[0], expected[0], atol=2e-4)
    np.testing.assert_allclose(shared[1], expected[1], atol=2e-4)
    k = problem.config.rank
    biases = (shared[0][:, k:].sum(axis=1), shared[1][:, k:].sum(axis=1))
    for part, value in objective(problem, shared[0][:, :k], shared[1][:, :k], *biases).items():
        assert shared[2][-1][part] == pytest.approx(value, rel=1e-4, abs=1e-4), part


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("form", ["explicit", "biases"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_weight_counts_like_so_many_equal_rows(
    solver: str, form: str, hot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(form, n=30, m=20, rank=3, regularization_exponent=0.0)
    users, items, values = problem.triples()
    times = np.random.default_rng(5).integers(1, 4, len(users))
    config = by_solver(problem.config, solver, iterations=5)
    if hot:
        monkeypatch.setattr(blocks, "HOT_BYTES", 12 * 4 * config.width)
    weighted = fit_arrays(users, items, values, 30, 20, config, 1, weights=times.astype(np.float32))
    repeated = (np.repeat(part, times) for part in (users, items, values))
    ones = np.ones(times.sum(), np.float32)
    same = fit_arrays(*repeated, 30, 20, config, 1, weights=ones)
    for name in ("user", "item", "user_bias", "item_bias"):
        np.testing.assert_allclose(getattr(same, name), getattr(weighted, name), atol=1e-5)
    scores = weighted.user @ weighted.item.T + weighted.user_bias[:, None] + weighted.item_bias + weighted.mean
    expected = np.sum(times * (values - scores[users, items]) ** 2)
    assert weighted.log[-1]["observed"] == pytest.approx(expected, rel=1e-4)
    assert weighted.mean == pytest.approx(np.average(values, weights=times) if form == "biases" else 0.0)
    plain = fit_arrays(users, items, values, 30, 20, config, 1)
    assert np.abs(plain.user - weighted.user).max() > 1e-2


@pytest.mark.parametrize("form", ["explicit", "biases"])
def test_a_weight_counts_like_so_many_equal_rows_when_folding_in(form: str) -> None:
    config = random_problem(form, rank=3, regularization_exponent=0.0).config
    rng = np.random.default_rng(0)
    items, bias = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    indptr, indices = np.array([0, 2, 5]), np.array([0, 3, 1, 2, 5], np.int32)
    values, times = np.array([5, 1, 3, 2, 4], np.float32), np.array([2, 1, 3, 1, 2])
    weighted = fold_in(indptr, indices, values, items, bias, config, 6, 3.0, weights=times.astype(np.float32))
    ends = np.concatenate([[0], np.cumsum(times)])[indptr]
    same = fold_in(ends, np.repeat(indices, times), np.repeat(values, times), items, bias, config, 6, 3.0)
    plain = fold_in(indptr, indices, values, items, bias, config, 6, 3.0)
    np.testing.assert_allclose(weighted[0], same[0], atol=1e-5)
    np.testing.assert_allclose(weighted[1], same[1], atol=1e-5)
    assert np.abs(weighted[0] - plain[0]).max() > 1e-2


def test_weights_of_implicit_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights need als\.mode=explicit"):
        problem = random_problem("ials")
        fit_arrays(*problem.triples(), 12, 9, problem.config, 1, weights=np.ones(1, np.float32))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "biases"])
@pytest.mark.parametrize("solver", ["cholesky", "hals"])
def test_non_negative_factors_stay_so_and_their_objective_never_rises(solver: str, form: str) -> None:
    problem = random_problem(form, n=40, m=25, rank=4)
    users, items, log = fit_by(problem, by_solver(problem.config, solver, iterations=30, nonnegative=True), 2)
    assert (users >= 0).all() and (items >= 0).all()
    assert (users > 0).any(axis=1)[:-1].mean() > 0.8
    values = np.array([entry["objective"] for entry in log])
    assert (np.diff(values) <= 1e-5 * np.abs(values[:-1])).all()


@pytest.mark.parametrize("solver", ["subspace", "hals"])
@pytest.mark.parametrize("form", FORMS)
def test_objective_of_partial_solvers_never_rises(solver: str, form: str) -> None:
    problem = random_problem(form, n=40, m=30, rank=8, regularization=0.02)
    changes = {"subspace_size": 3} if solver == "subspace" else {}
    log = fit_by(problem, by_solver(problem.config, solver, iterations=25, **changes), 1)[2]
    values = np.array([entry["objective"] for entry in log])
    assert (np.diff(values) <= 1e-5 * np.abs(values[:-1])).all()
    assert values[-1] < 0.95 * values[0]


def test_non_negative_least_squares_finds_the_parts_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    parts = rng.random((40, 3)) * (rng.random((40, 3)) < 0.5), rng.random((30, 3)) * (rng.random((30, 3)) < 0.5)
    whole = (parts[0] + 1e-3) @ (parts[1] + 1e-3).T
    problem = random_problem("frobenius", rank=3, regularization=0.0, init_sd=1.0)
    problem = Problem(whole, np.ones_like(whole, bool), problem.config)
    users, items, _ = fit_by(problem, by_solver(problem.config, "hals", iterations=500, nonnegative=True), 1)
    assert np.abs(users @ items.T - whole).max() < 0.05 * whole.max()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", ["ials", "biases"])
def test_a_fit_taken_up_again_is_the_uninterrupted_fit(solver: str, form: str, tmp_path: Path) -> None:
    problem = random_problem(form, n=30, m=20, rank=4)
    config = by_solver(problem.config, solver, iterations=10, save_every=2)
    whole = fit_by(problem, config, 2)
    folder = str(tmp_path / "progress")
    fit_by(problem, with_defaults(config, iterations=7), 2, saved=folder)  # ends after saving sweep 6
    assert sorted(p.name for p in (tmp_path / "progress").glob("*.json")) == ["sweep-000004.json", "sweep-000006.json"]
    for workers in (2, 3, 1):  # other workers take it up as well
        users, items, log = fit_by(problem, with_defaults(config, save_every=0), workers, saved=folder)
        assert [entry["sweep"] for entry in log] == list(range(1, 11))
        np.testing.assert_allclose(users, whole[0], atol=1e-5)
        np.testing.assert_allclose(items, whole[1], atol=1e-5)
        if workers == 2:
            np.testing.assert_array_equal(users, whole[0])


def test_a_damaged_sweep_gives_way_to_the_one_before_and_strangers_are_not_taken_up(tmp_path: Path) -> None:
    problem = random_problem("ials", n=30, m=20, rank=4)
    config = with_defaults(problem.config, iterations=7, save_every=2)
    folder = str(tmp_path / "progress")
    whole = fit_by(problem, config, 2)
    fit_by(problem, config, 2, saved=folder)
    damaged = next((tmp_path / "progress" / "sweep-000006").glob("worker-00001-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    saved = SavedSweeps(folder).load(Alone(), (30, 20), 4)
    assert saved is not None and len(saved.log) == 4
    again = fit_by(problem, config, 2, saved=folder)
    np.testing.assert_array_equal(again[0], whole[0])
    for size, width in (((31, 20), 4), ((30, 20), 5), ((30, 26), 4)):
        found = SavedSweeps(folder).load(Alone(), size, width)
        assert found is None or size[0] == 31  # a row more within the last worker's file is told by the caller's folder
    for broken in ("{", "[]", json.dumps({"workers": 2, "log": []}), json.dumps({"workers": "x"})):
        for manifest in (tmp_path / "progress").glob("*.json"):
            manifest.write_text(broken)
        assert SavedSweeps(folder).load(Alone(), (30, 20), 4) is None
    SavedSweeps(folder).clear()
    assert not (tmp_path / "progress").exists()
    SavedSweeps(folder).clear()  # nothing there: nothing to do
    assert SavedSweeps(folder).load(Alone(), (30, 20), 4) is None


def test_only_the_newest_sweeps_are_kept(tmp_path: Path) -> None:
    problem = random_problem("ials")
    config = with_defaults(problem.config, iterations=12, save_every=1)
    fit_arrays(*problem.triples(), 12, 9, config, 1, checkpoint_dir=str(tmp_path / "p"))
    names = sorted(p.name for p in (tmp_path / "p").iterdir())
    assert names == ["sweep-000010", "sweep-000010.json", "sweep-000011", "sweep-000011.json"]
    assert len(names) == 2 * saved_sweeps.KEPT


def test_an_address_that_cannot_be_written_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"progress cannot be saved in abfss://x/y: .*train\.progress") as told:
        SavedSweeps("abfss://x/y")
    assert "\n" not in str(told.value)


def test_a_folder_that_cannot_be_written_costs_a_note_and_not_the_fit(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    problem, heard = random_problem("ials"), []
    config = with_defaults(problem.config, save_every=1)
    folder = str(tmp_path / "file" / "progress")
    fitted = fit_arrays(*problem.triples(), 12, 9, config, 1, on_progress=heard.append, checkpoint_dir=folder)
    assert [entry["sweep"] for entry in fitted.log] == [1, 2, 3, 4, 5]
    notes = [entry["note"] for entry in heard if "note" in entry]
    assert len(notes) == 1 and notes[0].startswith(f"sweeps cannot be saved in {folder}: ")


def test_all_workers_hear_of_a_row_that_is_not_finite() -> None:
    problem = random_problem("explicit", n=30, m=20)
    user, item = np.argwhere(problem.seen)[10]
    problem.values[user, item] = np.nan
    with pytest.raises(TrainingError, match=r"row \d+ is not finite: raise hals\.regularization"):
        fit_by(problem, by_solver(problem.config, "hals"), 3)


def test_sweeps_say_how_long_they_took_and_how_long_they_waited() -> None:
    log = fit_by(random_problem("ials"), random_problem("ials").config, 2)[2]
    assert all(0 < entry["exchange"] < entry["seconds"] for entry in log)
