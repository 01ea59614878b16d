"""Events that a later day corrects: no load takes away what another day brought, in whatever order days are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sparkcf.data.inputs import as_of
from sparkcf.jobs.clean import write_interactions
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.upgrade import apply, changes

pytestmark = pytest.mark.slow

AT = "2024-01-30T10:00:00Z"  # all events happen at once: the days are those of the loads that bring them
MON, TUE, WED = "2024-01-29", "2024-01-30", "2024-01-31"


@pytest.fixture
def load(spark, config, tmp_path: Path) -> Callable:
    """Load a day's values by user; returns every row as user: (value, device, day, what `replaced` remembers)."""
    tables = LakeTables(spark, str(tmp_path / "lake"))

    def load_day(day: str, **values: float) -> dict[str, tuple]:
        rows = [(user, float(value), day, {"device": f"{value:g}"}) for user, value in values.items()]
        frame = spark.createDataFrame(rows, "user_id string, value double, source string, context map<string,string>")
        frame = frame.coalesce(1).selectExpr("*", "'tea' AS item_id", "'buy' AS event", f"timestamp('{AT}') AS ts")
        write_interactions(tables, frame, config(f"ds={day}"))
        found = {}
        for row in tables.read("interactions").collect():
            assert row["source"] == str(row["ds"])
            before = [(str(r["ds"]), r["value"]) for r in row["replaced"] or ()]
            found[row["user_id"]] = (row["value"], row["context"]["device"], str(row["ds"]), before)
        return found

    return load_day


def test_every_earlier_day_is_remembered_until_it_is_loaded_without_the_event(load: Callable) -> None:
    load(MON, ann=1)
    load(TUE, ann=2)
    assert load(WED, ann=3)["ann"] == (3, "3", WED, [(MON, 1), (TUE, 2)])
    assert load(TUE, ann=2.5)["ann"] == (3, "3", WED, [(MON, 1), (TUE, 2.5)])
    assert load(TUE, bob=1)["ann"] == (3, "3", WED, [(MON, 1)])
    assert load(WED, bob=1)["ann"] == (1, "1", MON, [])
    assert load(MON, cy=1).keys() == {"bob", "cy"}


def test_an_earlier_day_trains_on_what_was_known_then(spark, load: Callable, tmp_path: Path) -> None:
    load(MON, ann=1, bob=4)
    load(TUE, ann=2, cy=5)
    load(WED, ann=3, bob=6, dan=7)
    table = LakeTables(spark, str(tmp_path / "lake")).read("interactions")

    def known(day: str) -> dict[str, tuple[float, str]]:
        rows = as_of(table, f"DATE'{day}'").collect()
        return {row["user_id"]: (row["value"], row["context"]["device"]) for row in rows}

    assert known(MON) == {"ann": (1, "1"), "bob": (4, "4")}
    assert known(TUE) == {"ann": (2, "2"), "bob": (4, "4"), "cy": (5, "5")}
    assert known(WED) == {"ann": (3, "3"), "bob": (6, "6"), "cy": (5, "5"), "dan": (7, "7")}


def test_a_day_that_is_loaded_late_is_remembered_too(load: Callable) -> None:
    load(WED, ann=3, bob=7)
    assert load(MON, ann=1, bob=7)["ann"] == (3, "3", WED, [(MON, 1)])
    assert load(TUE, ann=2)["ann"] == (3, "3", WED, [(MON, 1), (TUE, 2)])
    assert load(WED, bob=7) == {"ann": (2, "2", TUE, [(MON, 1)]), "bob": (7, "7", WED, [])}


def test_an_event_that_is_corrected_and_then_absent_has_its_first_value_again(
    spark, load: Callable, tmp_path: Path
) -> None:
    tables = LakeTables(spark, str(tmp_path / "lake"))  # made before events were remembered: it lacks the column
    old = [field for field in TABLES["interactions"].schema if field.name != "replaced"]
    ddl = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in old)
    spark.sql(f"CREATE TABLE delta.`{tables.path('interactions')}` ({ddl}) USING delta PARTITIONED BY (ds)")
    apply(tables, changes(tables))  # as `sparkcf upgrade` does
    load(MON, ann=1, bob=1)
    assert load(TUE, ann=2)["ann"] == (2, "2", TUE, [(MON, 1)])
    again = load(TUE, cy=5)
    assert again == {"ann": (1, "1", MON, []), "bob": (1, "1", MON, []), "cy": (5, "5", TUE, [])}
