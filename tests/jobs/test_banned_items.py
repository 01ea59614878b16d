"""Which items `topk` excludes from the lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sparkcf.config.input import ItemsInput
from sparkcf.data.attributes import read_items
from sparkcf.jobs.recommend import banned_items


def items_of(spark, *rows: str):
    return spark.sql(" UNION ALL ".join(f"SELECT {row}" for row in rows)).toDF("item_idx", "item_id", "categories")


def test_ineligible_ids_are_normalized_as_in_a_load_and_unknown_ones_are_noted(
    spark, config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text('item_id\n" Tea "\ncoffee\nNULL\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    items = items_of(spark, "0, 'tea', array('x')", "1, 'jam', array('x')")
    given = config("topk.ineligible=~/list.csv", "clean.fold_case=true")
    assert [row[0] for row in banned_items(spark, items, given).collect()] == [0]
    assert "1 of its ids are of no item of the lake, such as 'coffee'" in capsys.readouterr().err


def test_a_null_among_the_categories_bans_and_saves_nothing(spark, config: Callable, tmp_path: Path) -> None:
    items = items_of(spark, "0, 'tea', array('x', NULL)", "1, 'jam', array('y', NULL)")
    assert [row[0] for row in banned_items(spark, items, config("topk.categories=[x]")).collect()] == [1]
    assert [row[0] for row in banned_items(spark, items, config("topk.exclude_categories=[x]")).collect()] == [0]
    items.select("item_id", "categories").write.parquet(str(tmp_path / "items"))
    columns = {"item_id": "item_id", "categories": "categories"}
    read = read_items(spark, ItemsInput(path=str(tmp_path / "items"), format="parquet", columns=columns))
    assert {row["item_id"]: row["categories"] for row in read.collect()} == {"tea": ["x"], "jam": ["y"]}
