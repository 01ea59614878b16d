"""A real redis-server of a test's own, on a free port of the loopback, without files that stay."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def redis_server(folder: Path) -> Iterator[str | None]:
    """Start the server and give its address; None where the program is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"--port": port, "--bind": "127.0.0.1", "--save": "", "--appendonly": "no", "--dir": folder}
    words = [str(word) for option in options.items() for word in option]
    server = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(server, port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait(server: subprocess.Popen, port: int) -> None:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        assert server.poll() is None, "redis-server ended"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("redis-server does not listen")
