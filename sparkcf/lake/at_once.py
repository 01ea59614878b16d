"""Several calls of a job at the same time, so that Spark's slots are not idle while the driver plans and commits."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

from pyspark import InheritableThread

Result = TypeVar("Result")


def at_once(*calls: Callable[[], Result]) -> list[Result]:
    """Run calls at the same time, each in a thread, wait for all of them, and return their results in order.

    Their Spark jobs belong to this thread's job group and are cancelled with it. Raises the error of the first of the
    calls that failed.
    """
    errors: dict[int, Exception] = {}
    results: dict[int, Result] = {}

    def run(place: int, call: Callable[[], Result]) -> None:
        try:
            results[place] = call()
        except Exception as error:  # raised below, in the thread of the caller
            errors[place] = error

    threads = [
        InheritableThread(target=copy_context().run, args=(run, place, call)) for place, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:  # a signal may have ended the wait
        for thread in threads:
            thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[place] for place in range(len(calls))]
