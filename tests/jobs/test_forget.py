"""A user who is forgotten is in no table, in no later load and, after maintain, in no file."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.errors import ConfigError, ConflictError, NotFoundError, NothingNew
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.forget import check_request, forget_users
from sparkcf.jobs.maintain import maintain
from sparkcf.jobs.nightly import nightly
from sparkcf.jobs.publish import rollback
from sparkcf.lake.published import append_published
from sparkcf.lake.runs import recorded_run, start_run
from sparkcf.lake.schemas import PER_USER
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.traces import Traces

pytestmark = pytest.mark.slow  # their lake is that of a whole night

WHO = "zoë-7f3a@example"
OTHER = "31"  # a number that is also an item's id, a day of the month, and part of other numbers
USERS = [WHO, OTHER, *(f"u{n}" for n in range(28))]


def log_of(users: list[str], folder: Path, seed: int = 1, bad_item: str = OTHER) -> Path:
    """A log in which every user has ten of fifteen items, some of them twice; items are numbers too."""
    random, lines = np.random.default_rng(seed), ["user_id,item_id,rating,timestamp"]
    for user in users:
        for item in random.choice(15, 10, replace=False):
            lines.append(f"{user},{item + 30},{random.integers(1, 6)},{1600000000 + item}")
    lines += [f"{WHO},31,no number,1600000000", f"garbage of {WHO} here", f"x,{bad_item},2,never"]
    path = folder / f"log{seed}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable, Path]:
    """A lake after a night of two models, users with attributes among them."""
    folder = tmp_path_factory.mktemp("forget")
    people, log = folder / "users.csv", log_of(USERS, folder)
    people.write_text("user_id,job\n" + "\n".join(f"{user},baker" for user in USERS) + "\n")

    def build(*overrides: str):
        base = [
            *("ds=2024-01-31", f"input.path={log}", f"lake.root={folder / 'lake'}"),
            *("input.columns.value=rating", "input.columns.ts=timestamp", "input.ts_formats=[epoch_s]"),
            *(f"input.users.path={people}", "input.users.columns.attributes=[job]", "evaluation.bootstrap=20"),
            *("models=[popularity, als]", "als.rank=4", "als.iterations=2", "evaluation.protocol=q2"),
            *("gate.allow_below_popularity=true", "gate.at=10", "topk.k=5", "clean.max_quarantined_share=0.5"),
        ]
        return load_config((), [*base, *overrides])

    nightly(spark, build(f"topk.users=['{WHO}', u1, u2, '{OTHER}']"))
    return build, folder / "lake"


def naming(lake: Path, word: str) -> list[str]:
    """Files that hold the word, by another way than the job's: all texts of Parquet, printed, and plain bytes."""
    found = []
    for path in sorted(p for p in lake.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
            data += repr(rows).encode() + str([row.get("raw_bytes") for row in rows]).encode()
        if word.encode() in data or word.encode("unicode_escape") in data:
            found.append(str(path.relative_to(lake)))
    return found


def test_forgotten_users_are_in_no_table_and_after_maintain_in_no_file(spark, lake) -> None:
    build, folder = lake
    tables = LakeTables(spark, str(folder))
    index = {row["user_id"]: row["user_idx"] for row in tables.read("users").collect()}
    rows = {name: tables.read(name).count() for name in ("quarantine", "interactions")}
    assert any("recommendations" in name for name in naming(folder, WHO))
    config = build("forget.users=['zoë-7f3a@example', 31]")
    assert WHO not in config.to_json() and WHO not in config.shown()

    done = forget_users(spark, config)
    assert done["counts"]["requested"] == done["counts"]["users"] == 2 and done["counts"]["interactions"] == 20
    for name in PER_USER:
        assert tables.read(name).where(F.col("user_id").isin(WHO, OTHER)).isEmpty(), name
    assert tables.read("interactions").count() == rows["interactions"] - 20
    left = tables.read("quarantine")
    assert [row["raw"] for row in left.collect()] == [None] * rows["quarantine"] == [None] * 3  # 31 may be the user
    assert done["traces"]  # the files of earlier versions are there until maintain
    assert len(done["trained_with"]) == 2
    (audit,) = tables.read("forgotten").where(f"user_idx = {index[WHO]}").collect()
    assert audit["counts"]["interactions"] == 10 and audit["counts"]["users"] == 1 and audit["purged_at"] is None

    with pytest.raises(NothingNew, match=r"forgotten before: [0-9]+ of [0-9,]+ files still name"):
        forget_users(spark, config)
    maintain(spark, build("maintain.purge_hours=24"))
    assert naming(folder, WHO)  # not yet: a night may still read them
    done = maintain(spark, build("maintain.purge_hours=0"))
    assert done["counts"]["purged_users"] == 2
    with pytest.raises(NothingNew, match=r"none of [0-9,]+ files names one of them"):
        forget_users(spark, config)
    assert naming(folder, WHO) == []
    assert tables.read("recommendations").where("user_id = 'u1'").count() == 10  # of two models


def test_later_loads_keep_them_out_and_their_index_is_never_given_again(spark, lake, tmp_path: Path) -> None:
    build, folder = lake
    tables = LakeTables(spark, str(folder))
    largest = tables.read("users").agg(F.max("user_idx")).first()[0]
    last = tables.read("users").where(f"user_idx = {largest}").first()["user_id"]
    forget_users(spark, build(f"forget.users=['{last}', '{WHO}']"))
    log = log_of([WHO, last, "u1", "newcomer"], tmp_path, seed=2, bad_item="99")
    counts = clean_day(spark, build(f"input.path={log}", "ds=2024-02-01"))["counts"]
    assert counts["forgotten"] == 2 * 10 + 1  # with the line of WHO whose value is bad
    assert counts["read"] == counts["clean"] + counts["quarantined"] + counts["forgotten"] == 43
    users = {row["user_id"]: row["user_idx"] for row in tables.read("users").collect()}
    assert last not in users and WHO not in users and users["newcomer"] > largest
    lines = [row["raw"] for row in tables.read("quarantine").where("ds = DATE'2024-02-01'").collect()]
    assert sorted(lines, key=str) == [None, "x,99,2,never"]  # the first one named WHO


def test_maintain_waits_for_a_run_in_progress_before_it_removes_files_at_once(spark, lake) -> None:
    build, folder = lake
    tables = LakeTables(spark, str(folder))
    forget_users(spark, build("forget.users=[u20]"))
    with (
        recorded_run(tables, "clean", build(), {}) as busy,
        pytest.raises(ConflictError, match=f"run {busy.run_id} is in progress, maintain.purge_hours=0 would"),
    ):
        maintain(spark, build("maintain.purge_hours=0"))
    busy.update("cleaned")
    # A night that ran beside the forget has written the user again: with another index, and named in its settings.
    row = tables.read("users").where("user_id = 'u1'")
    tables.append("users", row.withColumns({"user_id": F.lit("u20"), "user_idx": F.lit(77)}))
    recorded = start_run(tables, "clean", build("topk.users=[u20, u1]"), {})
    recorded.update("cleaned")
    assert maintain(spark, build("maintain.purge_hours=0"))["counts"]["purged_users"] >= 1
    assert tables.read("users").where("user_id = 'u20'").isEmpty() and naming(folder, "u20") == []
    assert tables.read("forgotten").agg(F.max("user_idx")).first()[0] == 77


def test_a_request_needs_users() -> None:
    with pytest.raises(ConfigError, match=r"no users to forget: set forget\.users=\[ID, …\] or forget\.path=TABLE"):
        check_request(load_config((), ["ds=2024-01-31", "input.path=none"]))


@pytest.mark.parametrize(
    "text,name,expected",
    [
        ("31", "user_id", True),
        ("31", "item_id", False),
        ("2024-01-31", "config", False),
        ("x,31,2", "raw", True),
        ("x,310,2", "raw", False),
        ("by zoë-7f3a@example.", "reason", True),
        ("by azoë-7f3a@example.", "reason", False),
        ("by zoë-7f3a@example.", "title", False),
    ],
)
def test_ids_are_found_as_values_and_as_words(text: str, name: str, expected: bool) -> None:
    assert Traces([WHO, OTHER]).in_value({name: [text]}) is expected
    assert Traces([WHO, OTHER]).in_value({"add": {"stats": f'{{"minValues": {{"{name}": "{text}"}}}}'}}) is expected


def test_an_id_is_no_pattern() -> None:
    assert not Traces(["a.c"]).in_text("abc", "reason")
    assert Traces(["a.c"]).in_text("(a.c)", "reason")


def test_maintain_removes_runs_that_cannot_be_rolled_back_to(spark, lake) -> None:
    build, folder = lake
    tables, config = LakeTables(spark, str(folder)), build("model=als", "maintain.keep_published=1")
    (old,) = tables.read("runs").where("job = 'train' AND model = 'als'").collect()
    tables.update("runs", f"run_id = '{old['run_id']}'", {"started_at": F.lit("2024-01-01T00:00:00Z")})
    of_run = f"run_id = '{old['run_id']}'"
    assert maintain(spark, config)["counts"]["expired_runs"] == 0  # it is the published one
    append_published(tables, "als", config.ds, "another", "publish", 2)
    for name, age in {"als-0123456789abcdef": 1e9, "als-0123456789abcdef-q2": time.time(), "theirs": 1e9}.items():
        file = folder / "_progress" / name / "sweep.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        os.utime(file, (age, age))
    done = maintain(spark, config)["counts"]
    assert done["expired_runs"] == 1 and done["checkpoints"] == 1
    assert sorted(path.name for path in (folder / "_progress").iterdir()) == ["als-0123456789abcdef-q2", "theirs"]
    assert (
        tables.read("recommendations").where(of_run).isEmpty() and tables.read("user_factors").where(of_run).isEmpty()
    )
    assert not tables.read("recommendations").isEmpty()  # of the other model
    assert tables.read("runs").where(of_run).first()["state"] == "expired"
    with pytest.raises(NotFoundError, match=f"run {old['run_id']} is expired: a run that is published or recommended"):
        rollback(spark, config)


def test_an_id_is_found_as_json_escapes_it_and_in_any_case_where_case_is_folded() -> None:
    assert Traces([WHO]).in_text('{"user": "zo\\u00eb-7f3a@example", "item": 3', "raw")
    assert Traces([WHO], fold_case=True).in_text("ZOË-7F3A@example,3,bad", "raw")
    assert not Traces([WHO]).in_text("ZOË-7F3A@example,3,bad", "raw")
