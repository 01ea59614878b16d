"""Lists are read whole in any batches, and their JSON is exact whatever the texts hold."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkcf.errors import LakeError, NotFoundError
from sparkcf.export.lists import Lists, Run, as_items, find_run, read_lists, read_titles
from sparkcf.lake.query import Lake
from tests.lake.test_query import APRIL_30, MAY_2, STRANGE, publish, write, write_items, write_lists, write_runs

RUN = Run("als", "r", MAY_2)


def read(root: Path, rows: int = 1 << 19) -> dict[str, list[str]]:
    """The items of every user, as the lists give them."""
    found: dict[str, list[str]] = {}
    for lists in read_lists(Lake(root), RUN, rows):
        for user, items in zip(lists.users.to_pylist(), lists.as_structs().to_pylist(), strict=True):
            assert user not in found
            found[user] = [item["item_id"] for item in items]
    return found


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1000])
def test_lists_are_whole_however_the_rows_are_cut(tmp_path: Path, rows: int) -> None:
    lists = {f"u{n}": [f"i{place}" for place in range(1 + n % 4)] for n in range(20)}
    write_lists(tmp_path, "als", "r", MAY_2, dict(list(lists.items())[:9]))
    write_lists(tmp_path, "als", "r", MAY_2, dict(list(lists.items())[9:]))
    write_lists(tmp_path, "als", "other", MAY_2, {"u0": ["no"]})
    assert read(tmp_path, rows) == lists


def _write_rows(root: Path, rows: list[tuple[str, int, str]], score: float = 0.5) -> None:
    columns = {
        "ds": pa.array([MAY_2] * len(rows)),
        "user_id": [user for user, _, _ in rows],
        "position": pa.array([position for _, position, _ in rows], pa.int32()),
        "item_id": [item for _, _, item in rows],
        "score": pa.array([score] * len(rows), pa.float32()),
        "reason": ["model"] * len(rows),
        "model": ["als"] * len(rows),
        "run_id": ["r"] * len(rows),
    }
    write(root, "recommendations", columns, ["model", "run_id"])


def test_a_list_whose_rows_stand_in_disorder_is_sorted(tmp_path: Path) -> None:
    _write_rows(tmp_path, [("u", 2, "b"), ("u", 1, "a"), ("v", 1, "c")])
    assert read(tmp_path) == {"u": ["a", "b"], "v": ["c"]}


def test_a_list_with_a_gap_is_refused_by_its_user(tmp_path: Path) -> None:
    _write_rows(tmp_path, [("v", 1, "c"), ("u", 1, "a"), ("u", 3, "b")])
    with pytest.raises(LakeError, match="list of user 'u' in run r has gaps"):
        read(tmp_path)


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    _write_rows(tmp_path, [("u", 1, "a")], float("nan"))
    with pytest.raises(LakeError, match="not finite"):
        read(tmp_path)


def test_a_run_without_lists_is_said(tmp_path: Path) -> None:
    write_lists(tmp_path, "als", "other", MAY_2, {"u": ["a"]})
    with pytest.raises(NotFoundError, match="has no lists"):
        read(tmp_path)


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)


@given(st.lists(st.tuples(TEXTS, st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1, max_size=6))
def test_json_gives_texts_and_scores_back(rows: list[tuple[str, float]]) -> None:
    offsets = pa.array([0, 0, len(rows)], pa.int32())
    columns = {
        "item_id": pa.array([text for text, _ in rows], pa.string()),
        "score": pa.array([score for _, score in rows], pa.float32()),
        "title": pa.array([text or None for text, _ in rows], pa.string()),
    }
    none, some = Lists(pa.array(["u", "v"]), offsets, columns).as_json().to_pylist()
    expected = [{"item_id": text, "score": score, "title": text or None} for text, score in rows]
    assert (json.loads(none), as_items(some)) == ([], expected)


def test_titles_are_joined_by_item(tmp_path: Path) -> None:
    write_lists(tmp_path, "als", "r", MAY_2, {user: [user, "a"] for user in STRANGE})
    write_items(tmp_path, {"a": None, **{user: f"title {user}" for user in STRANGE[1:]}})
    known = read_titles(Lake(tmp_path))
    found = {}
    for lists in read_lists(Lake(tmp_path), RUN):
        for user, text in zip(lists.users.to_pylist(), lists.with_titles(known).as_json().to_pylist(), strict=True):
            found[user] = [item["title"] for item in json.loads(text)]
    assert found == {STRANGE[0]: [None, None], **{user: [f"title {user}", None] for user in STRANGE[1:]}}


def test_the_run_is_the_published_one_or_the_named_one(tmp_path: Path) -> None:
    write_runs(tmp_path, [("clean-1", None, "done", 1), ("old", "als", "published", 2), ("new", "als", "published", 3)])
    publish(tmp_path, "als", APRIL_30, 1, "old")
    publish(tmp_path, "als", MAY_2, 1, "new")
    lake = Lake(tmp_path)
    assert find_run(lake) == find_run(lake, run_id="new") == Run("als", "new", MAY_2)
    assert find_run(lake, ds=APRIL_30).run_id == "old"
    for wrong in ("clean-1", "nope"):
        with pytest.raises(NotFoundError, match="the newest are new, old"):
            find_run(lake, run_id=wrong)
