"""A command and a webhook get the job's last line; one that fails, hangs or is missing changes nothing else."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sparkcf.jobs.observe.failure import call_command, call_webhook
from tests.jobs.observe.reports import report

COPY = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"


class Hooks(ThreadingHTTPServer):
    """A server on the loopback that keeps what it gets; `answer` : its status, None: it never answers."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: int | None = 200
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?key=SECRET"


class Handler(BaseHTTPRequestHandler):
    server: Hooks

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        if self.server.answer is None:
            self.server.over.wait(30)
            return
        self.send_response(self.server.answer)
        self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def hooks() -> Iterator[Hooks]:
    server = Hooks()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def with_command(*words: str, code: int = 3, timeout_s: float = 10):
    command = json.dumps(list(words))
    return report(f"observe.on_failure.command={command}", f"observe.on_failure.timeout_s={timeout_s}", code=code)


def test_a_command_gets_the_line_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    odd = "$(touch planted) `id` ; 'x' \"y\" ü"
    failed = with_command(sys.executable, "-c", COPY + "; print('printed')", f"{tmp_path}/got {odd}".replace("\n", ""))
    failed.result["error"] = odd  # type: ignore[index]
    call_command(failed)
    (got,) = [path for path in tmp_path.iterdir() if path.name.startswith("got")]
    assert got.name == f"got {odd}" and json.loads(got.read_text()) == failed.result
    assert capfd.readouterr().out == ""  # the last line of standard output is the job's own


@pytest.mark.parametrize("code", [0, 5])
def test_a_job_that_did_not_fail_calls_nobody(hooks: Hooks, code: int) -> None:
    call_command(with_command("/no/such/program", code=code))
    call_webhook(report(f"observe.on_failure.webhook={hooks.url}", code=code))
    assert hooks.got == []


def test_a_command_that_fails_or_is_missing_raises() -> None:
    with pytest.raises(RuntimeError, match="ended with 7"):
        call_command(with_command(sys.executable, "-c", "raise SystemExit(7)"))
    with pytest.raises(FileNotFoundError):
        call_command(with_command("/no/such/program"))


def test_a_command_that_does_not_read_is_no_failure() -> None:
    call_command(with_command(sys.executable, "-c", ""))


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    hang = (
        f"import subprocess, sys, time, pathlib; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(p.pid)); time.sleep(600)"
    )
    with pytest.raises(RuntimeError, match=r"took longer than timeout_s=5"):
        call_command(with_command(sys.executable, "-c", hang, timeout_s=5))
    process = Path("/proc", (tmp_path / "child").read_text())  # its process group was killed
    until = time.monotonic() + 30
    while process.exists() and "State:\tZ" not in (process / "status").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_webhook_gets_the_line_as_json(hooks: Hooks) -> None:
    failed = report(f"observe.on_failure.webhook={hooks.url}", code=3)
    call_webhook(failed)
    ((path, headers, body),) = hooks.got
    assert path == "/hook?key=SECRET" and headers["Content-Type"] == "application/json"
    assert json.loads(body) == failed.result


@pytest.mark.parametrize("answer", [500, 404, 302, None])
def test_a_webhook_that_fails_or_hangs_raises_without_naming_the_address(hooks: Hooks, answer: int | None) -> None:
    hooks.answer = answer
    with pytest.raises(RuntimeError) as told:
        call_webhook(report(f"observe.on_failure.webhook={hooks.url}", "observe.on_failure.timeout_s=0.5", code=1))
    assert len(hooks.got) == 1
    assert "SECRET" not in str(told.value) and (answer is None or str(answer) in str(told.value))


def test_a_webhook_that_cannot_be_reached_raises(hooks: Hooks) -> None:
    with pytest.raises(RuntimeError, match="cannot be reached"):
        call_webhook(report("observe.on_failure.webhook=http://127.0.0.1:9/x", code=1))
