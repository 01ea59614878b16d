"""Gang: W workers that hold their blocks in memory and exchange factors between half-sweeps.

On Spark a gang is one barrier stage with a task per worker, joined by a torch.distributed group over gloo. `Alone` has
the same interface for a single worker and needs neither torch nor Spark.
"""

from __future__ import annotations

import datetime as dt
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparkcf.errors import ConfigError

EXECUTORS_S = 60  # in which the executors of a new application are expected to register
Array = NDArray[Any]


class Gang(Protocol):
    """Collectives of a group of workers: all workers make every call, in the same order."""

    rank: int
    size: int

    def sum(self, array: Array) -> Array:
        """The element-wise sum over the workers; same shape and dtype."""

    def exchange(self, parts: Sequence[Array]) -> list[Array]:
        """Send parts[w] to worker w; returns the part from each worker. Parts differ in their first dimension only."""

    def gather(self, parts: Sequence[Array]) -> Array:
        """As `exchange`; returns the received parts concatenated in the order of workers."""

    def report(self, message: dict[str, Any]) -> None:
        """Send a log entry to the driver, from the first worker only; a lost entry is no error."""


class Alone:
    """A gang of one."""

    rank, size = 0, 1

    def __init__(self, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._report = report

    def sum(self, array: Array) -> Array:
        return array

    def exchange(self, parts: Sequence[Array]) -> list[Array]:
        return list(parts)

    def gather(self, parts: Sequence[Array]) -> Array:
        return parts[0]

    def report(self, message: dict[str, Any]) -> None:
        if self._report:
            self._report(message)


class GlooGang:
    """A gang over torch.distributed, created by `joined`."""

    def __init__(self, rank: int, size: int, reporter: Reporter | None) -> None:
        self.rank, self.size = rank, size
        self._reporter = reporter

    def sum(self, array: Array) -> Array:
        import torch
        import torch.distributed as dist

        total = torch.from_numpy(np.ascontiguousarray(array).copy())
        dist.all_reduce(total)
        return total.numpy()

    def exchange(self, parts: Sequence[Array]) -> list[Array]:
        received, counts = self._gather(parts)
        return np.split(received, np.cumsum(counts)[:-1])

    def gather(self, parts: Sequence[Array]) -> Array:
        return self._gather(parts)[0]

    def _gather(self, parts: Sequence[Array]) -> tuple[Array, Array]:
        """The received rows in one array, and the number of rows from each worker."""
        import torch
        import torch.distributed as dist

        tail = parts[0].shape[1:]
        width = int(np.prod(tail, dtype=np.int64))
        sent_counts = np.array([len(p) for p in parts], np.int64)
        received_counts = np.empty_like(sent_counts)
        dist.all_to_all_single(torch.from_numpy(received_counts), torch.from_numpy(sent_counts))
        sent = np.concatenate([np.ascontiguousarray(p).reshape(-1) for p in parts])
        received = np.empty(int(received_counts.sum()) * width, parts[0].dtype)
        dist.all_to_all_single(
            torch.from_numpy(received),
            torch.from_numpy(sent),
            (received_counts * width).tolist(),
            (sent_counts * width).tolist(),
        )
        return received.reshape(-1, *tail), received_counts

    def report(self, message: dict[str, Any]) -> None:
        if self._reporter and self.rank == 0:
            self._reporter.send(message)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a group meet.

    rank, size : of this process, and the number of processes.
    store : torch.distributed's TCPStore of the ranks; None for a single process, or where the environment tells.
    """

    rank: int
    size: int
    store: Any = None


def met(size: int, timeout_s: int) -> Meeting:
    """Agree with the other tasks of a barrier stage where to meet, from inside a task."""
    from pyspark import BarrierTaskContext

    context = BarrierTaskContext.get()
    rank = context.partitionId()
    if size == 1:
        return Meeting(0, 1)

    import torch.distributed as dist

    timeout = dt.timedelta(seconds=timeout_s)
    if rank == 0:
        host = context.getTaskInfos()[rank].address.rsplit(":", 1)[0]
        store = dist.TCPStore(host, 0, size, is_master=True, timeout=timeout, wait_for_workers=False)
        context.allGather(f"{host}:{store.port}")
    else:
        master, port = context.allGather("")[0].rsplit(":", 1)
        store = dist.TCPStore(master, int(port), size, is_master=False, timeout=timeout, wait_for_workers=False)
    return Meeting(rank, size, store)


@contextmanager
def joined(size: int, timeout_s: int, report_to: tuple[str, int, str] | None) -> Iterator[Gang]:
    """Join the gang of all tasks of a barrier stage, from inside a task; leave it on exit, also after an error."""
    meeting = met(size, timeout_s)
    rank = meeting.rank
    reporter = Reporter(*report_to) if report_to and rank == 0 else None
    if size == 1:
        yield Alone(reporter.send if reporter else None)
        return

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    timeout = dt.timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", store=meeting.store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield GlooGang(rank, size, reporter)
    finally:
        dist.destroy_process_group()


def check_slots(spark: Any, workers: int | None, section: str = "als") -> int:
    """Size of the gang: `workers`, or all task slots. Spark itself would report too few slots only after minutes.

    Raises ConfigError if dynamic allocation is on, or if there are too few slots, on a cluster also after EXECUTORS_S.
    """
    conf = spark.sparkContext.getConf()
    if conf.get("spark.dynamicAllocation.enabled", "false").lower() == "true":
        raise ConfigError(
            "spark.dynamicAllocation.enabled=true: a gang of workers needs all its slots at once; set it to false "
            "and give spark.executor.instances"
        )
    slots = task_slots(spark)
    waiting = 0 if spark.sparkContext._jsc.sc().isLocal() else EXECUTORS_S
    begin = time.monotonic()
    while workers is not None and workers > slots and time.monotonic() - begin < waiting:
        time.sleep(1)
        slots = task_slots(spark)
    if workers is not None and workers > slots:
        raise ConfigError(
            f"{section}.workers={workers} but Spark has {slots} task slots: lower it, add executors or cores, "
            "or lower spark.task.cpus"
        )
    return workers or max(1, slots)


def task_slots(spark: Any) -> int:
    """Number of tasks that can run at the same time."""
    scala = spark.sparkContext._jsc.sc()
    return int(scala.maxNumConcurrentTasks(scala.resourceProfileManager().defaultResourceProfile()))


def worker_threads(spark: Any) -> int:
    return int(spark.sparkContext.getConf().get("spark.task.cpus", "1"))


class Reporter:
    """Sends log entries from a worker to the driver; drops them if the driver cannot be reached."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._token = token
        try:
            self._socket: socket.socket | None = socket.create_connection((host, port), timeout=5)
        except OSError:
            self._socket = None

    def send(self, message: dict[str, Any]) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendall((json.dumps({"token": self._token} | message) + "\n").encode())
        except OSError:
            self._socket = None


@contextmanager
def listening(spark: Any, on_progress: Callable[[dict[str, Any]], None]) -> Iterator[tuple[str, int, str]]:
    """On the driver: call `on_progress` for every report of a gang; yields the `report_to` argument of `joined`."""
    import secrets

    token = secrets.token_hex(16)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                try:
                    message = json.loads(line)
                except ValueError:
                    return
                if not isinstance(message, dict) or message.pop("token", None) != token:
                    return
                on_progress(message)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    host = spark.sparkContext.getConf().get("spark.driver.host", "127.0.0.1")
    with Server(("", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield host, server.server_address[1], token
        finally:
            server.shutdown()


def numpy_columns(batches: Iterable[Any], names: Sequence[str]) -> list[list[Array]]:
    """The columns of Arrow batches as numpy arrays: a list per name, an array per batch."""
    columns: list[list[Array]] = [[] for _ in names]
    for batch in batches:
        for column, name in zip(columns, names, strict=True):
            column.append(batch.column(name).to_numpy(zero_copy_only=False))
    return columns
