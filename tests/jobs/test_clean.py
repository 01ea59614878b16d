"""Days loaded into one lake, one after the other: what the tables hold after each, and what a load leaves alone.

The loads are made once (a load costs seconds); the tests look at what was noted down after each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.errors import GateRefused, InputError
from sparkcf.jobs.clean import clean_day
from sparkcf.lake.tables import LakeTables
from tests.data.inputs import write_lines

pytestmark = pytest.mark.slow

HEADER = "user,item,stars,when"
COLUMNS = "input.columns={user_id: user, item_id: item, value: stars, ts: when}"
DAY_30 = ("ann,tea,4,2024-01-30T09:00:00Z", "ann,jam,2,2024-01-30T10:00:00Z", "bob,tea,5,2024-01-30T23:00:00Z")
OVERLAP = ("ann,jam,5,2024-01-30T10:00:00Z", DAY_30[2])  # the next day's extract: one corrected, one as it was
BROKEN = "cy,tea,many,2024-01-30T09:00:00Z"


@dataclass
class State:
    """The lake after a load."""

    counts: dict[str, int]
    events: list[tuple]  # user, item, value, day and hour, ds
    users: dict[str, tuple[int, str]]  # index, first seen
    items: dict[str, tuple]  # index, first seen, title, categories, numbers
    files: dict[str, set[str]]  # of interactions, by ds
    versions: dict[str, int]


@dataclass
class Story:
    spark: object
    folder: Path
    tables: LakeTables
    said: list[str] = field(default_factory=list)
    after: dict[str, State] = field(default_factory=dict)

    def settings(self, ds: str, path: Path, *overrides: str) -> Config:
        lake = f"lake.root={self.folder / 'lake'}"
        items = "columns: {item_id: id, title: name, categories: kinds, numbers: [price]}"
        items = f"input.items={{path: {self.folder / 'items.csv'}, {items}}}"
        return load_config((), [f"ds={ds}", f"input.path={path}", lake, COLUMNS, items, *overrides])

    def load(self, name: str, ds: str, *lines: str, more: str = "") -> None:
        lines = [line + (",phone" if more else "") for line in lines]
        path = write_lines(self.folder / ds / "events.csv", HEADER + more, *lines)
        counts = clean_day(self.spark, self.settings(ds, path))["counts"]
        self.after[name] = self.look(counts)

    def look(self, counts: dict[str, int]) -> State:
        interactions = self.tables.read("interactions").selectExpr(
            "user_id", "item_id", "value", "date_format(ts, 'dd HH')", "cast(ds AS string)", "_metadata.file_name"
        )
        rows = [tuple(row) for row in interactions.collect()]
        files: dict[str, set[str]] = {}
        for row in rows:
            files.setdefault(row[4], set()).add(row[5])
        seen = "date_format(first_seen, 'dd HH')"
        users = self.tables.read("users").selectExpr("user_id", "user_idx", seen).collect()
        items = self.tables.read("items").selectExpr("item_id", "item_idx", seen, "title", "categories", "numbers")
        return State(
            counts,
            sorted(row[:5] for row in rows),
            {r[0]: (r[1], r[2]) for r in users},
            {r[0]: tuple(r)[1:] for r in items.collect()},
            files,
            self.versions(),
        )

    def versions(self) -> dict[str, int]:
        return {name: self.tables.version(name) for name in ("interactions", "users", "items", "quarantine", "runs")}


@pytest.fixture(scope="module")
def story(spark, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    story = Story(spark, folder, LakeTables(spark, str(folder / "lake")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparkcf.jobs.clean.say", story.said.append)
        tea = '" tea ","Tea, ""green""",hot|green,2.5'
        write_lines(folder / "items.csv", "id,name,kinds,price", tea, "pie,=1+1,(no genres listed),")
        story.load("first", "2024-01-30", *DAY_30, DAY_30[0], BROKEN)
        story.load("again", "2024-01-30", *DAY_30, DAY_30[0], BROKEN)
        write_lines(folder / "items.csv", "id,name,kinds,price", "tea,Green tea,,3", "pie,,,")
        fresh = ("cy,tea,1,2024-01-31T09:00:00Z", "dee,tea,1,2024-01-31T10:00:00Z")
        story.load("next", "2024-01-31", *OVERLAP, *fresh, BROKEN, more=",device")
        story.load("older", "2024-01-10", "bob,jam,3,2024-01-10T08:00:00Z", "abe,tea,3,2024-01-10T09:00:00Z")
        fixed = ("cy,tea,4,2024-01-31T09:00:00Z", "fay,jam,2,2024-01-31T11:00:00Z")
        story.load("corrected", "2024-01-31", *OVERLAP, *fixed)
        story.load("undone?", "2024-01-30", *DAY_30)
    yield story


def changes(state: State) -> tuple[int, ...]:
    return tuple(state.counts[name] for name in ("inserted", "updated", "deleted", "unchanged"))


