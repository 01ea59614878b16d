"""Maintenance beside a reader and a training: dead files go, small files are joined, what can be read stays."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparkcf import Lake
from sparkcf.config.load import load_config
from sparkcf.jobs.maintain import maintain
from sparkcf.lake.frames import frame_of
from sparkcf.lake.runs import recorded_run
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.upkeep import compact

pytestmark = pytest.mark.slow

DAY = dt.date(2024, 1, 31)
LONG_AGO = dt.datetime(2020, 1, 1).timestamp()
SMALL_FILES = 6


@dataclass
class Story:
    """A lake after a `maintain`, and what was seen before it, beside it and after it."""

    tables: LakeTables
    folder: Path
    counts: dict[str, int]
    version: int  # of interactions, which a training read while `maintain` ran
    events: list[str]  # of that version, before
    answer: Any  # of a reader, before
    answers: list[Any]  # of a reader in a loop, beside it
    dead: list[Path]
    young: Path

    def rows(self, version: int | None = None) -> list[str]:
        return sorted(map(str, self.tables.read("interactions", version).collect()))


@pytest.fixture(scope="module")
def story(spark, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("maintain") / "lake"
    given = ("input.path=none", "maintain.keep_published=1", "maintain.vacuum_hours=0")
    config = load_config((), [f"ds={DAY}", f"lake.root={folder}", *given])
    tables = LakeTables(spark, str(folder))
    fill(tables)
    version, dead, young = tables.version("interactions"), [], folder / "interactions" / f"ds={DAY}" / "part-9.parquet"
    shutil.copy(next(young.parent.glob("*.parquet")), young)  # of a job that has not committed yet
    for part in (young.parent, folder / "recommendations" / "model=als" / "run_id=new"):
        for path in part.glob("part-0*.parquet"):
            os.utime(path, (LONG_AGO, LONG_AGO))
        dead.append(Path(shutil.copy2(path, part / "part-8.parquet")))  # of a job that was killed
    story = Story(tables, folder, {}, version, [], answer_of(folder), [], dead, young)
    story.events = story.rows(version)
    with recorded_run(tables, "train", config, {"interactions": version}) as training, reading(story):
        story.counts = maintain(spark, config)["counts"]
        training.update("trained")
    return story


def fill(tables: LakeTables) -> None:
    """Interactions in small files, and the lists of two published runs."""

    def append(name: str, rows: list[dict[str, Any]], files: int = 1) -> None:
        tables.append(name, frame_of(tables.spark, rows, TABLES[name].schema).repartition(files))

    at = dt.datetime(2024, 1, 30)
    event = {"event": "view", "value": 1.0, "source": "log.csv", "ds": DAY}
    ids = [(f"u{n % 3}", f"i{n % 5}") for n in range(30)]
    of_event = [{"user_id": u, "item_id": i, "ts": at + dt.timedelta(hours=n)} for n, (u, i) in enumerate(ids)]
    append("interactions", [event | row for row in of_event], SMALL_FILES)
    append("items", [{"item_id": f"i{n}", "item_idx": n, "title": f"item {n}"} for n in range(5)])
    runs = [("old", dt.datetime(2024, 1, 1)), ("new", dt.datetime(2024, 1, 2))]
    fit = {"job": "train", "model": "als", "ds": DAY, "state": "published", "config": "{}", "code_version": "1"}
    fit |= {"inputs": {}, "seed": 1, "counts": {}}
    append("runs", [fit | {"run_id": run, "started_at": day, "updated_at": day} for run, day in runs])
    of_run = {"ds": DAY, "model": "als"}
    listed = [{"user_id": f"u{u}", "position": p, "item_id": f"i{u + p}"} for u in range(3) for p in (1, 2)]
    some = {"score": 0.5, "reason": "model"}
    append("recommendations", [of_run | row | some | {"run_id": run} for run, _ in runs for row in listed])
    done = of_run | {"action": "publish", "published_by": "me", "published_at": at, "versions": {}}
    append("published", [done | {"run_id": run, "sequence": n} for n, (run, _) in enumerate(runs, 1)])


def answer_of(folder: Path) -> Any:
    lake = Lake(folder)
    return lake.recommend_rows("u1").to_pylist(), lake.history_rows("u1").to_pylist()


@contextmanager
def reading(story: Story) -> Iterator[None]:
    """A reader in a loop, until the block ends. Its answers are kept, and so are errors in place of answers."""
    over = threading.Event()

    def read() -> None:
        while not over.wait(0.1):
            try:
                story.answers.append(answer_of(story.folder))
            except Exception as error:
                story.answers.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()


def test_a_reader_beside_it_sees_the_published_run_all_the_time(story: Story) -> None:
    assert story.counts["expired_runs"] == 1  # so there was something to remove beside the reader
    assert len(story.answers) > 3 and story.answer[0] and story.answer[1]
    assert [answer for answer in story.answers if answer != story.answer] == []
    left = story.tables.read("recommendations").select("run_id").distinct().collect()
    assert [row["run_id"] for row in left] == ["new"]


def test_small_files_are_joined_and_the_rows_stay(story: Story) -> None:
    assert story.counts["joined_files"] >= SMALL_FILES - 1
    assert len(story.tables.read("interactions", story.version).inputFiles()) == SMALL_FILES
    assert len(story.tables.read("interactions").inputFiles()) == 1
    assert story.rows() == story.events and len(story.events) == 30
    newest = story.tables.version("interactions")
    assert compact(story.tables, "interactions") == 0
    assert story.tables.version("interactions") == newest


def test_the_version_that_a_training_reads_stays(story: Story) -> None:
    assert story.tables.version("interactions") > story.version
    assert story.rows(story.version) == story.events


def test_files_that_no_commit_names_go_when_they_are_old(story: Story) -> None:
    assert len(story.dead) == 2 and [path for path in story.dead if path.exists()] == []
    assert story.young.exists()
