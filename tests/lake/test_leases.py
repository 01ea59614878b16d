"""Runs whose job has died get the reason by the next job, those of living jobs never."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparkcf.lake import leases
from sparkcf.lake.leases import Lease, Watch, machine, process_start
from sparkcf.lake.runs import Run, close_dead_runs, failures_recorded, find_run, reason_recorded, start_run
from sparkcf.lake.tables import LakeTables


@pytest.fixture
def tables(spark, tmp_path: Path) -> LakeTables:
    return LakeTables(spark, str(tmp_path / "lake"))


@pytest.fixture
def started(tables: LakeTables, config: Callable) -> Run:
    return start_run(tables, "train", config(), {})


def lease_of(run: Run) -> Path:
    return Path(run.tables.root.removeprefix("file:"), leases.FOLDER, f"{run.run_id}.json")


def of_another_job(run: Run, **changes: Any) -> None:
    """The lease as the job of another process would have left it."""
    run.lease._over.set()  # type: ignore[union-attr]  # its own thread writes no more
    lease_of(run).write_text(json.dumps(json.loads(lease_of(run).read_text()) | changes))


def row(tables: LakeTables, run: Run) -> Any:
    (found,) = tables.read("runs").where(f"run_id = '{run.run_id}'").collect()
    return found


def test_a_lease_lasts_as_long_as_the_run_is_running(tables: LakeTables, started: Run) -> None:
    written = json.loads(lease_of(started).read_text())
    assert (written["machine"], written["pid"]) == (machine(), os.getpid())
    assert written["started"] == process_start(os.getpid()) != ""
    close_dead_runs(tables)
    assert row(tables, started)["state"] == "running"
    started.update("trained")
    assert not lease_of(started).exists() and started.lease is None


def test_a_job_changes_its_lease_while_it_works(
    tables: LakeTables, config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    run = start_run(tables, "train", config(), {})
    deadline = time.monotonic() + 60
    while json.loads(lease_of(run).read_text() or '{"beat": 0}')["beat"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.update("failed", reason="enough")


def test_a_run_whose_process_on_this_machine_has_ended_is_closed_at_once(
    tables: LakeTables, started: Run, config: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    born = process_start(ended.pid)
    ended.wait()
    of_another_job(started, pid=ended.pid, started=born)
    other = start_run(tables, "clean", config(), {})
    closed = row(tables, started)
    assert closed["state"] == "failed"
    assert closed["reason"].startswith(f"stopped: its process {ended.pid} on ")
    assert closed["updated_at"] > closed["started_at"] and not lease_of(started).exists()
    assert started.run_id in capsys.readouterr().err
    assert row(tables, other)["state"] == "running"
    other.update("failed", reason="enough")


def test_a_process_id_that_was_given_anew_is_another_process(tables: LakeTables, started: Run) -> None:
    of_another_job(started, pid=os.getpid(), started="1")
    close_dead_runs(tables)
    assert row(tables, started)["state"] == "failed"


def test_a_running_run_without_a_lease_is_dead(tables: LakeTables, started: Run) -> None:
    of_another_job(started)
    lease_of(started).unlink()
    close_dead_runs(tables)
    assert row(tables, started)["reason"] == "stopped: no job works on it"


def test_a_beat_that_is_being_written_when_the_job_ends_leaves_no_lease(
    tables: LakeTables, config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, write = threading.Event(), Lease._write

    def slowly(lease: Lease) -> None:
        if lease._beat:
            begun.set()
            time.sleep(0.3)
        write(lease)

    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    monkeypatch.setattr(Lease, "_write", slowly)
    run = start_run(tables, "train", config(), {})
    assert begun.wait(30)
    run.end_lease()
    time.sleep(0.5)
    assert not lease_of(run).exists()


@pytest.mark.parametrize("state", ["trained", "evaluated", "recommended", "refused", "published"])
def test_a_run_between_two_jobs_stays_as_it_is(tables: LakeTables, started: Run, state: str) -> None:
    started.update(state)
    close_dead_runs(tables)
    assert row(tables, started)["state"] == state


def test_a_step_holds_a_lease_of_its_run_also_within_a_night(
    tables: LakeTables, started: Run, config: Callable
) -> None:
    started.update("trained")
    run = find_run(tables, config(), ("trained",))
    with failures_recorded(run):
        for state in ("evaluated", "recommended"):
            with reason_recorded(run):
                assert lease_of(run).exists()
                run.update(state)
            assert lease_of(run).exists()
    assert not lease_of(run).exists() and run.lease is None


@pytest.mark.parametrize("state", ["trained", "evaluated", "recommended", "refused", "published"])
def test_a_run_whose_step_was_killed_keeps_its_state_and_gets_the_reason(
    tables: LakeTables, started: Run, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    started.update(state, reason="the gate refused" if state == "refused" else None)
    with reason_recorded(started):
        of_another_job(started, started="1")  # a process of this id that has ended
        close_dead_runs(tables)
        assert not lease_of(started).exists()
        found = row(tables, started)
        assert found["state"] == state
        if state in ("refused", "published"):
            assert found["reason"] == ("the gate refused" if state == "refused" else None)
        else:
            assert found["reason"].startswith(f"stopped after it was {state}: its process {os.getpid()} on ")
            assert f"run {started.run_id} was stopped after" in capsys.readouterr().err
            started.update(state)
            assert row(tables, started)["reason"] is None


def test_a_step_that_ends_while_another_job_looks_was_not_stopped(
    tables: LakeTables, started: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.update("trained")
    monkeypatch.setattr("sparkcf.lake.runs.leased_runs", lambda _: [started.run_id])  # listed before its end
    close_dead_runs(tables)
    assert (row(tables, started)["state"], row(tables, started)["reason"]) == ("trained", None)


def test_a_job_that_ends_its_run_while_another_closes_it_is_right(
    tables: LakeTables, started: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def death(*_: object) -> str:
        started.update("trained")
        return "it looked dead"

    monkeypatch.setattr(Watch, "death", death)
    close_dead_runs(tables)
    assert (row(tables, started)["state"], row(tables, started)["reason"]) == ("trained", None)


def test_a_run_of_another_machine_is_watched_by_this_machines_time(
    tables: LakeTables, started: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    of_another_job(started, machine="elsewhere", pid=1)
    watch = Watch()
    assert watch.death(tables, started.run_id) is None
    now[0] += leases.STALE_S - 1
    assert watch.death(tables, started.run_id) is None
    of_another_job(started, beat=1)  # it lives: the time begins anew
    now[0] += 2
    assert watch.death(tables, started.run_id) is None
    now[0] += leases.STALE_S
    assert watch.death(tables, started.run_id) == f"its job gave no sign of life for {leases.STALE_S} s"
    lease_of(started).write_text("")  # killed while it wrote
    assert watch.death(tables, started.run_id) is None
    now[0] += leases.STALE_S
    assert watch.death(tables, started.run_id) is not None
