"""Packed rows in the lake: the pairs again, in even files, written once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from sparkcf import prepare as module
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.packed import unpack
from sparkcf.errors import LakeError
from sparkcf.jobs.prepare import drop_rows, find_snapshot, pack_rows, prepare, rows_of, write_rows
from sparkcf.lake.tables import LakeTables
from sparkcf.training.feed import PetastormFeed, local_path
from tests.jobs.test_fold_in import BEFORE, DAY, OLD, write

N, M = 600, 40
PAIRS = {(u, i): float(1 + (u * i) % 5) for u in range(N) if u % 7 for i in range(M) if (u + 3 * i) % 11 < 3 + u % 2}


@pytest.fixture(scope="module")
def pairs(spark: SparkSession) -> DataFrame:
    rows = [(u, i, value) for (u, i), value in PAIRS.items()]
    return spark.createDataFrame(rows, "user_idx int, item_idx int, value double").cache()


@pytest.fixture
def tables(spark: SparkSession, tmp_path: Path) -> LakeTables:
    return LakeTables(spark, str(tmp_path / "lake"))


def settings(*overrides: str) -> Config:
    return load_config((), ["ds=2024-01-31", "input.path=none", "model=multvae", *overrides])


def collected(frame: DataFrame, side: str) -> dict[tuple[int, int], float]:
    found = {}
    for row in frame.collect():
        one = unpack(np.array([row[f"{side}_idx"]]), [bytes(row["items"])], [bytes(row["values"])])
        assert (np.diff(one.indices) > 0).all() and row["count"] == len(one.indices)
        for other, value in zip(one.indices.tolist(), one.values.tolist(), strict=True):
            key = (row[f"{side}_idx"], other) if side == "user" else (other, row[f"{side}_idx"])
            assert key not in found
            found[key] = value
    return found


def users(rows: DataFrame) -> list[int]:
    return [row[0] for row in rows.select("user_idx").collect()]


@pytest.mark.parametrize("side", ["user", "item"])
def test_rows_hold_the_pairs(pairs: DataFrame, side: str) -> None:
    assert collected(pack_rows(pairs, side, 0.0, 1), side) == PAIRS


def test_a_share_of_users_is_kept_for_validation_by_hash(pairs: DataFrame) -> None:
    counts = Counter(row["split"] for row in pack_rows(pairs, "user", 0.3, 1).collect())
    assert 0.2 < counts["validation"] / sum(counts.values()) < 0.4
    assert Counter(row["split"] for row in pack_rows(pairs.limit(1), "user", 0.99, 1).collect()) == {"train": 1}
    trained = [pack_rows(pairs.repartition(n), "user", 0.3, 1).where("split = 'train'") for n in (1, 5)]
    assert len({frozenset(users(rows)) for rows in trained}) == 1


def test_files_are_even_and_one_row_group_each(tables: LakeTables, pairs: DataFrame, monkeypatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", 50)
    snapshot = write_rows(tables, pairs, "user", "s", settings("multvae.validation_share=0"))
    files = [pq.ParquetFile(local_path(file)) for file in snapshot.train]
    assert {file.num_row_groups for file in files} == {1}
    lengths = [file.metadata.num_rows for file in files]
    assert len(lengths) == 11 and sum(lengths) == len({u for u, _ in PAIRS})
    assert max(lengths) <= 1.25 * min(lengths)


def test_a_snapshot_is_written_once_and_feeds_every_user_once(tables: LakeTables, pairs: DataFrame) -> None:
    config = settings("multvae.validation_share=0.25")
    first = write_rows(tables, pairs, "user", "s", config)
    version = tables.version("user_rows")
    assert write_rows(tables, pairs, "user", "s", config) == first and tables.version("user_rows") == version
    assert first.validation and not set(first.train) & set(first.validation)
    for split, files in (("train", first.train), ("validation", first.validation)):
        feeds = [PetastormFeed(files, "user_idx", 9, 1, rank, 3) for rank in range(3)]
        fed = [int(user) for feed in feeds for batch in feed.epoch(1) for user in batch.rows.ids]
        assert sorted(fed) == sorted(users(rows_of(tables, "user", "s").where(f"split = '{split}'")))


def test_dead_and_uncommitted_files_are_no_part_of_a_snapshot(tables: LakeTables, pairs: DataFrame) -> None:
    config = settings("multvae.validation_share=0")
    before = write_rows(tables, pairs, "user", "s", config)
    drop_rows(tables, "user", "s")
    with pytest.raises(LakeError, match="no row to train on"):
        find_snapshot(tables, "user", "s")
    after = write_rows(tables, pairs.where("user_idx < 100"), "user", "s", config)
    folder = Path(local_path(after.train[0])).parent
    (folder / "uncommitted.parquet").write_bytes(Path(local_path(before.train[0])).read_bytes())
    assert len(list(folder.glob("*.parquet"))) > len(after.train)
    again = find_snapshot(tables, "user", "s")
    assert again == after and not set(again.train) & set(before.train)
    fed = [int(u) for batch in PetastormFeed(again.train, "user_idx", 9, 1).epoch(1) for u in batch.rows.ids]
    assert sorted(fed) == sorted({u for u, _ in PAIRS if u < 100})


def test_snapshots_lie_side_by_side(tables: LakeTables, pairs: DataFrame) -> None:
    config = settings("multvae.validation_share=0")
    one = write_rows(tables, pairs, "user", "one", config)
    write_rows(tables, pairs.where("user_idx < 9"), "user", "two", config)
    drop_rows(tables, "user", "two")
    assert find_snapshot(tables, "user", "one").train == one.train
    assert collected(rows_of(tables, "user", "one"), "user") == PAIRS


def test_old_snapshots_go_and_who_reads_one_keeps_its_files(tables: LakeTables, pairs: DataFrame, monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT", 1)
    config, few = settings("multvae.validation_share=0"), pairs.where("user_idx < 9")
    first = write_rows(tables, few, "user", "2024-01-01", config)
    for day in ("2024-01-02", "2024-01-03"):
        write_rows(tables, few, "user", day, config)
    left = {row[0] for row in tables.read("user_rows").select("snapshot").distinct().collect()}
    assert left == {"2024-01-02", "2024-01-03"}
    assert users(rows_of(tables, "user", first.name, first.version))
    assert all(Path(local_path(file)).exists() for file in first.train)


def test_the_job_packs_both_sides_and_a_second_time_nothing(tables: LakeTables) -> None:
    write(tables, {BEFORE: OLD})
    given = [f"ds={DAY}", f"lake.root={tables.root}", "input.path=none", "model=multvae"]
    told = prepare(tables.spark, load_config((), given))
    assert told["counts"] == {"user_rows": len({u for u, _ in OLD}), "item_rows": len({i for _, i in OLD})}
    versions = [tables.version(name) for name in ("user_rows", "item_rows")]
    assert prepare(tables.spark, load_config((), given))["snapshot"] == told["snapshot"]
    assert [tables.version(name) for name in ("user_rows", "item_rows")] == versions
    other = prepare(tables.spark, load_config((), [*given, "preference.positive_from=3"]))
    assert other["snapshot"] != told["snapshot"]
    assert other["counts"]["user_rows"] <= told["counts"]["user_rows"]
    states = [(row["job"], row["state"]) for row in tables.read("runs").collect()]
    assert states == [("prepare", "prepared")] * 3
