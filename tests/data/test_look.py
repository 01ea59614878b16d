"""A look at the input before Spark: missing files, columns and times that no format has."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from sparkcf.cli.guess import guess_file
from sparkcf.config.load import load_config
from sparkcf.data.lines import json_keys
from sparkcf.data.look import doubts, is_time, named_files
from sparkcf.errors import InputError

LOG = "user_id,item_id,ts\nu1,i1,2024-01-31T10:00:00Z\n"


def found(path: Path | str, *settings: str) -> list[str]:
    return doubts(load_config((), ["ds=2024-01-31", f"input.path={path}", *settings]))


def test_a_good_file_raises_no_doubt(tmp_path: Path) -> None:
    (tmp_path / "2024-01-31.csv").write_text(LOG)
    assert found(f"{tmp_path}/{{ds}}.csv") == []
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(LOG.encode("utf-8-sig")))
    assert found(tmp_path / "log.csv.gz") == []
    (tmp_path / "u.data").write_text("u1::i1::978300760\n")
    plain = ("input.header=false", "input.names=[user_id, item_id, ts]", "input.ts_formats=[epoch_s]")
    assert found(tmp_path / "u.data", *plain, 'input.delimiter="::"') == []
    (tmp_path / "log.jsonl").write_text('{"user": {"id": 1}, "item_id": 2, "ts": 1700000000123}\nnot json\n')
    nested = ("input.format=jsonl", "input.columns.user_id=user.id", "input.ts_formats=[iso8601, epoch_ms]")
    assert found(tmp_path / "log.jsonl", *nested) == []
    assert found("sample:ratings.csv.gz") == [] and found("s3a://bucket/log.csv") == []


def test_missing_files_are_named_by_their_keys(tmp_path: Path) -> None:
    items = f"input.items={{path: {tmp_path}/items.csv, columns: {{item_id: id}}}}"
    assert found(tmp_path / "a.csv", items) == [
        f"input.path={tmp_path}/a.csv: no such file",
        f"input.items.path={tmp_path}/items.csv: no such file",
    ]
    config = load_config((), ["ds=2024-01-31", "input.path=s3a://bucket/x"])
    assert named_files(config) == {"input.path": ("s3a://bucket/x", None)}


@pytest.mark.parametrize(
    ("settings", "key", "there"),
    [
        (["input.columns.user_id=uid"], "input.columns.user_id=uid", "user_id, item_id, ts"),
        (["input.columns.event=kind"], "input.columns.event=kind", "user_id, item_id, ts"),
        (["input.ts_formats=[epoch_s]"], "input.ts_formats", "2024-01-31T10:00:00Z"),
        (["input.delimiter=;"], "input.columns.user_id", "user_id,item_id,ts"),
    ],
)
def test_a_wrong_setting_is_doubted_with_what_is_there(tmp_path: Path, settings: list, key: str, there: str) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    said = found(tmp_path / "log.csv", *settings)
    assert said[0].startswith(key) and there in said[0] and "\n" not in said[0]


def test_a_file_that_cannot_be_read_is_a_doubt(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_text("no gzip")
    (said,) = found(tmp_path / "log.csv.gz")
    assert "cannot be read" in said


def test_a_damaged_gzip_file_and_deeply_nested_lines_are_a_doubt_and_an_error_of_ours(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(LOG.encode() * 200))
    packed[10:30] = b"\xff" * 20
    (tmp_path / "bad.csv.gz").write_bytes(packed)
    (said,) = found(tmp_path / "bad.csv.gz")
    assert "cannot be read: its gzip data is damaged" in said
    with pytest.raises(InputError, match="its gzip data is damaged"):
        guess_file(tmp_path / "bad.csv.gz")
    deep = '{"a":' * 100_000
    (tmp_path / "deep.jsonl").write_text(f'{deep}\n{{"user_id": 1, "item_id": 2, "ts": "2024-01-31"}}\n')
    assert found(tmp_path / "deep.jsonl", "input.format=jsonl") == []
    assert guess_file(tmp_path / "deep.jsonl").names == ("user_id", "item_id", "ts")
    assert json_keys(deep) == []


def test_a_gzipped_file_of_another_name_is_a_doubt(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(gzip.compress(LOG.encode()))
    (said,) = found(tmp_path / "log.csv")
    assert "it is gzipped: give it a name that ends in .gz" in said


def test_what_a_load_accepts_is_no_doubt(tmp_path: Path) -> None:
    (tmp_path / "spaces.csv").write_text("user_id, item_id, ts\nu1, i1,  2024-01-31T10:00:00Z \n")
    assert found(tmp_path / "spaces.csv") == []
    (tmp_path / "tabs.csv").write_text(LOG.replace(",", "\t"))
    assert found(tmp_path / "tabs.csv", "input.delimiter='\\t'") == []


@pytest.mark.parametrize(
    ("text", "form", "fits"),
    [
        ("2024-01-31", "iso8601", True),
        ("31.01.2024", "iso8601", False),
        ("1700000000", "epoch_s", True),
        ("1700000000123", "epoch_s", False),
        ("1700000000123", "epoch_ms", True),
        ("-1", "epoch_s", False),
        ("soon", "epoch_s", False),
        ("31.01.2024 10:05", "dd.MM.yyyy HH:mm", True),
        ("31/01/2024", "dd.MM.yyyy", False),
        ("5/1/2024", "M/d/yyyy", True),
        ("31 Jan 2024", "dd MMM yyyy", True),
        ("2024-01-31T10", "yyyy-MM-dd'T'HH", True),
        ("2024-01-31 10", "yyyy-MM-dd'T'HH", False),
        ("2024-01-31 +0100", "yyyy-MM-dd Z", True),
        ("31/01/2024", "dd/MM/yyyy[ HH:mm]", True),
        ("31/01/2024 10:05", "dd/MM/yyyy[ HH:mm[:ss", True),
        ("31/01/2024 10", "dd/MM/yyyy[ HH:mm]", False),
    ],
)
def test_times_of_every_kind_of_format(text: str, form: str, fits: bool) -> None:
    assert is_time(text, form) is fits
