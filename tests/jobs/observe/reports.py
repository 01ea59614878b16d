"""Reports of jobs as the observers get them, without Spark."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sparkcf.activity import TimedStep
from sparkcf.config.load import load_config
from sparkcf.jobs.observe.report import JobReport

BEGIN = dt.datetime(2024, 6, 1, 2, 0, tzinfo=dt.UTC)
END = dt.datetime(2024, 6, 1, 2, 30, tzinfo=dt.UTC)
CLEAN, ALS = "clean-20240531-a", "als-20240531-b"


def report(*overrides: str, job: str = "nightly", code: int = 0, **changes: Any) -> JobReport:
    """A night of one model that ended; with another exit code than 0 it failed in its step `evaluate`."""
    config = load_config((), ["ds=2024-05-31", "input.path=/data/log.csv", "lake.root=/data/lake", *overrides])
    result = {"status": "ok" if code == 0 else "GateRefused", "exit_code": code, "job": job, "ds": "2024-05-31"}
    row = {"ds": config.ds, "config": config.to_json(), "inputs": {"interactions": 4}, "state": "published"}
    runs = {
        CLEAN: row | {"job": "clean", "model": None, "counts": {"read": 10, "clean": 9}, "seconds": {"clean": 2.0}},
        ALS: row | {"job": "train", "model": "als", "counts": {"users": 3}, "seconds": {"train": 5.0}, "peak_bytes": 7},
    }
    steps = (
        TimedStep(CLEAN, "clean", 0.0, 2.0),
        TimedStep(ALS, "train", 2.0, 5.0),
        TimedStep(ALS, "evaluate", 7.0, 1.0),
        TimedStep(ALS, "evaluate", 8.0, 0.5),
    )
    values: dict[str, Any] = {
        "ended": END,
        "application_id": "app-1",
        "result": result if code == 0 else result | {"error": 'ndcg@100 0.1 is worse than "popularity"'},
        "runs": runs,
        "steps": steps,
        "inputs": {"file:/data/lake/interactions": 4, "file:/data/lake/user_factors": None},
        "outputs": {"file:/data/lake/recommendations": 12},
        "gate": {ALS: ("ndcg@100", {"model": 0.3, "popularity": 0.2, "published": 0.29})},
    }
    return JobReport(job, config, BEGIN, **(values | changes))
