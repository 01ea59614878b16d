"""The checks of `sparkcf doctor`: this machine and a lake, each finding with its cure. Starts Spark on request only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import secrets
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from sparkcf import runtime
from sparkcf.errors import ConfigError, first_line
from sparkcf.lake.damage import NUMBERED, damaged_files, take_out
from sparkcf.lake.folder import Folder
from sparkcf.lake.log import TableLog
from sparkcf.lake.query import Lake
from sparkcf.lake.reader import CURE, TABLE_NAMES, foreign_features
from sparkcf.lake.roots import FREE, free_space
from sparkcf.redact import redacted

MODULES = {"delta-spark": "delta", "PyYAML": "yaml", "Jinja2": "jinja2"}  # packages whose module has another name
SETUP = "run `make setup`"


@dataclass(frozen=True)
class Check:
    """One finding. `status` is ok, warn or fail; `cure` is empty for ok."""

    check: str
    status: str
    found: str
    cure: str = ""


def diagnose(
    root: str = "./lake",
    spark: bool = False,
    storage_options: dict[str, str] | None = None,
    deep: bool = False,
    repair: bool = False,
) -> list[Check]:
    """Check Python, Java, packages, Delta's jars, slots, the lake with its tables, and disks.

    Parameters
    ----------
    root : the lake; see `sparkcf.lake.query.Lake`.
    spark : also open a session and report its slots and GPUs.
    storage_options : credentials and settings of an object store.
    deep : also read every file of every table.
    repair : take lost and damaged files out of their tables, where jobs can write their rows again.

    Raises
    ------
    SparkcfError
        The root is not a valid address of a lake.
    """
    lake = Lake(root, storage_options)
    checks = [check_python(), check_java(), check_packages(), check_jars(), check_slots()]
    checks += check_spark() if spark else []
    checks.append(check_root(lake))
    for name in TABLE_NAMES:
        checks += check_table(lake, name, deep, repair)
    checks += check_disks(lake)
    return [Check(c.check, c.status, redacted(c.found), redacted(c.cure)) for c in checks]


def check_python() -> Check:
    found = f"Python {sys.version_info.major}.{sys.version_info.minor} at {sys.executable}"
    if sys.version_info[:2] != runtime.PYTHON:
        return Check("python", "fail", found, f"{SETUP} with Python {runtime.PYTHON[0]}.{runtime.PYTHON[1]}")
    return Check("python", "ok", found)


def check_java() -> Check:
    if problem := runtime.java_problem():
        found, _, cure = problem.rpartition(": ")
        return Check("java", "fail", found, cure)
    return Check("java", "ok", f"Java {runtime.java_version()} at {runtime.java_executable()}")


def check_packages() -> Check:
    """Check that each package that sparkcf pins is installed in the pinned version."""
    try:
        requirements = importlib.metadata.requires("sparkcf") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", "warn", "sparkcf is not installed as a package, its pins are unknown", SETUP)
    pins = [m.groups() for r in requirements if (m := re.fullmatch(r"([\w.-]+)==([^\s;]+)", r))]
    problems = [problem for name, pin in pins if (problem := _package_problem(name, pin))]
    if problems:
        return Check("packages", "fail", ", ".join(problems), SETUP)
    return Check("packages", "ok", f"{len(pins)} packages as pinned")


def _package_problem(name: str, pin: str) -> str:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing (pinned {pin})"
    if version.split("+")[0] != pin:  # a local part such as +cpu is ignored
        return f"{name} is {version} (pinned {pin})"
    if importlib.util.find_spec(MODULES.get(name, name)) is None:
        return f"{name} {version} cannot be imported"
    return ""


def check_jars() -> Check:
    """Check that Delta's jars are in Spark's folder of jars; finds pyspark without importing it."""
    spec = importlib.util.find_spec("pyspark")
    home = os.environ.get("SPARK_HOME") or (os.path.dirname(spec.origin) if spec and spec.origin else None)
    if home is None:
        return Check("delta jars", "fail", "pyspark is missing", SETUP)
    jars = sorted(jar.name for jar in Path(home, "jars").glob("delta-spark_*.jar"))
    if not jars:
        cure = f"{SETUP}, or give spark-submit `--packages io.delta:delta-spark_2.12:3.3.3`"
        return Check("delta jars", "warn", f"none in {home}/jars", cure)
    if len(jars) > 1:
        return Check("delta jars", "fail", ", ".join(jars), f"leave one of them in {home}/jars")
    return Check("delta jars", "ok", jars[0])


def check_slots() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("task slots", "ok", f"{cores} cores: local[*] runs {cores} tasks at once")


def check_spark() -> list[Check]:
    """Task slots and GPUs of a session."""
    from sparkcf.jobs.session import open_session

    try:
        spark, started = open_session()
    except ConfigError as error:
        found, _, cure = str(error).partition(": ")
        return [Check("spark", "fail", found, cure)]
    try:
        context, conf = spark.sparkContext, spark.sparkContext.getConf()
        task_cpus = int(conf.get("spark.task.cpus", "1"))
        slots = context.defaultParallelism // task_cpus
        dynamic = conf.get("spark.dynamicAllocation.enabled", "false") == "true"
        gpus = {
            key: amount
            for key in ("spark.executor.resource.gpu.amount", "spark.task.resource.gpu.amount")
            if (amount := conf.get(key, None))
        }
        return [
            Check("spark", "ok", f"Spark {spark.version} at {context.master}"),
            Check("spark slots", "ok", f"{slots} at once, spark.task.cpus={task_cpus}")
            if slots
            else Check("spark slots", "fail", f"none: spark.task.cpus={task_cpus}", "lower spark.task.cpus"),
            Check("dynamic allocation", "warn", "on", "set spark.dynamicAllocation.enabled=false to train")
            if dynamic
            else Check("dynamic allocation", "ok", "off"),
            _check_gpus(gpus),
        ]
    finally:
        if started:
            spark.stop()


def _check_gpus(amounts: dict[str, str]) -> Check:
    if not amounts:
        return Check("gpu", "ok", "none requested")
    found = ", ".join(f"{key}={amount}" for key, amount in amounts.items())
    if not all(amount.isdigit() for amount in amounts.values()):  # TorchDistributor takes int() of it
        return Check("gpu", "fail", found, "give whole GPUs: TorchDistributor cannot share one")
    if len(amounts) == 1:
        return Check("gpu", "warn", found, "set both spark.executor.resource.gpu.amount and the task's")
    return Check("gpu", "ok", found)


def check_root(lake: Lake) -> Check:
    """Check that the lake's folder can be written."""
    if lake.folder is None:
        return _check_store(lake)
    if not os.path.exists(lake.folder):
        return Check("lake", "warn", f"there is no lake at {lake.root} yet", f"{CURE}, or name another with --lake")
    if not os.path.isdir(lake.folder):
        return Check("lake", "fail", f"{lake.root} is a file", "name a folder with --lake")
    try:
        with tempfile.NamedTemporaryFile(dir=lake.folder, prefix=".sparkcf-probe-"):
            pass
    except OSError as error:
        return Check("lake", "fail", f"{lake.root} is not writable: {error}", "change its rights, or free space")
    return Check("lake", "ok", f"{lake.root} is writable")


