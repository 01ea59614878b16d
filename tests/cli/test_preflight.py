"""What a night with a configuration would miss is found by doctor before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparkcf.cli.preflight import check_night


def found(*overrides: str) -> dict[str, str]:
    """Status by check."""
    return {check.check: check.status for check in check_night((), ["ds=2024-05-31", *overrides])[0]}


def test_a_configuration_that_is_not_valid_is_the_only_finding() -> None:
    (check,), root = check_night((), ["ds=2024-05-31", "input.path=x", "als.rnak=3"])
    assert (check.status, root) == ("fail", None) and "did you mean als.rank" in check.found


def test_inputs_are_looked_for_where_they_can_be(tmp_path: Path) -> None:
    (tmp_path / "2024-05-31").mkdir()
    (tmp_path / "2024-05-31" / "a.csv").touch()
    day = f"input.path={tmp_path}/{{ds}}/*.csv"
    assert found(day)["input.path"] == "ok"
    assert found(day, "ds=2024-06-01")["input.path"] == "fail"
    assert found("input.path=s3a://bucket/none.csv")["input.path"] == "ok"
    assert found("input.path=sample:ratings.csv.gz")["input.path"] == "ok"
    assert found(day, f"input.items.path={tmp_path}/none", f"topk.ineligible={tmp_path}/none.csv") == {
        "configuration": "ok",
        "input.path": "ok",
        "input.items.path": "fail",
        "topk.ineligible": "fail",
    }


def test_observers_and_saved_progress_are_checked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checks = found(
        "input.path=x",
        f"observe.prometheus={tmp_path}/a.prom",
        f"observe.openlineage={tmp_path}/none/events.jsonl",
        "observe.mlflow=http://x",
        "observe.on_failure.command=[/no/such/program]",
        f"train.progress={tmp_path}/new/folder",
    )
    assert checks["observe.prometheus"] == checks["train.progress"] == "ok"
    assert checks["observe.openlineage"] == checks["observe.on_failure.command"] == "fail"
    assert found("input.path=x", f"train.progress={tmp_path}/file/folder")["train.progress"] == "fail"
    assert found("input.path=x", "train.progress=ftp://x/y")["train.progress"] == "fail"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_an_optional_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, status in ((None, "fail"), (object(), None)):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=spec: spec if name == "mlflow" else None)
        assert found("input.path=x", "observe.mlflow=http://x").get("observe.mlflow") == status


def test_the_jars_of_the_lakes_store_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "jars").mkdir()
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    asked = ("input.path=x", "lake.root=s3a://bucket/lake")
    assert found(*asked)["object store jars"] == "warn"
    (tmp_path / "jars" / "hadoop-aws-3.3.4.jar").touch()
    assert "object store jars" not in found(*asked) and "object store jars" not in found("input.path=x")


def test_doctor_checks_the_lake_of_the_configuration(run, tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text(f"input: {{path: {tmp_path}/none.csv}}\nlake: {{root: {tmp_path}/mine}}\n")
    night = ("doctor", "--config", str(tmp_path / "night.yaml"), "ds=2024-05-31", "--format", "json")
    code, out, _ = run(*night)
    checks = {check["check"]: check for check in json.loads(out)}
    assert code == 1 and checks["input.path"]["status"] == "fail" and f"{tmp_path}/mine" in checks["lake"]["found"]
    _, out, _ = run(*night, "--lake", f"{tmp_path}/other")
    assert f"{tmp_path}/other" in out
    _, out, _ = run("--lake", f"{tmp_path}/other", *night)
    assert f"{tmp_path}/other" in out
    _, out, _ = run(*night, "input.path=s3a://KEY:SECRET@bucket/log.csv")
    assert "bucket/log.csv" in out and "SECRET" not in out