def test_a_day_fills_every_table(story: Story) -> None:
    first = story.after["first"]
    assert first.counts == {
        **{"read": 5, "clean": 3, "exact_duplicates": 1, "superseded": 0, "quarantined": 1},
        **{"inserted": 3, "updated": 0, "deleted": 0, "unchanged": 0},
    }
    assert first.events == [
        ("ann", "jam", 2.0, "30 10", "2024-01-30"),
        ("ann", "tea", 4.0, "30 09", "2024-01-30"),
        ("bob", "tea", 5.0, "30 23", "2024-01-30"),
    ]
    assert {user: seen for user, (_, seen) in first.users.items()} == {"ann": "30 09", "bob": "30 23"}
    quarantine = story.tables.read("quarantine", first.versions["quarantine"]).selectExpr(
        "cast(ds AS string)", "reason", "raw", "source"
    )
    source = f"file:{story.folder}/2024-01-30/events.csv"
    assert [tuple(r) for r in quarantine.collect()] == [("2024-01-30", "value_not_a_number", BROKEN, source)]


def test_a_second_run_of_a_day_makes_no_new_version(story: Story) -> None:
    first, again = story.after["first"], story.after["again"]
    assert changes(again) == (0, 0, 0, 3)
    for name in ("interactions", "users", "items"):
        assert again.versions[name] == first.versions[name], name
    assert (again.events, again.users, again.items) == (first.events, first.users, first.items)


def test_overlapping_extracts_of_two_days_do_not_double_an_event(story: Story) -> None:
    assert changes(story.after["next"]) == (2, 1, 0, 1)
    assert story.after["next"].events == [
        ("ann", "jam", 5.0, "30 10", "2024-01-31"),  # moved to the day that corrected it
        ("ann", "tea", 4.0, "30 09", "2024-01-30"),
        ("bob", "tea", 5.0, "30 23", "2024-01-30"),
        ("cy", "tea", 1.0, "31 09", "2024-01-31"),
        ("dee", "tea", 1.0, "31 10", "2024-01-31"),
    ]


def test_an_older_day_is_written_after_newer_ones_which_keep_their_files(story: Story) -> None:
    before, after = story.after["next"], story.after["older"]
    assert changes(after) == (2, 0, 0, 0)
    assert [row for row in after.events if row[4] == "2024-01-10"] == [
        ("abe", "tea", 3.0, "10 09", "2024-01-10"),
        ("bob", "jam", 3.0, "10 08", "2024-01-10"),
    ]
    assert {ds: files for ds, files in after.files.items() if ds != "2024-01-10"} == before.files


def test_a_corrected_day_updates_inserts_and_deletes(story: Story) -> None:
    corrected = story.after["corrected"]
    assert changes(corrected) == (1, 1, 1, 2)
    assert [row[:3] for row in corrected.events if row[3] > "31"] == [("cy", "tea", 4.0), ("fay", "jam", 2.0)]
    assert corrected.events[:5] == [row for row in story.after["older"].events if row[0] not in ("cy", "dee")]
    quarantined = story.tables.read("quarantine", corrected.versions["quarantine"])
    assert [str(r["ds"]) for r in quarantined.collect()] == ["2024-01-30"]  # of the corrected day none is left


def test_the_rows_before_a_correction_can_still_be_read(story: Story) -> None:
    older = story.after["older"]
    version = story.tables.read("interactions", older.versions["interactions"])
    shown = version.selectExpr("user_id", "item_id", "value", "date_format(ts, 'dd HH')", "cast(ds AS string)")
    assert sorted(tuple(r) for r in shown.collect()) == older.events


def test_an_older_day_run_again_does_not_undo_what_a_newer_one_corrected(story: Story) -> None:
    assert changes(story.after["undone?"]) == (0, 0, 0, 3)
    assert story.after["undone?"].events == story.after["corrected"].events


def test_indices_are_dense_and_an_id_keeps_its_own(story: Story) -> None:
    states = list(story.after.values())
    for before, after in pairwise(states):
        for side in ("users", "items"):
            old, new = getattr(before, side), getattr(after, side)
            assert {i: new[i][0] for i in old} == {i: old[i][0] for i in old}
            assert sorted(row[0] for row in new.values()) == list(range(len(new)))
    assert set(states[-1].users) == {"ann", "bob", "cy", "dee", "abe", "fay"}  # dee's only event is gone, her id stays


def test_first_seen_only_gets_earlier(story: Story) -> None:
    seen = {name: {user: at for user, (_, at) in state.users.items()} for name, state in story.after.items()}
    assert (seen["next"]["ann"], seen["next"]["bob"]) == ("30 09", "30 23")
    assert (seen["older"]["ann"], seen["older"]["bob"]) == ("30 09", "10 08")
    assert seen["undone?"] | {"fay": "31 11"} == seen["older"] | {"fay": "31 11"}
    assert story.after["older"].items["jam"][1] == "10 08"