def _check_store(lake: Lake) -> Check:
    """Check that a file can be written to a lake on an object store by Arrow, with the environment's credentials.

    So do jobs with saved progress and stored models; tables are written by Spark's connector.
    """
    try:
        if lake.storage_options:
            raise ConfigError("storage_options are for reading")
        folder = Folder(lake.root)
    except ConfigError as error:
        return Check("lake", "ok", f"{lake.root}: an object store, writing is not checked: {error}")
    probe = f".sparkcf-probe-{secrets.token_hex(4)}"
    try:
        if not folder.names():
            return Check("lake", "warn", f"there is no lake at {lake.root} yet", f"{CURE}, or name another with --lake")
        try:
            folder.write(probe, b"")
        finally:
            for name in (probe, f"{probe}.part"):
                folder.delete(name)
    except OSError as error:
        cure = "readers need no more; for jobs check the environment's credentials and their rights to put and delete"
        return Check("lake", "warn", f"{lake.root} is not writable: {first_line(error)}", cure)
    return Check("lake", "ok", f"{lake.root} is writable")


def check_table(lake: Lake, name: str, deep: bool = False, repair: bool = False) -> Iterator[Check]:
    """Check a table's newest version, find its last good version, and check this version's files; see `diagnose`."""
    what = f"table {name}"
    try:
        log = TableLog(lake.address(name), lake.storage_options)
        versions = log.versions()
    except TableNotFoundError:
        return  # the table does not exist yet
    except Exception as error:
        yield Check(what, "fail", f"its log cannot be listed: {first_line(error)}", "check address and rights")
        return
    if not versions:
        if lake.folder and os.path.exists(lake.address(name)):
            yield Check(what, "fail", "a folder without a log", "restore the log, or remove the folder")
        return
    problems: dict[int, str] = {}
    for version in versions:
        try:
            if problem := log.problem(version):
                raise ValueError(problem)
            table = DeltaTable(lake.address(name), version, lake.storage_options)
        except Exception as error:
            problems[version] = first_line(error)
        else:
            yield _found(what, table, version, problems)
            yield from _check_files(lake, name, table, deep, repair and not problems)
            return
    found = f"version {versions[0]}: {problems[versions[0]]}; no version is good"
    yield Check(what, "fail", found, "restore its log from a backup")


