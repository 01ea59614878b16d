"""The models of a night: one after another, or several at the same time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from pyspark import InheritableThread

from sparkcf.activity import activity
from sparkcf.config.root import Config
from sparkcf.errors import NothingNew, first_line, interruption
from sparkcf.progress import say

AGAIN_S = 5.0  # between two cancellations of Spark jobs: a model needs some of it to write why it ended

Night = Callable[[Config], dict[str, Any]]


@dataclass
class Outcomes:
    """By model: results, first errors, and those whose run of the day is published."""

    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    unchanged: dict[str, NothingNew] = field(default_factory=dict)

    def of(self, night: Night, config: Config) -> None:
        """Run the night of one model; its errors are kept, so that the others go on. Raises a signal's exception."""
        model = config.model
        try:
            self.done[model] = night(config)
        except NothingNew as finished:
            say(f"  {model}: {finished}")
            self.unchanged[model] = finished
        except Exception as error:
            if stop := interruption(error):
                raise stop from None
            say(f"  {model}: {first_line(error)}", "error")
            self.failed[model] = error


def each_model(night: Night, configs: list[Config], at_once: int, cancel: Callable[[], None]) -> Outcomes:
    """Run the night of every model.

    Parameters
    ----------
    at_once : models that run at the same time; their Spark jobs share the slots, and a gang waits until it gets all of
        its own.
    cancel : cancels the Spark jobs of this job, after an exception such as that of a signal.
    """
    outcomes, waiting = Outcomes(), deque(configs)

    def work() -> None:
        while waiting:
            try:
                config = waiting.popleft()
            except IndexError:  # another thread has taken the last one
                return
            with activity.apart():
                outcomes.of(night, config)

    if at_once == 1:
        for config in configs:
            outcomes.of(night, config)
        return outcomes
    threads = [InheritableThread(target=copy_context().run, args=(work,)) for _ in configs[:at_once]]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        waiting.clear()
        _ended(threads, cancel)
        raise
    order = [config.model for config in configs]
    return Outcomes(*({m: found[m] for m in order if m in found} for found in vars(outcomes).values()))


def _ended(threads: Sequence[threading.Thread], cancel: Callable[[], None]) -> None:
    """Wait until all threads have ended; what a thread starts after a cancellation is cancelled later."""
    for thread in threads:
        thread.join(AGAIN_S)
        while thread.is_alive():
            cancel()
            thread.join(AGAIN_S)
