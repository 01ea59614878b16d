"""A lake written by an earlier version is refused by jobs, upgraded, and then read and written as any other."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from sparkcf.errors import LakeError
from sparkcf.jobs.frame import run_job
from sparkcf.jobs.publish import rollback
from sparkcf.lake.format import FORMAT, PROPERTY, check_readable
from sparkcf.lake.query import Lake
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.upgrade import apply, changes

OLD = Path(__file__).parent / "formats" / "format-1.tar.xz"  # two models' night of 12 users


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "lake"


def test_a_lake_of_the_first_format_is_upgraded(spark, old: Path, capsys) -> None:
    arguments = ["ds=2024-01-31", "input.path=none", f"lake.root={old}", "model=als"]
    assert run_job("rollback", rollback, arguments) == 2
    assert f"has format 1, this sparkcf writes {FORMAT}: run `sparkcf upgrade` first" in capsys.readouterr().out
    before = Lake(old).recommendations("u1", 3, "als")  # readers need no upgrade
    tables = LakeTables(spark, str(old))
    versions = {name: tables.version(name) for name in TABLES}
    found = changes(tables)
    assert found[-1].table == "runs" and {f"format 1 to {FORMAT}"} <= {change.words for change in found}
    assert {name: tables.version(name) for name in TABLES} == versions  # only shown so far

    apply(tables, found[:3])  # as if it were killed
    apply(tables, changes(tables))
    assert changes(tables) == []
    for name, table in TABLES.items():
        if tables.exists(name):
            assert set(tables.read(name).columns) == set(table.schema.names), name
            assert tables.properties(name)[PROPERTY] == str(FORMAT), name
    assert Lake(old).recommendations("u1", 3, "als").equals(before)
    assert run_job("rollback", rollback, arguments) == 1  # there is one published run only: the job's own answer


def test_a_lake_of_a_newer_format_is_neither_read_nor_written(spark, old: Path, capsys) -> None:
    tables = LakeTables(spark, str(old))
    for name in ("runs", "published"):
        newer = f"ALTER TABLE delta.`{tables.path(name)}` SET TBLPROPERTIES ('{PROPERTY}' = '{FORMAT + 1}')"
        spark.sql(newer)
    message = f"has format {FORMAT + 1}, this sparkcf reads up to {FORMAT}: install a newer one"
    with pytest.raises(LakeError, match=message):
        Lake(old).recommendations("u1", 3, "als")
    with pytest.raises(LakeError, match=message):
        changes(tables)
    assert run_job("rollback", rollback, ["ds=2024-01-31", "input.path=none", f"lake.root={old}"]) == 2
    assert message in capsys.readouterr().out


def test_a_format_is_a_number() -> None:
    with pytest.raises(LakeError, match="is 'two', a number is needed"):
        check_readable("lake", {PROPERTY: "two"})
