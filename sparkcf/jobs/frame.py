"""Entry point of every job: arguments, checks before Spark starts, exit codes, signals, and the final JSON line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn

from sparkcf.config.load import load_config, merge_sources, model_names, read_sources
from sparkcf.config.plugins import INSTALL
from sparkcf.config.root import Config, LakeConfig
from sparkcf.data.look import doubts
from sparkcf.errors import ConfigError, SparkcfError, UnknownModelError, first_line
from sparkcf.jobs.observe.observer import Observer
from sparkcf.jobs.session import open_session, stop_session
from sparkcf.jobs.signals import Terminated, cancel, raised_signals
from sparkcf.jobs.space import explain_full_disk
from sparkcf.lake.format import check_writable_format
from sparkcf.lake.lost import lost_file
from sparkcf.lake.query import Lake
from sparkcf.lake.roots import check_writable
from sparkcf.lake.runs import FITS
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import flush, job_description, say
from sparkcf.redact import redacted, redacted_values
from sparkcf.runtime import check_python, java_problem

Job = Callable[[Any, Config], dict[str, Any]]
Check = Callable[[Config], Any]


def run_job(
    name: str, function: Job, argv: Sequence[str] | None = None, check: Check | None = None, about: str | None = None
) -> int:
    """Run a job from its command line arguments: load the configuration, call `function`, print the result as JSON.

    Parameters
    ----------
    name : the job's name, for Spark's UI and messages.
    function : (spark, config) -> dict, the last line of standard output.
    argv : `--config FILE` (repeatable), `--dry-run` and `key=value` overrides; None: those of the process.
    check : called with the configuration before Spark starts; raises ConfigError for settings that the job cannot use.
    about : what `--help` says: the docstring of the job's file.

    Returns
    -------
    int
        The exit code: see `errors.EXIT_CODES`.
    """
    check_python()
    arguments = _parser(name, about).parse_intermixed_args(argv)
    observer = Observer(name)
    result: dict[str, Any] = {"job": name}
    try:
        config = _configuration(arguments)
        observer.configured(config)
        result |= {"ds": config.ds.isoformat()}
        if check:
            check(config)
        if problem := java_problem():
            raise ConfigError(problem)
        check_writable(config.lake.root)
        if arguments.dry_run:
            say(f"{name}: would run with {config.shown()}, and the defaults")
            found = doubts(config)
            for doubt in found:
                say(f"  note: {doubt}", "warning")
            result |= {"status": "dry-run", "notes": found}
            code = 0
        else:
            say(f"{name}: settings that differ from the defaults: {config.shown()}")
            result |= _run(name, function, config, observer)
            code = 0
    except SparkcfError as error:
        code = error.exit_code
        result |= {"status": type(error).__name__, "error": str(error)}
        say(f"sparkcf {name}: {error}", "error")
    except (Terminated, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Terminated) else Terminated(signal.SIGINT)
        code = 128 + stopped.signal
        result |= {"status": "terminated", "error": str(stopped)}
        say(f"sparkcf {name}: {stopped}; nothing more was published", "error")
    except Exception as error:  # printed as one line; SPARKCF_TRACE=1 shows the stack
        if os.environ.get("SPARKCF_TRACE"):
            say(traceback.format_exc(), "error")
        code = 1
        result |= {"status": "error", "error": f"{type(error).__name__}: {first_line(error)}"}
        say(f"sparkcf {name}: {result['error']} (set SPARKCF_TRACE=1 for the stack)", "error")
    result = {"status": "ok", "exit_code": code} | result
    flush()
    shown = _scalars(result) if sys.stdout.isatty() else result
    print(json.dumps(redacted_values(shown), default=str), flush=True)
    observer.ended(result)  # last: a hook may take its time
    return code


def _configuration(arguments: argparse.Namespace) -> Config:
    """The configuration. Raises ConfigError; for a model that is gone from this environment it names a run of it."""
    try:
        return load_config(arguments.config, arguments.overrides)
    except UnknownModelError as error:
        run = _run_of(error.model, merge_sources(read_sources(arguments.config, arguments.overrides)))
        if run is None:
            raise
        known = ", ".join(model_names())
        message = f"{run} is of model {error.model}, which is not installed here: {INSTALL}; known are {known}"
        raise UnknownModelError(message, error.model) from None


def _run_of(model: str, values: dict[str, Any]) -> str | None:
    """The run that unchecked values name by `run_id`, or the model's newest, if the lake is a folder and has it."""
    section = values.get("lake")
    root = section.get("root") if isinstance(section, dict) else None
    try:
        lake = Lake(str(root or LakeConfig().root))
        if lake.folder is None:  # an unreachable store would be tried for minutes
            return None
        rows = lake.read("runs", ("model", [model]), None, ("run_id", "job", "started_at")).to_pylist()
    except Exception:  # no lake yet, or none that can be read, whatever it is: then there is no run to name
        return None
    named = values.get("run_id")
    fits = [row for row in rows if row["job"] in FITS and named in (None, row["run_id"])]
    if not fits:
        return None
    return f"run {max(fits, key=lambda row: row['started_at'])['run_id']} of lake {lake.root}"


def _scalars(result: dict[str, Any]) -> dict[str, Any]:
    """The result without its counts and figures, which would push a night's summary off a terminal's screen."""
    return {name: value for name, value in result.items() if not isinstance(value, dict)}


def _run(name: str, function: Job, config: Config, observer: Observer) -> dict[str, Any]:
    with raised_signals() as signals:
        spark, started = open_session(config.spark, f"{name} {config.ds}")
        group = f"sparkcf-{name}-{os.getpid()}"
        try:
            signals.watch(spark, group)
            spark.sparkContext.setJobGroup(group, f"{name} {config.ds}", interruptOnCancel=True)
            with job_description(spark, f"{name} {config.ds}"), observer.watching(spark):
                _check_format(LakeTables(spark, config.lake.root))
                return function(spark, config)
        except Terminated:  # they are cancelled
            raise
        except Exception as error:
            cancel(spark, group)
            explain_full_disk(error, config, spark)
            if lost := lost_file(error, LakeTables(spark, config.lake.root)):
                raise lost from error
            raise
        finally:
            if started:
                _stop(spark)


def _check_format(tables: LakeTables) -> None:
    if tables.exists("runs"):
        check_writable_format(tables.root, tables.properties("runs"))


def _stop(spark: Any) -> None:
    try:
        stop_session(spark)
    except Exception as error:
        say(f"  Spark was gone before it was stopped: {first_line(error)}")


def _parser(name: str, about: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"jobs/{name}.py",
        description=about or f"sparkcf {name}",
        epilog="`sparkcf config explain` tells what a key is, which jobs read it and what sets it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; a later one wins")
    parser.add_argument("--dry-run", action="store_true", help="check the configuration and say what would run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example als.rank=128")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))


def _hook(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, stack))))


def main(name: str, function: Job, about: str | None = None, check: Check | None = None) -> None:
    """Entry point of the job files. `about` : their docstring."""
    sys.excepthook = _hook
    sys.exit(run_job(name, function, check=check, about=about))
