"""Inputs without timestamps, odd names of columns, tables of attributes in any shape; hints for what was misread."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkcf.data.attributes import read_items, read_users
from sparkcf.data.clean import clean
from sparkcf.data.fields import parse
from sparkcf.data.ingest import explained, read_raw
from sparkcf.errors import GateRefused, InputError
from tests.data.inputs import clean_input, write_lines

DAY = dt.date(2024, 1, 31)
PAIRS = [("ann", "tea"), ("bob", "jam"), ("ann", "tea")]
COLUMNS = "input.columns={user_id: user, item_id: item, ts: null}"


def write_pairs(folder: Path, kind: str) -> tuple[Path, list[str]]:
    """The pairs in a file of a kind, and how it is read."""
    lines = {sign: [sign.join(pair) for pair in PAIRS] for sign in (",", "\t", " ")}
    bare = ["input.header=false", "input.names=[user, item]"]
    if kind == "parquet":
        pq.write_table(pa.table(dict(zip(("user", "item"), zip(*PAIRS, strict=True), strict=True))), folder / "in")
        return folder / "in", ["input.format=parquet"]
    if kind == "jsonl":
        rows = [f'{{"user": "{user}", "item": "{item}"}}' for user, item in PAIRS]
        return write_lines(folder / "in", *rows), ["input.format=jsonl"]
    if kind == "headed":
        return write_lines(folder / "in", "user,item", *lines[","]), []
    sign, name = {"tabs": ("\t", "\\t"), "spaces": (" ", " ")}[kind]
    return write_lines(folder / "in", *lines[sign]), [*bare, f"input.delimiter='{name}'"]


@pytest.mark.parametrize("kind", ["headed", "tabs", "spaces", "jsonl", "parquet"])
def test_without_timestamps_an_event_is_of_the_day_of_the_load(spark, config, tmp_path: Path, kind: str) -> None:
    path, given = write_pairs(tmp_path, kind)
    settings = config(COLUMNS, *given, path=path)
    raw, _ = read_raw(spark, settings.input, str(path))
    rows = parse(raw, settings.input, settings.clean, DAY).where("NOT header AND NOT malformed")
    got = rows.selectExpr("user_id", "item_id", "CAST(ts AS string)").collect()
    assert sorted(tuple(r) for r in got) == sorted((*pair, "2024-01-31 00:00:00") for pair in PAIRS)


def test_without_timestamps_a_pair_counts_once_a_day(spark, config, tmp_path: Path) -> None:
    path, _ = write_pairs(tmp_path, "headed")
    outcome = clean_input(spark, config(COLUMNS, path=path))
    midnight = "2024-01-31T00:00:00"
    assert outcome.rows == [("ann", "tea", "rating", 1.0, midnight), ("bob", "jam", "rating", 1.0, midnight)]
    assert outcome.counts["exact_duplicates"] == 1


def read_fields(spark, settings) -> list[tuple]:
    raw, _ = read_raw(spark, settings.input, settings.input_path)
    return sorted((r["user_id"], r["item_id"]) for r in raw.where("NOT header").collect())


def test_a_name_with_a_dot_or_a_back_tick_may_be_a_column_of_its_own(spark, config, tmp_path: Path) -> None:
    columns = "input.columns={user_id: user.id, item_id: 'it`em', ts: null}"
    table = pa.table({"user.id": ["ann"], "it`em": ["tea"], "un`used": [1], "user": [{"id": "other"}]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert read_fields(spark, config(columns, "input.format=parquet", path=tmp_path / "in.parquet")) == [("ann", "tea")]
    line = '{"user.id": "ann", "it`em": "tea", "user": {"id": "other"}}'
    path = write_lines(tmp_path / "in.jsonl", line)
    assert read_fields(spark, config(columns, "input.format=jsonl", path=path)) == [("ann", "tea")]
    path = write_lines(tmp_path / "in.csv", "user.id,it`em", "ann,tea")
    assert read_fields(spark, config(columns, path=path)) == [("ann", "tea")]


def test_a_column_that_stands_twice_is_refused(spark, config, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.csv", "user,item,x,x,user", "ann,tea,1,2,bob")
    with pytest.raises(InputError, match=r"'user' \(input\.columns\.user_id\) occurs twice in .*in\.csv"):
        read_raw(spark, config(COLUMNS, path=path).input, str(path))
    bare = config(COLUMNS, "input.header=false", "input.names=[user, item, item]", path=path)
    with pytest.raises(InputError, match=r"'item' \(input\.columns\.item_id\) occurs twice in .*input\.names"):
        read_raw(spark, bare.input, str(path))


def test_tables_of_attributes_may_have_tabs_and_no_header(spark, config, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "items.tsv", "i1\tTea, green\tdrink|hot", b"i2\tCaf\xe9\t")
    given = f"path: {path}, delimiter: '\\t', header: false"
    items = f"{given}, names: [id, name, kinds], columns: {{item_id: id, title: name, categories: kinds}}"
    users = f"{given}, names: [id, town], columns: {{user_id: id, attributes: [town]}}"
    settings = config(f"input.items={{{items}}}", f"input.users={{{users}}}").input
    rows = [tuple(r)[:3] for r in read_items(spark, settings.items).collect()]
    assert rows == [("i1", "Tea, green", ["drink", "hot"]), ("i2", "Caf\ufffd", None)]
    assert tuple(read_users(spark, settings.users).first())[:2] == ("i1", {"town": "Tea, green"})


def test_vectors_of_items_are_arrays_or_texts_of_finite_numbers(spark, config, tmp_path: Path) -> None:
    texts = ["0.5 -1e2", "[0.5, -100]", " (0.5;-100) ", "0.5 many", "0.5 NaN", "1e300 2", "", None]
    arrays = [[0.5, -100.0], [0.5, -100.0], [0.5, -100.0], [0.5, None], [0.5, float("nan")], [1e300, 2.0], [], None]
    names = [f"i{n}" for n in range(len(texts))]
    pq.write_table(pa.table({"id": names, "text": texts, "image": arrays}), tmp_path / "items.parquet")
    given = f"path: {tmp_path}/items.parquet, format: parquet, columns: {{item_id: id, vectors: [text, image]}}"
    rows = read_items(spark, config(f"input.items={{{given}}}").input.items).orderBy("item_id").collect()
    whole = {"text": [0.5, -100.0], "image": [0.5, -100.0]}
    assert [row["vectors"] for row in rows] == [whole] * 3 + [{}] * 5


def test_an_attribute_that_is_an_array_is_kept_as_a_text_of_its_values(spark, config, tmp_path: Path) -> None:
    values = [["news", None, "sport"], [], None]
    pq.write_table(pa.table({"id": ["u0", "u1", "u2"], "tags": values}), tmp_path / "users.parquet")
    given = f"path: {tmp_path}/users.parquet, format: parquet, columns: {{user_id: id, attributes: [tags]}}"
    rows = read_users(spark, config(f"input.users={{{given}}}").input.users).orderBy("user_id").collect()
    assert [row["attributes"] for row in rows] == [{"tags": "news|sport"}, {}, {}]


def damaged(folder: Path, kind: str) -> str:
    """Two Parquet files of which the second is damaged or of another type."""
    rows = 2000
    table = pa.table({"user": [f"u{n % 997}" for n in range(rows)], "item": ["tea"] * rows})
    pq.write_table(table, folder / "a.parquet")
    other, bad = table.set_column(0, "user", pa.array(range(rows))), folder / "b c.parquet"
    pq.write_table(other if kind == "another type" else table, bad, use_dictionary=False)
    content = bytearray(bad.read_bytes())
    if kind == "flipped bits":
        content[40:1000] = bytes(byte ^ 0xFF for byte in content[40:1000])
    if kind == "no parquet":
        content[:] = b"user,item\n" * 50
    bad.write_bytes(content)
    return "b c.parquet"


@pytest.mark.parametrize("kind", ["flipped bits", "another type", "no parquet"])
def test_a_damaged_parquet_file_among_others_is_named(spark, config, tmp_path: Path, kind: str) -> None:
    name = damaged(tmp_path, kind)
    settings = config(COLUMNS, "input.format=parquet", path=tmp_path)
    with pytest.raises(InputError, match=rf"file file:/\S*/{name} is cut off, damaged"), explained(str(tmp_path)):
        raw, _ = read_raw(spark, settings.input, str(tmp_path))
        clean(raw, settings.input, settings.clean, DAY)


def test_milliseconds_taken_for_seconds_are_hinted_at(spark, config, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.csv", "user_id,item_id,ts", "ann,tea,1706659200123", "bob,tea,1706659200456")
    hint = r"timestamps such as 1706659200123 look like milliseconds: set input\.ts_formats=\[epoch_ms\]"
    seconds = config("input.ts_formats=[epoch_s]", "clean.max_quarantined_share=1", path=path)
    with pytest.raises(GateRefused, match=f"all 2 rows were rejected: future_timestamp 2; {hint}"):
        clean_input(spark, seconds)
    with pytest.raises(GateRefused, match=f"unparseable_timestamp 2; {hint}"):
        clean_input(spark, config(path=path))


def test_a_json_array_is_hinted_at(spark, config, tmp_path: Path) -> None:
    one = '{"user_id": "ann", "item_id": "tea", "ts": "2024-01-31"}'
    path = write_lines(tmp_path / "in.json", "[", f"{one},", f"{one},", one, "]")
    with pytest.raises(GateRefused, match=r"malformed_line 4; the input looks like a JSON array: jsonl has one object"):
        clean_input(spark, config("input.format=jsonl", path=path))
