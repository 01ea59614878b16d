"""Greedy lists are those of a plain loop over the formula; caps hold; exploration is seeded and has its share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkcf.kernels.rerank import SMOOTHING, calibration_kl, intra_list_diversity, rerank_rows, within_user
from sparkcf.kernels.vectors import unit_rows

M, C, G, K = 40, 24, 4, 8


def setting(seed: int, n: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(M)[:C] for _ in range(n)]).astype(np.int32)
    mix = rng.random((M, G)) * (rng.random((M, G)) < 0.5)
    mix = np.divide(
        mix, mix.sum(axis=1, keepdims=True), out=np.zeros_like(mix), where=mix.sum(axis=1, keepdims=True) > 0
    )
    wanted = rng.dirichlet(np.ones(G), n)
    wanted[0] = 0  # not calibrated
    return {
        "items": items,
        "relevance": np.sort(rng.random((n, C)).astype(np.float32), axis=1)[:, ::-1].copy(),
        "vectors": unit_rows(rng.normal(size=(M, 5)).astype(np.float32)),
        "mix": mix.astype(np.float32),
        "wanted": wanted,
        "labels": rng.integers(0, 3, M).astype(np.int32),
    }


def lists(s: dict[str, Any], diversity=0.0, calibration=0.0, most=(K, K, K), explored=0, key=1, k=K):
    n = len(s["items"])
    places, seen = np.empty((n, k), np.int32), np.empty((n, k), bool)
    rerank_rows(
        s["items"], s["relevance"], s["vectors"], diversity, s["mix"], s["wanted"], calibration,
        np.arange(M + 1, dtype=np.int64), s["labels"], np.array(most, np.int32),
        np.full(n, explored, np.int64), np.arange(key, key + n).astype(np.uint64), places, seen,
    )  # fmt: skip
    return np.where(places >= 0, np.take_along_axis(s["items"], np.maximum(places, 0), axis=1), -1), seen


def by_hand(s: dict[str, Any], u: int, diversity: float, calibration: float, most: tuple[int, ...]) -> list[int]:
    listed: list[int] = []
    for _ in range(K):
        best, best_value = -1, -np.inf
        for item, relevance in zip(s["items"][u].tolist(), s["relevance"][u].tolist(), strict=True):
            label = s["labels"][item]
            if item in listed or sum(s["labels"][i] == label for i in listed) >= most[label]:
                continue
            value = (1 - diversity - calibration) * relevance
            if listed:
                value -= diversity * max(float(s["vectors"][i] @ s["vectors"][item]) for i in listed)
            if calibration and s["wanted"][u].sum():
                q = s["mix"][[*listed, item]].sum(axis=0)
                q = q / q.sum() if q.sum() else q
                p = s["wanted"][u]
                value -= calibration * float((p * np.log(p / ((1 - SMOOTHING) * q + SMOOTHING * p))).sum())
            if value > best_value + 1e-9:
                best, best_value = item, value
        if best < 0:
            break
        listed.append(best)
    return listed


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    weights=st.sampled_from([(0.0, 0.0), (0.4, 0.0), (0.0, 0.5), (0.3, 0.6), (1.0, 0.0)]),
    most=st.sampled_from([(K, K, K), (2, 3, 1), (1, 1, 1)]),
)
def test_lists_are_those_of_the_formula(seed: int, weights: tuple[float, float], most: tuple[int, ...]) -> None:
    s = setting(seed)
    found, explored = lists(s, *weights, most=most)
    assert not explored.any()
    for u in range(3):
        assert found[u][found[u] >= 0].tolist() == by_hand(s, u, *weights, most)


def test_without_rules_the_first_candidates_stay() -> None:
    s = setting(1)
    np.testing.assert_array_equal(lists(s)[0], s["items"][:, :K])


@pytest.mark.parametrize("explored", [1, 3, K])
def test_explored_positions_are_drawn_under_the_caps_and_repeat_with_their_key(explored: int) -> None:
    s, most = setting(2, 200), (3, 3, 4)
    plain, (found, seen) = lists(s, most=most)[0], lists(s, most=most, explored=explored)
    assert (seen.sum(axis=1) <= explored).all() and seen.sum(axis=1).mean() > 0.9 * explored
    np.testing.assert_array_equal(found[~seen], plain[~seen])
    assert (found[seen] != plain[seen]).mean() > 0.9
    for listed in found:
        assert len(set(listed.tolist())) == K
        assert (np.bincount(s["labels"][listed], minlength=3) <= most).all()
    again = lists(s, most=most, explored=explored)[0]
    np.testing.assert_array_equal(again, found)
    assert (lists(s, most=most, explored=explored, key=1000)[0] != found).any()
    if explored == 3:  # every position is explored about as often
        assert seen.mean(axis=0).max() < 1.6 * seen.mean()


def test_few_candidates_give_short_lists() -> None:
    s = setting(3)
    s["items"][:, 4:] = -1
    found, _ = lists(s, 0.3, 0.3, explored=2)
    assert (found[:, :4] >= 0).all() and (found[:, 4:] == -1).all()


def test_scores_are_scaled_within_the_user() -> None:
    scores = np.array([[3, 2, 1, -np.inf], [5, 5, -np.inf, -np.inf], [-np.inf] * 4], np.float32)
    np.testing.assert_allclose(within_user(scores), [[1, 0.5, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])


def test_measures_are_those_of_plain_loops() -> None:
    s = setting(4)
    listed = s["items"][:, :5].copy()
    listed[2, 3:] = -1
    for u, row in enumerate(listed):
        items = row[row >= 0]
        cosines = [s["vectors"][i] @ s["vectors"][j] for n, i in enumerate(items) for j in items[:n]]
        assert intra_list_diversity(listed, s["vectors"])[u] == pytest.approx(1 - np.mean(cosines), abs=1e-6)
        q = s["mix"][items].sum(axis=0)
        q, p = q / q.sum(), s["wanted"][u]
        kl = calibration_kl(listed, s["mix"], s["wanted"])[u]
        expected = (p * np.log(p / ((1 - SMOOTHING) * q + SMOOTHING * p))).sum() if u else np.nan
        np.testing.assert_allclose(kl, expected, atol=1e-6)
    assert np.isnan(intra_list_diversity(listed[:, :1], s["vectors"])).all()
