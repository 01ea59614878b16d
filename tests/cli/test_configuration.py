"""`sparkcf config explain`: what a key is, the value in force and what sets it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest


def test_a_key_is_told_in_a_few_lines(run) -> None:
    code, out, err = run("config", "explain", "gate.metric")
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert (code, err) == (0, "") and set(lines) == {"gate.metric", "type", "default", "read by"}
    assert "ndcg_at_k" in lines["type"] and "publish" in lines["read by"] and lines["default"].strip() == "auto"
    assert all(len(line) <= 120 for line in out.splitlines())


def test_the_value_in_force_comes_with_what_sets_it(run, tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("als: {rank: 16, iterations: 3}\ninput: {items: {path: a.csv, columns: {item_id: id}}}\n")
    second.write_text("als: {rank: 32}\ninput: {items: null}\n")
    ask = ("--config", str(first), "--config", str(second), "--format", "json")

    def told(key: str, *more: str) -> tuple[object, str]:
        code, out, _ = run("config", "explain", key, *more, *ask)
        (record,) = json.loads(out)
        assert code == 0 and record["key"] == key
        return record["value"], record["set_by"]

    assert told("als.rank") == (32, str(second))
    assert told("als.iterations") == (3, str(first))
    assert told("als.alpha") == (1.0, "default")
    assert told("als.rank", "als.rank=8") == (8, "command line")
    assert told("input.items.path") == (None, str(second))  # the section is taken away
    code, out, _ = run("config", "explain", "als.rank=8", *ask[:4])
    assert code == 0 and "in force  8 (command line)" in out


def test_keys_of_a_list_show_the_values_of_all_entries(run) -> None:
    given = "rerank.caps=[{by: categories, most: 2}, {by: brand, most: 1}]"
    code, out, _ = run("config", "explain", "rerank.caps", given, "--format", "json")
    assert code == 0 and [record["value"] for record in json.loads(out)][1:] == [["categories", "brand"], [2, 1]]


def test_a_section_lists_its_keys_and_no_key_the_sections(run) -> None:
    code, out, _ = run("config", "explain", "gate", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and {"gate.metric", "gate.max_fall"} <= {row["key"] for row in rows}
    assert {row["set_by"] for row in rows} == {"default"}
    code, out, _ = run("config", "explain", "gate")
    assert code == 0 and "gate.max_fall" in out and "largest relative fall" in out
    code, out, _ = run("config", "explain", "--format", "json")
    sections = {record["section"]: record for record in json.loads(out)}
    assert code == 0 and sections["als"]["read_by"] == "model als" and sections["ds"]["keys"] == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["als.rnak"], "unknown configuration key als.rnak: did you mean als.rank"),
        (["als.rank", "als.rank=0"], "als.rank=0"),
        (["als.rank", "als.rnak=5"], "als.rnak"),
        (["als.rank", "--config", "/none.yaml"], "/none.yaml"),
    ],
)
def test_what_is_wrong_is_one_line(run, words: list[str], why: str) -> None:
    code, out, err = run("config", "explain", *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and why in err


def test_secret_addresses_and_forgotten_users_are_not_shown(run) -> None:
    address = "observe.on_failure.webhook=https://hooks.example/T0/s3cr3t"
    for key, given in (("observe.on_failure.webhook", address), ("forget.users", "forget.users=[u17s3cr3t]")):
        code, out, _ = run("config", "explain", key, given)
        assert code == 0 and "s3cr3t" not in out and "set, not shown (command line)" in out
    code, out, _ = run("config", "explain", "lake.root", "lake.root=s3a://key:s3cr3t@bucket/lake")
    assert code == 0 and "s3cr3t" not in out and "***@bucket" in out
