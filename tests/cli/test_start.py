"""The first hour: `init` guesses a file's form, and there is a list of models, of tables, and a completion."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkcf.config.load import load_config, model_names
from tests.bench.export import build
from tests.lake.test_query import build_lake

ROWS = [("ann", "tea", "4.5", "1700000000"), ("bob", "jam, red", "3", "1700000100"), ("cy", "tea", "1", "1700000200")]


def written(path: Path, head: str | None, rows: list[tuple], delimiter: str = ",", end: str = "\n") -> Path:
    lines = [delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in row) for row in rows]
    path.write_bytes((end.join([*([head] if head else []), *lines]) + end).encode("utf-8-sig"))
    return path


def csv_file(folder: Path) -> Path:
    return written(folder / "log.csv", "userId,movieId,rating,timestamp", ROWS, end="\r\n")


def semicolons(folder: Path) -> Path:
    rows = [(f"2024-01-0{n + 1} 10:00", *row[:2]) for n, row in enumerate(ROWS)]
    return written(folder / "log.txt", "when;customer;product", rows, ";")


def without_header(folder: Path) -> Path:
    return written(folder / "u.data", None, [(f"{n}", f"{n + 9}", "3", f"88125094{n}") for n in range(4)], "\t")


def colons(folder: Path) -> Path:
    return written(folder / "ratings.dat", None, [(f"{n}", f"{n + 9}", "3", f"97830076{n}") for n in range(4)], "::")


def two_columns(folder: Path) -> Path:
    return written(folder / "pairs.csv", "listener,track", [row[:2] for row in ROWS])


def json_lines(folder: Path) -> Path:
    path = folder / "log.jsonl.gz"
    keys = ("user", "sku", "stars", "time")
    lines = [json.dumps(dict(zip(keys, (*row[:3], row[3] + "000"), strict=True))) for row in ROWS]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def parquet(folder: Path) -> Path:
    path = folder / "log.parquet"
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": [3, 4], "event": ["buy", "view"]}), path)
    return path


FILES = {
    csv_file: ("csv", ",", ("userId", "movieId", "rating", "timestamp"), "epoch_s"),
    semicolons: ("csv", ";", ("customer", "product", None, "when"), "iso8601"),
    without_header: ("csv", "\t", ("column1", "column2", "column3", "column4"), "epoch_s"),
    colons: ("csv", "::", ("column1", "column2", "column3", "column4"), "epoch_s"),
    two_columns: ("csv", ",", ("listener", "track", None, None), None),
    json_lines: ("jsonl", ",", ("user", "sku", "stars", "time"), "epoch_ms"),
    parquet: ("parquet", ",", ("user_id", "item_id", None, None), None),
}


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_init_writes_a_configuration_of_the_file(run, tmp_path: Path, make) -> None:
    form, delimiter, columns, ts_format = FILES[make]
    path, output = make(tmp_path), tmp_path / "mine.yaml"
    code, out, err = run("init", str(path), "--output", str(output))
    assert (code, err) == (0, "") and f"CONFIG={output}" in out
    config = load_config((str(output),), ["ds=2024-05-01"])
    assert (config.lake.root, config.report.path) == ("./mine-lake", "./mine-report.html")
    asked = [shlex.split(line) for line in out.splitlines() if line.startswith("    sparkcf ")]
    assert [words[1] for words in asked] == ["recommend", "report"]
    assert all(words[-2:] == ["--lake", "./mine-lake"] for words in asked) and asked[0][3] in ("ann", "0", "1")
    found = config.input
    assert (found.path, found.format, found.delimiter) == (str(path.resolve()), form, delimiter)
    assert tuple(getattr(found.columns, name) for name in ("user_id", "item_id", "value", "ts")) == columns
    assert found.ts_formats == ((ts_format,) if ts_format else ("iso8601",))
    code, _, err = run("init", str(path), "--output", str(output))
    assert code == 2 and "exists: give --force" in err
    assert run("init", str(path), "--output", str(output), "--force")[0] == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no line"),
        (b"\x00\x01\x02\x03", "neither text"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
        (b"PAR1 cut off", "as Parquet"),
        (b"one\ntwo\n", "no delimiter"),
        (b"{not json\n{nor this\n", "no line is a JSON object"),
        (b"user_id,item_id\n", "a header and no row"),
    ],
)
def test_init_of_a_file_that_is_none_of_interactions_is_one_line(run, tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "file").write_bytes(content)
    code, out, err = run("init", str(tmp_path / "file"), "--output", str(tmp_path / "mine.yaml"))
    assert code == 2 and out == "" and err.startswith("sparkcf: ") and err.count("\n") == 1 and why in err
    assert not (tmp_path / "mine.yaml").exists()


def test_init_of_a_missing_file_is_one_line(run, tmp_path: Path) -> None:
    code, _, err = run("init", str(tmp_path / "none.csv"))
    assert code == 2 and err.count("\n") == 1 and "none.csv" in err


def test_every_model_is_listed_with_what_it_is(run) -> None:
    code, out, _ = run("models", "--format", "json")
    records = json.loads(out)
    assert code == 0 and [record["model"] for record in records] == model_names()
    assert all(record["what it is"] for record in records)


def test_the_tables_of_a_lake_are_listed_with_their_rows(run, tmp_path: Path) -> None:
    root = str(build_lake(tmp_path / "lake"))
    code, out, _ = run("tables", "--lake", root, "--format", "json")
    by_name = {record["table"]: record for record in json.loads(out)}
    assert code == 0 and {"recommendations", "published", "items"} <= by_name.keys()
    assert by_name["items"]["rows"] > 0 and "title" in by_name["items"]["columns"]
    assert run("tables", "--lake", str(tmp_path / "none"))[0] == 2


def test_an_export_is_read_back_and_told(run, tmp_path: Path) -> None:
    root = str(build_lake(tmp_path / "lake"))
    code, out, err = run("export", str(tmp_path / "out"), "--to", "sqlite", "--lake", root)
    assert (code, err) == (0, "") and "users" in out and "readers find version" in out
    assert (tmp_path / "out" / "als" / "current").exists() or any((tmp_path / "out").rglob("current"))
    assert run("export", str(tmp_path / "out"), "--model", "none", "--lake", root)[0] == 1


def test_an_export_of_vectors_tells_the_recall_of_its_index(run, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    build(tmp_path / "lake", 60, k=5, rank=8, catalogue=40)
    code, out, err = run(
        "export", str(tmp_path / "out"), "--to", "vectors", "--faiss", "--lake", str(tmp_path / "lake")
    )
    lines = out.splitlines()
    assert (code, err) == (0, "") and "60 users, 40 items, 8 width, 300 compared (" in lines[0]
    stored = json.loads((tmp_path / "out" / "als" / "current" / "manifest.json").read_text())
    assert lines[1] == f"recall@20 of the index against exact search: {stored['recall_at_20']:.4f}, over 60 users"
    assert "inner_product" not in out and "recall_users" not in out  # a boolean is no count
    _, out, _ = run("export", str(tmp_path / "out"), "--to", "vectors", "--lake", str(tmp_path / "lake"))
    assert "recall" not in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rec", "recommend"),
        ("recommend --us", "--user"),
        ("--lake x simi", "similar"),
        ("size --inter", "--interactions"),
        ("config exp", "explain"),
        ("config explain als.rank --conf", "--config"),
    ],
)
def test_bash_completes_commands_and_options(run, words: str, expected: str) -> None:
    code, script, _ = run("completion", "bash")
    assert code == 0 and run("completion", "zsh")[1].endswith(script)
    typed = words.split()
    ask = f"{script}\nCOMP_WORDS=(sparkcf {words}); COMP_CWORD={len(typed)}; _sparkcf; echo ${{COMPREPLY[*]}}"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert expected in done.stdout.split()


def test_init_notes_what_it_cannot_know(run, tmp_path: Path) -> None:
    log = written(tmp_path / "a b.csv", "user,item,time", [("u", "i", "01/02/2024"), ("v", "i", "02/03/2024")])
    _, out, _ = run("init", str(log), "--output", str(tmp_path / "my night.yaml"))
    assert "times such as '01/02/2024' are read with the day first: if it is the month, set ts_formats" in out
    assert f"make nightly CONFIG='{tmp_path / 'my night.yaml'}' " in out
    log = written(tmp_path / "c.csv", "user,item,when", [("u", "i", "Monday"), ("v", "i", "01/02/2024")])
    _, out, _ = run("init", str(log), "--output", str(tmp_path / "c.yaml"))
    assert "no column of times is known: if there is one, set input.columns.ts and input.ts_formats" in out


def test_init_shows_the_delimiter_and_the_header(run, tmp_path: Path) -> None:
    for make, words in (
        (semicolons, 'csv, delimiter ";", the first line is the header'),
        (without_header, r'csv, delimiter "\t", no header, so columns are column1, …'),
        (json_lines, ": jsonl, its first rows"),
    ):
        _, out, _ = run("init", str(make(tmp_path)), "--output", str(tmp_path / f"{make.__name__}.yaml"))
        assert words in out, out


def test_init_refuses_a_name_that_would_be_a_pattern(run, tmp_path: Path) -> None:
    log = written(tmp_path / "r[1].csv", "user,item", [("u", "i")])
    code, _, err = run("init", str(log), "--output", str(tmp_path / "x.yaml"))
    assert code == 2 and "r[1].csv would be read as a pattern of names: rename it" in err
    assert not (tmp_path / "x.yaml").exists()


def test_an_export_to_an_address_or_with_an_index_of_no_vectors_is_refused(run, tmp_path: Path, monkeypatch) -> None:
    lake = str(build_lake(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, err = run("export", "redis://:secret@localhost:1/0", "--lake", lake)
    assert code == 2 and "--to parquet writes to a folder of this machine" in err and "secret" not in err
    code, _, err = run("export", "out", "--faiss", "--lake", lake)
    assert code == 2 and "give --to vectors" in err and sorted(tmp_path.iterdir()) == before


def test_output_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("sparkcf"), "config", "explain", "als.rank"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "whole number ≥ 1" in done.stdout.decode()
