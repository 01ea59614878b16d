"""A job as a process sees it: exit codes, one JSON line at the end, and what is refused before Spark starts."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from sparkcf import errors
from sparkcf.jobs.frame import run_job
from sparkcf.runtime import check_python, java_problem


class NoSpark:
    """As much of a session as a job itself asks of it."""

    _gateway = None
    master = "spark://host:7077"
    applicationId = "app-1"

    def __init__(self) -> None:
        self.group = ""
        self.cancelled: list[str] = []
        self.properties: dict[str, object] = {}
        self.sparkContext = self

    def setJobGroup(self, group: str, *_: object, **__: object) -> None:
        self.group = group

    def cancelJobGroup(self, group: str) -> None:
        self.cancelled.append(group)

    def getLocalProperty(self, name: str) -> object:
        return self.properties.get(name)

    def setLocalProperty(self, name: str, value: object) -> None:
        self.properties[name] = value


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> NoSpark:
    spark = NoSpark()
    monkeypatch.setattr("sparkcf.jobs.frame.open_session", lambda *_: (spark, False))
    monkeypatch.setattr("sparkcf.jobs.frame._check_format", lambda tables: None)  # the lake's: it needs a real session
    return spark


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A job that must not be reached, and a session that must not be opened."""

    def fail(*_: object) -> dict:
        raise AssertionError("was reached")

    monkeypatch.setattr("sparkcf.jobs.frame.open_session", fail)
    return fail


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Run a job; gives its exit code, the JSON of its last line and its standard error."""

    def call(function: Callable, *arguments: str) -> tuple[int, dict, str]:
        options = [a for a in arguments if a.startswith("-")]
        base = ["ds=2024-01-31", "input.path=in.csv", f"lake.root={tmp_path}/lake"]
        code = run_job("clean", function, [*options, *base, *(a for a in arguments if a not in options)])
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 1
        return code, json.loads(out), err

    return call


def raising(error: BaseException) -> Callable:
    def job(*_: object) -> dict:
        raise error

    return job


def test_a_job_that_is_done_ends_with_0_and_its_result(session: NoSpark, run: Callable) -> None:
    code, result, err = run(lambda spark, config: {"counts": {"read": config.als.rank}}, "als.rank=5")
    assert code == 0
    assert result == {"job": "clean", "ds": "2024-01-31", "status": "ok", "exit_code": 0, "counts": {"read": 5}}
    assert '"rank": 5' in err  # what differs from the defaults is said
    assert not session.cancelled


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFoundError("no run 'x'"), 1),
        (errors.TrainingError("row 17: singular"), 1),
        (errors.ConfigError("als.rank"), 2),
        (errors.InputError("input.path=in.csv: no rows"), 2),
        (errors.LakeError("cannot read table items"), 2),
        (errors.GateRefused("all 2 rows were rejected"), 3),
        (errors.ConflictError("other writers were first"), 4),
        (errors.NothingNew("already published"), 5),
    ],
)
def test_an_error_that_is_ours_has_its_own_exit_code_and_one_line(
    session: NoSpark, run: Callable, error: errors.SparkcfError, code: int
) -> None:
    ended, result, err = run(raising(error))
    assert (ended, result["exit_code"]) == (code, code)
    assert (result["status"], result["error"]) == (type(error).__name__, str(error))
    assert f"sparkcf clean: {error}\n" in err and "Traceback" not in err
    assert (
        session.cancelled == [session.group] != [""]
    )  # nothing of it goes on in the cluster, and nobody else's is ended


def test_a_lost_file_of_the_lake_is_an_error_of_the_lake(
    session: NoSpark, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkcf.lake.tables.LakeTables.version", lambda *_: 7)
    job = raising(RuntimeError(f"Job aborted\nFile file:{tmp_path}/lake/items/part-1.parquet does not exist"))
    code, result, _ = run(job)
    assert (code, result["status"]) == (2, "LakeError")
    assert "table items of lake" in result["error"] and "version 7" in result["error"]


def test_a_run_whose_model_is_not_installed_is_named_with_the_package_as_the_cure(
    never: Callable, run: Callable, tmp_path: Path
) -> None:
    columns = {"run_id": ["r1", "r2", "r3"], "job": ["train", "train", "tune"], "model": ["knn"] * 3}
    write_deltalake(str(tmp_path / "lake" / "runs"), pa.table({**columns, "started_at": ["1", "2", "3"]}))
    cure = r"install the package that registers it \(entry points sparkcf\.models\)"
    for named, wanted in (((), "r2"), (("run_id=r1",), "r1")):
        code, result, _ = run(never, "model=knn", *named)
        said = rf"run {wanted} of lake {tmp_path}/lake is of model knn, which is not installed here: {cure}; known are"
        assert code == 2 and re.match(said, result["error"]), result
    for other in ("model=svd", "lake.root=/nowhere", "lake=x", "run_id=r9"):
        code, result, _ = run(never, "model=knn", other)
        assert code == 2 and result["error"].startswith("configuration key model='"), result
        assert re.search(rf"unknown model; known are .*; for a model of another package {cure}$", result["error"])


def test_the_exit_codes_are_those_that_are_documented() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SparkcfError)]
    assert {kind.exit_code for kind in kinds} | {0} == set(errors.EXIT_CODES)


def test_an_unforeseen_error_is_told_in_one_line_and_traced_only_for_those_who_ask(
    session: NoSpark, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, result, err = run(raising(ZeroDivisionError("by zero\nsecond line")))
    assert (code, result["status"], result["error"]) == (1, "error", "ZeroDivisionError: by zero")
    assert "SPARKCF_TRACE=1" in err and "Traceback" not in err
    monkeypatch.setenv("SPARKCF_TRACE", "1")
    code, result, err = run(raising(ZeroDivisionError("by zero")))
    assert (code, result["error"]) == (1, "ZeroDivisionError: by zero") and "Traceback" in err


def test_sigterm_ends_the_job_and_its_spark_jobs(session: NoSpark, run: Callable) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def job(*_: object) -> dict:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    code, result, err = run(job)
    assert (code, result["status"], result["exit_code"]) == (143, "terminated", 143)
    assert "SIGTERM" in err
    assert session.cancelled == [session.group]
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_ends_the_job_with_130(session: NoSpark, run: Callable) -> None:
    assert run(raising(KeyboardInterrupt()))[0] == 130


def test_a_dry_run_says_what_would_run_and_starts_nothing(never: Callable, run: Callable, tmp_path: Path) -> None:
    code, result, err = run(never, "--dry-run", "als.rank=5")
    assert (code, result["status"]) == (0, "dry-run")
    assert '"rank": 5' in err
    assert not (tmp_path / "lake").exists()


def test_a_dry_run_names_missing_files_columns_and_times_that_no_format_has(
    never: Callable, run: Callable, tmp_path: Path
) -> None:
    code, result, err = run(never, "--dry-run", f"input.path={tmp_path}/none-*.csv")
    assert code == 0 and result["notes"] == [f"input.path={tmp_path}/none-*.csv: no such file"]
    assert "no such file" in err and max(map(len, err.splitlines())) < 500
    (tmp_path / "log.csv").write_text("user_id,item,ts\nu1,i1,2024/01/31\n")
    code, result, _ = run(never, "--dry-run", f"input.path={tmp_path}/log.csv")
    assert code == 0 and [note.partition("=")[0] for note in result["notes"]] == [
        "input.columns.item_id", "input.ts_formats",
    ]  # fmt: skip


def test_help_tells_what_the_job_does(capsys: pytest.CaptureFixture[str]) -> None:
    job = Path(__file__).resolve().parents[2] / "jobs" / "nightly.py"
    with pytest.raises(SystemExit) as ended:
        run_job("nightly", lambda *_: {}, ["--help"], about=ast.get_docstring(ast.parse(job.read_text())))
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "The whole night in one session" in shown and "sparkcf config explain" in shown


def test_every_job_gives_its_docstring_to_help() -> None:
    for job in (Path(__file__).resolve().parents[2] / "jobs").glob("*.py"):
        assert ", __doc__" in job.read_text(), job


def test_a_terminal_gets_the_last_line_without_counts_and_figures(
    session: NoSpark, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(*_: object) -> dict:
        return {"run_id": "r", "figures": {"model:ndcg_at_k@10": 0.5}}

    assert run(job)[1]["figures"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    told = run(job)[1]
    assert told["run_id"] == "r" and told["status"] == "ok" and "figures" not in told


def test_options_may_stand_between_the_overrides(never: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ds=2024-01-31", "input.path=in.csv", "--dry-run", "als.rank=5"]
    assert run_job("clean", never, arguments) == 0
    assert '"rank": 5' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["als.rank=0"], ["als.rnak=5"], ["--config=/none.yaml"], ["--dry-run", "x=1"]])
def test_a_bad_configuration_ends_with_2_before_spark_starts(never: Callable, run: Callable, arguments: list) -> None:
    code, result, err = run(never, *arguments)
    assert (code, result["status"]) == (2, "ConfigError")
    assert result["error"] in err


def test_an_argument_that_no_job_knows_ends_with_2(never: Callable, run: Callable) -> None:
    with pytest.raises(SystemExit) as ended:
        run(never, "--nonsense")
    assert ended.value.code == 2


def test_a_lake_below_a_file_is_refused_before_spark_starts(never: Callable, run: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, result, _ = run(never, f"lake.root={tmp_path}/file/lake")
    assert (code, result["status"]) == (2, "LakeError")
    assert f"{tmp_path}/file is not a folder" in result["error"]


def test_a_lake_that_cannot_be_written_is_refused_before_spark_starts(
    never: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = tmp_path / "denied"
    denied.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != denied)  # root may write anywhere
    for root in (f"{denied}/lake", f"file:{denied}/lake", f"file://{denied}/lake"):
        code, result, _ = run(never, f"lake.root={root}")
        assert code == 2
        assert f"{denied} is not writable" in result["error"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
def test_a_lake_in_a_place_that_holds_no_files_is_refused_before_spark_starts(never: Callable, run: Callable) -> None:
    code, result, _ = run(never, "lake.root=/proc/lake")
    assert code == 2
    assert "lake.root=/proc/lake" in result["error"]


def test_a_missing_java_is_named_before_spark_starts(
    never: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    code, result, _ = run(never)
    assert code == 2
    assert (
        result["error"]
        == f"no Java found in JAVA_HOME={tmp_path}/jdk: install a Java 17 runtime or set JAVA_HOME to one"
    )


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        ('openjdk version "17.0.9" 2023-10-17', None),
        ('java version "1.8.0_392"', None),
        ('openjdk version "21.0.1" 2023-10-17', "Java 21 does not run Spark 3.5"),
        ('java version "1.7.0_80"', "Java 7 does not run Spark 3.5"),
        ("bash: no such thing", "no Java found"),
    ],
)
def test_the_version_of_java_is_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: str, problem: str | None
) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho '{printed}' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    said = java_problem()
    assert said is None if problem is None else problem in (said or "")


def test_another_python_is_refused_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check_python((3, 9))
    assert ended.value.code == 2
    assert "Python 3.11 is needed, this is 3.9: run `make setup`" in capsys.readouterr().err
