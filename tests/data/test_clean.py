"""The rules of cleaning: one broken row for each reason, the rows that pass, and who is first where two apply.

Most tests look at one input, cleaned once. Formats are in test_ingest, duplicates in test_clean_duplicates.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyspark.sql import functions as F

from sparkcf.config.input import CleanConfig
from sparkcf.data.clean import REASONS
from sparkcf.data.fields import normalized_id, parsed_timestamp
from sparkcf.errors import GateRefused
from tests.data.inputs import Outcome, clean_input, write_lines

MAPPED = "input.columns={user_id: user_id, item_id: item_id, event: event, value: value, ts: ts}"
NOON = "2024-01-31T12:00:00Z"
LONG = "x" * 256


def line(user: object, **changes: object) -> str:
    row = {"user_id": user, "item_id": "tea", "event": "buy", "value": 3, "ts": NOON} | changes
    return json.dumps({name: value for name, value in row.items() if value != "absent"}, ensure_ascii=False)


def bare(user: str, value: str) -> str:
    """A line whose value stands there as it is, without quotes."""
    return line(user, value="VALUE").replace('"VALUE"', value)


GOOD = line("g0")
REJECTED: dict[str, list[str | bytes]] = {
    "malformed_line": [
        line("m0") + " trailing",
        line("m1") + line("m1b"),
        line("m2") + "," + line("m2b"),
        line("m3") + "]",
        line("m4") + "],[1",
        line("m5")[:-1],
        line("m6")[:40],
        line("m7").replace('"', "'"),
        "[" + line("m8") + "]",
        '"m9"',
        "10",
        "null",
        "{m11}",
        "",
        "  ",
        line("m12").encode().replace(b"tea", b"\xff\xfetea"),
        line({"id": "m13"}),
        line("m14", item_id=["tea"]),
        line("m15", event={"kind": "buy"}),
        bare("m16", "01"),
    ],
    "missing_user_id": [
        line(None),
        line("absent"),
        line(""),
        line(" \t\u00a0"),
        line("null", value=1),
        line(" NULL "),
        line("None"),
        "{}",
    ],
    "missing_item_id": [line("i0", item_id=None), line("i1", item_id="  "), line("i2", item_id="null")],
    "user_id_too_long": [line(LONG + "y")],
    "item_id_too_long": [line("l0", item_id=LONG + "y")],
    "unknown_event": [
        line("e0", event="click"),
        line("e1", event=""),
        line("e2", event=None),
        line("e3", event="absent"),
        line("e4", event="BUY"),
    ],
    "unparseable_timestamp": [
        line("t0", ts="yesterday"),
        line("t1", ts=""),
        line("t2", ts=None),
        line("t3", ts="2023-02-29T10:00:00Z"),
        line("t4", ts="0000-00-00T00:00:00Z"),
        line("t5", ts="31/01/2024 10:00"),
        line("t6", ts="2024-01-31T25:00:00Z"),
        line("t7", ts="2024-01-31T10:00:00+25:00"),
        line("t8", ts=1706702400),  # an epoch is read only where it is asked for
        line("t9", ts="20240131"),
        line("t10", ts="2024"),
    ],
    "timestamp_too_old": [line("o0", ts="1989-12-31T23:59:59.999999Z"), line("o1", ts="0001-01-01")],
    "future_timestamp": [line("f0", ts="2024-02-01T02:00:00Z"), line("f1", ts="9999-12-31T23:59:59Z")],
    "value_not_a_number": [
        line(f"v{i}", value=value)
        for i, value in enumerate(
            ["4,5", "0x1F", "", "  ", "4.5d", "5f", "five", "1_0", "--", "1e", "４", True, None, {}]
        )
    ],
    "value_not_finite": [
        *(bare(f"n{i}", value) for i, value in enumerate(["NaN", "Infinity", "-Infinity", "1e400"])),
        *(line(f"n{i}", value=value) for i, value in enumerate(["nan", "NaN", "inf", "-inf", "+Infinity", "1e999"], 4)),
    ],
    "value_out_of_range": [line("r0", value=-0.001), line("r1", value=5.001), line("r2", value="-1e300")],
}
BY_ANOTHER_INPUT = {"too_many_events_of_user", "too_few_events_of_user", "too_few_events_of_item"}
ACCEPTED = {  # line: the row
    GOOD: ("g0", "tea", "buy", 3.0, "2024-01-31T12:00:00"),
    line(2**31 + 1, value="4.5 "): (str(2**31 + 1), "tea", "buy", 4.5, "2024-01-31T12:00:00"),
    line(2**53 + 1, value=0): (str(2**53 + 1), "tea", "buy", 0.0, "2024-01-31T12:00:00"),
    line(10**30 + 7, value=5): (str(10**30 + 7), "tea", "buy", 5.0, "2024-01-31T12:00:00"),
    line(LONG, item_id=LONG): (LONG, LONG, "buy", 3.0, "2024-01-31T12:00:00"),
    line("\t u1\u00a0", item_id="\u2003tea\n"): ("u1", "tea", "buy", 3.0, "2024-01-31T12:00:00"),
    line("U1", item_id="Tea Tin"): ("U1", "Tea Tin", "buy", 3.0, "2024-01-31T12:00:00"),
    line("ｕ２"): ("ｕ２", "tea", "buy", 3.0, "2024-01-31T12:00:00"),
    line("u\u200b3"): ("u\u200b3", "tea", "buy", 3.0, "2024-01-31T12:00:00"),
    line("Null", event=" look\t", value="+1e0"): ("Null", "tea", "look", 1.0, "2024-01-31T12:00:00"),
    line("'; DROP TABLE users; --"): ("'; DROP TABLE users; --", "tea", "buy", 3.0, "2024-01-31T12:00:00"),
    line("{u4}", item_id="[1]"): ("{u4}", "[1]", "buy", 3.0, "2024-01-31T12:00:00"),
    line('"user_id": {'): ('"user_id": {', "tea", "buy", 3.0, "2024-01-31T12:00:00"),
    line("first", ts="1990-01-01"): ("first", "tea", "buy", 3.0, "1990-01-01T00:00:00"),
    line("last", ts="2024-02-01T01:59:59.999999Z", value=".5"): (
        "last",
        "tea",
        "buy",
        0.5,
        "2024-02-01T01:59:59.999999",
    ),
    " " + line("spaced") + " ": ("spaced", "tea", "buy", 3.0, "2024-01-31T12:00:00"),
    line("more", extra={"a": [1]}): ("more", "tea", "buy", 3.0, "2024-01-31T12:00:00"),
}


@pytest.fixture(scope="module")
def outcome(spark, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Every line above, broken ones and good ones alternating, in one input."""
    from sparkcf.config.load import load_config

    broken = [text for lines in REJECTED.values() for text in lines]
    path = write_lines(tmp_path_factory.mktemp("rules") / "events.jsonl", *ACCEPTED, *broken)
    config = load_config(
        (),
        [
            *("ds=2024-01-31", f"input.path={path}", "input.format=jsonl", MAPPED, "clean.max_quarantined_share=1"),
            *("input.events={buy: 1, look: 0.5}", "input.value_range=[0, 5]", "clean.future_tolerance_hours=2"),
        ],
    )
    return clean_input(spark, config)


