"""Any soup of rows reconciles, as plain Python counts it: read = clean + duplicates + superseded + quarantined.

A run of Spark cleans many soups at once. Each has users of its own, so that they do not change each other's outcome.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparkcf.config.load import load_config
from tests.data.inputs import Outcome, clean_input, write_lines

NAMES = ("user_id", "item_id", "event", "value", "ts")
MAPPED = "input.columns={user_id: user_id, item_id: item_id, event: event, value: value, ts: ts}"
HORIZON = dt.datetime(2024, 2, 1, tzinfo=dt.UTC)
EARLIEST = dt.datetime(1990, 1, 1, tzinfo=dt.UTC)
ANCHOR = ("anchor", "tea", "buy", "1", "2024-01-30T10:00:00Z")  # keeps every input from being refused as a whole

times = [
    "2024-01-30T10:00:00Z",
    "2024-01-30T11:00:00+01:00",
    "2024-01-30 10:00:00",
    "2024-01-30",
    "2024-01-31T23:59:59.999999Z",
]
bad_times = ["2024-02-01T00:00:00Z", "1989-12-31", "never", "2023-02-29", ""]
users = ["{}u1", "{}u2", "{}u3", " {}u1\t", "{}U1", "", "null", "None", "{}é,\"x'"]  # {}: the soup's name
items = ["tea", "jam", "tea ", "NULL", " "]
kinds_of_event = ["buy", "look", "buy", ""]
values = ["1", "2.5", "2.50", "+1", "5", "1e0", " 3 ", "-1", "5.01", "nan", "-Infinity", "1e999", "4,5", "0x1F", ""]
kinds = ["row"] * 12 + ["cut", "more", "header", "blank"]
SOUPS = 500  # in one input


def soup(draw: random.Random, name: str) -> list[tuple[str, tuple[str, ...], int]]:
    """Lines of 30 to 120 as (kind, cells, number of the file)."""

    def row() -> tuple[str, ...]:
        user = draw.choice(users).format(name)
        return (user, *map(draw.choice, (items, kinds_of_event, values, times * 3 + bad_times)))

    return [(draw.choice(kinds), row(), draw.randint(1, 3)) for _ in range(draw.randint(30, 120))]


@dataclass
class Truth:
    counts: dict[str, int]
    reasons: dict[str, int]
    last: dict[tuple, float]


def moment(text: str) -> dt.datetime | None:
    try:
        parsed = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=dt.UTC)


def reason_of(user: str, item: str, event: str, value: str, ts: str) -> str | None:
    if user.strip() in ("", "null", "NULL", "None"):
        return "missing_user_id"
    if item.strip() in ("", "null", "NULL", "None"):
        return "missing_item_id"
    if event == "":
        return "unknown_event"
    at = moment(ts)
    if at is None:
        return "unparseable_timestamp"
    if at < EARLIEST:
        return "timestamp_too_old"
    if at >= HORIZON:
        return "future_timestamp"
    try:
        number = float(value)
    except ValueError:
        return "value_not_a_number"
    if not math.isfinite(number):
        return "value_not_finite"
    return None if 0 <= number <= 5 else "value_out_of_range"


def truth(lines: list[tuple[str, tuple]], most: int) -> Truth:
    """What ought to become of the lines, in the order in which they are read; `most` events of a user are allowed."""
    reasons: Counter[str] = Counter()
    good = []
    for kind, (user, item, event, value, ts) in lines:
        reason = "malformed_line" if kind != "row" else reason_of(user, item, event, value, ts)
        if reason is None:
            good.append(((user.strip(), item.strip(), event, moment(ts)), float(value)))
        else:
            reasons[reason] += 1
    events = Counter(key[0] for key, _ in set(good))  # without exact duplicates
    by_key = defaultdict(list)
    for key, value in good:
        if events[key[0]] > most:
            reasons["too_many_events_of_user"] += 1
        else:
            by_key[key].append(value)
    counts = {
        "read": len(lines),
        "clean": len(by_key),
        "exact_duplicates": sum(len(v) - len(set(v)) for v in by_key.values()),
        "superseded": sum(len(set(v)) - 1 for v in by_key.values()),
        "quarantined": reasons.total(),
    }
    return Truth(counts, dict(reasons), {key: values[-1] for key, values in by_key.items()})


def csv_text(cells: tuple[str, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def text_of(kind: str, row: tuple[str, ...], form: str) -> str:
    whole = csv_text(row) if form == "csv" else json.dumps(dict(zip(NAMES, row, strict=True)), ensure_ascii=False)
    match kind:
        case "cut":
            return csv_text(row[:-1]) if form == "csv" else whole[:-1]
        case "more":
            return whole + (",x" if form == "csv" else "x")
        case "header":
            return ",".join(NAMES)
        case "blank":
            return ""
        case _:
            return whole


def write_lines_of(folder: Path, drawn: list, form: str) -> list[tuple[str, tuple]]:
    """Write the lines into three files and give them back in the order in which they are read."""
    read = []
    for file in (3, 1, 2):  # the order of writing is not that of reading
        lines = [(kind, row) for kind, row, its_file in drawn if its_file == file]
        head = [",".join(NAMES)] if form == "csv" else []
        write_lines(folder / f"{file}.{form}", *head, *(text_of(kind, row, form) for kind, row in lines))
        read.append((file, lines))
    return [line for _, lines in sorted(read) for line in lines]


def check(outcome: Outcome, expected: Truth, lines: list[tuple[str, tuple]]) -> None:
    got = {(*row[:3], dt.datetime.fromisoformat(row[4]).replace(tzinfo=dt.UTC)): row[3] for row in outcome.rows}
    wrong = sorted(key for key in got.keys() | expected.last.keys() if got.get(key) != expected.last.get(key))
    assert not wrong, (wrong[0], [line for line in lines if line[1][0].strip() == wrong[0][0]])
    assert outcome.counts == expected.counts
    counts = outcome.counts
    assert counts["read"] == sum(n for name, n in counts.items() if name != "read")
    assert outcome.reasons == expected.reasons
    assert Counter(reason for reason, _ in outcome.quarantine) == expected.reasons


@pytest.mark.parametrize(
    ("form", "most", "parts"), [("csv", 3, None), ("csv", 1000, 3), ("jsonl", 3, 3), ("jsonl", 1000, None)]
)
def test_any_soup_of_rows_reconciles(spark, tmp_path: Path, form: str, most: int, parts: int | None) -> None:
    draw = random.Random(f"{form} {most} {parts}")
    drawn = [line for number in range(SOUPS) for line in soup(draw, f"s{number}")]
    lines = write_lines_of(tmp_path, [*drawn, ("row", ANCHOR, 2)], form)
    overrides = ["ds=2024-01-31", f"input.path={tmp_path}", f"input.format={form}", MAPPED, "input.value_range=[0, 5]"]
    overrides += [f"clean.max_events_per_user={most}", "clean.max_quarantined_share=1"]
    expected = truth(lines, most)
    assert min(expected.counts.values()) > 10, expected.counts  # every outcome is among them
    assert ("too_many_events_of_user" in expected.reasons) == (most == 3)
    check(clean_input(spark, load_config((), overrides), parts), expected, lines)