def test_items_take_new_attributes_and_keep_what_is_not_given_again(story: Story) -> None:
    first, after = story.after["first"].items, story.after["next"].items
    assert first["tea"][1:] == ("30 09", 'Tea, "green"', ["hot", "green"], {"price": 2.5})
    assert first["pie"][1:] == (None, "=1+1", [], {"price": None})  # never bought: no first event yet
    assert first["jam"][1:] == ("30 10", None, None, None)  # bought, but in no list of items
    assert after["tea"][1:] == ("30 09", "Green tea", ["hot", "green"], {"price": 3.0})
    assert after["pie"][1:4] == (None, "=1+1", [])


def test_runs_hold_one_row_a_load(story: Story) -> None:
    rows = story.tables.read("runs", story.after["undone?"].versions["runs"]).orderBy("started_at").collect()
    assert [(r["job"], r["state"], str(r["ds"])) for r in rows[:3]] == [
        ("clean", "cleaned", "2024-01-30"),
        ("clean", "cleaned", "2024-01-30"),
        ("clean", "cleaned", "2024-01-31"),
    ]
    assert len(rows) == len(story.after)
    expected = {"read": 5, "updated": 1, "reason:value_not_a_number": 1, "largest_user_events": 1, "user_ids_alike": 0}
    assert {name: rows[2]["counts"][name] for name in expected} == expected
    assert rows[2]["inputs"]["interactions"] == story.after["again"].versions["interactions"]


def test_a_new_column_is_noted(story: Story) -> None:
    assert [said for said in story.said if "not used" in said] == ["  note: input columns not used: device"]


def test_a_changed_schema_is_refused_and_nothing_is_written_but_the_failed_run(story: Story) -> None:
    before = story.versions()

    def refused(error: type[Exception], match: str, path: Path, *overrides: str) -> None:
        with pytest.raises(error, match=match):
            clean_day(story.spark, story.settings("2024-01-31", path, *overrides))

    narrow = write_lines(story.folder / "narrow.csv", "user,item,when", "ann,tea,2024-01-31T09:00:00Z")
    refused(InputError, r"'stars' \(input\.columns\.value\) is missing", narrow)
    refused(InputError, r"nothing\.csv", story.folder / "nothing.csv")
    nested = '{"user": {"id": "ann"}, "item": "tea", "stars": 4, "when": "2024-01-31T09:00:00Z"}'
    path = write_lines(story.folder / "nested.jsonl", nested, nested.replace("ann", "bob"))
    refused(GateRefused, "all 2 rows were rejected: malformed_line 2", path, "input.format=jsonl")
    words = {"user": ["ann"], "item": ["tea"], "stars": ["four"], "when": ["2024-01-31T09:00:00Z"]}
    pq.write_table(pa.table(words), story.folder / "words.parquet")
    kind = "input.format=parquet"
    refused(GateRefused, "all 1 rows were rejected: value_not_a_number 1", story.folder / "words.parquet", kind)
    after = story.versions()
    assert after.pop("runs") > before.pop("runs")
    assert after == before
    failed = story.tables.read("runs").where("state = 'failed'").orderBy("started_at").collect()
    assert [row["reason"].partition(":")[0] for row in failed] == ["InputError"] * 2 + ["GateRefused"] * 2
    assert "nothing.csv cannot be read as csv" in failed[1]["reason"]


def test_rejected_rows_of_any_bytes_can_be_read_without_spark(story: Story) -> None:
    broken = b"caf\xe9,tea,4,2024-03-01T09:00:00Z"
    good = "guy,tea,4,2024-03-01T09:00:00Z"
    path = write_lines(story.folder / "bytes.csv", HEADER, good, broken, good.replace("4", "ｆ"))
    clean_day(story.spark, story.settings("2024-03-01", path, "clean.max_quarantined_share=1"))
    files = [str(file) for file in (story.folder / "lake" / "quarantine" / "ds=2024-03-01").glob("*.parquet")]
    rows = pa.concat_tables(pq.ParquetFile(file).read() for file in files)
    expected = {("caf\ufffd,tea,4,2024-03-01T09:00:00Z", broken), ("guy,tea,ｆ,202ｆ-03-01T09:00:00Z", None)}
    assert set(zip(*(rows[name].to_pylist() for name in ("raw", "raw_bytes")), strict=True)) == expected
    assert sorted(rows.to_pandas()["raw"].str.len()) == [30, 31]
    assert set(duckdb.sql(f"SELECT raw, raw_bytes FROM read_parquet({files})").fetchall()) == expected


def test_a_load_that_fails_half_way_says_so_in_runs_and_leaves_interactions_alone(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = story.versions()

    def full(*_: object) -> None:
        raise OSError("no space left on /lake")

    monkeypatch.setattr("sparkcf.jobs.clean.write_quarantine", full)
    path = write_lines(story.folder / "failing.csv", HEADER, "guy,tea,4,2024-02-01T09:00:00Z")
    with pytest.raises(OSError, match="no space"):
        clean_day(story.spark, story.settings("2024-02-01", path))
    failed = story.tables.read("runs").where("ds = '2024-02-01'").collect()
    assert [(r["state"], r["reason"]) for r in failed] == [("failed", "OSError: no space left on /lake")]
    assert story.versions()["interactions"] == before["interactions"]
