"""Top-k against a full sort: ties, masks, padding, NaN, and users and items that are not finite."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparkcf.kernels.topk import rank_block, rank_scores, select_top

INF = np.inf


def sort_all(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by sorting each row in full."""
    n = scores.shape[0]
    indices, best = np.full((n, k), -1, np.int32), np.full((n, k), -INF, np.float32)
    for i, row in enumerate(scores):
        listed = np.flatnonzero(row > -INF)
        order = listed[np.lexsort((listed, -row[listed]))][:k]
        indices[i, : order.size], best[i, : order.size] = order, row[order]
    return indices, best


def assert_same_lists(scores: np.ndarray, k: int) -> None:
    indices, best = select_top(scores, k)
    expected_indices, expected_best = sort_all(scores, k)
    assert indices.dtype == np.int32 and best.dtype == np.float32
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(best, expected_best)


def csr(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return indptr, np.array([item for row in rows for item in row], dtype=np.int32)


def test_select_top_lists_a_small_matrix() -> None:
    scores = np.array([[1, 3, 2, 3], [-INF, -5, np.nan, -6], [0, -0.0, INF, 0]], dtype=np.float32)
    indices, best = select_top(scores, 3)
    assert indices.tolist() == [[1, 3, 2], [1, 3, -1], [2, 0, 1]]
    assert best.tolist() == [[3, 3, 2], [-5, -6, -INF], [INF, 0, 0]]


def test_select_top_leaves_its_input_alone() -> None:
    scores = np.array([[-0.0, 2, np.nan], [5, -INF, 1]], dtype=np.float32)
    before = scores.copy()
    select_top(scores, 2)
    np.testing.assert_array_equal(scores.view(np.int32), before.view(np.int32))


@pytest.mark.parametrize("k", [1, 3, 4, 5, 9])
def test_select_top_takes_k_below_equal_and_above_the_number_of_items(k: int) -> None:
    assert_same_lists(np.array([[4, 1, 3, 2], [1, 1, 2, 1]], dtype=np.float32), k)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_select_top_of_nothing_is_padding(shape: tuple[int, int]) -> None:
    indices, best = select_top(np.empty(shape, dtype=np.float32), 2)
    assert indices.tolist() == [[-1, -1]] * shape[0]
    assert best.tolist() == [[-INF, -INF]] * shape[0]


@pytest.mark.parametrize("fill", [-INF, np.nan])
def test_select_top_of_masked_rows_is_padding(fill: float) -> None:
    indices, best = select_top(np.full((2, 700), fill, dtype=np.float32), 5)
    assert (indices == -1).all() and (best == -INF).all()


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.one_of(
            st.sampled_from([-INF, INF, np.nan, 0.0, -0.0, 1.0, -1.0]), st.floats(width=32, allow_nan=True)
        ),
    ),
    st.integers(1, 50),
)
def test_select_top_equals_a_full_sort_on_any_floats(scores: np.ndarray, k: int) -> None:
    assert_same_lists(scores, k)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 3000),
    k=st.integers(1, 300),
    values=st.integers(1, 4000),
    masked=st.floats(0, 1),
    order=st.sampled_from(["random", "rising", "falling"]),
)
def test_select_top_equals_a_full_sort_on_long_rows(
    seed: int, m: int, k: int, values: int, masked: float, order: str
) -> None:
    """Few different values make many ties; the orders are the best and the worst for a running bound."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-values, values + 1, (2, m)).astype(np.float32) / 8
    if order != "random":
        scores = np.sort(scores, axis=1)[:, :: 1 if order == "rising" else -1].copy()
    scores[rng.random((2, m)) < masked] = -INF
    scores[rng.random((2, m)) < 0.02] = np.nan
    assert_same_lists(scores, k)


@pytest.mark.parametrize("first", [0, 1, 511, 512, 4000])
def test_select_top_finds_the_best_wherever_they_crowd(first: int) -> None:
    """All the best in one group, so that the bound from the groups' maxima is no use and the buffer fills."""
    scores = np.random.default_rng(3).normal(size=(2, 9000)).astype(np.float32)
    scores[:, first::512] += 50
    scores[1, first : first + 900] += 90
    assert_same_lists(scores, 17)
    assert_same_lists(scores, 128)


