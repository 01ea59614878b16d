"""What is left of forgotten users after a forget that was stopped, or beside one, is removed later."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkcf.errors import ConflictError, InputError
from sparkcf.jobs import forget as forget_job
from sparkcf.jobs.forget import forget_users
from sparkcf.jobs.maintain import _check_idle, maintain
from sparkcf.lake.frames import frame_of
from sparkcf.lake.runs import recorded_run
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables

FM = ("model=fm", "fm.fields=[{name: user, of: user}, {name: item, of: item}]")


def add_users(tables: LakeTables, *users: tuple[str, int]) -> None:
    rows = [{"user_id": user, "user_idx": index} for user, index in users]
    tables.append("users", frame_of(tables.spark, rows, TABLES["users"].schema))


def add_parameters(tables: LakeTables, config, *indices: int) -> None:
    """A run of a factorization machine with parameters of users and, by the same indices, of items."""
    with recorded_run(tables, "train", config, {}) as run:
        named = {"factor": [0.5], "bias": 0.1, "model": "fm", "run_id": run.run_id}
        rows = [named | {"field": field, "feature_idx": i} for field in ("user", "item") for i in indices]
        tables.append("feature_factors", frame_of(tables.spark, rows, TABLES["feature_factors"].schema))
        run.update("trained")


def parameters(tables: LakeTables) -> list[tuple[str, int]]:
    rows = tables.read("feature_factors").select("field", "feature_idx").distinct().collect()
    return sorted((row["field"], row["feature_idx"]) for row in rows)


def test_a_forget_that_was_stopped_removes_the_parameters_when_it_is_repeated(
    spark, config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config("forget.users=[ann]", *FM)
    tables = LakeTables(spark, wanted.lake.root)
    add_users(tables, ("ann", 0), ("bob", 1))
    add_parameters(tables, wanted, 0, 1)

    def stopped(*_: object) -> int:
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(forget_job, "remove_parameters", stopped)
        with pytest.raises(RuntimeError, match="stopped"):
            forget_users(spark, wanted)
    assert tables.read("users").where("user_id = 'ann'").isEmpty()
    assert forget_users(spark, wanted)["counts"]["feature_factors"] == 1
    assert parameters(tables) == [("item", 0), ("item", 1), ("user", 1)]


def test_maintain_removes_the_parameters_and_packed_rows_of_a_night_beside_the_forget(spark, config: Callable) -> None:
    wanted = config("forget.users=[ann]", *FM)
    tables = LakeTables(spark, wanted.lake.root)
    add_users(tables, ("ann", 0), ("bob", 1))
    forget_users(spark, wanted)
    add_parameters(tables, wanted, 0, 1)
    add_users(tables, ("ann", 2))
    add_parameters(tables, wanted, 1, 2)
    row = "0 AS user_idx, x'' AS items, x'' AS values, 0 AS count, 'train' AS split, 'of-ann' AS snapshot"
    tables.append("user_rows", spark.sql(f"SELECT {row}"))
    maintain(spark, wanted)
    assert parameters(tables) == [("item", 0), ("item", 1), ("item", 2), ("user", 1)]
    assert tables.read("users").select("user_id").collect() == [("bob",)]
    assert tables.read("user_rows").isEmpty()


def test_files_do_not_go_at_once_while_a_run_waits_for_its_publication(spark, config: Callable) -> None:
    wanted = config("maintain.purge_hours=0", *FM)
    tables = LakeTables(spark, wanted.lake.root)
    with recorded_run(tables, "train", wanted, {}) as run:
        run.update("trained")
    now = dt.datetime.now(dt.UTC)
    said = f"run {run.run_id} is trained and not published: .*: publish it, wait until it is a day old, or set "
    with pytest.raises(ConflictError, match=said):
        _check_idle(tables, wanted, "own", now)
    _check_idle(tables, wanted, "own", now + dt.timedelta(hours=25))
    _check_idle(tables, config("maintain.purge_hours=24"), "own", now)
    run.update("published")
    _check_idle(tables, wanted, "own", now)


def test_a_request_whose_ids_are_all_empty_is_an_error_and_writes_nothing(
    spark, config: Callable, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"forget\.users and forget\.path name no user"):
        forget_users(spark, config("forget.users=['  ', 'NULL']"))
    assert not (tmp_path / "lake").exists()
