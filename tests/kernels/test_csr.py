"""Compressed rows from triples: the documented example, duplicates, order, empty rows and 64-bit offsets."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkcf.kernels import csr
from sparkcf.kernels.csr import build_csr, take_rows

Triples = tuple[np.ndarray, np.ndarray, np.ndarray]


def triples(*entries: tuple[int, int, float]) -> Triples:
    rows, cols, values = zip(*entries, strict=True) if entries else ((), (), ())
    return np.array(rows, np.int32), np.array(cols, np.int32), np.array(values, np.float32)


def dense(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, n_cols: int) -> np.ndarray:
    matrix = np.zeros((len(indptr) - 1, n_cols))
    for row in range(len(matrix)):
        for place in range(indptr[row], indptr[row + 1]):
            matrix[row, indices[place]] += values[place]
    return matrix


def test_build_csr_gives_the_documented_example() -> None:
    entries = triples((2, 1, 5.0), (0, 3, 1.0), (2, 0, 2.0), (0, 3, 4.0))
    indptr, indices, values = build_csr(*entries, 3, 4)
    assert indptr.tolist() == [0, 1, 1, 3]
    assert indices.tolist() == [3, 0, 1]
    assert values.tolist() == [5.0, 2.0, 5.0]


def test_build_csr_keeps_offsets_in_64_bits_and_entries_in_32() -> None:
    indptr, indices, values = build_csr(*triples((0, 0, 1.0)), 1, 1)
    assert (indptr.dtype, indices.dtype, values.dtype) == (np.int64, np.int32, np.float32)


@pytest.mark.parametrize(
    ("kernel", "signature", "counters"),
    [
        (csr._stable_order, "(int32[::1], int64, int64[::1])", {"start", "place"}),
        (csr._merge_sorted, "(int32[::1], int32[::1], float32[::1], int64)", {"indptr", "size", "place"}),
    ],
)
def test_every_counter_of_entries_has_64_bits(kernel: Any, signature: str, counters: set[str]) -> None:
    """More than 2^31 entries would take minutes and 60 GB; the types of the compiled variables show it as well."""
    compiled = numba.njit(kernel.py_func)
    compiled.compile(signature)
    types = next(iter(compiled.overloads.values())).type_annotation.typemap
    for name in counters:
        found = {str(numba.types.unliteral(kind)) for key, kind in types.items() if key.split(".")[0] == name}
        assert len(found) == 1 and found <= {"int64", "array(int64, 1d, C)"}, (name, found)


def test_build_csr_sums_duplicates_without_losing_the_small_ones() -> None:
    # In float32 2^24 + 1 is 2^24 again: summed one by one, the ones would all be lost.
    entries = triples((0, 0, 2.0**24), *[(0, 0, 1.0)] * 64)
    assert build_csr(*entries, 1, 1)[2].tolist() == [2.0**24 + 64]


@pytest.mark.parametrize("n_rows", [0, 1, 5])
def test_build_csr_of_nothing_has_empty_rows(n_rows: int) -> None:
    indptr, indices, values = build_csr(*triples(), n_rows, 3)
    assert indptr.tolist() == [0] * (n_rows + 1)
    assert len(indices) == len(values) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(-9, 9)), max_size=40), st.randoms())
def test_build_csr_is_the_dense_sum_whatever_the_order(entries: list[tuple[int, int, int]], random: object) -> None:
    expected = np.zeros((5, 7))
    for row, col, value in entries:
        expected[row, col] += value
    built = build_csr(*triples(*entries), 5, 7)
    np.testing.assert_array_equal(dense(*built, 7), expected)
    for row in range(5):
        cols = built[1][built[0][row] : built[0][row + 1]]
        assert (np.diff(cols) > 0).all()  # sorted, none twice
    random.shuffle(entries)
    for one, other in zip(built, build_csr(*triples(*entries), 5, 7), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("entry", [(3, 0, 1.0), (-1, 0, 1.0), (0, 4, 1.0), (0, -1, 1.0)])
def test_build_csr_refuses_an_index_out_of_range(entry: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        build_csr(*triples(entry, (1, 1, 1.0)), 3, 4)


def test_build_csr_refuses_arrays_of_unequal_length() -> None:
    rows, cols, values = triples((0, 0, 1.0), (1, 1, 1.0))
    with pytest.raises(ValueError, match="differ in length: 2, 2, 1"):
        build_csr(rows, cols, values[:1], 2, 2)


def test_taken_rows_are_those_asked_for_in_their_order() -> None:
    indptr, indices = np.array([0, 2, 2, 5]), np.array([7, 8, 1, 2, 3], np.int32)
    taken, places = take_rows(indptr, np.array([2, 1, 0, 2]))
    assert taken.tolist() == [0, 3, 3, 5, 8]
    assert indices[places].tolist() == [1, 2, 3, 7, 8, 1, 2, 3]
    assert [part.size for part in take_rows(indptr, np.zeros(0, np.int64))] == [1, 0]
