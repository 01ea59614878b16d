"""A file that is gone while its table is read: the error names the table, the version and the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import functions as F

from sparkcf.activity import activity
from sparkcf.errors import LakeError, first_line
from sparkcf.lake.lost import lost_file
from sparkcf.lake.runs import recorded_run
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.upkeep import vacuum


@pytest.fixture
def tables(spark: Any, tmp_path: Path) -> LakeTables:
    """A lake whose table metrics has two versions with rows, 1 and 2."""
    activity.begin_job("train")
    tables = LakeTables(spark, str(tmp_path / "a lake"))
    row = ("r", "model", "q2", "ndcg_at_k", 5, 0.5, *[None] * 6)
    tables.append("metrics", spark.createDataFrame([row], TABLES["metrics"].schema))
    tables.update("metrics", "run_id = 'r'", {"value": F.lit(0.6)})
    return tables


@pytest.mark.parametrize("action", ["read", "write"])
def test_a_vacuum_between_the_opening_and_the_reading_of_a_version_is_named(
    tables: LakeTables, config: Callable, action: str
) -> None:
    with pytest.raises(LakeError) as raised, recorded_run(tables, "train", config(), {"metrics": 1}):
        rows = tables.read("metrics", 1)
        vacuum(tables, "metrics", 0)
        rows.collect() if action == "read" else tables.append("metrics", rows)
    message = str(raised.value)
    assert message.startswith(f"table metrics of lake {tables.root}, read at version 1, has lost the file part-")
    newest = tables.version("metrics")  # a VACUUM commits too
    assert f"the newest version is {newest}: train again" in message and len(message.splitlines()) == 1
    (run,) = tables.read("runs").collect()
    assert (run["state"], run["reason"]) == ("failed", f"LakeError: {message}")
    assert tables.read("metrics").count() == 1


def test_a_file_of_the_newest_version_that_is_gone_is_damage(tables: LakeTables) -> None:
    for file in Path(tables.root.removeprefix("file:"), "metrics").glob("*.parquet"):
        file.unlink()
    with pytest.raises(Exception) as raised:  # Spark's own
        tables.read("metrics").collect()
    lost = lost_file(raised.value, tables)
    assert lost is not None and "of its newest version 2: `sparkcf doctor`" in str(lost)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("/data/lake", "java.io.FileNotFoundException: File file:/data/lake/items/a/part-1.parquet does not exist"),
        ("/data/my lake", "File file:///data/my%20lake/items/part-1.parquet does not exist"),
        ("s3a://b/lake", "java.io.FileNotFoundException: No such file or directory: s3a://b/lake/items/part-1.parquet"),
        ("s3a://b/lake", "Path does not exist 'b/lake/items/part-1.parquet'"),
        ("s3a://b", "java.io.FileNotFoundException: No such file or directory: s3a://b/items/part-1.parquet"),
        ("hdfs://host:8020/lake", "File does not exist: /lake/items/part-1.parquet"),
        ("hdfs:///lake", "org.apache.hadoop.ipc.RemoteException: File does not exist: /lake/items/part-1.parquet"),
        ("/data/lake", "process 1: file:/data/lake/items/part-1.parquet cannot be read: [Errno 2] No such file"),
    ],
)
def test_a_lost_file_is_seen_in_the_words_of_every_reader(root: str, message: str) -> None:
    activity.begin_job("train")
    tables: Any = SimpleNamespace(root=root, path=lambda name: f"{root}/{name}", version=lambda name: 9)
    for version in (3, 5):
        activity.note_read(f"{root}/items", version)
    lost = lost_file(RuntimeError(f"Job aborted\n{message}\nmore"), tables)
    assert lost is not None
    assert first_line(lost).startswith(f"table items of lake {root}, read at versions 3, 5, has lost the file part-1.")
    assert lost_file(lost, tables) is None  # it is explained once


def test_a_file_of_the_older_of_two_versions_went_to_a_vacuum_though_the_newest_was_read_too() -> None:
    activity.begin_job("fold_in")
    live = SimpleNamespace(inputFiles=lambda: ["file:/lake/items/part-2.parquet"])
    own: dict[str, Any] = {"path": lambda name: f"/lake/{name}", "version": lambda name: 9, "read": lambda name: live}
    tables: Any = SimpleNamespace(root="/lake", **own)
    for version in (3, 9):
        activity.note_read("/lake/items", version)
    for number, said in ((1, "read at versions 3, 9"), (2, "of its newest version 9")):
        lost = lost_file(RuntimeError(f"File file:/lake/items/part-{number}.parquet does not exist"), tables)
        assert lost is not None and said in str(lost)


def test_an_error_stays_where_the_lake_cannot_be_asked() -> None:
    def version(name: str) -> int:
        raise ConnectionError("the JVM has ended")

    tables: Any = SimpleNamespace(root="/lake", version=version)
    assert lost_file(RuntimeError("File file:/lake/items/part-1.parquet does not exist"), tables) is None


def test_other_errors_stay_as_they_are() -> None:
    tables: Any = SimpleNamespace(root="/data/lake", version=pytest.fail)
    for message in (
        "File file:/data/input/items/part-1.parquet does not exist",
        "File file:/data/lake/notes/part-1.parquet does not exist",
        "File file:/data/lake/items/_delta_log/00000000000000000010.checkpoint.parquet does not exist",
        "file:/data/lake/items/part-1.parquet is not a Parquet file",
        "row 17: singular",
    ):
        assert lost_file(RuntimeError(message), tables) is None
