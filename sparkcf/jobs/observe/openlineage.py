"""Events of a job in OpenLineage's format, one JSON object a line: START, then COMPLETE or FAIL.

The format is that of https://openlineage.io/spec/2-0-2/OpenLineage.json.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from sparkcf.jobs.observe.report import JobReport
from sparkcf.lake.roots import absolute, local_folder
from sparkcf.redact import redacted, redacted_values
from sparkcf.version import __version__

NAMESPACE = "sparkcf"
PRODUCER = f"urn:sparkcf:{__version__}"
SPEC = "https://openlineage.io/spec"
SCHEMA = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"


def append_event(path: str, report: JobReport) -> None:
    """Append the event of the job's start or, if it has ended, of its end. Raises OSError.

    A job that ended before Spark started has no event of its start yet, so that this is appended too.
    """
    reports = [replace(report, ended=None), report] if report.ended and not report.application_id else [report]
    lines = "".join(json.dumps(redacted_values(event(one)), default=str) + "\n" for one in reports)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, lines.encode())  # in one call, so that the lines of several jobs do not mix
    finally:
        os.close(file)


def event(report: JobReport) -> dict[str, Any]:
    """The event as a value of JSON."""
    if report.ended is None:
        kind, at = "START", report.started
    else:
        kind, at = "FAIL" if report.failed else "COMPLETE", report.ended
    inputs, outputs = _datasets(report)
    return {
        "eventType": kind,
        "eventTime": _time(at),
        "run": {"runId": run_uuid(report), "facets": _run_facets(report)},
        "job": {"namespace": NAMESPACE, "name": report.job},
        "inputs": inputs,
        "outputs": outputs,
        "producer": PRODUCER,
        "schemaURL": SCHEMA,
    }


def run_uuid(report: JobReport) -> str:
    """The same for both events of a job: a UUID of its name, its start and Spark's application."""
    named = f"{report.job} {_time(report.started)} {report.application_id}"
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, "urn:sparkcf"), named))


def _run_facets(report: JobReport) -> dict[str, Any]:
    begin = dt.datetime.combine(report.config.ds, dt.time(), dt.UTC)
    end = begin + dt.timedelta(days=1)
    facets = {
        "nominalTime": _facet("1-0-1", "NominalTimeRunFacet", nominalStartTime=_time(begin), nominalEndTime=_time(end))
    }
    if report.runs:
        tags = [{"key": "run_id", "value": run_id, "source": "SPARKCF"} for run_id in report.runs]
        facets["tags"] = _facet("1-0-0", "TagsRunFacet", tags=tags)
    if report.ended and report.failed:
        message = str(report.result.get("error") or report.result["status"])
        facets["errorMessage"] = _facet("1-0-0", "ErrorMessageRunFacet", message=message, programmingLanguage="PYTHON")
    return facets


def _facet(version: str, name: str, **values: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": f"{SPEC}/facets/{version}/{name}.json#/$defs/{name}", **values}


def _datasets(report: JobReport) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tables that the job read and wrote, and the raw input of a run that cleans."""
    raw = [absolute(report.config.input_path)] if any(r["job"] == "clean" for r in report.runs.values()) else []
    read = [*((path, None) for path in raw), *sorted(report.inputs.items())]
    return _listed(read), _listed(sorted(report.outputs.items()))


def _listed(tables: Iterable[tuple[str, int | None]]) -> list[dict[str, Any]]:
    listed = []
    for address, version in tables:
        dataset: dict[str, Any] = dict(zip(("namespace", "name"), _named(address), strict=True))
        if version is not None:
            facet = _facet("1-0-0", "DatasetVersionDatasetFacet", datasetVersion=str(version))
            dataset["facets"] = {"version": facet}
        listed.append(dataset)
    return listed


def _named(address: str) -> tuple[str, str]:
    """Namespace and name of a dataset, as OpenLineage writes them for files and object stores."""
    address = redacted(address)  # before it is split: a secret key may have slashes
    if (folder := local_folder(address)) is not None:
        return "file", folder
    parts = urlsplit(address)
    scheme = "s3" if parts.scheme in ("s3a", "s3n") else parts.scheme
    return f"{scheme}://{parts.netloc}", parts.path.strip("/")


def _time(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
