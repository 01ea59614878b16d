"""Runs are mirrored to MLflow where it is installed, without MLflow being installed here."""

from __future__ import annotations

import math
import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sparkcf.jobs.observe.mirror import mirror
from sparkcf.lake.figures import Figure
from tests.jobs.observe.reports import ALS, report

Metric = namedtuple("Metric", "key value timestamp step")
Param = namedtuple("Param", "key value")


class Server:
    """As much of MLflow's client as the mirror calls; all clients share the runs."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def __call__(self, tracking_uri: str) -> Server:
        self.addresses.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        found = self.experiments.get(name)
        return SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def search_runs(self, places: list[str], filter_string: str, max_results: int) -> list[SimpleNamespace]:
        wanted = [(n, r) for n, r in self.runs.items() if f"'{r['tags']['sparkcf.run_id']}'" in filter_string]
        return [SimpleNamespace(info=SimpleNamespace(run_id=n)) for n, r in wanted if r["place"] in places]

    def create_run(self, place: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        name = f"m{len(self.runs)}"
        self.runs[name] = {"place": place, "tags": dict(tags), "name": run_name, "metrics": {}, "params": {}}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def log_batch(self, run: str, metrics: list[Metric], params: list[Param]) -> None:
        self.runs[run]["metrics"].update({m.key: m.value for m in metrics})
        assert not {p.key for p in params} & self.runs[run]["params"].keys()  # they cannot be changed
        self.runs[run]["params"].update(params)

    def set_tag(self, run: str, key: str, value: str) -> None:
        self.runs[run]["tags"][key] = value

    def set_terminated(self, run: str, status: str, end_time: int) -> None:
        self.runs[run]["status"] = status


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.tracking", "mlflow.entities")}
    modules["mlflow.tracking"].MlflowClient = found  # type: ignore[attr-defined]
    modules["mlflow.entities"].Metric, modules["mlflow.entities"].Param = Metric, Param  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "1")
    return found


def figure(metric: str, k: int | None, value: float, **more: Any) -> Figure:
    return Figure("model", metric, k, value, None, None, 3, **more)


def test_a_night_is_a_run_with_parameters_figures_times_and_counts(server: Server) -> None:
    figures = [
        figure("ndcg_at_k", 100, 0.3),
        figure("ndcg_at_k", 100, 0.4, segment="warm"),
        figure("rmse", None, math.nan),
    ]
    address = "observe.mlflow=http://u:p@127.0.0.1:1"
    mirror(report(address, "als.rank=9", figures={ALS: ("q4", figures)}))
    assert server.addresses == ["http://u:p@127.0.0.1:1"] and list(server.experiments) == ["sparkcf"]
    (run,) = server.runs.values()  # the load is not a run of a model
    assert run["name"] == ALS and run["params"]["als.rank"] == "9" and run["params"]["seed"] == "42"
    assert run["metrics"] == {"seconds.train": 5.0, "rows.users": 3.0, "q4.model.ndcg_at_100": 0.3}
    assert run["tags"]["sparkcf.version.interactions"] == "4" and run["tags"]["sparkcf.state"] == "published"
    assert run["status"] == "FINISHED"


def test_a_later_job_adds_to_the_same_run(server: Server) -> None:
    for job in ("train", "evaluate"):
        mirror(report("observe.mlflow=http://x", job=job))
    assert len(server.runs) == 1


def test_a_refused_run_failed(server: Server) -> None:
    refused = report("observe.mlflow=http://x", code=3)
    refused.runs[ALS]["state"] = "refused"  # type: ignore[index]
    mirror(refused)
    assert [run["status"] for run in server.runs.values()] == ["FAILED"]


def test_without_the_package_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RuntimeError, match=r"pip install 'sparkcf\[mlflow\]'"):
        mirror(report("observe.mlflow=http://x"))
