"""What this process does: its job, the current run, the steps with their times, the tables and the memory.

`progress` and the lake note it while a job runs; messages, the table `runs` and what observes a job read it. A process
runs one job at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class TimedStep:
    """A step of a run. `name` : of a step within another one outer/inner. `seconds` : None while the step runs."""

    run_id: str
    name: str
    begun: float
    seconds: float | None = None


class Activity:
    """The job of this process.

    job : the job's name; empty outside of a job.
    run_id : the run that the job works on; empty before its first run.
    runs : rows of `runs` that the job wrote, by run_id.
    steps : steps in the order in which they began.
    tables_read : version of every table read, by address; None: not pinned.
    tables_written : addresses of the tables written.
    figures : measured figures by run_id: protocol and figures.
    gate : figures that the gate compared, by run_id: the measure's name, and values by system.
    peak_bytes : largest resident memory seen since the run began; None: not measured.
    """

    def __init__(self) -> None:
        self.begin_job("")

    def begin_job(self, job: str) -> None:
        """Forget the job before."""
        self.job = job
        self.run_id = ""
        self.runs: dict[str, Mapping[str, Any]] = {}
        self.steps: list[TimedStep] = []
        self.tables_read: dict[str, int | None] = {}
        self.tables_written: set[str] = set()
        self.figures: dict[str, tuple[str, list[Any]]] = {}
        self.gate: dict[str, tuple[str, dict[str, float]]] = {}
        self.peak_bytes: int | None = None
        self._open: list[TimedStep] = []

    def begin_run(self, run_id: str) -> None:
        """Note that the job works on a run from now on."""
        self.run_id = run_id
        self.peak_bytes = None

    @contextmanager
    def timed(self, name: str) -> Iterator[TimedStep]:
        """Time a step."""
        outer = f"{self._open[-1].name}/" if self._open else ""
        one = TimedStep(self.run_id, outer + name, time.monotonic())
        self.steps.append(one)
        self._open.append(one)
        try:
            yield one
        finally:
            one.seconds = time.monotonic() - one.begun
            self._open.remove(one)

    @property
    def step(self) -> str:
        """Name of the innermost running step; empty between steps."""
        return self._open[-1].name if self._open else ""

    def seconds(self, run_id: str) -> dict[str, float]:
        """Seconds by step of a run in this job; a repeated step adds up, a running one counts up to now."""
        found: dict[str, float] = {}
        for one in self.steps:
            if one.run_id == run_id:
                spent = time.monotonic() - one.begun if one.seconds is None else one.seconds
                found[one.name] = found.get(one.name, 0.0) + spent
        return found

    def note_read(self, table: str, version: int | None) -> None:
        """Note that a table was read, by its address. `version` : None: the newest one."""
        if version is not None or table not in self.tables_read:
            self.tables_read[table] = version

    def note_memory(self, size: int) -> None:
        """Note the memory of the largest process, in bytes."""
        self.peak_bytes = max(self.peak_bytes or 0, size)


activity = Activity()
