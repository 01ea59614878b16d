"""Gauges of a job for the textfile collector of Prometheus' node exporter.

The file has the last run of every job and model: a job replaces its own lines and keeps those of the others.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparkcf.jobs.observe.report import JobReport

SUCCESS = "sparkcf_last_success_timestamp_seconds"
HELP = {
    "sparkcf_last_run_timestamp_seconds": "End of the job's last run, in seconds since 1970.",
    SUCCESS: "End of the job's last run with exit code 0, in seconds since 1970.",
    "sparkcf_last_run_duration_seconds": "Duration of the job's last run.",
    "sparkcf_last_run_exit_code": "Exit code of the job's last run.",
    "sparkcf_step_duration_seconds": "Duration of a step; outer/inner: part of the outer step.",
    "sparkcf_rows": "Rows by kind, as in the column counts of the table runs.",
    "sparkcf_peak_memory_bytes": "Largest resident memory of a Python process.",
    "sparkcf_gate_figure": "Figures that the gate compared: model, popularity, published.",
}
LOCK_S = 5.0  # longest wait for another job that writes the file
SAMPLE = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n"}

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]


def write_gauges(path: str, report: JobReport) -> None:
    """Replace the job's gauges in the file, in one step for readers.

    Raises
    ------
    OSError
        The file cannot be written, or another process holds its lock.
    ValueError
        The file has lines that were not written here.
    """
    target = Path(path)
    with _locked(target):
        before = parsed(target.read_text(encoding="utf-8")) if target.exists() else {}
        text = exposed(merged(before, report))
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(part, 0o644)  # the collector is another user
            os.replace(part, target)
        except BaseException:
            os.unlink(part)
            raise


def merged(before: Samples, report: JobReport) -> Samples:
    """The samples of other jobs and models, this job's, and its last success unless this run is one."""
    mine = {("job", report.job)}
    models = {*report.models, ""}
    others = {
        (name, labels): value
        for (name, labels), value in before.items()
        if not (mine <= set(labels) and dict(labels).get("model") in models)
        or (name == SUCCESS and report.exit_code != 0)
    }
    return others | samples(report)


def samples(report: JobReport) -> Samples:
    """The samples of one job that has ended."""
    assert report.ended is not None
    found: Samples = {}

    def add(name: str, value: float, model: str, **more: str) -> None:
        found[name, (("job", report.job), ("model", model), *more.items())] = float(value)

    model = report.models[0] if len(report.models) == 1 else ""
    end = report.ended.timestamp()
    add("sparkcf_last_run_timestamp_seconds", end, model)
    if report.exit_code == 0:
        add(SUCCESS, end, model)
    add("sparkcf_last_run_duration_seconds", (report.ended - report.started).total_seconds(), model)
    add("sparkcf_last_run_exit_code", report.exit_code, model)
    spent: dict[tuple[str, str], float] = {}
    for step in report.steps:
        key = report.model_of(step.run_id), step.name
        spent[key] = spent.get(key, 0.0) + (step.seconds or 0.0)
    for (of_model, name), seconds in spent.items():
        add("sparkcf_step_duration_seconds", seconds, of_model, step=name)
    for run_id, row in report.runs.items():
        of_model = report.model_of(run_id)
        for kind, rows in row["counts"].items():
            add("sparkcf_rows", rows, of_model, kind=kind)
        if row.get("peak_bytes") is not None:
            add("sparkcf_peak_memory_bytes", row["peak_bytes"], of_model)
    for run_id, (measure, values) in report.gate.items():
        for system, value in values.items():
            add("sparkcf_gate_figure", value, report.model_of(run_id), measure=measure, system=system)
    return found


def exposed(values: Samples) -> str:
    """The samples in Prometheus' text format, by name and labels."""
    lines = []
    for name, help_text in HELP.items():
        of_name = sorted((labels, value) for (found, labels), value in values.items() if found == name)
        if of_name:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
        for labels, value in of_name:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
            lines.append(f"{name}{{{shown}}} {value!r}")
    return "".join(f"{line}\n" for line in lines)


def parsed(text: str) -> Samples:
    """The samples of a text that `exposed` wrote. Raises ValueError for anything else."""
    found: Samples = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("# ") or not line:
            continue
        match = SAMPLE.fullmatch(line)
        if match is None or match[1] not in HELP:
            raise ValueError(f"line {number} of the file was not written by sparkcf: name another file")
        labels = tuple((key, re.sub(r"\\(.)", _unescaped, text)) for key, text in LABEL.findall(match[2]))
        found[match[1], labels] = float(match[3])
    return found


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(c, c) for c in text)


def _unescaped(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the file's lock, so that jobs which end at the same time keep each other's lines."""
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        until = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield
