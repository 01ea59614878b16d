"""Measures against hand-computed figures, a second implementation, and the golden numbers of popularity."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkcf.kernels.metrics import (
    Summary,
    mae,
    merge,
    poisson_weights,
    ranking_measures,
    rating_errors,
    rmse,
    summarize,
    unpack,
)
from sparkcf.kernels.topk import rank_block

SPLITS = Path(__file__).parents[2].parent / "shared" / "data" / "splits"


def csr(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return indptr, np.array([item for row in rows for item in row], dtype=np.int32)


def measure(
    ranked: list[list[int]], heldout: list[list[int]], ks: tuple[int, ...], share: list[float] | None = None
) -> dict[tuple[str, int], list[float]]:
    item_share = None if share is None else np.array(share)
    names, values = ranking_measures(np.array(ranked, dtype=np.int32), *csr(heldout), ks, item_share)
    return {name: values[:, c].tolist() for c, name in enumerate(names)}


def test_measures_of_a_hand_computed_example() -> None:
    """User 0 hits at positions 2 and 3 of 4, of three held out; user 1 at 1 of a short list, of one."""
    got = measure([[7, 3, 5, 1], [2, 0, -1, -1]], [[5, 3, 9], [2]], (2, 4))
    second, third = 1 / math.log2(3), 1 / 2
    expected = {
        ("ndcg_at_k", 2): [second / (1 + second), 1],
        ("ndcg_at_k", 4): [(second + third) / (1 + second + third), 1],
        ("recall_at_k", 2): [1 / 2, 1],
        ("recall_at_k", 4): [2 / 3, 1],
        ("precision_at_k", 2): [1 / 2, 1 / 2],
        ("precision_at_k", 4): [2 / 4, 1 / 4],
        ("map_at_k", 2): [(1 / 2) / 2, 1],
        ("map_at_k", 4): [(1 / 2 + 2 / 3) / 3, 1],
        ("mrr_at_k", 2): [1 / 2, 1],
        ("mrr_at_k", 4): [1 / 2, 1],
        ("hit_rate_at_k", 2): [1, 1],
        ("hit_rate_at_k", 4): [1, 1],
    }
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert got[name] == pytest.approx(values, abs=1e-15), name


def test_measures_are_zero_where_the_hit_lies_beyond_k() -> None:
    got = measure([[4, 3, 2]], [[2]], (2, 3))
    assert [got[name, 2] for name in ("ndcg_at_k", "recall_at_k", "map_at_k", "mrr_at_k", "hit_rate_at_k")] == [[0]] * 5
    assert got["mrr_at_k", 3] == [1 / 3] and got["hit_rate_at_k", 3] == [1]


def test_positions_beyond_the_list_are_misses() -> None:
    got = measure([[1, 0]], [[0, 1, 2, 3]], (2, 3, 10))
    assert got["precision_at_k", 3] == [2 / 3] and got["precision_at_k", 10] == [2 / 10]
    assert got["recall_at_k", 3] == [2 / 3] and got["recall_at_k", 10] == [2 / 4]
    assert got["ndcg_at_k", 2] == [1] and got["ndcg_at_k", 10][0] < got["ndcg_at_k", 3][0] < 1


def test_repeated_items_count_once() -> None:
    got = measure([[6, 6, 2]], [[6, 6]], (3,))
    assert got["recall_at_k", 3] == [1] and got["precision_at_k", 3] == [1 / 3] and got["ndcg_at_k", 3] == [1]


def test_a_user_without_held_out_items_has_no_value_and_is_left_out() -> None:
    ranked, heldout = np.array([[0, 1], [1, 0], [2, 0]], dtype=np.int32), csr([[1], [], [2]])
    _, values = ranking_measures(ranked, *heldout, (1,), np.array([0.5, 0.5, 0.25]))
    assert np.isnan(values).all(axis=1).tolist() == [False, True, False]
    summary = summarize(values, np.arange(3), seed=1, replicates=5)
    assert (summary.counted, summary.left_out) == (2, 1)
    assert summary.result()[0].tolist() == [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, (1 + 2) / 2]


def test_novelty_is_the_mean_surprise_of_what_is_listed() -> None:
    """Item 3 has no share and counts as 0.125 / 2."""
    share = [0.5, 0.25, 0.125, 0.0]
    got = measure([[1, 2, -1], [0, 3, 1], [-1, -1, -1]], [[0], [0], [0]], (1, 3), share)
    assert got["novelty_at_k", 1] == [2, 1, 0]
    assert got["novelty_at_k", 3] == [(2 + 3) / 2, (1 + 4 + 2) / 3, 0]


def test_measures_of_no_users_and_of_empty_lists() -> None:
    nobody = np.empty((0, 3), dtype=np.int32)
    assert ranking_measures(nobody, *csr([]), (1, 2))[1].shape == (0, 12)
    _, values = ranking_measures(np.empty((1, 0), dtype=np.int32), *csr([[4]]), (2,))
    assert values.tolist() == [[0] * 6]


def test_ranking_measures_refuses_bad_arguments() -> None:
    ranked, heldout = np.array([[0, 2]], dtype=np.int32), csr([[1]])
    for ks in ((), (0,), (5, 5)):
        with pytest.raises(ValueError, match="ks is"):
            ranking_measures(ranked, *heldout, ks)
    with pytest.raises(ValueError, match="ranked"):
        ranking_measures(ranked - np.int32(2), *heldout, (1,))
    with pytest.raises(ValueError, match="heldout_indptr must be"):
        ranking_measures(ranked, *csr([[1], [1]]), (1,))
    with pytest.raises(ValueError, match="must rise"):
        ranking_measures(ranked, np.array([0, 2]), heldout[1], (1,))
    with pytest.raises(ValueError, match="not negative"):
        ranking_measures(ranked, *csr([[-1]]), (1,))
    for share, message in (
        ([0.1, 0.1], "item 2 is listed"),
        ([0, 0, 2.0], "within"),
        ([0, 0, 0.0], "is 0 for all"),
    ):
        with pytest.raises(ValueError, match=message):
            ranking_measures(ranked, *heldout, (1,), np.array(share))


def measures_by_loops(ranked: list[int], heldout: set[int], k: int) -> list[float]:
    """A second implementation: NDCG, recall and average precision of one user in plain Python."""
    dcg, ideal, hits, precisions = 0.0, 0.0, 0, 0.0
    for position, item in enumerate(ranked[:k], start=1):
        if item in heldout:
            hits += 1
            dcg += 1 / math.log2(position + 1)
            precisions += hits / position
    for position in range(1, min(k, len(heldout)) + 1):
        ideal += 1 / math.log2(position + 1)
    reachable = min(k, len(heldout))
    return [dcg / ideal, hits / reachable, precisions / reachable]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), m=st.integers(2, 30), width=st.integers(1, 40), k=st.integers(1, 45))
def test_measures_equal_a_second_implementation(seed: int, m: int, width: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    ranked = [[*rng.permutation(m)[: min(m, width)], *[-1] * (width - min(m, width))] for _ in range(4)]
    heldout = [rng.permutation(m)[: rng.integers(1, m + 1)].tolist() for _ in range(4)]
    got = measure(ranked, heldout, (k,))
    for u in range(4):
        expected = measures_by_loops(ranked[u], set(heldout[u]), k)
        values = [got[name, k][u] for name in ("ndcg_at_k", "recall_at_k", "map_at_k")]
        assert values == pytest.approx(expected, abs=1e-12)
        assert all(0 <= got[name][u] <= 1 for name in got)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    parts=st.integers(1, 6),
    replicates=st.sampled_from([0, 1, 20]),
)
def test_merged_partitions_equal_the_whole(seed: int, n: int, parts: int, replicates: int) -> None:
    rng = np.random.default_rng(seed)
    values, users = rng.normal(size=(n, 3)), rng.integers(0, 10**6, n)
    values[rng.random(n) < 0.2] = np.nan
    part = rng.integers(0, parts, n)
    pieces = [summarize(values[part == p], users[part == p], 7, replicates) for p in range(parts)]
    rng.shuffle(pieces)
    merged, whole = merge(pieces), summarize(values, users, 7, replicates)
    assert (merged.counted, merged.left_out) == (whole.counted, whole.left_out)
    np.testing.assert_array_equal(merged.replicate_weights, whole.replicate_weights)
    np.testing.assert_allclose(merged.pack(), whole.pack(), rtol=1e-12, atol=1e-12)


def test_pack_and_unpack_return_the_same_summary() -> None:
    summary = Summary(3, 1, np.array([1.0, 2.0]), np.array([4.0, 5.0, 6.0]), np.arange(6.0).reshape(3, 2))
    packed = summary.pack()
    assert packed.tolist() == [3, 1, 1, 2, 4, 5, 6, 0, 1, 2, 3, 4, 5]
    again = unpack(packed, q=2, replicates=3)
    assert (again.counted, again.left_out) == (3, 1)
    np.testing.assert_array_equal(again.replicate_sums, summary.replicate_sums)
    with pytest.raises(ValueError, match="no summary of 2 values with 4 replicates"):
        unpack(packed, q=2, replicates=4)


def test_merge_refuses_nothing_and_what_does_not_fit() -> None:
    one = summarize(np.ones((2, 3)), np.arange(2), 0, 4)
    for wrong in ([], [one, summarize(np.ones((2, 3)), np.arange(2), 0, 5)]):
        with pytest.raises(ValueError, match="merge needs"):
            merge(wrong)


def test_summarize_refuses_a_row_that_is_nan_in_part() -> None:
    with pytest.raises(ValueError, match="row 1 is NaN in part"):
        summarize(np.array([[1, 2], [np.nan, 2]]), np.arange(2), 0, 0)


def test_result_without_replicates_or_without_users_has_no_bounds() -> None:
    mean, lower, upper = summarize(np.array([[1.0, 2.0], [3.0, 6.0]]), np.arange(2), 0, 0).result()
    assert mean.tolist() == [2, 4] and np.isnan([lower, upper]).all()
    assert np.isnan(summarize(np.full((2, 2), np.nan), np.arange(2), 0, 9).result()).all()


@pytest.mark.filterwarnings("error")
def test_a_replicate_that_draws_no_user_does_not_spoil_the_bounds() -> None:
    summary = summarize(np.array([[4.0]]), np.array([5]), seed=1, replicates=50)
    assert 0 in summary.replicate_weights
    assert [bound.tolist() for bound in summary.result()] == [[4], [4], [4]]


def test_bootstrap_bounds_cover_the_truth() -> None:
    """In 300 samples of 150 users the 95 % bounds should miss 15 times; two standard deviations are 8."""
    rng = np.random.default_rng(11)
    covered = 0
    for sample in range(300):
        values = rng.exponential(2.0, (150, 1))
        _, lower, upper = summarize(values, np.arange(150), sample, 400).result()
        covered += int(lower[0] <= 2.0 <= upper[0])
    assert 0.89 <= covered / 300 <= 0.985


def test_poisson_weights_have_the_distribution_of_poisson() -> None:
    weights = poisson_weights(3, 200, np.arange(5000))
    assert weights.mean() == pytest.approx(1, abs=0.005) and weights.var() == pytest.approx(1, abs=0.01)
    for w in range(6):
        expected = math.exp(-1) / math.factorial(w)
        assert (weights == w).mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / weights.size))
    between_replicates = np.corrcoef(weights.T) - np.eye(200)
    between_users = np.corrcoef(weights[:200]) - np.eye(200)
    assert np.abs(between_replicates).max() < 6 / math.sqrt(5000)
    assert np.abs(between_users).max() < 6 / math.sqrt(200)


def test_poisson_weights_depend_on_seed_replicate_and_user_alone() -> None:
    users = np.array([5, 3, 2**40, 0])
    weights = poisson_weights(9, 30, users)
    np.testing.assert_array_equal(poisson_weights(9, 30, users[::-1]), weights[::-1])
    np.testing.assert_array_equal(poisson_weights(9, 12, users), weights[:, :12])
    assert (poisson_weights(10, 30, users) != weights).any(axis=1).all()
    # Written down: a change would give another bootstrap for the same seed.
    assert poisson_weights(9, 8, np.array([5])).astype(int).tolist() == [[3, 0, 1, 2, 2, 0, 0, 1]]


def test_rmse_and_mae_of_a_hand_computed_example() -> None:
    errors = rating_errors(np.array([4, 2, 5], dtype=np.float32), np.array([3, 2, 3]))
    assert errors.tolist() == [[1, 1], [0, 0], [4, 2]]
    summary = summarize(errors, np.array([0, 0, 1]), 0, 0)
    assert rmse(summary)[0] == pytest.approx(math.sqrt(5 / 3)) and mae(summary)[0] == 1
    assert np.isnan(rmse(summary)[1:]).all() and np.isnan(mae(summary)[1:]).all()


def test_rating_bounds_are_clustered_by_user() -> None:
    """Ratings of one user err alike: bounds over users are wider than over as many independent rows."""
    rng = np.random.default_rng(5)
    user = np.repeat(np.arange(60), 40)
    errors = rating_errors(np.zeros(user.size), rng.normal(scale=10, size=60)[user])
    clustered = summarize(errors, user, 1, 500)
    independent = summarize(errors, np.arange(user.size), 1, 500)
    for root in (rmse, mae):
        value, lower, upper = root(clustered)
        _, low, high = root(independent)
        assert lower < value < upper and upper - lower > 3 * (high - low)


def test_rating_errors_refuses_what_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match=r"row 1: actual 4\.0, predicted nan"):
        rating_errors(np.array([3.0, 4.0]), np.array([3.0, np.nan]))
    with pytest.raises(ValueError, match="do not fit"):
        rating_errors(np.zeros(3), np.zeros(2))


def rows_of(pairs: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Compressed-sparse rows of sorted (user, item) pairs."""
    return np.searchsorted(pairs[:, 0], np.arange(n + 1)).astype(np.int64), np.ascontiguousarray(pairs[:, 1])