def _found(what: str, table: DeltaTable, version: int, problems: dict[int, str]) -> Check:
    """The finding for a table whose last good version is `version`; `problems` : by newer version."""
    if problems:
        newest = max(problems)
        bad = f"version {newest}" if len(problems) == 1 else f"versions {min(problems)} to {newest}"
        found = f"version {newest} is corrupt ({problems[newest]}): last good version {version}"
        cure = f"stop writers, move the files of {bad} out of its _delta_log, run the jobs since then again"
        return Check(what, "fail", found, cure)
    if features := foreign_features(table):
        return Check(what, "warn", f"version {version} uses {features}", "drop the feature: only Spark reads it")
    return Check(what, "ok", f"version {version} is good, {len(table.file_uris())} files")


def _check_files(lake: Lake, name: str, table: DeltaTable, deep: bool, repair: bool) -> Iterator[Check]:
    """Check that a version's files exist and have the size that the log says; deep: that they can be read."""
    damaged = damaged_files(lake, name, table, deep)
    if not damaged:
        return
    example, problem = next(iter(damaged.items()))
    found = f"{len(damaged)} of {len(table.file_uris())} files are lost or damaged: {example.path} {problem}"
    again = _written_by(name, sorted({file.partition for file in damaged}))
    if repair and name not in NUMBERED and lake.folder is not None:
        take_out(lake, name, list(damaged))
        yield Check(f"files of {name}", "warn", f"{found}; they were taken out of the table", again)
    elif name in NUMBERED or lake.folder is None:
        yield Check(f"files of {name}", "fail", found, "restore them from a backup")
    else:
        cure = f"`sparkcf doctor --repair --lake {shlex.quote(lake.root)}` takes them out of the table; then {again}"
        yield Check(f"files of {name}", "fail", found, cure)


def _written_by(name: str, partitions: list[str]) -> str:
    """What to run so that rows of a table are written again."""
    days = [partition.removeprefix("ds=") for partition in partitions if partition.startswith("ds=")]
    if name in ("interactions", "quarantine") and days:
        return f"run jobs/clean.py with ds={days[0]}" + "".join(f", ds={day}" for day in days[1:])
    return "run jobs/nightly.py for the newest day"


def check_disks(lake: Lake) -> Iterator[Check]:
    """Check free space on the disks of the lake and of Spark's local files."""
    scratch = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or tempfile.gettempdir()
    for place, free in free_space(filter(None, (lake.folder, scratch))):
        found = f"{free / 2**30:.1f} GiB free at {place}"
        if free < FREE:
            yield Check("disk", "warn", found, f"free space there: {FREE / 2**30:.0f} GiB are needed")
        else:
            yield Check("disk", "ok", found)
