"""Every error a user can meet: one line that names the thing, the value seen and the cure."""

from __future__ import annotations


class SparkcfError(Exception):
    """Base of all errors that end a job in one line, without a stack trace, and with `exit_code`."""

    exit_code = 1


class ConfigError(SparkcfError):
    """Bad configuration or usage: said before Spark starts."""

    exit_code = 2


class InputError(SparkcfError):
    """The input is missing, empty or lacks a column: nothing was written."""

    exit_code = 2


class LakeError(SparkcfError):
    """The lake cannot be read or written as asked."""

    exit_code = 2


class NotFoundError(SparkcfError):
    """An unknown user, item, model or run was asked for."""

    exit_code = 1


class TrainingError(SparkcfError):
    """A fit went wrong in its numbers (NaN, singular block)."""

    exit_code = 1


class GateRefused(SparkcfError):
    """A data or quality gate said no: what was published stays as it was."""

    exit_code = 3


class ConflictError(SparkcfError):
    """Another writer got there first: nothing of ours was published."""

    exit_code = 4


class NothingNew(SparkcfError):
    """There is nothing to do."""

    exit_code = 5


EXIT_CODES = {
    0: "done",
    1: "failed, or an unknown user, item or run was asked for",
    2: "bad configuration, input or usage",
    3: "a data or quality gate refused",
    4: "another writer got there first",
    5: "nothing new to do",
}


def first_line(error: BaseException) -> str:
    """The one line of a JVM or Python error that a person needs, without the stack."""
    java = getattr(error, "java_exception", None)
    if java is not None:
        while java.getCause() is not None:
            java = java.getCause()
        text = java.toString()
    else:
        text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
