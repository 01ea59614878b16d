"""A damaged last entry of a log is an error that names the version, never silently the version before."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from sparkcf.errors import LakeError
from sparkcf.jobs.publish import rollback
from sparkcf.lake.log import entry_problem
from sparkcf.lake.published import append_published, published_run
from sparkcf.lake.query import Lake
from sparkcf.lake.tables import LakeTables
from tests.lake.test_query import build_lake

ADDED = '{"commitInfo":{"operation":"MERGE","operationMetrics":{"numTargetFilesAdded":"1"}}}'


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "its log entry is empty"),
        (b"\n \n", "its log entry is empty"),
        (b'{"commitInfo":{}}\n{"add":{"pa', "line 2 of its log entry is not JSON"),
        (b"\x00\xff", "line 1 of its log entry is not JSON"),
        (ADDED.encode() + b"\n", "its log entry is cut: it names none of 1 added files"),
        (ADDED.encode() + b'\n{"add":{"path":"a"}}', ""),
        (b'{"commitInfo":{"operation":"VACUUM END"}}', ""),
        (b'{"commitInfo":{"operation":"MERGE","operationMetrics":{"numTargetFilesAdded":"0"}}}', ""),
    ],
)
def test_an_entry_that_is_empty_or_cut_is_seen(content: bytes, problem: str) -> None:
    assert entry_problem(content) == problem


def damage(table: Path, kind: str) -> int:
    """Damage the newest entry of a table's log, or add an empty one; returns its version."""
    newest = max((table / "_delta_log").glob("*.json"))
    if kind == "empty":
        newest = newest.with_name(f"{int(newest.stem) + 1:020}.json")
        newest.write_text("")
    else:
        text = newest.read_text()
        newest.write_text(text[: text.index("\n") + 1] if kind == "cut between lines" else text[:-20])
    return int(newest.stem)


@pytest.mark.parametrize("kind", ["empty", "cut", "cut between lines"])
@pytest.mark.parametrize("through", ["a folder", "delta-rs"])
def test_queries_name_the_damaged_version_and_the_cure(tmp_path: Path, kind: str, through: str) -> None:
    root = build_lake(tmp_path / "lake")
    number = damage(root / "published", kind)
    lake = Lake(root)
    if through == "delta-rs":
        lake.folder, lake.root = None, root.as_uri()
    with pytest.raises(LakeError, match=f"table published .* version {number} is corrupt, .*`sparkcf doctor`"):
        lake.recommendations("1")


@pytest.mark.parametrize("kind", ["empty", "cut", "cut between lines"])
@pytest.mark.parametrize("known", [True, False], ids=["read before", "first read"])
def test_jobs_name_the_damaged_version_and_the_cure(spark, config, tmp_path: Path, kind: str, known: bool) -> None:
    settings = config("run_id=run1")
    tables = LakeTables(spark, settings.lake.root)
    for sequence in (1, 2):
        append_published(tables, "als", dt.date(2024, 1, 31), f"run{sequence}", "publish", sequence)
    folder = tmp_path / "lake" / "published"
    if not known:  # Spark remembers the tables that it has read
        (tmp_path / "other").mkdir()
        folder = folder.rename(tmp_path / "other" / "published")
        tables = LakeTables(spark, str(tmp_path / "other"))
        settings = config("run_id=run1", f"lake.root={tmp_path / 'other'}")
    number = damage(folder, kind)
    readers = (
        lambda: tables.version("published"),
        lambda: published_run(tables, "als"),
        lambda: rollback(spark, settings),
        lambda: append_published(tables, "als", dt.date(2024, 2, 1), "run3", "publish", 1),
    )
    before = sorted(folder.rglob("*"))
    for read in readers:
        with pytest.raises(LakeError, match=f"table published .* version {number} is corrupt, .*`sparkcf doctor`"):
            read()
    assert sorted(folder.rglob("*")) == before
