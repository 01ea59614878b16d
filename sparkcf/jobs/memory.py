"""Largest resident memory of a Python process of a job: the driver, or a worker of a local session."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from sparkcf.activity import activity

EVERY_S = 0.1
PROC = Path("/proc")


class PeakMemory:
    """Context manager that samples the resident memory of the session's Python processes.

    Processes are the driver, the JVM's descendants and the driver's descendants, without JVMs. The memory includes
    mapped files. `peak` : bytes of the largest process in any sample; None if the workers are not on this machine (the
    master is not local) or the system has no /proc. Samples also go to `activity`.

    Parameters
    ----------
    every_s : seconds between two samples.
    """

    def __init__(self, spark: Any, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._roots: set[int] = set()
        if str(spark.sparkContext.master).startswith("local") and (PROC / "self" / "statm").exists():
            name = spark._jvm.java.lang.management.ManagementFactory.getRuntimeMXBean().getName()  # pid@host
            self._roots = {os.getpid(), int(name.partition("@")[0])}
        self.peak: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._roots:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._roots:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            size = largest_python(self._roots)
            self.peak = max(self.peak or 0, size)
            activity.note_memory(size)
            if self._over.wait(self._every_s):
                return


def largest_python(roots: set[int]) -> int:
    """Bytes of the largest process among the given ones and their descendants, JVMs left out; 0 if there is none."""
    page, parents = os.sysconf("SC_PAGE_SIZE"), {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
            except (OSError, IndexError):  # it ended meanwhile
                continue
            parents[int(entry.name)] = parent
    family = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    largest = 0
    for pid in family:
        try:
            # The program, not the command's name: a JVM's fork has a thread's name and the JVM's memory at first.
            if (PROC / str(pid) / "exe").readlink().name != "java":
                largest = max(largest, page * int((PROC / str(pid) / "statm").read_text().split()[1]))
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return largest
