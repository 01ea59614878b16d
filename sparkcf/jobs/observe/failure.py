"""Calls the hooks of a failed job: a command, and a webhook. Both get the job's last line of output as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from typing import Any

from sparkcf.jobs.observe.report import JobReport


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET without its body: it is an answer like any other error."""

    def redirect_request(self, *_: Any) -> None:
        return None


def call_command(report: JobReport) -> None:
    """Start `on_failure.command` with the line as its standard input. No shell reads the words.

    The command's standard output is dropped; its standard error is that of the job.

    Raises
    ------
    OSError
        The program cannot be started.
    RuntimeError
        It ended with another code than 0, or took longer than `timeout_s`; then its process group is killed.
    """
    if not report.failed:
        return
    hook = report.config.observe.on_failure
    with subprocess.Popen(
        hook.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.communicate(_line(report), timeout=hook.timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"{hook.command[0]} took longer than timeout_s={hook.timeout_s:g}") from None
            raise
    if process.returncode:
        raise RuntimeError(f"{hook.command[0]} ended with {process.returncode}")


def call_webhook(report: JobReport) -> None:
    """POST the line to `on_failure.webhook`. Raises RuntimeError, which does not name the address, if that fails."""
    hook = report.config.observe.on_failure
    if not report.failed or hook.webhook is None:
        return
    headers = {"Content-Type": "application/json", "User-Agent": "sparkcf"}
    try:
        request = urllib.request.Request(hook.webhook.get_secret_value(), _line(report), headers, method="POST")
        with urllib.request.build_opener(NoRedirect).open(request, timeout=hook.timeout_s):
            pass
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"the server answered {error.code}") from None
    except urllib.error.URLError as error:
        raise RuntimeError(f"the server cannot be reached: {error.reason}") from None
    except Exception as error:  # its text may hold the address, which is a secret
        raise RuntimeError(f"the request failed: {type(error).__name__}") from None


def _line(report: JobReport) -> bytes:
    return json.dumps(report.result, default=str).encode() + b"\n"
