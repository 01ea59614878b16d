"""The lake is where its name says: for Spark, for delta-rs and for files that are no tables, whatever the name."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from sparkcf.errors import LakeError
from sparkcf.lake.folder import Folder, at_endpoint
from sparkcf.lake.query import Lake
from sparkcf.lake.roots import check_writable, local_folder, resolve_root
from sparkcf.lake.tables import LakeTables
from sparkcf.training.feed import local_path

STRANGE = ["mein läke x", "lake[1]", "50% {a,b} #1?*=:&"]
DAY = dt.date(2024, 1, 31)
ROW = ("als", DAY, 1, "run-1", "publish", "ann", dt.datetime(2024, 1, 31), {"user_factors": 3})


@pytest.mark.parametrize("name", STRANGE)
def test_spark_delta_rs_and_folders_of_files_find_one_lake(spark, tmp_path: Path, name: str) -> None:
    tables = LakeTables(spark, str(tmp_path / name))
    published = spark.createDataFrame([ROW], tables.create("published").toDF().schema)
    tables.append("published", published)
    Folder(f"{tables.root}/_models").write("run-1/weights.json", b"{}")

    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["_models", "published"]
    assert tables.exists("published") and not tables.exists("runs")
    for given in (str(tmp_path / name), (tmp_path / name).as_uri()):
        assert Lake(given).published().run_id == "run-1"
        assert Folder(f"{given}/_models").read("run-1/weights.json") == b"{}"
        assert LakeTables(spark, given).read("published").count() == 1


def test_the_live_files_of_a_lake_with_a_strange_name_can_be_opened(spark, tmp_path: Path) -> None:
    tables = LakeTables(spark, str(tmp_path / STRANGE[-1]))
    rows = spark.createDataFrame([(0, b"", b"", 0, "train", "s1")], tables.create("user_rows").toDF().schema)
    tables.append("user_rows", rows)
    (file,) = tables.live_files("user_rows", {"snapshot": "s1"}, tables.version("user_rows"))
    assert pq.ParquetFile(local_path(file)).metadata.num_rows == 1


def test_relative_folders_and_the_home_folder_are_resolved_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, folder in {"x": "x", "./x/": "x", "a/../x y": "x y", "~/lake": "home/lake"}.items():
        assert resolve_root(given) == f"file:{tmp_path}/{folder}"
        assert local_folder(given) == Lake(given).folder == f"{tmp_path}/{folder}"
        Folder(given).write("file", given.encode())
        assert (tmp_path / folder / "file").read_text() == given


def test_an_address_stays_as_it_is_when_it_is_resolved_again(tmp_path: Path) -> None:
    for name in STRANGE:
        once = resolve_root(f"file://{quote(f'{tmp_path}/{name}')}")
        assert once == resolve_root(once) == f"file:{tmp_path}/{name}"
    assert resolve_root("s3a://bucket/a lake/") == "s3a://bucket/a lake"
    assert local_folder("s3a://bucket/lake") is None


@pytest.mark.parametrize("name", ["a%20b", "a\\b", "a`b"])
def test_a_name_that_some_reader_takes_for_another_is_refused_by_all(tmp_path: Path, name: str) -> None:
    root, said = str(tmp_path / name), set()
    for ask in (Lake, resolve_root, check_writable):
        with pytest.raises(LakeError, match="rename the folder: Delta's readers cannot read a path with") as told:
            ask(root)
        said.add(str(told.value))
    assert len(said) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "s3://lake/night"),
        ({"AWS_REGION": "eu-west-1"}, "s3://lake/night"),  # Arrow finds Amazon's servers by itself
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_DEFAULT_REGION": "eu-west-1"},
            "s3://lake/night?scheme=http&endpoint_override=127.0.0.1%3A9000&region=eu-west-1",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://other", "AWS_ENDPOINT_URL_S3": "https://store.example"},
            "s3://lake/night?scheme=https&endpoint_override=store.example&region=us-east-1",
        ),
    ],
)
def test_a_store_is_at_the_server_of_the_environment(environment: dict[str, str], expected: str) -> None:
    assert at_endpoint("s3://lake/night", environment) == expected
    known = at_endpoint("s3://lake/night?region=x", environment)
    assert known.count("?") == 1
