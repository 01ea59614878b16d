"""Several models of a night: what they read alike is computed once, and the figures are those of each alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from sparkcf.config.root import Config
from sparkcf.data.pairs import liked_pairs, popularity
from sparkcf.data.split import split
from sparkcf.jobs.recommend import seen_items
from sparkcf.jobs.shared import shared_frames
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.registry import model_of
from sparkcf.ranking.evaluate import evaluate
from sparkcf.ranking.evaluate import tested_users as users_of
from tests.ranking.test_evaluate import SCHEMA, M, N, make_events, settings


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    path = str(tmp_path_factory.mktemp("events") / "rows")
    spark.createDataFrame(make_events(), SCHEMA).repartition("user_idx").write.parquet(path)
    return spark.read.parquet(path)


@pytest.fixture
def counted(rows: DataFrame, tmp_path: Path) -> tuple[DataFrame, Any]:
    """The events, and a function that tells how often they were computed since the last call."""
    folder = tmp_path / "computed"
    folder.mkdir()

    def note(batches: Iterator[Any]) -> Iterator[Any]:
        import uuid

        (folder / uuid.uuid4().hex).touch()
        yield from batches

    def times() -> int:
        found = list(folder.iterdir())
        for path in found:
            path.unlink()
        return len(found)

    return rows.coalesce(1).mapInArrow(note, rows.schema), times


def figures(events: DataFrame, nights: list[Config]) -> list[Any]:
    return [evaluate(events, model_of(night), TrainingData(events, N, M), night).figures for night in nights]


@pytest.mark.parametrize("protocol", ["q1", "q2"])
def test_a_split_is_computed_once_for_all_models_and_figures_stay_the_same(counted, protocol: str) -> None:
    events, times = counted
    nights = [settings(protocol, f"model={model}") for model in ("popularity", "ease", "popularity")]
    alone = figures(events, nights)
    assert times() == 3
    with shared_frames(events, nights):
        assert times() == 0  # nothing is computed before it is needed
        together = figures(events, nights)
        assert times() == 1
    np.testing.assert_equal(together, alone)  # exactly; replicates without a user are NaN


def test_the_frames_of_another_model_are_kept_until_the_block_ends(rows: DataFrame) -> None:
    nights = [settings("q2", "model=als"), settings("q2", "model=ease")]

    def anew() -> list[DataFrame]:
        """What the steps of the second model build."""
        parts = split(rows, model_of(nights[1]).reads, nights[1])
        frames = [parts.marked, parts.train, parts.heldout, popularity(parts.popular), users_of(parts)]
        return [*frames, popularity(liked_pairs(rows, nights[1])), seen_items(rows)]

    with shared_frames(rows, nights):
        assert all(frame.storageLevel.useMemory for frame in anew())
    assert not any(frame.storageLevel.useMemory for frame in anew())
    for one in ([nights[0]], [nights[0], settings("q4", "model=ease")]):
        with shared_frames(rows, one):
            assert not any(frame.storageLevel.useMemory for frame in anew()[:5])


def test_models_that_read_other_pairs_share_the_marked_events_alone(rows: DataFrame) -> None:
    values = settings("q2", "als.mode=explicit")
    with shared_frames(rows, [values, settings("q2", "model=ease")]):
        parts = split(rows, model_of(values).reads, values)
        assert parts.marked.storageLevel.useMemory and not parts.train.storageLevel.useMemory
