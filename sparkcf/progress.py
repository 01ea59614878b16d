"""Progress output on standard error: a bar in a terminal, plain lines elsewhere, or one JSON object a line."""

from __future__ import annotations

import datetime as dt
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from sparkcf.activity import activity
from sparkcf.redact import redacted

LogFormat = Literal["text", "json"]
console = Console(stderr=True, highlight=False)
PLAIN_EVERY_S = 30.0  # between lines of a step that is not in a terminal
BAR_EVERY_S = 0.5
_format: LogFormat = "text"
_printing = threading.RLock()
_bar = threading.Lock()  # held by the step whose bar is shown: a terminal shows one


def use_format(form: LogFormat) -> None:
    """Set the form of all messages from now on."""
    global _format
    _format = form


def say(message: str, level: Literal["info", "warning", "error"] = "info") -> None:
    """Print one line; markup and control codes in the text have no effect, credentials are not shown.

    As JSON the line is an object: time (UTC), level, job, run_id, step, message. What is unknown or does not apply is
    null; an empty message is left out.
    """
    message = redacted(message)
    if _format == "text":
        with _printing:
            console.print(Text(printable(message)), soft_wrap=True)
    elif message.strip():
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        entry = {"time": now.replace("+00:00", "Z"), "level": level}
        entry |= {name: getattr(activity, name) or None for name in ("job", "run_id", "step")}
        print(json.dumps(entry | {"message": message.strip()}), file=sys.stderr, flush=True)


def say_together(messages: Iterable[str]) -> None:
    """Print lines between which no other thread prints any."""
    with _printing:
        for message in messages:
            say(message)


def printable(text: object) -> str:
    """Text with its control characters made visible, so that data cannot drive a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in str(text))


class Step:
    """A step whose progress is shown. `note` is added to the step's last line."""

    def __init__(self, name: str, bar: Progress | None) -> None:
        self.name = name
        self.note = ""
        self._bar = bar
        self._task = bar.add_task(printable(redacted(name)), total=None) if bar else None

    def update(self, message: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done: in place in a terminal, as a line elsewhere."""
        if self._bar is not None and self._task is not None:
            shown = printable(redacted(f"{self.name}: {message}"))
            self._bar.update(self._task, description=shown, completed=done, total=total)
        else:
            say(f"  {self.name}: {message}")


@contextmanager
def step(name: str, spark: Any = None, what: str = "") -> Iterator[Step]:
    """Show a step while it runs, and its time at the end.

    Parameters
    ----------
    name : the step's name in `runs` and in figures over many nights.
    spark : the bar shows the tasks of its running stages.
    what : what the step works on, such as the day; shown after the name.
    """
    shown = f"{name} {what}".strip()
    with activity.timed(name) as timed:
        with _shown(shown, spark) as running:
            yield running
        note = f": {running.note}" if running.note else ""
        say(f"{shown}{note} ({time.monotonic() - timed.begun:.1f} s)")


@contextmanager
def _shown(name: str, spark: Any) -> Iterator[Step]:
    """A step with its bar, if there is one, and the thread that reports the tasks."""
    bar = None
    if _format == "text" and console.is_terminal and _bar.acquire(blocking=False):
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=console, transient=True)
        bar.start()
    running, over = Step(name, bar), threading.Event()
    watched = (_watch, running, spark, over, bar is not None)
    watcher = threading.Thread(target=copy_context().run, args=watched, daemon=True)
    if spark is not None:
        watcher.start()
    try:
        yield running
    finally:
        over.set()
        if spark is not None:
            watcher.join(timeout=5)
        if bar is not None:
            bar.stop()
            _bar.release()


def _watch(running: Step, spark: Any, over: threading.Event, in_terminal: bool) -> None:
    """Report the tasks of the running stages until the step is over."""
    tracker = spark.sparkContext.statusTracker()
    while not over.wait(BAR_EVERY_S if in_terminal else PLAIN_EVERY_S):
        stages = [info for i in tracker.getActiveStageIds() if (info := tracker.getStageInfo(i)) is not None]
        total, done = sum(s.numTasks for s in stages), sum(s.numCompletedTasks for s in stages)
        if total:
            running.update(f"{done} of {total} tasks", done, total)


@contextmanager
def job_description(spark: Any, description: str) -> Iterator[None]:
    """Set the description of the Spark jobs started in the block, for Spark's UI."""
    context = spark.sparkContext
    before = context.getLocalProperty("spark.job.description")
    context.setLocalProperty("spark.job.description", description)
    try:
        yield
    finally:
        context.setLocalProperty("spark.job.description", before)


def flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
