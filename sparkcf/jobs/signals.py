"""SIGTERM and SIGINT of a job: its Spark jobs are cancelled, then `Terminated` is raised in the main thread.

    scheduler ──SIGTERM──▶ JVM of spark-submit ──callback──▶ the driver's Python ──exit code──▶ the JVM ends with it

spark-submit's process is the JVM, the driver's Python is its child. By default the JVM would end at once, and with it
the pipe that carries the job's last line.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparkcf.errors import first_line
from sparkcf.progress import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)
CANCEL_S = 10  # seconds that the cancellation of Spark's jobs may take


class Terminated(BaseException):
    """A signal was received by which a scheduler, a cluster manager or a person ends a job."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def raised_signals() -> Iterator[Terminable]:
    """Raise `Terminated` on the first of SIGNALS in the block; further ones are ignored while the job ends."""
    terminable = Terminable()
    before = {number: signal.signal(number, terminable.received) for number in SIGNALS}
    try:
        yield terminable
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminable:
    """What a signal has to end. `spark` and `group`: the session and job group whose Spark jobs are cancelled."""

    def __init__(self) -> None:
        self.spark: Any = None
        self.group = ""

    def received(self, number: int, _frame: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if self.spark is not None:
            _leave_call(self.spark)
            # Now, because the job may write why it ended, for which it needs the slots that its Spark jobs hold.
            cancelling = threading.Thread(target=cancel, args=(self.spark, self.group), daemon=True)
            cancelling.start()
            cancelling.join(CANCEL_S)
        raise Terminated(number)

    def watch(self, spark: Any, group: str) -> None:
        """Cancel the Spark jobs of the group on a signal, also on one that only the JVM receives."""
        self.spark, self.group = spark, group
        for number in SIGNALS:  # Spark has set a handler of its own
            signal.signal(number, self.received)
        if "PYSPARK_GATEWAY_PORT" in os.environ:
            _forward(spark)


def cancel(spark: Any, group: str) -> None:
    """Cancel a group's running Spark jobs only: the session may belong to the caller."""
    try:
        spark.sparkContext.cancelJobGroup(group)
    except Exception as error:  # the JVM may have ended too
        say(f"  jobs could not be cancelled: {first_line(error)}")


def _leave_call(spark: Any) -> None:
    """Give the main thread a new connection to the JVM: the signal may have come while it waited for an answer."""
    client: Any = getattr(spark.sparkContext._gateway, "_gateway_client", None)
    if hasattr(client, "thread_connection"):
        client.thread_connection.connection = None


def _forward(spark: Any) -> None:
    """Let the JVM of spark-submit pass the signals on to this process, and go on until this process ends."""
    from pyspark.java_gateway import ensure_callback_server_started

    gateway = spark.sparkContext._gateway
    ensure_callback_server_started(gateway)
    signals = gateway.jvm.sun.misc.Signal
    for number in SIGNALS:
        signals.handle(signals(number.name.removeprefix("SIG")), _Handler(number))


class _Handler:
    """A Java object that passes a signal on to the main thread, which may be waiting for the JVM."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def handle(self, _signal: Any) -> None:
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, self.number)

    class Java:
        implements = ("sun.misc.SignalHandler",)
