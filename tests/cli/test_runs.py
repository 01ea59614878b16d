"""Runs as people see them: tables that fit 80 columns, a table that is drawn again and again, one run in full."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

from sparkcf.cli.runs import listed
from tests.lake.test_query import COUNTS, MAY_1, MAY_2, TIME, UTC, write, write_metrics, write_runs

SECONDS = pa.map_(pa.string(), pa.float64())
LONG = "popularity-20240502-20240502T040000-abcdef"  # as long as a run's id gets with the models of the package
FIRST = "popularity-20240501-20240501T040000-fedcba"
REASON = "GateRefused: ndcg@100 0.1 [0.05, 0.15] over 600 users is worse than popularity's 0.2; \x1b[31mred " * 2


def config(**changes: object) -> str:
    whole = {"als": {"rank": 64, "alpha": 1.0}, "gate": {"at": 10}, "topk": {"users": []}, "ds": "x", "run_id": None}
    return json.dumps(whole | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    begun = [dt.datetime(2024, 5, day, 4, tzinfo=UTC) for day in (1, 2)]
    columns = {
        "run_id": [FIRST, LONG],
        "job": ["train"] * 2,
        "model": ["popularity"] * 2,
        "ds": [MAY_1, MAY_2],
        "state": ["published", "refused"],
        "reason": pa.array([None, REASON], pa.string()),
        "config": [config(), config(als={"rank": 128, "alpha": 1.0}, run_id="other")],
        "code_version": ["0.1.0"] * 2,
        "inputs": pa.array([[("interactions", 3)], [("interactions", 4), ("features", -1)]], COUNTS),
        "seed": [42] * 2,
        "started_at": pa.array(begun, TIME),
        "updated_at": pa.array([at + dt.timedelta(hours=1) for at in begun], TIME),
        "ended_at": pa.array([at + dt.timedelta(hours=1) for at in begun], TIME),
        "counts": pa.array([[("users", 1_234_567)]] * 2, COUNTS),
        "seconds": pa.array(
            [[("train", 60.0)], [("train", 100.5), ("evaluate", 20.0), ("evaluate/pack", 5.0)]], SECONDS
        ),
        "peak_bytes": pa.array([None, 3 * 2**20], pa.int64()),
        "application_id": ["app-1"] * 2,
    }
    write(folder, "runs", columns)
    write_metrics(folder, LONG, {"ndcg_at_k": 0.25})
    return str(folder)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def test_the_list_fits_80_columns_and_tells_why_a_run_was_refused(run, root: str, narrow: None) -> None:
    code, out, err = run("runs", "--lake", root)
    assert (code, err) == (0, "") and "\x1b[31m" not in out
    lines = [line for line in out.splitlines() if "GateRefused" not in line]
    assert max(map(len, lines)) <= 80
    assert [LONG, "train", "refused", "120"] in words(out) and [FIRST, "train", "published", "60"] in words(out)
    (reason,) = [line for line in out.splitlines() if "GateRefused" in line]
    assert reason.startswith(f"{LONG}: GateRefused") and r"\x1b[31mred" in reason


def test_the_list_tells_why_a_run_waits_whose_step_was_stopped() -> None:
    now = dt.datetime(2024, 5, 2, tzinfo=UTC)
    run = {"run_id": "als-1", "job": "train", "seconds": {"train": 2.0}, "reason": "stopped after it was trained: …"}
    assert listed([{**run, "state": "trained"}], now)[1] == [f"als-1: {run['reason']}"]
    assert listed([{**run, "state": "expired", "reason": "maintain removed its rows"}], now)[1] == []


def test_a_running_run_counts_up_to_now(run, tmp_path: Path) -> None:
    write_runs(tmp_path, [("als-1", "als", "running", 2)])  # of 2024, in a table without the columns of steps
    _, out, _ = run("runs", "--lake", str(tmp_path))
    (found,) = [line for line in words(out) if line[0] == "als-1"]
    assert int(found[3].replace(",", "")) > 24 * 3600


def test_the_list_is_drawn_again_until_ctrl_c(run, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    code, out, err = run("runs", "--watch", "--every", "0.5", "--lake", root)
    assert (code, err, waits) == (0, "", [0.5] * 3)
    assert out.count(f"{LONG}:") == 3


def test_only_a_table_can_be_watched(run, root: str) -> None:
    code, out, err = run("runs", "--watch", "--format", "json", "--lake", root)
    assert (code, out) == (2, "") and "--watch shows a table" in err


def test_one_run_in_full_fits_80_columns(run, root: str, narrow: None) -> None:
    code, out, err = run("run", LONG, "--lake", root)
    assert (code, err) == (0, "") and "\x1b[31m" not in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("reason")) <= 80
    found = words(out)
    for line in (
        ["state", "refused"],
        ["ended", "2024-05-02", "05:00:00", "UTC"],
        ["peak", "memory", "3", "MiB"],
        ["application", "app-1"],
        ["train", "100.5"],
        ["evaluate/pack", "5.0"],
        ["users", "1,234,567"],
        ["als.rank", "64", "128"],
        ["interactions", "4"],
    ):
        assert line in found, line
    assert f"settings that differ from run {FIRST}" in out
    assert not any(line[0] in ("als.alpha", "features", "ds", "run_id") for line in found)


def test_one_run_as_json_is_one_object(run, root: str) -> None:
    _, out, _ = run("run", LONG, "--lake", root, "--format", "json")
    found = json.loads(out)
    assert found["seconds"] == {"train": 100.5, "evaluate": 20.0, "evaluate/pack": 5.0}
    assert found["changes"] == [{"key": "als.rank", "before": 64, "now": 128}] and found["compared_with"] == FIRST
    assert (found["reason"], found["ended_at"]) == (REASON, "2024-05-02T05:00:00+00:00")
    assert [(f["metric"], f["k"], f["value"]) for f in found["figures"]] == [("ndcg_at_k", 10, 0.25)]
    _, out, _ = run("run", FIRST, "--lake", root, "--format", "json")
    assert json.loads(out)["compared_with"] is None and json.loads(out)["peak_bytes"] is None


def test_one_run_as_csv_has_a_row_a_value(run, root: str) -> None:
    code, out, _ = run("run", LONG, "--lake", root, "--format", "csv")
    found = {(r["part"], r["name"], r["what"]): r["value"] for r in csv.DictReader(io.StringIO(out, newline=""))}
    assert code == 0 and found["step", "evaluate/pack", "seconds"] == "5.0"
    assert found["count", "users", "rows"] == "1234567" and found["fact", "state", "value"] == "refused"
    assert (found["setting", "als.rank", "before"], found["setting", "als.rank", "now"]) == ("64", "128")
    assert found["table", "interactions", "version"] == "4" and ("table", "features", "version") not in found
    assert found["measure", "q1 als ndcg_at_k@10", "value"] == "0.25"


def test_a_run_of_an_older_lake_is_shown_without_what_it_lacks(run, tmp_path: Path) -> None:
    write_runs(tmp_path, [("als-1", "als", "published", 1), ("als-2", "als", "published", 2)])
    code, out, _ = run("run", "als-2", "--lake", str(tmp_path))
    assert code == 0 and "settings that differ from run als-1: none" in out and "steps" not in out


def test_an_unknown_run_ends_with_1_and_names_the_newest(run, root: str) -> None:
    code, out, err = run("run", "als-\x1b", "--lake", root)
    assert (code, out) == (1, "") and f"the newest are {LONG}, {FIRST}" in err and "\x1b" not in err
