"""Progress for people: a bar or spinner in a terminal, plain lines elsewhere. Always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One plain line. Text from the data is printed as data: no markup, no control codes."""
    console.print(Text(printable(message)), soft_wrap=True)


def printable(text: object) -> str:
    """Text with its control characters made visible, so that data cannot drive a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in str(text))


class Step:
    """A named piece of work that is being shown."""

    def __init__(self, name: str, status) -> None:
        self.name = name
        self._status = status
        self.note = ""

    def update(self, message: str) -> None:
        """Show how far the step is: in place in a terminal, a line elsewhere."""
        if self._status is not None:
            self._status.update(Text(printable(f"{self.name}: {message}")))
        else:
            say(f"  {self.name}: {message}")


@contextmanager
def step(name: str) -> Iterator[Step]:
    """Show a step while it runs and its time when it is done; `.note` is added to that last line."""
    begin = time.monotonic()
    if console.is_terminal:
        with console.status(Text(printable(name)), spinner="line") as status:
            shown = Step(name, status)
            yield shown
    else:
        shown = Step(name, None)
        yield shown
    note = f": {shown.note}" if shown.note else ""
    say(f"{name}{note} ({time.monotonic() - begin:.1f} s)")


@contextmanager
def job_description(spark, description: str) -> Iterator[None]:
    """Name the Spark jobs started inside, so that Spark's UI reads like the pipeline."""
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
