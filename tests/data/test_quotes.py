"""Quotes in CSV: a quoted field over several lines never becomes a row of its own, and no line is lost."""

from __future__ import annotations

from pathlib import Path

from sparkcf.data.ingest import read_raw
from sparkcf.data.lines import quote_left
from tests.data.inputs import clean_frame, clean_input, write_lines

HEADER = "user_id,item_id,value,ts"
COLUMNS = "input.columns={user_id: user_id, item_id: item_id, value: value, ts: ts}"
DAY = "2024-01-31"
QUOTES = {  # line: what is left of its quotes
    "ann,tea,1": None,
    '"ann, jr",tea,1': None,
    '"ann ""q"" lee",tea': None,
    'the 5" nail and the 6" nail,tea': None,
    '"ann': "open",
    'ann,"tea': "open",
    '"ann,",tea,"x': "open",
    '"ann ""q': "open",
    'lee",tea,1': "stray",
    'the 5" nail,tea': "stray",
    '"': "open",
    '","tea",1': "stray",
}


def row(user: str, item: str = "tea") -> str:
    return f"{user},{item},1,{DAY}"


WITHIN = [row("w1"), 'w2 says "no",tea,1,' + DAY, "", "w3", row("w4")]
BROKEN = [
    *('"Ann', f'Bob",tea,1,{DAY}'),  # over two lines
    *('x1,"two', *WITHIN, f'lines",1,{DAY}'),  # over more, some of which look like rows
    *('"quote at', f'",tea,1,{DAY}'),  # the line that ends the field looks like one that begins a field
    'the 5" nail,tea,1,' + DAY,
    '"cut off,te',  # too far from the next one to be its beginning
]
FAR = [row(f"f{n}") for n in range(101)]
GOOD = [row("a"), row('"b, jr"'), row('"c ""q"" d"'), *FAR, row("z")]
LINES = [
    *GOOD[:1],
    *BROKEN[:2],
    *GOOD[1:2],
    *BROKEN[2:9],
    *GOOD[2:3],
    *BROKEN[9:],
    *FAR,
    '"end',
    f'e",tea,1,{DAY}',
    GOOD[-1],
]


def test_a_quote_without_a_partner_opens_a_field_or_is_stray(spark, config) -> None:
    frame = spark.createDataFrame([(line,) for line in QUOTES], "raw string").coalesce(1)
    got = {r["raw"]: r["left"] for r in frame.select("raw", quote_left(config().input).alias("left")).collect()}
    assert got == QUOTES
    tabs = frame.selectExpr("replace(raw, ',', '\\t') AS raw")
    found = tabs.select(quote_left(config("input.delimiter='\\t'").input)).collect()
    assert [r[0] for r in found] == list(QUOTES.values())


def test_the_lines_of_a_quoted_field_are_all_rejected_where_files_are_read_in_pieces(
    spark, config, tmp_path: Path
) -> None:
    write_lines(tmp_path / "in" / "a.csv", HEADER, *LINES)
    write_lines(tmp_path / "in" / "b.csv", HEADER, row("other"))
    settings = config(COLUMNS, "clean.max_quarantined_share=1", path=tmp_path / "in")
    keys = ("spark.sql.files.maxPartitionBytes", "spark.sql.files.openCostInBytes")
    before = {key: spark.conf.get(key) for key in keys}
    try:
        for key in keys:
            spark.conf.set(key, "150")  # some of the fields go over the borders of these pieces
        raw, _ = read_raw(spark, settings.input, settings.input_path)
        assert raw.rdd.getNumPartitions() > 10
        outcome = clean_frame(raw, settings)
    finally:
        for key, value in before.items():
            spark.conf.set(key, value)
    names = {"a", "b, jr", 'c "q" d', "z", "other", *(f"f{n}" for n in range(101))}
    assert outcome.values.keys() == names
    assert outcome.quarantine == sorted(("malformed_line", line) for line in [*BROKEN, '"end', f'e",tea,1,{DAY}'])
    assert outcome.counts["read"] == len(LINES) + 1
    assert "10 lines were rejected for an unpaired quote" in outcome.notes[-1]


def test_quotes_may_be_plain_text(spark, config, tmp_path: Path) -> None:
    lines = [row('the 5" nail'), row('"ann'), row('"bob"')]
    path = write_lines(tmp_path / "in.csv", HEADER, *lines)
    outcome = clean_input(spark, config(COLUMNS, "input.quote=null", path=path))
    assert set(outcome.values) == {'the 5" nail', '"ann', '"bob"'}
