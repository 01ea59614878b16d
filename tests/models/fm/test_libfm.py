"""libFM's text: what is written is read again; what is wrong is named by its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparkcf.errors import InputError
from sparkcf.models.fm.libfm import SparseRows, read_libfm, write_libfm


@pytest.mark.parametrize("name", ["rows.libfm", "rows.libfm.gz"])
def test_rows_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    ptr = np.array([0, 3, 3, 5, 6])
    rows = SparseRows(
        rng.normal(size=4).astype(np.float32), ptr, np.array([7, 0, 2**31 - 1, 3, 1, 0], np.int32),
        rng.normal(size=6).astype(np.float32),
    )  # fmt: skip
    write_libfm(tmp_path / name, rows)
    again = read_libfm(tmp_path / name)
    for field in ("y", "ptr", "feat", "val"):
        np.testing.assert_array_equal(getattr(again, field), getattr(rows, field))


def test_comments_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("# first\n\n1 3:0.5  # why\n-1e2\n")
    rows = read_libfm(tmp_path / "a")
    assert rows.y.tolist() == [1, -100] and rows.ptr.tolist() == [0, 1, 1]
    assert (rows.feat.tolist(), rows.val.tolist()) == ([3], [0.5])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 2:1\nyes 1:1\n", r"line 2: 'yes' is not a finite number"),
        ("1 2:nan\n", r"line 1: 'nan' is not a finite number"),
        ("1 -2:1\n", r"line 1: '-2:1' is not feature:value"),
        ("1 99999999999:1\n", r"line 1: '99999999999:1' is not feature:value"),
        ("1 2\n", r"line 1: '2' is not feature:value"),
        ("1 2:1 2:3\n", r"line 1: a feature is repeated"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(InputError, match=told):
        read_libfm(tmp_path / "a")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot be read as libFM text"):
        read_libfm(tmp_path / "a.gz")
    with pytest.raises(InputError, match="cannot be read as libFM text"):
        read_libfm(tmp_path / "nothing")


def test_a_real_file_goes_round(tmp_path: Path, shared_data: Path) -> None:
    rows = read_libfm(shared_data / "frappe" / "frappe.test.libfm.gz")
    assert len(rows.y) == 28_860 and int((rows.y > 0).sum()) == 9_536
    write_libfm(tmp_path / "again", rows)
    np.testing.assert_array_equal(read_libfm(tmp_path / "again").feat, rows.feat)
