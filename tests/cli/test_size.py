"""The sizing guide: near what was measured, and the first thing that breaks."""

from __future__ import annotations

import csv
import io
import json

import pytest

from sparkcf.cli.main import main
from sparkcf.cli.size import Cluster, Load, lake_bytes, limits, steps
from sparkcf.training.blocks import worker_bytes

HERE = Cluster(2, 2, 8e9, 4e9)
M = Load(5e6, 5e6, 34_623, 13_372, sweeps=10)
HUGE = Load(100e9, 1e9, 1e9, 100e6)


def test_the_costs_are_near_those_measured_on_two_cores() -> None:
    seconds = {step.step: step.hours * 3600 for step in steps(M, HERE)}
    assert seconds["clean"] == pytest.approx(48.9, rel=0.2)  # the job alone, docs/measured.md
    assert seconds["train"] == pytest.approx(5.5 + 10 * 0.51, rel=0.35)
    twenty_thousand = Load(5e6, 0, 20_000, 13_372)
    lists = next(step for step in steps(twenty_thousand, HERE) if step.step == "recommend")
    assert lists.hours * 3600 == pytest.approx(0.54, rel=0.35)


def test_hours_fall_with_cores_and_rise_with_models() -> None:
    more = Cluster(20, 2, 8e9, 4e9)
    for one, other in zip(steps(M, HERE), steps(M, more), strict=True):
        assert one.core_hours == other.core_hours and one.hours == pytest.approx(10 * other.hours)
    two = Load(5e6, 5e6, 34_623, 13_372, sweeps=10, models=2)
    pairs = {a.step: b.core_hours / a.core_hours for a, b in zip(steps(M, HERE), steps(two, HERE), strict=True)}
    assert pairs.pop("clean") == 1 and set(pairs.values()) == {2.0}
    assert lake_bytes(two) > lake_bytes(M)


def test_nothing_breaks_at_a_size_that_was_run() -> None:
    found = limits(M, HERE, worker_bytes)
    assert all(limit.share < 1 for limit in found)
    assert [limit.share for limit in found] == sorted((limit.share for limit in found), reverse=True)


def test_a_billion_users_break_the_workers_first_whatever_their_number() -> None:
    found = limits(HUGE, Cluster(4000, 4, 16e9, 8e9), worker_bytes)
    assert found[0].what == "memory of a worker" and "no number of workers helps" in found[0].cure
    assert {limit.what for limit in found if limit.share > 1} == {found[0].what, "memory of the driver: item vectors"}
    large = limits(HUGE, Cluster(4000, 4, 1e12, 64e9), worker_bytes)
    assert all(limit.share < 1 for limit in large)


def test_the_command_prints_it_and_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["size", "--interactions", "5e9", "--users", "100e6", "--items", "2e6", "--cores", "256"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "64 workers" in printed and "memory of a worker: no number of workers helps" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if "helps" not in line and "driver-memory" not in line)
    with pytest.raises(SystemExit):
        main(["size", "--interactions", "5e6", "--users", "1e5", "--items", "1e4", "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in found["steps"]] == ["clean", "train", "evaluate", "recommend", "similar items"]
    with pytest.raises(SystemExit):
        main(["size", "--interactions", "5e6", "--users", "1e5", "--items", "1e4", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    hours = [float(row["core_hours"]) for row in rows if row["part"] == "step"]
    assert hours == [step["core_hours"] for step in found["steps"]]
    assert {row["part"] for row in rows} == {"step", "limit", "lake"} and float(rows[-1]["needs"]) == found["lake_gb"]