@pytest.mark.parametrize("reason", REJECTED)
def test_clean_rejects(outcome: Outcome, reason: str) -> None:
    expected = [raw.decode(errors="replace") if isinstance(raw, bytes) else raw for raw in REJECTED[reason]]
    assert sorted(raw for why, raw in outcome.quarantine if why == reason) == sorted(expected)
    assert outcome.reasons[reason] == len(expected)


def test_every_reason_is_tested() -> None:
    assert set(REJECTED) | BY_ANOTHER_INPUT == set(REASONS)


def test_clean_keeps_good_rows_as_they_are_but_for_the_space_around_their_text(outcome: Outcome) -> None:
    assert outcome.rows == sorted(ACCEPTED.values())


def test_counts_add_up(outcome: Outcome) -> None:
    rejected = sum(map(len, REJECTED.values()))
    assert outcome.counts == {
        "read": rejected + len(ACCEPTED),
        "clean": len(ACCEPTED),
        "exact_duplicates": 0,
        "superseded": 0,
        "quarantined": rejected,
    }
    assert list(outcome.reasons) == [reason for reason in REASONS if reason in REJECTED]


def test_a_row_with_several_defects_has_the_first_reason_only(spark, config, tmp_path: Path) -> None:
    defects = [
        ("missing_user_id", {"user_id": None}),
        ("missing_item_id", {"item_id": ""}),
        ("unknown_event", {"event": "click"}),
        ("unparseable_timestamp", {"ts": "never"}),
        ("future_timestamp", {"ts": "2030-01-01"}),
        ("value_not_a_number", {"value": "many"}),
        ("value_not_finite", {"value": "inf"}),
        ("value_out_of_range", {"value": 9}),
    ]
    expected = {}
    for first in range(len(defects)):  # row n has the defects n, n + 1, …; of two for one field the first stays
        changes: dict = {}
        for _, change in defects[first:]:
            changes = change | changes
        expected[line(f"u{first}", **changes)] = defects[first][0]
    path = write_lines(tmp_path / "events.jsonl", GOOD, *expected)
    asked = (MAPPED, "input.format=jsonl", "input.value_range=[0, 5]", "input.events={buy: 1}")
    outcome = clean_input(spark, config(*asked, "clean.max_quarantined_share=1", path=path))
    assert outcome.reason_of == expected
    assert outcome.counts["clean"] == 1


