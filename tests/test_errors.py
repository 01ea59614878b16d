"""The one line that stands for an error."""

from __future__ import annotations

from sparkcf.errors import first_line, interruption

FROM_A_WORKER = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "/opt/x.py", line 3, in work
    raise ValueError("KeyError: quoted")
pyarrow.lib.ArrowInvalid: not an error by its name
ValueError: row 3 has no items
"""


def test_the_line_of_an_error_is_its_first() -> None:
    assert first_line(ValueError("\n\n  one \ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_the_line_of_a_python_workers_error_is_the_error_that_was_raised_there() -> None:
    assert first_line(RuntimeError(FROM_A_WORKER)) == "ValueError: row 3 has no items"


def test_an_error_raised_while_a_signal_is_handled_is_an_interruption() -> None:
    def raised(first: BaseException) -> BaseException:
        try:
            try:
                raise first
            finally:
                raise KeyError("p")
        except KeyError as error:
            return error

    signal = KeyboardInterrupt()
    assert interruption(raised(signal)) is signal and interruption(signal) is signal
    assert interruption(raised(ValueError())) is None
