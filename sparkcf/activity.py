"""What this process does: its job, the current run, the steps with their times, the tables and the memory.

`progress` and the lake note it while a job runs; messages, the table `runs` and what observes a job read it. A process
runs one job at a time. A night may work on several models at once: then each has a place of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TimedStep:
    """A step of a run. `name` : of a step within another one outer/inner. `seconds` : None while the step runs."""

    run_id: str
    name: str
    begun: float
    seconds: float | None = None


@dataclass
class Place:
    """Where a job is, or one of several models that it works on: the run, and the steps that are open."""

    run_id: str = ""
    open: list[TimedStep] = field(default_factory=list)


class Activity:
    """The job of this process.

    job : the job's name; empty outside of a job.
    runs : rows of `runs` that the job wrote, by run_id.
    steps : steps in the order in which they began.
    tables_read : version of every table read, by address; None: not pinned.
    versions_read : all pinned versions of a table that were read, by address.
    tables_written : addresses of the tables written.
    figures : measured figures by run_id: protocol and figures.
    gate : figures that the gate compared, by run_id: the measure's name, and values by system.
    """

    def __init__(self) -> None:
        self._apart: ContextVar[Place | None] = ContextVar("place", default=None)
        self.begin_job("")

    def begin_job(self, job: str) -> None:
        """Forget the job before."""
        self.job = job
        self._place = Place()
        self.runs: dict[str, Mapping[str, Any]] = {}
        self.steps: list[TimedStep] = []
        self.tables_read: dict[str, int | None] = {}
        self.versions_read: dict[str, set[int]] = {}
        self.tables_written: set[str] = set()
        self.figures: dict[str, tuple[str, list[Any]]] = {}
        self.gate: dict[str, tuple[str, dict[str, float]]] = {}
        self._peaks: dict[str, int | None] = {"": None}

    @property
    def place(self) -> Place:
        """The job's place; within `apart` that of the model."""
        return self._apart.get() or self._place

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within the block, and in threads that get its context, runs and steps are noted in a place of their own."""
        token = self._apart.set(Place())
        try:
            yield
        finally:
            self._apart.reset(token)

    @property
    def run_id(self) -> str:
        """The run that is worked on; empty before the first one."""
        return self.place.run_id

    @property
    def peak_bytes(self) -> int | None:
        """Largest resident memory seen since the run began; None: not measured."""
        return self._peaks[self.run_id]

    def begin_run(self, run_id: str) -> None:
        """Note that a run is worked on from now on."""
        self.place.run_id = run_id
        self._peaks[run_id] = None

    @contextmanager
    def timed(self, name: str) -> Iterator[TimedStep]:
        """Time a step."""
        place = self.place
        outer = f"{place.open[-1].name}/" if place.open else ""
        one = TimedStep(place.run_id, outer + name, time.monotonic())
        self.steps.append(one)
        place.open.append(one)
        try:
            yield one
        finally:
            one.seconds = time.monotonic() - one.begun
            place.open.remove(one)

    @property
    def step(self) -> str:
        """Name of the innermost running step; empty between steps."""
        return self.place.open[-1].name if self.place.open else ""

    def seconds(self, run_id: str) -> dict[str, float]:
        """Seconds by step of a run in this job; a repeated step adds up, a running one counts up to now."""
        found: dict[str, float] = {}
        for one in list(self.steps):
            if one.run_id == run_id:
                spent = time.monotonic() - one.begun if one.seconds is None else one.seconds
                found[one.name] = found.get(one.name, 0.0) + spent
        return found

    def note_read(self, table: str, version: int | None) -> None:
        """Note that a table was read, by its address. `version` : None: the newest one."""
        if version is not None or table not in self.tables_read:
            self.tables_read[table] = version
        if version is not None:
            self.versions_read.setdefault(table, set()).add(version)

    def note_memory(self, size: int) -> None:
        """Note the memory of the largest process, in bytes, for all runs that have begun."""
        for run_id, peak in list(self._peaks.items()):
            self._peaks[run_id] = max(peak or 0, size)


activity = Activity()
