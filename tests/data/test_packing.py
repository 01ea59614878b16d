"""Packed rows in the lake: the pairs again, in even files, written once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from sparkcf.data import packing as module
from sparkcf.data.packed import unpack
from sparkcf.data.packing import Packing, pack_rows
from sparkcf.errors import LakeError
from sparkcf.lake.tables import LakeTables
from sparkcf.training.feed import PetastormFeed, local_path

N, M = 600, 40
PAIRS = {(u, i): float(1 + (u * i) % 5) for u in range(N) if u % 7 for i in range(M) if (u + 3 * i) % 11 < 3 + u % 2}


@pytest.fixture(scope="module")
def pairs(spark: SparkSession) -> DataFrame:
    rows = [(u, i, value) for (u, i), value in PAIRS.items()]
    return spark.createDataFrame(rows, "user_idx int, item_idx int, value double").cache()


@pytest.fixture
def tables(spark: SparkSession, tmp_path: Path) -> LakeTables:
    return LakeTables(spark, str(tmp_path / "lake"))


def packing(tables: LakeTables, name: str = "s") -> Packing:
    return Packing(tables, name, 42)


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
    snapshot = packing(tables).rows(pairs, "user")
    files = [pq.ParquetFile(local_path(file)) for file in snapshot.train]
    assert {file.num_row_groups for file in files} == {1}
    lengths = [file.metadata.num_rows for file in files]
    assert len(lengths) == 11 and sum(lengths) == len({u for u, _ in PAIRS})
    assert max(lengths) <= 1.25 * min(lengths)


def test_a_snapshot_is_written_once_and_feeds_every_user_once(tables: LakeTables, pairs: DataFrame) -> None:
    packs = packing(tables)
    first = packs.rows(pairs, "user", 0.25)
    version = tables.version("user_rows")
    assert packs.rows(pairs, "user", 0.25) == first and tables.version("user_rows") == version
    assert first.validation and not set(first.train) & set(first.validation)
    for split, files in (("train", first.train), ("validation", first.validation)):
        feeds = [PetastormFeed(files, "user_idx", 9, 1, rank, 3) for rank in range(3)]
        fed = [int(user) for feed in feeds for batch in feed.epoch(1) for user in batch.rows.ids]
        assert sorted(fed) == sorted(users(packs.read(first).where(f"split = '{split}'")))


def test_dead_and_uncommitted_files_are_no_part_of_a_snapshot(tables: LakeTables, pairs: DataFrame) -> None:
    packs = packing(tables)
    before = packs.rows(pairs, "user")
    packs.drop()
    with pytest.raises(LakeError, match="no row to train on"):
        packs.find("user")
    after = packs.rows(pairs.where("user_idx < 100"), "user")
    folder = Path(local_path(after.train[0])).parent
    (folder / "uncommitted.parquet").write_bytes(Path(local_path(before.train[0])).read_bytes())
    assert len(list(folder.glob("*.parquet"))) > len(after.train)
    again = packs.find("user")
    assert again == after and not set(again.train) & set(before.train)
    fed = [int(u) for batch in PetastormFeed(again.train, "user_idx", 9, 1).epoch(1) for u in batch.rows.ids]
    assert sorted(fed) == sorted({u for u, _ in PAIRS if u < 100})


def test_snapshots_lie_side_by_side(tables: LakeTables, pairs: DataFrame) -> None:
    one, two = packing(tables, "one"), packing(tables, "two")
    first = one.rows(pairs, "user")
    two.rows(pairs.where("user_idx < 9"), "user")
    two.drop()
    assert one.find("user").train == first.train
    assert collected(one.read(one.find("user")), "user") == PAIRS


def test_old_snapshots_go_and_who_reads_one_keeps_its_files(tables: LakeTables, pairs: DataFrame, monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT", 1)
    few, oldest = pairs.where("user_idx < 9"), packing(tables, "2024-01-01")
    first = oldest.rows(few, "user")
    for day in ("2024-01-02", "2024-01-03"):
        packing(tables, day).rows(few, "user")
    left = {row[0] for row in tables.read("user_rows").select("snapshot").distinct().collect()}
    assert left == {"2024-01-02", "2024-01-03"}
    assert users(oldest.read(first))
    assert all(Path(local_path(file)).exists() for file in first.train)
