"""Mirrors runs of models to MLflow: parameters, figures, times and counts. The package mlflow is optional."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sparkcf.jobs.observe.report import JobReport

# MLflow itself would wait two minutes and try seven times.
LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
TAG = "sparkcf.run_id"
MOST = {"metrics": 1000, "params": 100}  # in one request


def mirror(report: JobReport) -> None:
    """Log every run of a model that the job wrote, as one run of MLflow; later jobs add to the same run.

    Raises
    ------
    RuntimeError
        The package is not installed.
    Exception
        Whatever MLflow raises.
    """
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)
    try:
        tracking, entities = importlib.import_module("mlflow.tracking"), importlib.import_module("mlflow.entities")
    except ImportError:
        raise RuntimeError("the package mlflow is not installed: pip install 'sparkcf[mlflow]'") from None
    observe = report.config.observe
    assert observe.mlflow is not None
    client = tracking.MlflowClient(tracking_uri=observe.mlflow.get_secret_value())
    experiment = client.get_experiment_by_name(observe.mlflow_experiment)
    place = experiment.experiment_id if experiment else client.create_experiment(observe.mlflow_experiment)
    for run_id, row in report.runs.items():
        if not row["model"]:
            continue
        mlflow_id, new = _run_of(client, place, run_id, row)
        now = int(time.time() * 1000)
        metrics = [entities.Metric(name, value, now, 0) for name, value in _metrics(run_id, row, report)]
        params = [entities.Param(name, value) for name, value in _params(row)] if new else []
        client.log_batch(mlflow_id, metrics=metrics[: MOST["metrics"]], params=params[: MOST["params"]])
        client.set_tag(mlflow_id, "sparkcf.state", row["state"])
        status = "FAILED" if row["state"] in ("failed", "refused") else "FINISHED"
        client.set_terminated(mlflow_id, status=status, end_time=now)


def _run_of(client: Any, place: str, run_id: str, row: Mapping[str, Any]) -> tuple[str, bool]:
    """MLflow's run for a run of ours, and whether it is new."""
    found = client.search_runs([place], filter_string=f"tags.`{TAG}` = '{run_id}'", max_results=1)
    if found:
        return found[0].info.run_id, False
    tags = {TAG: run_id, "sparkcf.ds": str(row["ds"]), "sparkcf.job": row["job"], "sparkcf.model": row["model"]}
    tags |= {f"sparkcf.version.{table}": str(version) for table, version in row["inputs"].items()}
    return client.create_run(place, tags=tags, run_name=run_id).info.run_id, True


def _params(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings that shape the fit, from the run's own configuration."""
    stored = json.loads(row["config"])
    for key in ("seed", "preference", row["model"]):
        value = stored.get(key)
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", str(entry)[:500]) for name, entry in value.items())
        else:
            yield key, str(value)[:500]


def _metrics(run_id: str, row: Mapping[str, Any], report: JobReport) -> Iterator[tuple[str, float]]:
    """Names of MLflow have letters, digits, `_`, `-`, `.`, space and `/` only."""
    yield from ((_name(f"seconds.{step}"), float(spent)) for step, spent in (row.get("seconds") or {}).items())
    yield from ((_name(f"rows.{kind}"), float(count)) for kind, count in row["counts"].items())
    protocol, figures = report.figures.get(run_id, ("", []))
    for figure in figures:
        if figure.segment is None and math.isfinite(figure.value):
            metric = figure.metric.replace("_at_k", f"_at_{figure.k}") if figure.k else figure.metric
            yield _name(f"{protocol}.{figure.system}.{metric}"), float(figure.value)


def _name(text: str) -> str:
    return re.sub(r"[^\w./ -]", "_", text)
