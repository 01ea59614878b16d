"""Errors for users: a one-line message with what was found, what was expected and what to do."""

from __future__ import annotations

import re

from sparkcf.redact import redacted


class SparkcfError(Exception):
    """Base of all errors that end a job with a one-line message and `exit_code`, without a stack trace.

    Credentials in the message are replaced.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class ConfigError(SparkcfError):
    """Bad configuration or usage, in most cases found before Spark starts."""

    exit_code = 2


class UnknownModelError(ConfigError):
    """A model that is neither this package's nor registered by an installed one. `model` : its name."""

    def __init__(self, message: str, model: str = "") -> None:
        super().__init__(message)
        self.model = model


class InputError(SparkcfError):
    """The input is missing, empty or lacks a column; nothing was written."""

    exit_code = 2


class LakeError(SparkcfError):
    """The lake cannot be read or written."""

    exit_code = 2


class NotFoundError(SparkcfError):
    """A requested user, item, model or run does not exist."""

    exit_code = 1


class TrainingError(SparkcfError):
    """A fit failed: no training data, a value that is not finite, or a process that died."""

    exit_code = 1


class GateRefused(SparkcfError):
    """A data or quality gate refused; the published run stays."""

    exit_code = 3


class ConflictError(SparkcfError):
    """Another writer was first; nothing of this job was published."""

    exit_code = 4


class NothingNew(SparkcfError):
    """There is nothing to do."""

    exit_code = 5


EXIT_CODES = {
    0: "done",
    1: "failed, or a requested user, item or run does not exist",
    2: "bad configuration, input or usage",
    3: "a data or quality gate refused",
    4: "another writer was first",
    5: "nothing new to do",
}


TRACEBACK = "Traceback (most recent call last)"


def interruption(error: BaseException) -> BaseException | None:
    """The signal during whose handling an error was raised; None: there was none.

    A signal within a call of the JVM leaves the connection in the middle of an answer, so the next call, such as one
    that records the failure, raises an error without meaning.
    """
    found: BaseException | None = error
    while found is not None and isinstance(found, Exception):
        found = found.__context__
    return found


def first_line(error: BaseException) -> str:
    """First line of an error's message; of a JVM error that of its root cause; of a Python worker's its own error."""
    java = getattr(error, "java_exception", None)
    if java is not None:
        while java.getCause() is not None:
            java = java.getCause()
        text = java.toString()
    else:
        text = str(error)
    if TRACEBACK in text:
        raised = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
        text = raised[-1] if raised else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