def test_heavy_and_light_users_and_light_items_are_rejected_in_this_order(spark, config, tmp_path: Path) -> None:
    lines = [f'{{"user_id": "bot", "item_id": "i{n}", "ts": "2024-01-31"}}' for n in range(4)]
    lines += [f'{{"user_id": "ann", "item_id": "{item}", "ts": "2024-01-31"}}' for item in ("tea", "jam", "rare")]
    lines += [f'{{"user_id": "bob", "item_id": "{item}", "ts": "2024-01-31"}}' for item in ("tea", "jam")]
    lines += ['{"user_id": "one", "item_id": "rare", "ts": "2024-01-31"}']
    lines += ['{"user_id": "one", "item_id": "tea", "ts": "never"}']  # rejected rows do not count for their user
    path = write_lines(tmp_path / "events.jsonl", *lines)
    limits = ("clean.max_events_per_user=3", "clean.min_events_per_user=2", "clean.min_events_per_item=2")
    outcome = clean_input(spark, config("input.format=jsonl", *limits, "clean.max_quarantined_share=1", path=path))
    assert outcome.reasons == {
        "unparseable_timestamp": 1,
        "too_many_events_of_user": 4,
        "too_few_events_of_user": 1,
        "too_few_events_of_item": 1,  # the only other buyer of the rare item was rejected before
    }
    assert [row[:2] for row in outcome.rows] == [("ann", "jam"), ("ann", "tea"), ("bob", "jam"), ("bob", "tea")]
    assert {row[2:4] for row in outcome.rows} == {("rating", 1.0)}  # without the columns: the defaults


def test_ids_are_folded_only_where_asked(spark) -> None:
    texts = [
        "\u00a0ＡＢ１\u200b",
        "Straße",
        "e\u0301",
        "\ufeffu1",
        "NULL",
        "null",
        "ＮＵＬＬ",
        "\u200b",
        "a\u00adb",
        "😀",
        "①²",
    ]
    configs = {
        "as_is": CleanConfig(),
        "unicode": CleanConfig(normalize_unicode=True),
        "case": CleanConfig(fold_case=True, null_tokens=("null",)),
        "both": CleanConfig(fold_case=True, normalize_unicode=True),
    }
    frame = spark.createDataFrame([(n, t) for n, t in enumerate(texts)], "n int, id string").coalesce(1)
    rows = frame.select("n", *(normalized_id(F.col("id"), c).alias(name) for name, c in configs.items())).collect()
    got = {name: [r[name] for r in sorted(rows)] for name in configs}
    assert got["as_is"] == [
        "ＡＢ１\u200b",
        "Straße",
        "e\u0301",
        "\ufeffu1",
        None,
        None,
        "ＮＵＬＬ",
        "\u200b",
        "a\u00adb",
        "😀",
        "①²",
    ]
    assert got["unicode"] == ["AB1", "Straße", "e\u0301", "u1", None, None, None, None, "ab", "😀", "12"]
    assert got["case"] == [
        "ａｂ１\u200b",
        "straße",
        "e\u0301",
        "\ufeffu1",
        "null",
        None,
        "ｎｕｌｌ",
        "\u200b",
        "a\u00adb",
        "😀",
        "①²",
    ]
    assert got["both"] == ["ab1", "straße", "e\u0301", "u1", None, None, None, None, "ab", "😀", "12"]


