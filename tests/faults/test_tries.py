"""`python -m tests.faults` counts a try only if something was broken in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import __main__ as faults
from tests.faults.__main__ import Missed, Setting, Tally, Wrong, tried


class Job:
    """A night that has ended by itself with `code`; signals do not change it."""

    def __init__(self, code: int, last: dict[str, Any] | None = None) -> None:
        self.code, self.told = code, last or {}
        self.process = SimpleNamespace(returncode=code, poll=lambda: None, send_signal=lambda _: None)

    def kill(self) -> None:
        """It has ended."""

    def wait(self, _seconds: float = 0) -> int:
        return self.code

    def alive(self) -> list[int]:
        return []


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], Setting]:
    def build(job: Job) -> Setting:
        (tmp_path / "first").mkdir()
        submits: Any = SimpleNamespace(close=lambda: None)
        made = Setting(tmp_path, submits, random.Random(1), tmp_path / "first", tmp_path)
        monkeypatch.setattr(made, "night", lambda *_: job)
        monkeypatch.setattr(made, "finished", lambda _: None)
        monkeypatch.setattr(faults, "wrong_rows", lambda *_: 0)
        return made

    return build


def test_a_try_that_broke_nothing_is_drawn_again_and_printed(
    setting: Callable, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    draws: list[Path] = []

    def fault(_: Setting, lake: Path) -> None:
        draws.append(lake)
        if len(draws) < 3:
            raise Missed("the night had ended with 0")

    tally = Tally()
    tried(setting(Job(0)), fault, tally)
    assert (tally.tries, tally.survived, tally.problems, len(set(draws))) == (1, 1, [], 3)
    assert capsys.readouterr().out == "drawn again: the night had ended with 0\n" * 2
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_fault_that_never_meets_a_job_is_a_problem(setting: Callable) -> None:
    tally = Tally()
    tried(setting(Job(0)), faults.driver_killed, tally)
    assert (tally.tries, tally.survived) == (1, 0) and tally.problems == [f"nothing was broken in {faults.DRAWS} draws"]


def test_faults_without_a_job_at_work_broke_nothing(
    setting: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = setting(Job(0))
    monkeypatch.setattr(faults, "version", lambda *_: 4)  # no run is begun
    for fault in (faults.driver_killed, faults.executor_killed, faults.terminated):
        with pytest.raises(Missed):
            fault(made, tmp_path)


@pytest.mark.parametrize(
    ("code", "told", "raised"),
    [
        (0, {"status": "ok", "exit_code": 0}, Missed),  # the signal came too late
        (1, {"status": "error", "exit_code": 1}, Wrong),
        (143, {"status": "ok", "exit_code": 0, "error": ""}, Wrong),
    ],
)
def test_a_terminated_night_must_say_so(
    setting: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: dict, raised: type
) -> None:
    versions = iter([4, 5])
    monkeypatch.setattr(faults, "version", lambda *_: next(versions))
    with pytest.raises(raised):
        faults.terminated(setting(Job(code, told)), tmp_path)
