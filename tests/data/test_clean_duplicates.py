"""Duplicates: counted, and of two values of one event the last one read stays, however Spark cuts the input."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.data import duplicates
from sparkcf.data.ingest import read_raw
from tests.data.inputs import Outcome, clean_frame, clean_input, write_lines

HEADER = "user_id,item_id,event,value,ts"
COLUMNS = "input.columns={user_id: user_id, item_id: item_id, event: event, value: value, ts: ts}"
DAY = "2024-01-31T12:00:00Z"


def write_two_files(folder: Path) -> Path:
    """Keys k0 … k9: 100 lines in the first file by name (which is written last), one more for k3 in the second."""
    late = ["k3,tea,buy,-1," + DAY, "once,tea,buy,1," + DAY, "exact,tea,buy,7.50," + DAY]
    write_lines(folder / "b.csv", HEADER, *late)
    early = [f"k{n % 10},tea,buy,{n * 37 % 101},{DAY}" for n in range(100)]
    early[40:40] = [HEADER, "exact,tea,buy,7.5," + DAY, "exact , tea,buy,7.5,2024-01-31T13:00:00+01:00"]
    early += [
        HEADER,
        "other,tea,buy,1," + DAY,
        "other,tea,look,1," + DAY,
        "other,tea,buy,1,2024-01-31T12:00:00.000001Z",
    ]
    early += [f"back,tea,buy,{value},{DAY}" for value in (2, 5, 2)]
    write_lines(folder / "a.csv", HEADER, *early)
    return folder


def expected() -> tuple[dict[str, int], list[tuple]]:
    noon = "2024-01-31T12:00:00"
    rows = [(f"k{n % 10}", "tea", "buy", float(n * 37 % 101), noon) for n in range(90, 100)]
    rows[3] = ("k3", "tea", "buy", -1.0, noon)
    rows += [("other", "tea", "buy", 1.0, noon), ("other", "tea", "look", 1.0, noon)]
    rows += [("other", "tea", "buy", 1.0, noon + ".000001")]
    rows += [("once", "tea", "buy", 1.0, noon), ("exact", "tea", "buy", 7.5, noon), ("back", "tea", "buy", 2.0, noon)]
    counts = {
        "read": 100 + 2 + 2 + 3 + 3 + 3,
        "clean": 16,
        "exact_duplicates": 2 + 1,  # two more of "exact", one more of the three "back"
        "superseded": 10 * 9 + 1 + 1,
        "quarantined": 2,
    }
    return counts, sorted(rows)


def check(outcome: Outcome) -> None:
    counts, rows = expected()
    assert outcome.rows == rows
    assert outcome.counts == counts
    assert outcome.quarantine == [("malformed_line", HEADER)] * 2  # headers after a file's first are rows of no use


LIMIT = duplicates.MOST_HASHES


@pytest.mark.parametrize(("partitions", "most"), [(1, LIMIT), (2, LIMIT), (7, 4), (2, 0)])
def test_the_last_value_read_wins_however_the_rows_are_spread(
    spark, config, tmp_path: Path, monkeypatch, partitions: int, most: int
) -> None:
    monkeypatch.setattr(duplicates, "MOST_HASHES", most)  # of repeated keys; beyond, all rows are grouped
    path = write_two_files(tmp_path / "in")
    check(clean_input(spark, config(COLUMNS, path=path), partitions))


def test_the_last_value_read_wins_where_files_are_read_in_pieces(spark, config, tmp_path: Path) -> None:
    settings = config(COLUMNS, path=write_two_files(tmp_path / "in"))
    keys = ("spark.sql.files.maxPartitionBytes", "spark.sql.files.openCostInBytes")
    before = {key: spark.conf.get(key) for key in keys}
    try:
        for key in keys:
            spark.conf.set(key, "300")
        raw, _ = read_raw(spark, settings.input, settings.input_path)
        assert raw.rdd.getNumPartitions() > 8
        check(clean_frame(raw, settings))
    finally:
        for key, value in before.items():
            spark.conf.set(key, value)
