"""Raw logs as they come: CSV in every shape, JSON lines, Parquet, Delta; what is said of one that is not there."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyspark.sql import functions as F

from sparkcf.data.clean import clean
from sparkcf.data.ingest import decoded, explained, read_raw
from sparkcf.errors import InputError
from tests.data.inputs import Outcome, clean_input, write_lines

COLUMNS = "input.columns={user_id: user, item_id: item, value: stars, ts: when}"
HEADER = "user,item,stars,when"
DAY = "2024-01-31"


def fields(spark, settings) -> list[tuple]:
    """user_id, item_id, event, value and ts of every row as text, in the order of the input."""
    raw, _ = read_raw(spark, settings.input, settings.input_path)
    rows = raw.where("NOT header").orderBy("source", "block", "line").collect()
    return [tuple(r[name] for name in ("user_id", "item_id", "event", "value", "ts")) for r in rows]


BROKEN_CSV = [
    f"few,tea,{DAY}",
    f"many,tea,1,{DAY},more",
    f"comma,tea,1,{DAY},",
    f'"open,tea,1,{DAY}',
    f'open,"tea,1,{DAY}',
    f"extra,tea,1,{DAY},{DAY}",
    "",
    "   ",
    HEADER,
]


@pytest.fixture(scope="module")
def csv_outcome(spark, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A folder of CSV files that differ in everything but their meaning."""
    from sparkcf.config.load import load_config

    folder = tmp_path_factory.mktemp("csv")
    quoted = [f'"Smith, J",tea,1,{DAY}', f'"Ann ""Q"" Lee",tea,1,{DAY}', f"tail\\,tea,1,{DAY}", f'"end\\",tea,1,{DAY}']
    write_lines(folder / "1.csv", "\ufeff" + HEADER, f"bom,tea,4.5,{DAY}", *quoted, *BROKEN_CSV, end="\r\n")
    write_lines(folder / "2.csv.gz", "when,stars,extra,item,user", f"{DAY},2,x,jam,gz", f"{DAY},3,x,jam,gz2")
    (folder / "3.csv").write_bytes(b"")
    write_lines(folder / "4.csv", HEADER)
    write_lines(folder / "5 é+%20.csv", ' item ,"user",stars,when', f"tea,odd,1,{DAY}")
    (folder / "6.csv").write_bytes(f"{HEADER}\nlast,tea,1,{DAY}".encode())  # no newline at the end
    write_lines(folder / "_hidden.csv", "nothing like it")
    (folder / "7.csv").write_bytes(HEADER.encode() + b"\n" + b"caf\xe9,tea,1," + DAY.encode() + b"\n")
    overrides = ["ds=2024-01-31", f"input.path={folder}/*.csv*", COLUMNS, "clean.max_quarantined_share=1"]
    return clean_input(spark, load_config((), overrides))


def test_csv_files_with_bom_crlf_gzip_and_another_order_of_columns_are_one_input(csv_outcome: Outcome) -> None:
    names = {"bom": 4.5, "gz": 2.0, "gz2": 3.0, "odd": 1.0, "last": 1.0}
    assert {user: csv_outcome.values.get(user) for user in names} == names
    items = {row[0]: row[1] for row in csv_outcome.rows}
    assert (items["bom"], items["gz"], items["odd"]) == ("tea", "jam", "tea")


def test_csv_quotes_are_those_of_rfc_4180(csv_outcome: Outcome) -> None:
    assert {"Smith, J", 'Ann "Q" Lee', "tail\\", "end\\"} <= set(csv_outcome.values)
    assert len(csv_outcome.rows) == 9


def test_csv_lines_of_another_shape_are_malformed(csv_outcome: Outcome) -> None:
    broken = [*BROKEN_CSV, "caf\ufffd,tea,1," + DAY]
    assert csv_outcome.quarantine == sorted(("malformed_line", raw) for raw in broken)
    assert csv_outcome.counts["read"] == len(broken) + 9  # the first line of each file is no row


def test_sources_are_paths_as_people_write_them(spark, csv_outcome: Outcome) -> None:
    frame = spark.createDataFrame([(source,) for source in csv_outcome.sources], "s string")
    assert any(r[0].endswith("/5 é+%20.csv") for r in frame.select(decoded(F.col("s"))).collect())


