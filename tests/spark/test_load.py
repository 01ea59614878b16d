"""A day loaded into the lake: what the tables hold, and what a second, an older or a corrected load changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.errors import GateRefused, InputError
from sparkcf.lake import LakeTables
from sparkcf.load import clean_day
from tests.spark.inputs import write_lines

HEADER = "user,item,stars,when"
VALUE = "input.columns={user_id: user, item_id: item, value: stars, ts: when}"
TABLES = ("interactions", "users", "items", "quarantine", "runs")


class Shop:
    """A lake of its own, and days of CSV lines loaded into it."""

    def __init__(self, spark, config, folder: Path) -> None:
        self.spark, self.config, self.folder = spark, config, folder
        self.tables = LakeTables(spark, config().lake.root)

    def settings(self, ds: str, path: Path, *overrides: str):
        return self.config(f"ds={ds}", VALUE, *overrides, path=path)

    def load(self, ds: str, *lines: str, overrides: tuple[str, ...] = (), name: str = "events.csv") -> dict:
        path = write_lines(self.folder / ds / name, HEADER, *lines)
        return clean_day(self.spark, self.settings(ds, path, *overrides))["counts"]

    def versions(self, *names: str) -> tuple[int, ...]:
        return tuple(self.tables.version(name) for name in names)

    def events(self, version: int | None = None) -> list[tuple]:
        rows = self.tables.read("interactions", version).selectExpr(
            "user_id", "item_id", "value", "date_format(ts, 'dd HH:mm') AS ts", "cast(ds AS string) AS ds"
        )
        return sorted(tuple(r) for r in rows.collect())

    def ids(self, side: str) -> dict[str, int]:
        return {r[0]: r[1] for r in self.tables.read(f"{side}s").select(f"{side}_id", f"{side}_idx").collect()}

    def first_seen(self) -> dict[str, str]:
        rows = self.tables.read("users").selectExpr("user_id", "date_format(first_seen, 'yyyy-MM-dd HH:mm')")
        return dict(tuple(r) for r in rows.collect())


@pytest.fixture
def shop(spark, config, tmp_path: Path) -> Shop:
    return Shop(spark, config, tmp_path)


def assert_dense(ids: dict[str, int]) -> None:
    assert sorted(ids.values()) == list(range(len(ids)))


def test_a_day_fills_every_table_and_a_second_run_of_it_makes_no_new_version(shop: Shop) -> None:
    lines = ("ann,tea,4,2024-01-30T09:00:00Z", "ann,jam,2.5,2024-01-30T10:00:00Z", "bob,tea,5,2024-01-31T23:59:00Z")
    broken = "cy,tea,many,2024-01-30T09:00:00Z"
    counts = shop.load("2024-01-31", *lines, lines[0], broken)
    assert counts == {
        **{"read": 5, "clean": 3, "exact_duplicates": 1, "superseded": 0, "quarantined": 1},
        **{"inserted": 3, "updated": 0, "deleted": 0, "unchanged": 0},
    }
    expected = [
        ("ann", "jam", 2.5, "30 10:00", "2024-01-31"),
        ("ann", "tea", 4.0, "30 09:00", "2024-01-31"),
        ("bob", "tea", 5.0, "31 23:59", "2024-01-31"),
    ]
    assert shop.events() == expected
    assert shop.ids("user").keys() == {"ann", "bob"}
    assert_dense(shop.ids("item"))
    quarantined = shop.tables.read("quarantine").selectExpr("cast(ds AS string)", "reason", "raw", "source").collect()
    source = f"file://{shop.folder}/2024-01-31/events.csv"
    assert [tuple(r) for r in quarantined] == [("2024-01-31", "value_not_a_number", broken, source)]
    run = shop.tables.read("runs").first()
    assert (run["job"], run["state"], run["counts"]["clean"]) == ("clean", "cleaned", 3)
    assert run["counts"]["reason:value_not_a_number"] == 1

    before = shop.versions("interactions", "users", "items")
    again = shop.load("2024-01-31", *lines, lines[0], broken)
    assert (again["inserted"], again["unchanged"]) == (0, 3)
    assert shop.versions("interactions", "users", "items") == before
    assert shop.events() == expected
    assert shop.tables.read("quarantine").count() == 1


def test_ids_keep_their_index_and_new_ones_are_appended(shop: Shop) -> None:
    for ds, users in (("2024-01-01", "m"), ("2024-01-02", "ma"), ("2024-01-03", "zbm")):
        before = shop.ids("user")
        shop.load(ds, *[f"{u},tea,4,{ds}T09:00:00Z" for u in users])
        after = shop.ids("user")
        assert {u: after[u] for u in before} == before
        assert_dense(after)
    assert set(shop.ids("user")) == set("amzb")


def test_first_seen_only_gets_earlier(shop: Shop) -> None:
    shop.load("2024-01-05", "ann,tea,4,2024-01-05T09:00:00Z", "bob,tea,4,2024-01-05T10:00:00Z")
    shop.load("2024-01-06", "ann,tea,4,2024-01-06T09:00:00Z")
    assert shop.first_seen() == {"ann": "2024-01-05 09:00", "bob": "2024-01-05 10:00"}
    shop.load("2024-01-03", "bob,jam,4,2024-01-02T08:00:00Z")
    assert shop.first_seen() == {"ann": "2024-01-05 09:00", "bob": "2024-01-02 08:00"}
    assert_dense(shop.ids("user"))


def test_an_older_day_is_written_after_a_newer_one_which_stays_as_it_was(shop: Shop) -> None:
    shop.load("2024-01-09", "ann,tea,4,2024-01-09T09:00:00Z")
    files = shop.tables.read("interactions").where("ds = '2024-01-09'").inputFiles()
    shop.load("2024-01-03", "ann,tea,3,2024-01-03T09:00:00Z", "bob,jam,2,2024-01-03T09:00:00Z")
    assert [e[0] + e[4] for e in shop.events()] == ["ann2024-01-03", "ann2024-01-09", "bob2024-01-03"]
    assert shop.tables.read("interactions").where("ds = '2024-01-09'").inputFiles() == files


def test_a_corrected_day_is_updated_and_its_earlier_version_can_still_be_read(shop: Shop) -> None:
    keep, fix = "ann,tea,4,2024-01-31T09:00:00Z", "bob,tea,1,2024-01-31T10:00:00Z"
    shop.load("2024-01-30", "ann,jam,2,2024-01-30T09:00:00Z")
    shop.load("2024-01-31", keep, fix, "cy,tea,1,2024-01-31T11:00:00Z", "cy,jam,oops,2024-01-31T11:00:00Z")
    old_version, old = shop.tables.version("interactions"), shop.events()
    counts = shop.load(
        "2024-01-31", keep, fix.replace(",1,", ",5,"), "dee,tea,3,2024-01-31T12:00:00Z", overrides=("seed=7",)
    )
    assert {k: counts[k] for k in ("inserted", "updated", "deleted", "unchanged")} == {
        **{"inserted": 1, "updated": 1, "deleted": 1, "unchanged": 1}
    }
    assert shop.events() == [
        ("ann", "jam", 2.0, "30 09:00", "2024-01-30"),
        ("ann", "tea", 4.0, "31 09:00", "2024-01-31"),
        ("bob", "tea", 5.0, "31 10:00", "2024-01-31"),
        ("dee", "tea", 3.0, "31 12:00", "2024-01-31"),
    ]
    assert shop.tables.read("quarantine").count() == 0  # the day's rejects are those of its newest run
    assert shop.events(old_version) == old
    assert shop.ids("user").keys() == {"ann", "bob", "cy", "dee"}  # an id is never forgotten by a load


def test_overlapping_extracts_of_two_days_do_not_double_an_event(shop: Shop) -> None:
    late = "ann,tea,4,2024-01-30T23:00:00Z"
    shop.load("2024-01-30", late, "ann,jam,2,2024-01-30T09:00:00Z")
    counts = shop.load("2024-01-31", late, "ann,jam,5,2024-01-30T09:00:00Z", "ann,tea,1,2024-01-31T09:00:00Z")
    assert (counts["inserted"], counts["updated"], counts["unchanged"]) == (1, 1, 1)
    after = [
        ("ann", "jam", 5.0, "30 09:00", "2024-01-31"),  # a newer day corrects it
        ("ann", "tea", 1.0, "31 09:00", "2024-01-31"),
        ("ann", "tea", 4.0, "30 23:00", "2024-01-30"),
    ]
    assert shop.events() == after
    shop.load("2024-01-30", late, "ann,jam,2,2024-01-30T09:00:00Z")  # an older day does not undo it
    assert shop.events() == after


def test_items_take_their_attributes_and_keep_what_is_not_given_again(shop: Shop) -> None:
    def load(*items: str) -> dict[str, tuple]:
        path = write_lines(shop.folder / "items.csv", "id,name,kinds,price", *items)
        given = (
            f"input.items={{path: {path}, columns: {{item_id: id, title: name, categories: kinds, numbers: [price]}}}}"
        )
        shop.load("2024-01-31", "ann,tea,4,2024-01-31T09:00:00Z", overrides=(given,))
        rows = shop.tables.read("items").drop("item_idx").collect()
        return {r["item_id"]: (r["title"], r["categories"], r["numbers"], r["first_seen"] is None) for r in rows}

    tea = '" tea ","Tea, ""green""",hot|green,2.5'
    assert load(tea, "pie,=1+1,(no genres listed),") == {
        "tea": ('Tea, "green"', ["hot", "green"], {"price": 2.5}, False),
        "pie": ("=1+1", [], {"price": None}, True),  # never bought: no first event yet
    }
    before = shop.ids("item")
    after = load("tea,Green tea,,3", "pie,,,")
    assert after["tea"] == ("Green tea", ["hot", "green"], {"price": 3.0}, False)
    assert after["pie"][:2] == ("=1+1", [])
    assert shop.ids("item") == before
    version = shop.tables.version("items")
    load("tea,Green tea,,3", "pie,,,")
    assert shop.tables.version("items") == version


