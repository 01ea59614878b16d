"""A job tells all observers of its start and end, and none of them can change its result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sparkcf.activity import activity
from sparkcf.errors import GateRefused
from sparkcf.jobs.frame import run_job
from sparkcf.progress import say, step
from tests.jobs.observe.test_prometheus import strict
from tests.jobs.test_frame import NoSpark

BASE = ["ds=2024-01-31", "input.path=in.csv"]


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkcf.jobs.frame.open_session", lambda *_: (NoSpark(), False))
    monkeypatch.setattr("sparkcf.jobs.frame._check_format", lambda _: None)  # it reads the lake


def job(spark: object, config: object) -> dict:
    activity.begin_run("als-1")
    with step("train"):
        say("  a message")
    return {"run_id": "als-1"}


def refused(spark: object, config: object) -> dict:
    raise GateRefused("worse than popularity")


def observers(folder: Path) -> list[str]:
    command = json.dumps([sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"])
    return [
        f"observe.prometheus={folder}/sparkcf.prom",
        f"observe.openlineage={folder}/events.jsonl",
        f"observe.on_failure.command={command[:-1]}, {folder}/failed.json]",
    ]


def test_all_observers_learn_of_a_job_that_is_done_and_of_one_that_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*BASE, f"lake.root={tmp_path}/lake", *observers(tmp_path)]
    assert run_job("train", job, arguments) == 0
    assert not (tmp_path / "failed.json").exists()
    assert run_job("train", refused, arguments) == 3
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads((tmp_path / "failed.json").read_text()) == json.loads(line)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["eventType"] for e in events] == ["START", "COMPLETE", "START", "FAIL"]
    assert len({e["run"]["runId"] for e in events}) == 2
    gauges = strict((tmp_path / "sparkcf.prom").read_text())
    assert set(gauges["sparkcf_last_run_exit_code"].values()) == {3}
    assert gauges["sparkcf_last_success_timestamp_seconds"].keys() == gauges["sparkcf_last_run_exit_code"].keys()
    assert activity.job == ""


def test_a_dry_run_is_observed_by_nobody(tmp_path: Path) -> None:
    assert run_job("train", job, ["--dry-run", *BASE, f"lake.root={tmp_path}/lake", *observers(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("function", "code"), [(job, 0), (refused, 3)])
def test_observers_that_fail_are_told_in_a_line_each_and_change_nothing(
    function, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising = ModuleType("mlflow.tracking")
    raising.MlflowClient = lambda tracking_uri: 1 / 0  # type: ignore[attr-defined]
    for name, module in {"mlflow": ModuleType("mlflow"), "mlflow.tracking": raising}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", ModuleType("mlflow.entities"))
    without = [*BASE, f"lake.root={tmp_path}/lake"]
    assert run_job("train", function, without) == code
    expected = json.loads(capsys.readouterr().out)
    broken = [
        "observe.prometheus=/no/such/folder/a.prom",
        "observe.openlineage=/no/such/folder/events.jsonl",
        "observe.mlflow=http://user:SECRET@127.0.0.1:9",
        "observe.on_failure.command=[/no/such/program]",
        "observe.on_failure.webhook=http://127.0.0.1:9/SECRET",
    ]
    assert run_job("train", function, [*without, *broken]) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == expected and len(out.splitlines()) == 1
    notes = [line for line in err.splitlines() if "note: observe." in line]
    names = [line.split("observe.")[1].split(" ")[0] for line in notes]
    hooks = ["on_failure.command", "on_failure.webhook"] if code else []
    assert names == ["openlineage", "prometheus", "openlineage", "mlflow", *hooks]
    assert "Traceback" not in err and "SECRET" not in out + err


def test_all_messages_of_a_job_are_json_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job("train", job, [*BASE, f"lake.root={tmp_path}/lake", "log.format=json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {entry["job"] for entry in entries} == {"train"} and len(entries) == 3
    inner = entries[1]
    assert (inner["message"], inner["run_id"], inner["step"]) == ("a message", "als-1", "train")
    assert run_job("train", refused, [*BASE, f"lake.root={tmp_path}/lake", "log.format=json"]) == 3
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["level"], last["message"]) == ("error", "sparkcf train: worse than popularity")
    assert run_job("train", job, ["log.format=json", "als.rank=0"]) == 2
    assert capsys.readouterr().err.startswith("sparkcf train: configuration key")  # the format is not known yet