@pytest.mark.parametrize("delimiter", [";", "::", "\\t"])
def test_csv_takes_any_delimiter(spark, config, tmp_path: Path, delimiter: str) -> None:
    text = delimiter.replace("\\t", "\t")
    lines = [text.join(cells.split(",")) for cells in (HEADER, f"ann,tea,4,{DAY}")]
    settings = config(COLUMNS, f"input.delimiter='{delimiter}'", path=write_lines(tmp_path / "in.csv", *lines))
    assert fields(spark, settings) == [("ann", "tea", None, "4", DAY)]


def test_csv_without_a_header_takes_the_names_given(spark, config, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.dat", f"{DAY}::4::ann::tea", f"{DAY}::5::bob::jam")
    names = "input.names=[when, stars, user, item]"
    settings = config(COLUMNS, "input.header=false", names, "input.delimiter='::'", path=path)
    assert fields(spark, settings) == [("ann", "tea", None, "4", DAY), ("bob", "jam", None, "5", DAY)]


def test_the_logical_date_stands_in_the_path(spark, config, tmp_path: Path) -> None:
    write_lines(tmp_path / "2024-01-30" / "in.csv", HEADER, f"old,tea,4,{DAY}")
    write_lines(tmp_path / "2024-01-31" / "in.csv", HEADER, f"new,tea,4,{DAY}")
    assert [row[0] for row in fields(spark, config(COLUMNS, path=tmp_path / "{ds}"))] == ["new"]


def test_json_names_with_dots_reach_into_objects_and_other_keys_are_noted(spark, config, tmp_path: Path) -> None:
    row = '{"who": {"id": 9007199254740993, "tags": []}, "what": {"sku": {"id": "t.1"}}, "at": "2024-01-31", "ua": "x"}'
    path = write_lines(tmp_path / "in.jsonl", "\ufeff" + row, '{"who": "ann", "what": {}, "at": "2024-01-31"}')
    columns = "input.columns={user_id: who.id, item_id: what.sku.id, ts: at}"
    settings = config(columns, "input.format=jsonl", path=path)
    assert fields(spark, settings) == [("9007199254740993", "t.1", None, None, DAY), (None, None, None, None, DAY)]
    assert set(read_raw(spark, settings.input, str(path))[1]) >= {"ua"}


MOMENT = dt.datetime(2024, 1, 31, 10, 20, 30, 500_000)
TYPED = pa.table(
    {
        "user": pa.array([2**53 + 1, -7, None], pa.int64()),
        "item": pa.array(["tea", "jam", "tea"]),
        "stars": pa.array([Decimal("4.50"), Decimal("0.25"), Decimal("1.00")], pa.decimal128(6, 2)),
        "when": pa.array([MOMENT, dt.datetime(1990, 1, 1), None], pa.timestamp("us", "UTC")),
        "wall": pa.array([MOMENT.replace(microsecond=0)] * 3, pa.timestamp("us")),
        "day": pa.array([dt.date(2024, 1, 31)] * 3),
        "float": pa.array([float("nan"), float("inf"), 0.1], pa.float32()),
        "meta": pa.array([{"device": "phone", "n": 1}] * 3),
    }
)  # fmt: skip


def test_parquet_keeps_large_ids_decimals_and_microseconds(spark, config, tmp_path: Path) -> None:
    pq.write_table(TYPED, tmp_path / "in.parquet")
    settings = config(COLUMNS, "input.format=parquet", "clean.max_quarantined_share=1", path=tmp_path / "in.parquet")
    outcome = clean_input(spark, settings)
    assert outcome.rows == [
        ("-7", "jam", "rating", 0.25, "1990-01-01T00:00:00"),
        ("9007199254740993", "tea", "rating", 4.5, "2024-01-31T10:20:30.500000"),
    ]
    assert outcome.reasons == {"missing_user_id": 1}
    assert '"item":"tea"' in (outcome.quarantine[0][1] or "")


def test_parquet_dates_floats_and_fields_of_structs_are_read_as_text(spark, config, tmp_path: Path) -> None:
    pq.write_table(TYPED, tmp_path / "in.parquet")
    columns = "input.columns={user_id: meta.device, item_id: meta.n, event: wall, value: float, ts: day}"
    settings = config(columns, "input.format=parquet", path=tmp_path / "in.parquet")
    wall = "2024-01-31 10:20:30"
    assert fields(spark, settings) == [("phone", "1", wall, value, DAY) for value in ("NaN", "Infinity", "0.1")]


def test_delta_input_is_read_at_its_newest_version_only(spark, config, tmp_path: Path) -> None:
    columns = TYPED.select(["user", "item", "stars", "when"])
    write_deltalake(tmp_path / "in", columns)
    write_deltalake(tmp_path / "in", columns.slice(1, 1), mode="overwrite")
    settings = config(COLUMNS, "input.format=delta", path=tmp_path / "in")
    assert fields(spark, settings) == [("-7", "jam", None, "0.25", "1990-01-01T00:00:00.000000Z")]


def refused(spark, settings, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_raw(spark, settings.input, settings.input_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "delta"])
def test_an_input_that_is_not_there_is_named(spark, config, tmp_path: Path, kind: str) -> None:
    refused(
        spark, config(f"input.format={kind}", path=tmp_path / "none"), rf"input\.path={tmp_path}/none cannot be read"
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_input_of_empty_files_is_refused(spark, config, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").write_bytes(b"")
    refused(spark, config(f"input.format={kind}", path=tmp_path / "in"), "every file is empty")


def test_an_input_of_a_header_alone_has_no_rows(spark, config, tmp_path: Path) -> None:
    settings = config(path=write_lines(tmp_path / "in.csv", "user_id,item_id,ts"))
    raw, _ = read_raw(spark, settings.input, settings.input_path)
    with pytest.raises(InputError, match="no rows"):
        clean(raw, settings.input, settings.clean, settings.ds)


def test_a_missing_column_is_named_with_those_there_are(spark, config, tmp_path: Path) -> None:
    said = r"'stars' \(input\.columns\.value\) is missing in .*: it has \['user', 'item', 'when'\]"
    path = write_lines(tmp_path / "in.csv", "user,item,when", f"ann,tea,{DAY}")
    refused(spark, config(COLUMNS, path=path), said)
    pq.write_table(TYPED.select(["user", "item", "when"]), tmp_path / "in.parquet")
    refused(spark, config(COLUMNS, "input.format=parquet", path=tmp_path / "in.parquet"), said)


def test_a_column_that_is_empty_in_every_json_line_is_taken_for_a_missing_one(spark, config, tmp_path: Path) -> None:
    lines = ['{"user": "ann", "item": "tea", "rating": 4, "when": "2024-01-31"}', '{"user": "bob", "item": "tea"}']
    settings = config(COLUMNS, "input.format=jsonl", path=write_lines(tmp_path / "in.jsonl", *lines))
    raw, _ = read_raw(spark, settings.input, settings.input_path)
    with pytest.raises(InputError, match=r"'stars' \(input\.columns\.value\) is empty in all 2 rows"):
        clean(raw, settings.input, settings.clean, settings.ds)


def test_a_column_of_a_type_that_is_no_text_number_or_time_is_refused(spark, config, tmp_path: Path) -> None:
    pq.write_table(TYPED, tmp_path / "in.parquet")
    columns = "input.columns={user_id: meta, item_id: item, ts: when}"
    refused(
        spark,
        config(columns, "input.format=parquet", path=tmp_path / "in.parquet"),
        r"'meta' \(input\.columns\.user_id\) has type struct<device:string,n:bigint>",
    )


def test_files_whose_first_lines_all_differ_have_no_header(spark, config, tmp_path: Path) -> None:
    for n in range(40):
        write_lines(tmp_path / "in" / f"{n}.csv", f"u{n},tea,4,{DAY}")
    refused(spark, config(COLUMNS, path=tmp_path / "in"), "40 different first lines in 40 files.*input.header=false")


def test_what_is_no_parquet_file_is_said_to_be_none(spark, config, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.parquet", "user,item,when", "not parquet at all, not even nearly")
    refused(spark, config(COLUMNS, "input.format=parquet", path=path), r"in\.parquet cannot be read as parquet")


def test_a_compressed_file_that_is_cut_off_is_an_input_error(spark, config, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.csv.gz", HEADER, *[f"u{n},i{n * n % 1009},4,{DAY}" for n in range(3000)])
    path.write_bytes(path.read_bytes()[:6000])
    settings = config(COLUMNS, path=path)
    raw, _ = read_raw(spark, settings.input, settings.input_path)
    with pytest.raises(InputError, match=r"in\.csv\.gz: a file is cut off.*Unexpected end"), explained(str(path)):
        clean(raw, settings.input, settings.clean, settings.ds)