GOLDEN = {
    ("ml-100k", "q1"): [0.2790, 0.1754, 0.2101, 0.3459],
    ("ml-100k", "q2"): [0.2614, 0.1688, 0.2061, 0.3240],
    ("ml-1m", "q1"): [0.2170, 0.1557, 0.1753, 0.2482],
    ("ml-1m", "q2"): [0.2153, 0.1541, 0.1693, 0.2421],
}


@pytest.mark.skipif(not SPLITS.is_dir(), reason="the fixed splits of MovieLens are not beside this checkout")
@pytest.mark.parametrize("data, protocol", GOLDEN)
def test_popularity_reaches_its_golden_numbers(data: str, protocol: str) -> None:
    with np.load(SPLITS / f"{data}-{protocol}.npz", allow_pickle=False) as archive:
        split = {name: archive[name] for name in archive.files}
    m = int(split["n_items"])
    if protocol == "q1":
        seen, heldout, n = split["test_foldin"], split["test_heldout"], split["test_users"].size
    else:
        seen, heldout, n = (
            np.concatenate([split["train"], split["valid"]]),
            split["test"],
            split["users"].size,
        )
        seen = seen[np.lexsort((seen[:, 1], seen[:, 0]))]
    popularity = np.bincount(split["train"][:, 1], minlength=m).astype(np.float32)
    ranked, _ = rank_block(np.ones((n, 1), dtype=np.float32), popularity[:, None], None, None, *rows_of(seen, n), k=100)
    names, values = ranking_measures(ranked, *rows_of(heldout, n), (20, 50, 100))
    means = dict(zip(names, summarize(values, np.arange(n), 0, 0).result()[0], strict=True))
    wanted = [("ndcg_at_k", 100), ("ndcg_at_k", 20), ("recall_at_k", 20), ("recall_at_k", 50)]
    assert [round(float(means[name]), 4) for name in wanted] == GOLDEN[data, protocol]
