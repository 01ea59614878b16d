"""The gate: like compared with like, chance told from a fall, and no list served that must not be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparkcf.config.root import GateConfig
from sparkcf.errors import GateRefused
from sparkcf.lake.metrics import Figure
from sparkcf.ranking.gate import Measured, check_lists, check_quality, margin_of

GATE = GateConfig(max_fall=0.1, min_user_coverage=0.5, max_fallback_share=0.3)
COUNTS = {"users": 200, "users_model": 150, "users_fallback": 50, "nan_scores": 0}
SETTINGS = {"holdout_share": 0.1, "positive_from": 4.0, "seed": 1, "bootstrap": 4}


def lists_refusal(**changes: int) -> str:
    """What the gate says to the lists of a good run that differs in these counts; empty: they may be served."""
    return said(lambda: check_lists(COUNTS | changes, GATE))


def said(check: Any) -> str:
    try:
        check()
    except GateRefused as refused:
        assert refused.exit_code == 3
        return str(refused)
    return ""


def figure(value: float, half: float | None = None, drawn: list[float] | None = None, **changes: Any) -> Figure:
    """NDCG@100 over 90 users with the bounds value ± half."""
    bounds = (None, None) if half is None else (value - half, value + half)
    return Figure("model", "ndcg_at_k", 100, value, *bounds, 90, None, drawn)._replace(**changes)


def measured(model: Figure, warm: Figure | None = None, popularity: float = 0.1, **settings: Any) -> Measured:
    """A run `r` with figures of all users, of those with a vector, and of the baseline."""
    figures = {("model", None): model, ("popularity", None): model._replace(system="popularity", value=popularity)}
    if warm:
        figures["model", "warm"] = warm._replace(segment="warm")
    return Measured("r", "q2", SETTINGS | settings, figures)


def refusal(new: Figure, old: Figure | None, gate: GateConfig = GATE) -> str:
    return said(lambda: check_quality(measured(new), old and measured(old), gate))


def test_good_lists_pass() -> None:
    assert lists_refusal() == ""


def test_one_score_that_is_no_number_refuses() -> None:
    assert lists_refusal(nan_scores=1) == "1 scores are NaN"


@pytest.mark.parametrize(("by_model", "passes"), [(100, True), (99, False), (0, False)])
def test_coverage_counts_users_with_a_list_of_the_model(by_model: int, passes: bool) -> None:
    told = lists_refusal(users_model=by_model)
    assert told == "" if passes else f"{by_model / 200:.1%} of 200 users, gate.min_user_coverage is 50.0%" in told


def test_no_user_at_all_is_no_coverage() -> None:
    assert "0.0% of 0 users" in lists_refusal(users=0, users_model=0, users_fallback=0)
    assert "0.0% of 0 users" in said(lambda: check_lists({}, GATE))


@pytest.mark.parametrize(("by_fallback", "passes"), [(60, True), (61, False)])
def test_the_fallback_has_a_largest_share(by_fallback: int, passes: bool) -> None:
    told = lists_refusal(users_fallback=by_fallback)
    assert told == ("" if passes else "30.5% of users have the fallback, gate.max_fallback_share is 30.0%")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_refuses(value: float) -> None:
    assert refusal(figure(value), figure(0.3)) == f"ndcg@100 is {value}"


def test_the_first_run_has_nothing_to_be_compared_with() -> None:
    assert refusal(figure(0.2), None) == ""


def test_a_model_below_popularity_is_published_only_where_that_is_asked_for() -> None:
    below = measured(figure(0.2399, 0.02), popularity=0.24)
    told = said(lambda: check_quality(below, None, GATE))
    assert told.startswith("ndcg@100 0.2399 [0.2199, 0.2599] over 90 users is worse than popularity's 0.2400 [")
    assert "gate.allow_below_popularity=true" in told
    asked = GATE.model_copy(update={"allow_below_popularity": True})
    assert said(lambda: check_quality(below, None, asked)) == ""
    assert said(lambda: check_quality(measured(figure(0.24), popularity=0.24), None, GATE)) == ""
    error = figure(0.9, metric="rmse", k=None)
    assert said(lambda: check_quality(measured(error, popularity=1.0), None, GATE)) == ""
    assert "rmse 1.1000 over 90 ratings" in said(
        lambda: check_quality(measured(error._replace(value=1.1), popularity=1.0), None, GATE)
    )


@pytest.mark.parametrize(("value", "passes"), [(0.2881, True), (0.2879, False), (0.11, False), (0.9, True)])
def test_without_bounds_a_figure_may_fall_by_a_share_of_the_published_one(value: float, passes: bool) -> None:
    told = refusal(figure(value), figure(0.32))
    assert told == "" if passes else f"ndcg@100 {value:.4f} over 90 users (all tested users) is " in told
    assert passes or "worse than the 0.3200 over 90 users of the published run r" in told


@pytest.mark.parametrize(("value", "passes"), [(0.98, True), (1.0, False), (0.4, True)])
def test_an_error_may_rise_by_a_share_of_the_published_one(value: float, passes: bool) -> None:
    rmse = figure(value, metric="rmse", k=None)
    gate = GATE.model_copy(update={"allow_below_popularity": True})
    assert (refusal(rmse, rmse._replace(value=0.9), gate) == "") is passes


@pytest.mark.parametrize(("value", "half", "passes"), [(0.25, 0.001, False), (0.25, 0.05, True), (0.15, 0.05, False)])
def test_a_fall_that_the_bounds_explain_is_no_refusal(value: float, half: float, passes: bool) -> None:
    assert (refusal(figure(value, half), figure(0.32, half)) == "") is passes


def test_the_bound_of_unlike_draws_is_that_of_a_difference_of_two() -> None:
    margin, upper = margin_of(figure(0.3, 0.03), figure(0.4, 0.04), 0.1, paired=False)
    assert margin == pytest.approx(0.3 - 0.36) and upper - margin == pytest.approx(math.hypot(0.03, 0.9 * 0.04))


def test_users_who_are_in_both_tests_are_compared_with_themselves() -> None:
    """Users differ widely and all fall alike: two independent samples could not tell, pairs can."""
    drawn = np.linspace(0.2, 0.4, 41)
    old, new = figure(0.3, 0.1, drawn.tolist()), figure(0.24, 0.08, (0.8 * drawn).tolist())
    assert refusal(new, old) != ""
    other = said(lambda: check_quality(measured(new, seed=2), measured(old), GATE))
    assert other == ""  # another seed draws others
    assert refusal(new._replace(replicates=None), old) == ""


def test_the_bound_of_pairs_is_over_their_replicates() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 0.02, 500), rng.normal(0.4, 0.02, 500)
    margin, upper = margin_of(figure(0.3, 1, a.tolist()), figure(0.4, 1, b.tolist()), 0.1, paired=True)
    assert margin == pytest.approx(-0.06) and upper == pytest.approx(np.percentile(a - 0.9 * b, 97.5))
    some = [math.nan, *a[1:].tolist()]  # a replicate that drew nobody
    assert margin_of(figure(0.3, 1, some), figure(0.4, 1, b.tolist()), 0.1, paired=True)[1] < 0


def test_a_fall_of_users_with_a_vector_does_not_hide_behind_those_without() -> None:
    old = measured(figure(0.260, 0.001), figure(0.40, 0.01))
    new = measured(figure(0.245, 0.001), figure(0.20, 0.01))
    told = said(lambda: check_quality(new, old, GATE))
    assert "(users with a vector) is 50.0% worse than the 0.4000 [0.3900, 0.4100] over 90 users" in told
    assert said(lambda: check_quality(replace(new, figures=old.figures), old, GATE)) == ""


def test_a_published_figure_of_zero_lets_the_same_again_pass() -> None:
    gate = GATE.model_copy(update={"allow_below_popularity": True})
    assert refusal(figure(0.0), figure(0.0), gate) == ""


def test_only_what_decides_the_test_must_be_alike() -> None:
    one = measured(figure(0.3))
    assert one.tests_like(measured(figure(0.2), seed=5, bootstrap=9)) and not one.draws_like(
        measured(figure(0.2), seed=5)
    )
    assert not one.tests_like(measured(figure(0.3), holdout_share=0.2))
    assert not one.tests_like(replace(one, protocol="q4"))