def test_select_top_keeps_the_first_of_very_many_ties() -> None:
    scores = np.zeros((3, 5000), dtype=np.float32)
    scores[1, ::2] = -0.0
    scores[2, 4000] = 1
    indices, _ = select_top(scores, 3)
    assert indices.tolist() == [[0, 1, 2], [0, 1, 2], [4000, 0, 1]]


def test_select_top_refuses_bad_arguments() -> None:
    scores = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="k is 0"):
        select_top(scores, 0)
    with pytest.raises(ValueError, match="float32"):
        select_top(scores.astype(np.float64), 1)
    with pytest.raises(ValueError, match="2 dimensions"):
        select_top(scores[0], 1)


def test_rank_block_lists_a_small_example() -> None:
    users = np.array([[1, 0], [1, 1], [0, 2]], dtype=np.float32)
    items = np.array([[3, 0], [1, 1], [0, 4], [2, 2]], dtype=np.float32)
    bias = np.array([0, 10, 0, 0.5], dtype=np.float32)
    eligible = np.array([True, True, False, True])
    indices, scores = rank_block(users, items, bias, eligible, *csr([[1], [], [0, 3, 1]]), k=2)
    assert indices.tolist() == [[0, 3], [1, 3], [-1, -1]]
    assert scores.tolist() == [[3, 2.5], [12, 4.5], [-INF, -INF]]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 9),
    m=st.integers(1, 60),
    k=st.integers(1, 70),
    score_bytes=st.integers(0, 2000),
    with_bias=st.booleans(),
    with_eligible=st.booleans(),
    slice_items=st.integers(1, 70),
)
def test_rank_block_equals_mask_and_sort(
    seed: int, n: int, m: int, k: int, score_bytes: int, with_bias: bool, with_eligible: bool, slice_items: int
) -> None:
    """Small integers are exact in float32, so the scores must be equal, and ties are many; whatever the slices."""
    rng = np.random.default_rng(seed)
    users = rng.integers(-3, 4, (n, 4)).astype(np.float32)
    items = rng.integers(-3, 4, (m, 4)).astype(np.float32)
    bias = rng.integers(-2, 3, m).astype(np.float32) if with_bias else None
    eligible = rng.random(m) < 0.7 if with_eligible else None
    seen = [rng.permutation(m)[: rng.integers(0, m + 1)].tolist() for _ in range(n)]
    expected = users @ items.T + (bias if with_bias else 0)
    for u in range(n):
        expected[u, seen[u]] = -INF
    if eligible is not None:
        expected[:, ~eligible] = -INF
    indices, scores = rank_block(users, items, bias, eligible, *csr(seen), k, score_bytes, slice_items)
    expected_indices, expected_scores = sort_all(expected, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("score_bytes", [1, 100, 1 << 20])
def test_scores_from_anywhere_are_ranked_as_those_of_vectors(score_bytes: int) -> None:
    rng = np.random.default_rng(4)
    users, items = (rng.normal(size=(n, 3)).astype(np.float32) for n in (7, 9))
    eligible, seen = rng.random(9) < 0.7, csr([[1], [], [0, 3, 1], [], [8], [2], [5]])
    asked: list[int] = []

    def score_block(block: slice) -> np.ndarray:
        asked.append(block.stop - block.start)
        return users[block] @ items.T

    found = rank_scores(score_block, 7, 9, eligible, *seen, k=4, score_bytes=score_bytes)
    lists, scores = rank_block(users, items, None, eligible, *seen, k=4)
    np.testing.assert_array_equal(found[0], lists)
    np.testing.assert_allclose(found[1], scores, rtol=1e-5)  # a product of another height may round otherwise
    assert sum(asked) == 7 and max(asked) == {1: 1, 100: 2, 1 << 20: 7}[score_bytes]
    with pytest.raises(ValueError, match=r"score_block gave \(2, 9\) for 7 users and 9 items"):
        rank_scores(lambda block: users[:2] @ items.T, 7, 9, None, *seen, k=4)


@pytest.mark.parametrize("bad", [np.nan, INF, -INF])
def test_rank_block_keeps_what_is_not_finite_out_of_the_lists(bad: float) -> None:
    users = np.array([[1, 2], [bad, 0], [-1, 0], [0, 0]], dtype=np.float32)
    items = np.array([[1, 0], [0, bad], [2, 0], [0, 1], [5, 5]], dtype=np.float32)
    bias = np.array([0, 0, 0, 0, bad], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        indices, scores = rank_block(users, items, bias, None, *csr([[], [], [], []]), k=4)
    assert indices.tolist() == [[2, 3, 0, -1], [-1, -1, -1, -1], [3, 0, 2, -1], [0, 2, 3, -1]]
    assert scores.tolist() == [[2, 2, 1, -INF], [-INF] * 4, [0, -1, -2, -INF], [0, 0, 0, -INF]]


def test_rank_block_never_returns_nan_where_finite_vectors_overflow() -> None:
    users = np.array([[1e30, 1e30]], dtype=np.float32)
    items = np.array([[1e30, 0], [1e30, -1e30], [1, 1]], dtype=np.float32)
    _, scores = rank_block(users, items, None, None, *csr([[]]), k=3)
    assert not np.isnan(scores).any()


def test_rank_block_takes_a_slice_of_a_larger_matrix_of_seen_items() -> None:
    users = np.ones((4, 1), dtype=np.float32)
    items = np.arange(5, dtype=np.float32)[:, None]
    indptr, seen = csr([[4], [3], [4, 3], []])
    indices, _ = rank_block(users[2:], items, None, None, indptr[2:], seen, k=2)
    assert indices.tolist() == [[2, 1], [4, 3]]


def test_rank_block_of_no_users_or_no_items_is_padding() -> None:
    users, items = np.ones((2, 3), dtype=np.float32), np.ones((4, 3), dtype=np.float32)
    assert rank_block(users[:0], items, None, None, *csr([]), k=2)[0].shape == (0, 2)
    assert rank_block(users, items[:0], None, None, *csr([[], []]), k=2)[0].tolist() == [[-1, -1]] * 2


def test_rank_block_refuses_arrays_that_do_not_fit() -> None:
    users, items = np.ones((2, 3), dtype=np.float32), np.ones((4, 3), dtype=np.float32)
    seen = csr([[0], [3]])
    with pytest.raises(ValueError, match="k is -1"):
        rank_block(users, items, None, None, *seen, k=-1)
    with pytest.raises(ValueError, match="rank 2, item_vectors 3"):
        rank_block(users[:, :2], items, None, None, *seen, k=1)
    with pytest.raises(ValueError, match="item_bias has 3 entries for 4 items"):
        rank_block(users, items, np.zeros(3, dtype=np.float32), None, *seen, k=1)
    with pytest.raises(ValueError, match="eligible"):
        rank_block(users, items, None, np.ones(4), *seen, k=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"found 0\.\.4"):
        rank_block(users, items, None, None, *csr([[0], [4]]), k=1)
    with pytest.raises(ValueError, match=r"found -1\.\.0"):
        rank_block(users, items, None, None, *csr([[0], [-1]]), k=1)
    with pytest.raises(ValueError, match="seen_indptr must be int64"):
        rank_block(users, items, None, None, *csr([[0]]), k=1)
    with pytest.raises(ValueError, match="must rise"):
        rank_block(users, items, None, None, np.array([0, 2, 1]), seen[1], k=1)
