"""The checks of `sparkcf doctor --config`: what a night with a configuration would miss. Reads and writes no table."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from sparkcf.cli.doctor import Check
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.look import doubts, named_files
from sparkcf.errors import ConfigError
from sparkcf.lake.folder import Folder
from sparkcf.lake.roots import local_folder

CONNECTORS = {"s3a": "hadoop-aws", "gs": "gcs-connector", "abfss": "hadoop-azure", "abfs": "hadoop-azure"}  # jars


def check_night(files: Iterable[str], overrides: Iterable[str]) -> tuple[list[Check], str | None]:
    """Check the configuration, its inputs, and the files and services that it names.

    Returns the findings, and the lake's root; None if the configuration is not valid.
    """
    try:
        config = load_config(files, overrides)
    except ConfigError as error:
        return [Check("configuration", "fail", str(error), "correct it")], None
    checks = [Check("configuration", "ok", f"valid, for {config.ds} and model {config.model}")]
    return [*checks, *_inputs(config), *_connectors(config), *_progress(config), *_observers(config)], config.lake.root


def _inputs(config: Config) -> Iterator[Check]:
    """Check that the paths of the inputs match files; those of object stores are not looked up."""
    for key, (path, files) in named_files(config).items():
        if files is None:
            yield Check(key, "ok", f"{path}: is not looked up")
        elif files:
            yield Check(key, "ok", f"{path}: {len(files)} found")
        else:
            yield Check(key, "fail", f"{path}: no such file", "correct the path, or wait for the file")
    for doubt in doubts(config):
        if "no such file" not in doubt:
            yield Check("input", "warn", doubt, "correct input.columns and input.ts_formats, or look at the file")


def _connectors(config: Config) -> Iterator[Check]:
    """Check that Spark has the jars of the object store that the lake is in."""
    scheme = config.lake.root.partition(":")[0]
    jar, spec = CONNECTORS.get(scheme), importlib.util.find_spec("pyspark")
    home = os.environ.get("SPARK_HOME") or (os.path.dirname(spec.origin) if spec and spec.origin else "")
    if jar and not any(Path(home, "jars").glob(f"{jar}*.jar")):
        cure = f"give spark-submit `--packages` with {jar}, or put its jars there"
        yield Check("object store jars", "warn", f"no {jar} in {home}/jars, which {scheme}: needs", cure)


def _progress(config: Config) -> Iterator[Check]:
    if config.train.progress is None:
        return
    try:
        Folder(config.train.progress)
    except ConfigError as error:
        yield Check("train.progress", "fail", str(error), "name such a place")
        return
    if folder := local_folder(config.train.progress):
        yield _writable("train.progress", folder)


def _observers(config: Config) -> Iterator[Check]:
    """Check the files, the package and the command in `observe`."""
    observe = config.observe
    for name, file in (("prometheus", observe.prometheus), ("openlineage", observe.openlineage)):
        if file:
            yield _writable(f"observe.{name}", os.path.dirname(os.path.abspath(file)), made=False)
    if observe.mlflow and importlib.util.find_spec("mlflow") is None:
        yield Check("observe.mlflow", "fail", "the package mlflow is missing", "pip install 'sparkcf[mlflow]'")
    if (command := observe.on_failure.command) and shutil.which(command[0]) is None:
        found = f"{command[0]} is no program on the PATH"
        yield Check("observe.on_failure.command", "fail", found, "install it, or give its path")


def _writable(key: str, folder: str, made: bool = True) -> Check:
    """Check that files can be written to a folder. `made` : a folder that does not exist will be made."""
    existing = Path(folder)
    while made and not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".sparkcf-probe-"):
            pass
    except OSError as error:
        return Check(key, "fail", f"{folder} is not writable: {error.strerror}", "make it, or change its rights")
    return Check(key, "ok", f"{folder} is writable")