TIMES = [  # formats, text, what it is in UTC
    ("iso8601", "2024-03-01", "2024-03-01T00:00:00.000000"),
    ("iso8601", "2024-03-01 10:20", "2024-03-01T10:20:00.000000"),
    ("iso8601", "2024-03-01T10:20Z", "2024-03-01T10:20:00.000000"),
    ("iso8601", "2024-03-01T10:20+02:00", "2024-03-01T08:20:00.000000"),
    ("iso8601", "2024-03-01T10:20:30", "2024-03-01T10:20:30.000000"),
    ("iso8601", "2024-03-01T10:20:30.5Z", "2024-03-01T10:20:30.500000"),
    ("iso8601", "2024-03-01T10:20:30.123456789Z", "2024-03-01T10:20:30.123456"),
    ("iso8601", "2024-03-01T10:20:30+0530", "2024-03-01T04:50:30.000000"),
    ("iso8601", "2024-03-01 10:20:30-08", "2024-03-01T18:20:30.000000"),
    ("iso8601", "2024-03-01 10:20:30 UTC", "2024-03-01T10:20:30.000000"),
    ("iso8601", "2024-02-29T23:59:59Z", "2024-02-29T23:59:59.000000"),
    ("iso8601", "2024-02-30T00:00:00Z", None),
    ("iso8601", "2024-03-01T10:20:30 Mars/Olympus", None),
    ("iso8601", "1709288430", None),
    ("epoch_s", "1709288430", "2024-03-01T10:20:30.000000"),
    ("epoch_s", "1709288430.25", "2024-03-01T10:20:30.250000"),
    ("epoch_s", "1.70928843e9", "2024-03-01T10:20:30.000000"),
    ("epoch_s", "-1", "1969-12-31T23:59:59.000000"),
    ("epoch_s", "1709288430000", "9892-03-08T12:26:40.000000"),  # milliseconds taken for seconds: far in the future
    ("epoch_s", "9" * 20, "9892-03-08T12:26:40.000000"),
    ("epoch_s", "9" * 60, None),
    ("epoch_s", "2024-03-01", None),
    ("epoch_s", "", None),
    ("epoch_ms", "1709288430123", "2024-03-01T10:20:30.123000"),
    ("epoch_ms", "1709288430123.5", "2024-03-01T10:20:30.123500"),
    ("epoch_us", "1709288430123456", "2024-03-01T10:20:30.123456"),
    ("epoch_ns", "1709288430123456789", "2024-03-01T10:20:30.123456"),
    ("dd/MM/yyyy HH:mm", "01/03/2024 10:20", "2024-03-01T10:20:00.000000"),
    ("dd/MM/yyyy HH:mm", "31/02/2024 10:20", None),
    ("yyyy-MM-dd HH:mm:ssXXX", "2024-03-01 10:20:30+01:00", "2024-03-01T09:20:30.000000"),
    ("MM/dd/yyyy|dd/MM/yyyy", "03/04/2024", "2024-03-04T00:00:00.000000"),  # the first that reads it
    ("MM/dd/yyyy|dd/MM/yyyy", "13/04/2024", "2024-04-13T00:00:00.000000"),
    ("epoch_s|iso8601", "2024-03-01", "2024-03-01T00:00:00.000000"),
    ("epoch_s|iso8601", "1709288430", "2024-03-01T10:20:30.000000"),
]


def test_timestamps_are_read_by_the_first_format_that_fits(spark) -> None:
    by_formats = {formats: parsed_timestamp(F.col("text"), tuple(formats.split("|"))) for formats, *_ in TIMES}
    shown = {
        f: F.date_format(c, "yyyy-MM-dd'T'HH:mm:ss.SSSSSS").alias(f"c{n}")
        for n, (f, c) in enumerate(by_formats.items())
    }
    frame = spark.createDataFrame([(text,) for _, text, _ in TIMES], "text string").coalesce(1)
    rows = frame.select(*shown.values()).collect()
    got = [(f, text, row[list(shown).index(f)]) for (f, text, _), row in zip(TIMES, rows, strict=True)]
    assert got == TIMES


def test_the_future_begins_with_the_next_day_in_utc_and_the_tolerance(spark, config, tmp_path: Path) -> None:
    rows = ["a,i,2024-01-31T23:59:59.999999Z", "b,i,2024-02-01T00:00:00Z", "c,i,2024-01-31T23:30:00-01:00"]
    rows += ["d,i,2024-02-01T00:59:00+01:00", "e,i,1999-12-31T23:59:59+00:00", "f,i,2000-01-01T00:59:00+01:00"]
    rows += ["g,i,2000-01-01T00:00:00Z"]
    path = write_lines(tmp_path / "events.csv", "user_id,item_id,ts", *rows)
    oldest = "clean.earliest=2000-01-01T01:00:00+01:00"
    outcome = clean_input(spark, config(oldest, "clean.max_quarantined_share=1", path=path))
    assert [row[0] for row in outcome.rows] == ["a", "d", "g"]
    assert {raw[0]: reason for raw, reason in outcome.reason_of.items()} == {
        **dict.fromkeys("bc", "future_timestamp"),
        **dict.fromkeys("ef", "timestamp_too_old"),
    }


def test_an_input_of_which_nothing_is_left_is_refused_with_the_reasons(spark, config, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.csv", "user_id,item_id,ts", "a,i,never", "b,i,1970-01-01", "c,i,1970-01-02")
    with pytest.raises(GateRefused, match=r"all 3 rows were rejected: unparseable_timestamp 1, timestamp_too_old 2"):
        clean_input(spark, config("clean.max_quarantined_share=1", path=path))


def test_too_large_a_share_of_rejected_rows_is_refused(spark, config, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.csv", "user_id,item_id,ts", "a,i,never", "b,i,2024-01-01", "c,i,2024-01-01")
    with pytest.raises(GateRefused, match=r"33\.3% of 3 rows .*max_quarantined_share=0\.3: unparseable_timestamp 1"):
        clean_input(spark, config("clean.max_quarantined_share=0.3", path=path))
    assert clean_input(spark, config("clean.max_quarantined_share=0.34", path=path)).counts["quarantined"] == 1
