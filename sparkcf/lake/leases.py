"""Leases: a file for each run that a job works on, which the job changes meanwhile. It outlives only a killed job.

No clock of another machine is read. On the machine of the run's job the process is looked for. From another machine
the file is watched: a job that has not changed it for STALE_S of the watcher's own time is dead.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from py4j.java_gateway import JavaObject

from sparkcf.errors import first_line
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import say

FOLDER = "_leases"
BEAT_S = 15
STALE_S = 90  # a job that cannot write for so long is taken for dead
NOBODY = "no job works on it"


class Lease:
    """The lease of one run, written until `end`."""

    def __init__(self, tables: LakeTables, run_id: str) -> None:
        self._tables, self._run_id, self._beat = tables, run_id, 0
        self._over = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(STALE_S)  # a beat that is being written would come after the removal
        try:
            files, path = _file(self._tables, self._run_id)
            files.delete(path, False)
        except Exception as error:  # a later job finds that this one has ended
            say(f"  note: the lease of run {self._run_id} cannot be removed: {first_line(error)}")

    def _keep(self) -> None:
        while not self._over.wait(BEAT_S):
            self._beat += 1
            try:
                self._write()
            except Exception as error:
                if not self._over.is_set():
                    say(f"  note: the lease of run {self._run_id} cannot be written: {first_line(error)}")

    def _write(self) -> None:
        pid = os.getpid()
        content = {"beat": self._beat, "machine": machine(), "pid": pid, "started": process_start(pid)}
        files, path = _file(self._tables, self._run_id)
        stream = files.create(path, True)
        try:
            stream.write(json.dumps(content).encode())
        finally:
            stream.close()


class Watch:
    """What has been seen of the leases of other jobs' runs, kept for the life of a process."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float]] = {}  # by lease, its content and when it was first seen so

    def death(self, tables: LakeTables, run_id: str) -> str | None:
        """How the job of a run has died; None: it lives, or has not been watched for long enough."""
        files, path = _file(tables, run_id)
        if not files.exists(path):
            return NOBODY
        try:
            content = _read(tables.spark, files, path)
            lease = json.loads(content)
            here = lease["machine"] == machine() != ""
            pid, started = int(lease["pid"]), lease["started"]
        except (ValueError, KeyError, TypeError):  # its job was killed, or is, while it writes
            content, here, pid, started = "", False, 0, ""
        except Exception:
            if files.exists(path):
                raise
            return NOBODY  # its job has just ended
        if here:
            return None if process_start(pid) == started else f"its process {pid} on {socket.gethostname()} has ended"
        now, key = time.monotonic(), str(path)
        before, since = self._seen.get(key, (None, now))
        if before != content:
            self._seen[key] = (content, now)
            return None
        return f"its job gave no sign of life for {now - since:.0f} s" if now - since >= STALE_S else None

    def remove(self, tables: LakeTables, run_id: str) -> None:
        files, path = _file(tables, run_id)
        self._seen.pop(str(path), None)
        files.delete(path, False)


def leased_runs(tables: LakeTables) -> list[str]:
    """The runs that have a lease."""
    files, path = _file(tables, "any")
    folder = path.getParent()
    if not files.exists(folder):
        return []
    names = (part.getPath().getName() for part in files.listStatus(folder))
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


@cache
def machine() -> str:
    """The name of this machine since its start, and of its space of process ids; empty where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """The start of a process in the kernel's ticks: a later one of the same id has another; empty: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended


def _file(tables: LakeTables, run_id: str) -> tuple[JavaObject, JavaObject]:
    """Hadoop's file system of the lake, and the path of a run's lease."""
    jvm: Any = tables.spark._jvm
    path = jvm.org.apache.hadoop.fs.Path(f"{tables.root}/{FOLDER}/{run_id}.json")
    files = path.getFileSystem(tables.spark._jsparkSession.sessionState().newHadoopConf())
    # On a disk without Hadoop's files of checksums: a read beside a write would find that the two do not agree.
    return (files.getRawFileSystem() if files.getUri().getScheme() == "file" else files), path


def _read(spark: Any, files: JavaObject, path: JavaObject) -> str:
    stream = files.open(path)
    try:
        return str(spark._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
    finally:
        stream.close()
