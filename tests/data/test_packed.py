"""Packed rows: bytes to compressed rows and back, cut and joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkcf.data.packed import PackedRows, fold_in_and_heldout, join, unpack


def packed(lists: list[list[int]]) -> PackedRows:
    items = [np.array(row, np.int32).tobytes() for row in lists]
    values = [(np.array(row, np.float32) + 0.5).tobytes() for row in lists]
    return unpack(np.arange(len(lists)) + 10, items, values)


def as_lists(rows: PackedRows) -> list[list[int]]:
    return [rows.indices[a:b].tolist() for a, b in zip(rows.indptr, rows.indptr[1:], strict=False)]


LISTS = st.lists(st.lists(st.integers(0, 1000), max_size=12, unique=True).map(sorted), max_size=12)


def test_the_bytes_of_the_example() -> None:
    rows = unpack(np.array([7]), [bytes.fromhex("0200000005000000")], [bytes.fromhex("0000803f00004040")])
    assert rows.ids.tolist() == [7] and rows.indptr.tolist() == [0, 2]
    assert rows.indices.tolist() == [2, 5] and rows.values.tolist() == [1.0, 3.0]


def test_a_row_with_fewer_values_than_items_is_refused() -> None:
    with pytest.raises(ValueError, match="not as many values as items"):
        unpack(np.array([1]), [b"\0" * 8], [b"\0" * 4])


@given(LISTS, st.data())
def test_rows_are_taken_in_any_order(lists: list[list[int]], data: st.DataObject) -> None:
    rows = packed(lists)
    wanted = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=20)) if lists else []
    taken = rows.take(np.array(wanted, np.int64))
    assert as_lists(taken) == [lists[i] for i in wanted] and taken.ids.tolist() == [i + 10 for i in wanted]
    assert taken.values.tolist() == [x + 0.5 for i in wanted for x in lists[i]]
    first, last = sorted(data.draw(st.tuples(st.integers(0, 15), st.integers(0, 15))))
    assert as_lists(rows.take(slice(first, last))) == lists[first:last]


@given(st.lists(LISTS, max_size=4))
def test_joined_rows_follow_one_another(parts: list[list[list[int]]]) -> None:
    whole = join([packed(lists) for lists in parts])
    assert as_lists(whole) == [row for lists in parts for row in lists]


@given(LISTS, st.integers(0, 2**31 - 1))
def test_rows_are_cut_in_two_whose_union_they_are(lists: list[list[int]], seed: int) -> None:
    rows = packed(lists)
    known, heldout = fold_in_and_heldout(rows, 0.8, seed)
    assert known.ids.tolist() == heldout.ids.tolist() == rows.ids.tolist()
    for row, kept, left in zip(lists, as_lists(known), as_lists(heldout), strict=True):
        assert sorted(kept + left) == row
        assert len(kept) == len(row) if len(row) < 2 else 1 <= len(left) <= len(row) - 1
        assert len(row) < 5 or abs(len(kept) - 0.8 * len(row)) <= 0.5


def test_a_rows_cut_depends_on_the_seed_and_not_on_its_neighbours() -> None:
    rows = packed([list(range(40)), list(range(5, 30)), list(range(60))])
    alone = fold_in_and_heldout(rows.take(slice(1, 2)), 0.8, 3)[0]
    assert as_lists(alone)[0] == as_lists(fold_in_and_heldout(rows, 0.8, 3)[0])[1]
    assert as_lists(fold_in_and_heldout(rows, 0.8, 4)[0]) != as_lists(fold_in_and_heldout(rows, 0.8, 3)[0])
