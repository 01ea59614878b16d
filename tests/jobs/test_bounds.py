"""The configuration's bounds are said before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparkcf.jobs.frame import run_job


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
        ("gate.metric=rmse", "gate.metric=rmse and evaluation.protocol=auto: q3 alone measures it"),
        ("ds=yesterday", "ds='yesterday'"),
    ],
)
def test_a_job_refuses_values_out_of_range_before_spark_starts(tmp_path: Path, capsys, wrong: str, key: str) -> None:
    def never(spark: Any, config: Any) -> dict[str, Any]:
        raise AssertionError("the job must not begin")

    given = ["ds=2024-01-31", "input.path=none.csv", f"lake.root={tmp_path / 'lake'}", wrong]
    code = run_job("nightly", never, given)
    told = json.loads(capsys.readouterr().out)
    status = "UnknownModelError" if wrong.startswith("model=") else "ConfigError"
    assert (code, told["exit_code"], told["status"]) == (2, 2, status)
    assert key in told["error"] and not (tmp_path / "lake").exists()
