"""The console command `sparkcf`: queries of published lists and of runs, without Spark.

    sparkcf recommend --user 1 --k 5
    sparkcf similar --item 50 --model als --format json
    sparkcf explain --user 1 --item 50
    sparkcf config explain als.rank
    sparkcf doctor --lake ./lake

Exit codes: 0 done; 1 an unknown user, item, model or run, or a failed check; 2 usage, or an unreadable lake.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from typer.exceptions import TyperException

from sparkcf.cli import care, configuration, nights, queries, start
from sparkcf.cli.app import app
from sparkcf.cli.show import visible
from sparkcf.errors import SparkcfError
from sparkcf.redact import redacted

# Importing these adds their commands to `app`.
MODULES = [module.__name__ for module in (start, queries, nights, care, configuration)]
app.registered_commands.sort(key=lambda command: MODULES.index(command.callback.__module__))  # as the help lists them


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and end the process; an expected error is one line on standard error.

    Parameters
    ----------
    arguments : of the command line, without the program's name; default: those of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        "".join(words).encode()
    except UnicodeEncodeError:  # names in a lake are UTF-8
        raise SystemExit(_complain("an argument is not valid UTF-8", 2)) from None
    try:
        code = app(words or ["--help"], prog_name="sparkcf", standalone_mode=False)
        sys.stdout.flush()
    except SparkcfError as error:
        code = _complain(str(error), error.exit_code)
    except TyperException as error:
        code = _complain(f"{error.format_message().rstrip('.')} (see `sparkcf --help`)", error.exit_code)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        code = _without_stdout(0)
    except OSError as error:
        code = _without_stdout(_complain(str(error), 2))
    raise SystemExit(code or 0)


def _complain(message: str, code: int) -> int:
    print(f"sparkcf: {visible(redacted(message))}", file=sys.stderr)
    return code


def _without_stdout(code: int) -> int:
    """Redirect standard output to the null device, so that the final flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    main()
