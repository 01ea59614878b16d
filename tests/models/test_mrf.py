"""MRF: equal to EASE where nothing is left out, its sparse parts against dense ones, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from scipy.sparse import csr_matrix

from sparkcf.config.linear import EASEConfig, MRFConfig
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.models.contract_data import FitRun, Saved, TrainingData, UserBlock
from sparkcf.models.ease import item_weights as dense_weights
from sparkcf.models.linear import Compressed
from sparkcf.models.mrf.fit import MRF, MRFScorer
from sparkcf.models.mrf.items import (
    ItemPairs,
    ItemSums,
    correlated,
    item_weights,
    pairs_of,
    solve_item,
)

EVERYTHING = {"max_neighbours": 4000, "min_correlation": 0.0}


def users(seed: int, n: int = 60, m: int = 12, share: float = 0.3) -> np.ndarray:
    """A matrix of users; the first one has everything, so that no pair of items is without a user."""
    rng = np.random.default_rng(seed)
    x = (rng.random((n, m)) < share) * rng.integers(1, 4, (n, m)).astype(float)
    x[0] = 1
    return x


def compressed(x: np.ndarray) -> Compressed:
    indptr = np.concatenate([[0], np.cumsum((x != 0).sum(axis=1))]).astype(np.int64)
    return indptr, np.nonzero(x)[1].astype(np.int32), x[np.nonzero(x)].astype(np.float32)


def dense(sparse: Compressed, m: int) -> np.ndarray:
    return csr_matrix((sparse[2], sparse[1], sparse[0]), shape=(len(sparse[0]) - 1, m)).toarray()


def gram_of(x: np.ndarray, exponent: float) -> np.ndarray:
    return x.T @ (x * ((x != 0).sum(axis=1).clip(1).astype(float) ** -exponent)[:, None])


def pairs(x: np.ndarray, params: MRFConfig) -> ItemPairs:
    rows, m = compressed(x), x.shape[1]
    sums = ItemSums.of(rows, m, params.user_exponent)
    return pairs_of(correlated(rows, np.arange(m, dtype=np.int32), sums, params), sums, params)


@given(
    seed=st.integers(0, 10_000),
    m=st.integers(2, 20),
    regularization=st.floats(0.5, 100),
    user_exponent=st.floats(0, 1),
    item_exponent=st.floats(0, 1),
    denoising=st.floats(0, 0.9),
)
@settings(max_examples=40, deadline=None)
def test_with_nothing_left_out_the_weights_are_those_of_ease(seed, m, **params) -> None:
    x = users(seed, 40, m)
    expected = dense_weights(gram_of(x, params["user_exponent"]), (x > 0).sum(axis=0), EASEConfig(**params))
    found = dense(item_weights(compressed(x), m, MRFConfig(**params, **EVERYTHING)), m)
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_centred_and_scaled_weights_are_those_of_the_scaled_covariance() -> None:
    x = users(3)
    m, shrink = x.shape[1], 0.75
    covariance = gram_of(x, 0) - len(x) * np.outer(x.mean(axis=0), x.mean(axis=0))
    scale = np.diag(covariance) ** (-shrink / 2)
    inverse = np.linalg.inv(covariance * np.outer(scale, scale) + 2.0 * np.eye(m))
    expected = -inverse / np.diag(inverse) * np.outer(scale, 1 / scale)
    np.fill_diagonal(expected, 0)
    plain = {"user_exponent": 0, "item_exponent": 0, "denoising": 0}
    params = MRFConfig(regularization=2.0, centred=True, scale_exponent=shrink, **plain, **EVERYTHING)
    np.testing.assert_allclose(dense(item_weights(compressed(x), m, params), m), expected, atol=1e-5)


@pytest.mark.parametrize("centred", [False, True])
def test_kept_pairs_are_those_of_enough_correlation_with_their_entries_of_the_gram_matrix(centred: bool) -> None:
    x = users(5, 80, 15, 0.2)
    x = x[x.any(axis=1)]
    params = MRFConfig(min_correlation=0.25, user_exponent=0.3, centred=centred)
    weights = (x != 0).sum(axis=1) ** -0.3
    gram = gram_of(x, 0.3)
    if centred:
        gram -= np.outer(weights @ x, weights @ x) / weights.sum()
    correlation = gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    expected = np.where(np.abs(correlation) >= 0.25, gram, 0)
    np.fill_diagonal(expected, 0)
    found = pairs(x, params)
    np.testing.assert_allclose(dense((found.indptr, found.indices, found.values), 15), expected, rtol=1e-5)
    assert 0 < len(found.values) < 15 * 14


def test_an_item_keeps_its_most_correlated_neighbours() -> None:
    x = users(6)
    found = pairs(x, MRFConfig(min_correlation=0, user_exponent=0))
    gram = gram_of(x, 0)
    correlation = gram[4] / np.sqrt(np.diag(gram))
    correlation[4] = 0
    others, weights, raised = solve_item(found, 4, MRFConfig(max_neighbours=3, min_correlation=0))
    assert others.tolist() == sorted(np.argsort(-correlation)[:3].tolist()) and not raised
    assert (found.place == -1).all() and weights.shape == (3,)


def test_a_system_that_leaving_out_made_singular_gets_a_larger_diagonal() -> None:
    # Items 0, 1 and 2 as neighbours of 3: their pairs (0, 1) and (1, 2) are kept with entries of 1, (0, 2) is not.
    block = np.array([[0, 9, 0, 1], [9, 0, 9, 1], [0, 9, 0, 1], [1, 1, 1, 0]], float)
    found = ItemPairs(*compressed(block), np.full(4, 9.0), np.full(4, 9.0))
    others, weights, raised = solve_item(found, 3, MRFConfig(regularization=0.01, denoising=0, scale_exponent=0))
    assert raised and others.tolist() == [0, 1, 2] and np.isfinite(weights).all()


def test_centred_a_constant_item_has_no_neighbours() -> None:
    x = users(7)
    x[:, 2] = 1
    found = pairs(x, MRFConfig(min_correlation=0, centred=True, user_exponent=0))
    assert found.variances[2] == 0 and not len(found.row(2)[0]) and 2 not in found.indices
    assert len(solve_item(found, 2, MRFConfig())[0]) == 0


def test_scores_reasons_and_likeness_are_those_of_the_weights() -> None:
    x = np.hstack([users(8), np.zeros((60, 1))])  # the last item is unknown
    b = item_weights(compressed(x[:, :-1]), 12, MRFConfig(max_neighbours=5, regularization=1))
    arrays = dict(zip(("indptr", "indices", "values"), b, strict=True)) | {"items": np.arange(12, dtype=np.int32)}
    scorer = MRFScorer(Saved(np.zeros((13, 0), np.float32), np.zeros(13, np.float32), np.arange(13) < 12, arrays))
    whole = np.zeros((13, 13))
    whole[:12, :12] = dense(b, 12)
    x[3, 12] = 2.0  # of an item that came later
    indptr, indices, values = compressed(x)
    rows = (indptr, indices, values, np.ones_like(values))
    block = UserBlock(np.zeros((60, 0), np.float32), np.zeros(60, np.float32), np.ones(60, bool), rows)
    scores = scorer.score_block(block)
    np.testing.assert_allclose(scores, x @ whole, atol=1e-4)
    for item in (3, 12):
        explained = [scorer.explain(block.take(np.array([user])), item) for user in range(60)]
        sums = [sum(part.value for part in one.parts) for one in explained]
        np.testing.assert_allclose(sums, scores[:, item], atol=1e-4)
        np.testing.assert_allclose([one.score for one in explained], scores[:, item], atol=1e-4)
    listed = np.tile(np.array([0, 3, 12, -1], np.int32), (60, 1))
    for user, reasons in enumerate(scorer.because(block, listed)):
        had = indices[indptr[user] : indptr[user + 1]]
        for item, reason in zip(listed[user], reasons, strict=True):
            brought = {} if item < 0 else {h: x[user, h] * whole[h, item] for h in had if h != item}
            assert reason == max((h for h in brought if brought[h] > 0), key=brought.get, default=-1)
    np.testing.assert_allclose(scorer.similar_block(np.array([2, 12], np.int32)), whole[[2, 12]], atol=1e-6)


def test_padding_takes_no_reason_away() -> None:
    """-1 is no item, and above all not the last one."""
    x = users(10)
    b = item_weights(compressed(x), 12, MRFConfig(max_neighbours=11, regularization=1))
    arrays = dict(zip(("indptr", "indices", "values"), b, strict=True)) | {"items": np.arange(12, dtype=np.int32)}
    scorer = MRFScorer(Saved(np.zeros((12, 0), np.float32), np.zeros(12, np.float32), np.ones(12, bool), arrays))
    block = UserBlock(np.zeros((60, 0), np.float32), np.zeros(60, np.float32), np.ones(60, bool), (*compressed(x), x))
    listed = np.tile(np.array([11, 3, -1, -1], np.int32), (60, 1))
    padded, short = scorer.because(block, listed), scorer.because(block, listed[:, :2].copy())
    assert (padded[:, :2] == short).all() and (padded[:, 2:] == -1).all() and (short[:, 0] >= 0).any()


def test_on_spark_the_weights_are_those_of_one_process(spark: SparkSession) -> None:
    x = users(9)
    x[:, 7] = 0  # an item that nobody has
    cells = [(int(u), int(i), float(x[u, i])) for u, i in zip(*np.nonzero(x), strict=True)]
    frame = spark.createDataFrame(cells, "user_idx int, item_idx int, value double").repartition(3)
    data = TrainingData(frame, 60, 12)
    params = {"max_neighbours": 5, "min_correlation": 0.1, "centred": True, "scale_exponent": 0.5}
    fitted = MRF(MRFConfig(**params), 1).fit(data, FitRun())
    items = fitted.arrays["items"]
    assert items.tolist() == [i for i in range(12) if i != 7]
    expected = item_weights(compressed(np.delete(x, 7, axis=1)), 11, MRFConfig(**params))
    found = tuple(fitted.arrays[name] for name in ("indptr", "indices", "values"))
    np.testing.assert_allclose(dense(found, 11), dense(expected, 11), atol=1e-5)
    fitted.release()
    with pytest.raises(ConfigError, match=r"model=mrf: more than 9 pairs of items correlate .* raise min_correlation"):
        MRF(MRFConfig(max_entries=9), 1).fit(data, FitRun())
    with pytest.raises(TrainingError, match="no positive interaction to train on"):
        MRF(MRFConfig(), 1).fit(TrainingData(frame.where("value < 0"), 60, 12), FitRun())
