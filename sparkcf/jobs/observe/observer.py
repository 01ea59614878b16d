"""Reports a job's start and end to the files and services in the section `observe`; none of them can fail the job."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sparkcf.activity import activity
from sparkcf.config.root import Config
from sparkcf.errors import first_line
from sparkcf.jobs.memory import PeakMemory
from sparkcf.jobs.observe.failure import call_command, call_webhook
from sparkcf.jobs.observe.mirror import mirror
from sparkcf.jobs.observe.openlineage import append_event
from sparkcf.jobs.observe.prometheus import write_gauges
from sparkcf.jobs.observe.report import JobReport
from sparkcf.lake.roots import absolute
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import say, use_format
from sparkcf.redact import redacted_values

MEMORY_EVERY_S = 1.0
Sink = Callable[[JobReport], None]


class Observer:
    """The observers of one job: created at its start, `configured`, `watching` while Spark runs, `ended`."""

    def __init__(self, job: str) -> None:
        activity.begin_job(job)
        self._job, self._started = job, _now()
        self._report: JobReport | None = None

    def configured(self, config: Config) -> None:
        """Use the configuration from now on; without one, nothing but the messages reports the job."""
        use_format(config.log.format)
        self._report = JobReport(self._job, config, self._started)

    @contextmanager
    def watching(self, spark: Any) -> Iterator[None]:
        """Report the job's start, and measure its memory while the block runs."""
        assert self._report is not None
        report = self._report = replace(self._report, application_id=spark.sparkContext.applicationId)
        if path := report.config.observe.openlineage:
            _guarded("openlineage", lambda report: append_event(path, report), report)
        with PeakMemory(spark, MEMORY_EVERY_S):
            yield
        if path:
            _guarded("openlineage", lambda _: self._find_versions(spark), report)

    def ended(self, result: Mapping[str, Any]) -> None:
        """Report the job's end. `result` : its last line of output."""
        if self._report is not None and result["status"] != "dry-run":
            lake = absolute(self._report.config.lake.root)
            known = {f"{lake}/{name}" for name in TABLES}  # a job may also use other lakes, such as a scratch folder
            inputs = {path: version for path, version in activity.tables_read.items() if path in known}
            outputs = dict.fromkeys(path for path in activity.tables_written if path in known)
            report = replace(
                self._report,
                ended=_now(),
                result=redacted_values(dict(result)),
                runs=dict(activity.runs),  # as they are stored, without credentials
                steps=tuple(activity.steps),
                inputs=inputs,
                outputs=outputs | dict(self._report.outputs),
                gate=dict(activity.gate),
                figures=dict(activity.figures),
            )
            for name, sink in _sinks(report.config).items():
                _guarded(name, sink, report)
        use_format("text")
        activity.begin_job("")

    def _find_versions(self, spark: Any) -> None:
        """Find the versions of the tables written; the session must still run."""
        assert self._report is not None
        tables = LakeTables(spark, self._report.config.lake.root)
        named = {path: name for name in TABLES if (path := tables.path(name)) in activity.tables_written}
        versions = {path: tables.version(name) for path, name in named.items()}
        self._report = replace(self._report, outputs=versions)


def _sinks(config: Config) -> dict[str, Sink]:
    """The observers of a job's end, by the name of the key."""
    observe, failure = config.observe, config.observe.on_failure
    sinks: dict[str, Sink] = {}
    if file := observe.prometheus:
        sinks["prometheus"] = lambda report: write_gauges(file, report)
    if events := observe.openlineage:
        sinks["openlineage"] = lambda report: append_event(events, report)
    if observe.mlflow:
        sinks["mlflow"] = mirror
    if failure.command:
        sinks["on_failure.command"] = call_command
    if failure.webhook:
        sinks["on_failure.webhook"] = call_webhook
    return sinks


def _guarded(name: str, sink: Sink, report: JobReport) -> None:
    try:
        sink(report)
    except Exception as error:  # whatever a file system, a service or a hook does: the job goes on
        said = "" if name == "mlflow" and not isinstance(error, RuntimeError) else f": {first_line(error)}"
        say(f"  note: observe.{name} failed: {type(error).__name__}{said}", "warning")  # mlflow's name its address


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
