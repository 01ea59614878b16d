"""The gate before publishing, and the configuration's bounds: both say no before anything is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sparkcf.config.root import GateConfig
from sparkcf.errors import GateRefused
from sparkcf.jobs.frame import run_job
from sparkcf.jobs.publish import check_gate

GATE = GateConfig(metric="ndcg_at_k", at=100, max_fall=0.1, min_user_coverage=0.5, max_fallback_share=0.3)
COUNTS = {"users": 200, "users_model": 150, "users_fallback": 50, "nan_scores": 0}
NDCG = ("ndcg_at_k", 100)


def refusal(**changes: Any) -> str:
    """What the gate says to a good run that differs in this; empty: it may be published."""
    given = {"counts": COUNTS, "figures": {NDCG: 0.30}, "before": {NDCG: 0.32}, "gate": GATE} | changes
    try:
        check_gate(given["counts"], given["figures"], given["before"], given["gate"])
    except GateRefused as refused:
        assert refused.exit_code == 3
        return str(refused)
    return ""


def test_a_good_run_passes() -> None:
    assert refusal() == ""


def test_the_first_run_has_nothing_to_be_compared_with() -> None:
    assert refusal(before=None) == refusal(before={}) == refusal(before={("ndcg_at_k", 10): 0.9}) == ""


def test_one_score_that_is_no_number_refuses() -> None:
    assert refusal(counts=COUNTS | {"nan_scores": 1}) == "1 scores are NaN"


@pytest.mark.parametrize(("by_model", "passes"), [(100, True), (99, False), (0, False)])
def test_coverage_counts_users_with_a_list_of_the_model(by_model: int, passes: bool) -> None:
    said = refusal(counts=COUNTS | {"users_model": by_model})
    assert said == "" if passes else f"{by_model / 200:.1%} of 200 users, gate.min_user_coverage is 50.0%" in said


def test_no_user_at_all_is_no_coverage() -> None:
    assert "0.0% of 0 users" in refusal(counts={"users": 0, "users_model": 0, "users_fallback": 0})
    assert "0.0% of 0 users" in refusal(counts={})


@pytest.mark.parametrize(("by_fallback", "passes"), [(60, True), (61, False)])
def test_the_fallback_has_a_largest_share(by_fallback: int, passes: bool) -> None:
    said = refusal(counts=COUNTS | {"users_fallback": by_fallback})
    assert said == ("" if passes else "30.5% of users have the fallback, gate.max_fallback_share is 30.0%")


def test_a_missing_figure_refuses_and_names_the_cure() -> None:
    said = refusal(figures={("ndcg_at_k", 10): 0.9, ("ndcg_at_k", None): 0.9})
    assert said == "the run has no figure ndcg_at_k, k=100: run jobs/evaluate.py first"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_refuses(value: float) -> None:
    assert refusal(figures={NDCG: value}) == f"ndcg_at_k, k=100 is {value}"


@pytest.mark.parametrize(("value", "passes"), [(0.2881, True), (0.2879, False), (0.0, False), (0.9, True)])
def test_a_figure_may_fall_by_a_share_of_the_published_one(value: float, passes: bool) -> None:
    said = refusal(figures={NDCG: value})
    assert said == "" if passes else f"ndcg_at_k, k=100 is {value:.4f}, " in said and "published 0.3200" in said


@pytest.mark.parametrize(("value", "passes"), [(0.98, True), (1.01, False), (0.4, True)])
def test_an_error_may_rise_by_a_share_of_the_published_one(value: float, passes: bool) -> None:
    gate = GateConfig(metric="rmse", at=None, max_fall=0.1)
    assert (refusal(figures={("rmse", None): value}, before={("rmse", None): 0.9}, gate=gate) == "") is passes


def test_a_published_figure_of_zero_lets_the_same_again_pass() -> None:
    assert refusal(figures={NDCG: 0.0}, before={NDCG: 0.0}) == ""


def test_a_published_figure_that_is_no_number_does_not_lock_the_gate() -> None:
    assert refusal(before={NDCG: math.nan}) == ""


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ("topk.k=0", "topk.k=0"),
        ("als.rank=-4", "als.rank=-4"),
        ("als.regularization=-1", "als.regularization=-1"),
        ("model=alz", "model='alz'"),
        ("gate.max_fall=1.5", "gate.max_fall=1.5"),
        ("gate.at=7", "gate.at=7"),
        ("gate.fall=0.1", "gate.fall"),
        ("ds=yesterday", "ds='yesterday'"),
    ],
)
def test_a_job_refuses_values_out_of_range_before_spark_starts(tmp_path: Path, capsys, wrong: str, key: str) -> None:
    def never(spark: Any, config: Any) -> dict[str, Any]:
        raise AssertionError("the job must not begin")

    given = ["ds=2024-01-31", "input.path=none.csv", f"lake.root={tmp_path / 'lake'}", wrong]
    code = run_job("nightly", never, given)
    told = json.loads(capsys.readouterr().out)
    assert (code, told["exit_code"], told["status"]) == (2, 2, "ConfigError")
    assert key in told["error"] and not (tmp_path / "lake").exists()
