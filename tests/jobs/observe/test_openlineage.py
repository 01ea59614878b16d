"""Events have the fields that OpenLineage's specification requires, and both of a job name the same run."""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sparkcf.jobs.observe.openlineage import append_event, event, run_uuid
from sparkcf.jobs.observe.report import JobReport
from tests.jobs.observe.reports import ALS, BEGIN, CLEAN, END, report

FACETS = {  # required fields of each standard facet, from the schemas of the specification 2-0-2
    "NominalTimeRunFacet": {"nominalStartTime"},
    "TagsRunFacet": {"tags"},
    "ErrorMessageRunFacet": {"message", "programmingLanguage"},
    "DatasetVersionDatasetFacet": {"datasetVersion"},
}


def started() -> JobReport:
    return JobReport("nightly", report().config, BEGIN, application_id="app-1")


def is_uri(text: str) -> bool:
    return bool(urlsplit(text).scheme)


def check(found: dict[str, Any]) -> dict[str, Any]:
    """The event as a reader gets it, checked against the required fields and types of RunEvent."""
    found = json.loads(json.dumps(found))
    assert {"eventType", "eventTime", "run", "job", "producer", "schemaURL"} <= found.keys()
    assert found.keys() <= {"eventType", "eventTime", "run", "job", "inputs", "outputs", "producer", "schemaURL"}
    assert found["eventType"] in {"START", "COMPLETE", "FAIL"}
    assert dt.datetime.fromisoformat(found["eventTime"]).tzinfo is not None
    assert uuid.UUID(found["run"]["runId"]).version == 5
    assert found["job"] == {"namespace": "sparkcf", "name": "nightly"}
    assert is_uri(found["producer"]) and found["schemaURL"].endswith("/OpenLineage.json#/$defs/RunEvent")
    facets = list(found["run"]["facets"].values())
    for dataset in found["inputs"] + found["outputs"]:
        assert dataset["namespace"] and dataset["name"]
        facets += dataset.get("facets", {}).values()
    for facet in facets:
        assert is_uri(facet["_producer"])
        name = re.fullmatch(r"https://openlineage\.io/spec/facets/\d-\d-\d/(\w+)\.json#/\$defs/\1", facet["_schemaURL"])
        assert name and FACETS[name[1]] == facet.keys() & FACETS[name[1]]
    return found


def test_a_night_that_starts_and_completes() -> None:
    start, complete = check(event(started())), check(event(report()))
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert (start["eventTime"], complete["eventTime"]) == ("2024-06-01T02:00:00.000000Z", "2024-06-01T02:30:00.000000Z")
    assert complete["run"]["facets"]["nominalTime"]["nominalEndTime"] == "2024-06-01T00:00:00.000000Z"
    tags = complete["run"]["facets"]["tags"]["tags"]
    assert [(tag["key"], tag["value"]) for tag in tags] == [("run_id", CLEAN), ("run_id", ALS)]
    inputs = {(one["namespace"], one["name"]): one.get("facets") for one in complete["inputs"]}
    assert inputs["file", "/data/log.csv"] is None and inputs["file", "/data/lake/user_factors"] is None
    assert inputs["file", "/data/lake/interactions"]["version"]["datasetVersion"] == "4"
    (output,) = complete["outputs"]
    assert output["name"] == "/data/lake/recommendations"
    assert output["facets"]["version"]["datasetVersion"] == "12"


def test_a_night_that_fails_says_why() -> None:
    failed = check(event(report(code=3)))
    assert failed["eventType"] == "FAIL"
    assert failed["run"]["facets"]["errorMessage"]["message"] == 'ndcg@100 0.1 is worse than "popularity"'
    assert check(event(report(code=5)))["eventType"] == "COMPLETE"


def test_another_start_is_another_run() -> None:
    one, other = report(), replace(report(), started=END)
    assert run_uuid(one) != run_uuid(other) != run_uuid(replace(other, job="train"))


@pytest.mark.parametrize(
    ("address", "namespace", "name"),
    [
        ("file:/data/lake/users", "file", "/data/lake/users"),
        ("s3a://bucket/lake/users", "s3://bucket", "lake/users"),
        ("s3a://KEY:sec/ret@bucket/lake/users", "s3://***@bucket", "lake/users"),
        ("hdfs://host:8020/lake/users", "hdfs://host:8020", "lake/users"),
        ("abfss://box@account.dfs.core.windows.net/lake", "abfss://box@account.dfs.core.windows.net", "lake"),
    ],
)
def test_datasets_are_named_as_other_producers_name_them(address: str, namespace: str, name: str) -> None:
    (dataset,) = event(report(outputs={address: None}))["outputs"]
    assert dataset == {"namespace": namespace, "name": name}


def test_events_are_appended_a_line_each_and_hold_no_credentials(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    append_event(str(file), started())
    append_event(str(file), report(outputs={"s3a://KEY:SECRET@bucket/lake/users": 1}))
    refused = report(code=2, application_id=None, runs={}, inputs={}, outputs={})  # before Spark started
    append_event(str(file), refused)
    text = file.read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert [e["eventType"] for e in events] == ["START", "COMPLETE", "START", "FAIL"]
    assert events[2]["run"]["runId"] == events[3]["run"]["runId"] and "SECRET" not in text
