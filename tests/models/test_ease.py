"""EASE: the closed form, its two extensions, the Gram matrix in slices, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from sparkcf.config.linear import EASEConfig
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.kernels.gram import add_gram
from sparkcf.models import ease as module
from sparkcf.models.contract_data import FitRun, Fitted, TrainingData, UserBlock
from sparkcf.models.ease import EASE, item_weights
from sparkcf.models.linear import capped
from sparkcf.ranking.scorers import saved_of

N, M = 60, 12
RNG = np.random.default_rng(4)
X = (RNG.random((N, M)) < 0.3) * RNG.integers(1, 4, (N, M)).astype(float)
X[:, 7] = 0  # an item that nobody has


def compressed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    indptr = np.concatenate([[0], np.cumsum((x > 0).sum(axis=1))]).astype(np.int64)
    return indptr, np.nonzero(x)[1].astype(np.int32), x[np.nonzero(x)].astype(np.float32)


def dense(x: np.ndarray, params: EASEConfig) -> np.ndarray:
    """B as the module's docstring has it, by a plain inverse."""
    users, items = (x > 0).sum(axis=1), (x > 0).sum(axis=0)
    scaled = x.T @ (x * (users.clip(1).astype(float) ** -params.user_exponent)[:, None])
    extra = params.denoising / (1 - params.denoising) * items
    inverse = np.linalg.inv(scaled + np.diag(params.regularization + extra))
    b = -inverse / np.diag(inverse)
    np.fill_diagonal(b, 0)
    scale = items.astype(float) ** params.item_exponent
    return b * scale[:, None] / scale


@pytest.fixture(scope="module")
def pairs(spark: SparkSession) -> DataFrame:
    cells = [(int(u), int(i), float(X[u, i])) for u, i in zip(*np.nonzero(X), strict=True)]
    return spark.createDataFrame(cells, "user_idx int, item_idx int, value double").repartition(3)


def fit(pairs: DataFrame, **params: float) -> Fitted:
    return EASE(EASEConfig(**params), 1).fit(TrainingData(pairs, N, M), FitRun())


@pytest.mark.parametrize(
    "params",
    [
        {"regularization": 3.0},
        {"regularization": 3.0, "denoising": 0.4},
        {"regularization": 3.0, "user_exponent": 0.3, "item_exponent": 0.2},
    ],
)
@pytest.mark.parametrize("slice_bytes", [1 << 20, 3 * 8 * M])  # one slice a task slot, and many of three items
def test_weights_are_those_of_a_dense_inverse(pairs, params, slice_bytes, monkeypatch) -> None:
    monkeypatch.setattr(module, "SLICE_BYTES", slice_bytes)
    fitted = fit(pairs, **params)
    items = fitted.arrays["items"]
    assert items.tolist() == [i for i in range(M) if i != 7]
    expected = dense(np.delete(X, 7, axis=1), EASEConfig(**params))
    np.testing.assert_allclose(fitted.arrays["weights"], expected, atol=1e-6)
    fitted.release()


def test_extensions_at_zero_are_ease() -> None:
    gram, counts = X.T @ X, (X > 0).sum(axis=0).astype(float)
    plain = item_weights(gram.copy(), counts, EASEConfig(regularization=2.0))
    zeros = EASEConfig(regularization=2.0, denoising=0.0, item_exponent=0.0, user_exponent=0.0)
    np.testing.assert_array_equal(item_weights(gram.copy(), counts, zeros), plain)
    counts[7] = 1
    other = item_weights(gram.copy(), counts, EASEConfig(regularization=2.0, item_exponent=0.3))
    assert np.abs(other - plain).max() > 0.01  # so the exponent is seen


def test_the_gram_kernel_sums_products_of_weighted_rows_in_its_slice() -> None:
    weights = RNG.random(N)
    out = np.zeros((5, M))
    add_gram(*compressed(X), weights, 4, out)
    np.testing.assert_allclose(out, (X.T @ (X * weights[:, None]))[4:9], rtol=1e-12)


def test_scores_and_reasons_and_likeness_are_those_of_the_weights(pairs) -> None:
    fitted = fit(pairs, regularization=3.0)
    scorer = EASE(EASEConfig(), 1).open(saved_of(EASE(EASEConfig(), 1), fitted, M))
    indptr, indices, values = compressed(X)
    b = np.zeros((M, M))
    b[np.ix_(fitted.arrays["items"], fitted.arrays["items"])] = fitted.arrays["weights"]
    block = UserBlock(
        np.zeros((N, 0), np.float32), np.zeros(N, np.float32), np.ones(N, bool), (indptr, indices, values, values)
    )
    np.testing.assert_allclose(scorer.score_block(block), X @ b, atol=1e-5)
    explained = scorer.explain(block.take(np.array([1])), 3)
    assert {part.item: part.value for part in explained.parts} == pytest.approx(
        {i: X[1, i] * b[i, 3] for i in np.flatnonzero(X[1])}, abs=1e-6
    )
    np.testing.assert_allclose(scorer.similar_block(np.array([2, 7], np.int32)), b[[2, 7]], atol=1e-7)
    assert not scorer.known_items[7]
    fitted.release()


def test_of_a_long_history_the_same_pairs_count_whatever_the_partitions(pairs) -> None:
    counted = [capped(pairs.repartition(n), 3, 1) for n in (1, 5)]
    rows = [sorted(tuple(row) for row in frame.collect()) for frame in counted]
    assert rows[0] == rows[1]
    per_user = np.bincount([row[0] for row in rows[0]], minlength=N)
    np.testing.assert_array_equal(per_user, np.minimum((X > 0).sum(axis=1), 3))
    assert {(u, i) for u, i, _ in rows[0]} <= set(zip(*np.nonzero(X), strict=True))


def test_too_many_items_are_refused_with_the_memory_that_they_would_take(pairs) -> None:
    with pytest.raises(ConfigError, match=r"model=ease: 11 items, ease\.max_items is 10: solving would take 0\.0 GB"):
        fit(pairs, max_items=10)


def test_no_pair_ends_in_a_line(pairs) -> None:
    with pytest.raises(TrainingError, match="no positive interaction to train on"):
        fit(pairs.where("value < 0"))