def test_an_input_that_cannot_be_loaded_writes_nothing(shop: Shop) -> None:
    shop.load("2024-01-30", "ann,tea,4,2024-01-30T09:00:00Z")
    before = shop.versions(*TABLES)
    with pytest.raises(InputError, match="no rows"):
        shop.load("2024-01-31")
    with pytest.raises(GateRefused, match=r"100.0%|all 2 rows.*unparseable_timestamp 2"):
        shop.load("2024-01-31", "ann,tea,4,tomorrow", "bob,tea,4,never")
    missing = shop.settings("2024-01-31", shop.folder / "nothing.csv")
    with pytest.raises(InputError, match=r"nothing\.csv"):
        clean_day(shop.spark, missing)
    assert shop.versions(*TABLES) == before


def test_a_new_column_is_noted_and_a_dropped_one_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(shop.folder / "wider.csv", HEADER + ",device,zone", "ann,tea,4,2024-01-31T09:00:00Z,phone,2")
    clean_day(shop.spark, shop.settings("2024-01-31", path))
    assert "columns not used: device, zone" in capsys.readouterr().err
    before = shop.versions(*TABLES)
    path = write_lines(shop.folder / "narrower.csv", "user,item,when", "ann,tea,2024-01-31T09:00:00Z")
    with pytest.raises(InputError, match=r"'stars' \(input.columns.value\) is missing"):
        clean_day(shop.spark, shop.settings("2024-01-31", path))
    assert shop.versions(*TABLES) == before


def test_a_load_that_fails_half_way_says_so_in_runs_and_leaves_interactions_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.load("2024-01-30", "ann,tea,4,2024-01-30T09:00:00Z")
    version = shop.tables.version("interactions")

    def full(*_: object) -> None:
        raise OSError("no space left on /lake")

    monkeypatch.setattr("sparkcf.load.write_quarantine", full)
    with pytest.raises(OSError, match="no space"):
        shop.load("2024-01-31", "bob,tea,4,2024-01-31T09:00:00Z")
    failed = shop.tables.read("runs").where("ds = '2024-01-31'").collect()
    assert [(r["state"], r["reason"]) for r in failed] == [("failed", "OSError: no space left on /lake")]
    assert shop.tables.version("interactions") == version
    monkeypatch.undo()
    shop.load("2024-01-31", "bob,tea,4,2024-01-31T09:00:00Z")
    assert [e[0] for e in shop.events()] == ["ann", "bob"]
    assert_dense(shop.ids("user"))
