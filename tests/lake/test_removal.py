"""Odd ids are found in lines of the input and in the reasons of runs."""

from __future__ import annotations

import pytest

from sparkcf.lake.forgotten import BLANK
from sparkcf.lake.removal import without_named
from sparkcf.lake.traces import Traces, spelled

ODD = [
    "CORP\\Eve",
    "CORP\\Q\\E\\E",
    "a\tb",
    "zero\u200bwidth",
    "both'\"quotes",
    "it's",
    "x\\",
    "\U0001f600\x07",
    "plain",
]


@pytest.mark.parametrize("user", ODD)
def test_a_reason_no_longer_names_an_odd_id(user: str) -> None:
    reason = f"topk.users: unknown user {user!r}: users look like 'other', '{len(user)}'"
    assert Traces([user]).in_text(reason, "reason")
    blanked = without_named(reason, {user})
    assert blanked == f"topk.users: unknown user {BLANK}: users look like 'other', '{len(user)}'"
    assert without_named(reason, {"another"}) == reason


def test_odd_ids_are_words_of_lines_and_no_patterns(spark) -> None:
    lines = [(user, f"{user},item") for user in ODD] + [("CORP\\Eve", "CORP,item"), ("CORP\\Eve", "xCORP\\Eve,item")]
    rows = spark.createDataFrame(lines, "word string, raw string").selectExpr(f"{spelled('raw', 'word', False)} AS has")
    assert [row["has"] for row in rows.collect()] == [True] * len(ODD) + [False, False]
