"""A Spark cluster of processes on this machine: a Master and Workers of one core."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparkcf.jobs.session import spark_home

PACKAGE = "org.apache.spark.deploy"
PATIENCE_S = 60


@contextmanager
def standalone(folder: Path, workers: int = 2, memory: str = "5g") -> Iterator[str]:
    """The Master's address. Their logs and work lie in `folder`; all are stopped at the end."""
    port = _free_port()
    address = f"spark://127.0.0.1:{port}"
    master = [f"{PACKAGE}.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]
    worker = [f"{PACKAGE}.worker.Worker", "--host", "127.0.0.1", "--webui-port", "0", "--cores", "1"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_start(master, folder / "master.log"))
        _wait_for(port)
        for number in range(workers):
            work = ["--memory", memory, "--work-dir", str(folder / f"worker-{number}")]
            started.append(_start([*worker, *work, address], folder / f"worker-{number}.log"))
        yield address
    finally:
        for process in reversed(started):  # a Worker that is asked to end takes its executors along
            process.terminate()
        for process in started:
            process.wait(timeout=PATIENCE_S)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    home = spark_home()
    environment = os.environ | {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m"}
    with log.open("w") as file:
        command = [str(home / "bin" / "spark-class"), *command]
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"the Master does not listen after {PATIENCE_S} s")
