"""Draws by counter: the same row has the same draws wherever it lies, and they are normal."""

from __future__ import annotations

import numpy as np
import pytest

from sparkcf.kernels.random import normal_rows


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_normal_rows_depend_on_the_row_and_not_on_its_place() -> None:
    whole = normal_rows(7, 0, np.arange(10), 5, 0.1)
    np.testing.assert_array_equal(normal_rows(7, 0, rows(8, 3), 5, 0.1), whole[[8, 3]])
    np.testing.assert_array_equal(normal_rows(7, 0, np.arange(1, 10, 2), 5, 0.1), whole[1::2])


def test_normal_rows_of_a_wider_vector_begin_with_the_same_draws() -> None:
    np.testing.assert_array_equal(normal_rows(7, 0, rows(4), 9, 0.1)[:, :5], normal_rows(7, 0, rows(4), 5, 0.1))


@pytest.mark.parametrize(("seed", "stream"), [(8, 0), (7, 1), (0, 0)])
def test_normal_rows_differ_by_seed_and_stream(seed: int, stream: int) -> None:
    one, other = normal_rows(7, 0, np.arange(20), 4, 1.0), normal_rows(seed, stream, np.arange(20), 4, 1.0)
    assert not (one == other).any()


def test_normal_rows_are_float32_of_the_asked_shape() -> None:
    drawn = normal_rows(1, 0, np.arange(3, dtype=np.int32), 4, 1.0)
    assert drawn.dtype == np.float32 and drawn.shape == (3, 4)
    assert normal_rows(1, 0, rows(), 4, 1.0).shape == (0, 4)


def test_normal_rows_have_the_moments_of_a_normal() -> None:
    drawn = normal_rows(3, 1, np.arange(20_000), 10, 2.0).astype(np.float64) / 2.0
    n = drawn.size
    assert abs(drawn.mean()) < 4 / np.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((drawn**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert abs((drawn[:, 0] * drawn[:, 1]).mean()) < 4 / np.sqrt(len(drawn))  # columns have nothing in common
    assert abs((drawn[:-1] * drawn[1:]).mean()) < 4 / np.sqrt(n)  # nor have neighbouring rows
    assert np.isfinite(drawn).all() and len(np.unique(drawn)) > 0.99 * n


def test_normal_rows_take_rows_and_seeds_of_any_size() -> None:
    drawn = normal_rows(2**31 - 1, 1, rows(0, 2**31 - 1, 2**31, 2**40), 3, 1.0)
    assert np.isfinite(drawn).all() and len(np.unique(drawn)) == drawn.size
