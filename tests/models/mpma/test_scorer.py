"""The scorer of the mixture: pairs, blocks, lists by three scores, fold-in, unknown users and items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from sparkcf.errors import LakeError
from sparkcf.models.contract_data import Saved, UserBlock
from sparkcf.models.mpma.fit import fit_arrays
from sparkcf.models.mpma.layout import unpacked
from sparkcf.models.mpma.scorer import MPMAScorer
from tests.models.mpma.data import ITEMS, KIND, USERS, VALUES, M, N, config

NO_ITEM = M - 1


def fitted(**given: Any) -> tuple[Any, Any]:
    return fit_arrays(USERS, ITEMS, VALUES, N, M, config(**given), 1)


def block_of(trained: Any, users: np.ndarray) -> UserBlock:
    return UserBlock(trained.rows[0][users], np.zeros(len(users), np.float32), trained.present[0][users])


def everyone(trained: Any) -> tuple[UserBlock, np.ndarray]:
    users, items = (index.ravel() for index in np.indices((N, M)))
    return block_of(trained, users), items.astype(np.int32)


def test_a_prediction_is_the_mixture_that_the_model_defines() -> None:
    groups = np.where(np.arange(N) == 4, -1, KIND).astype(np.int32)
    given = config(weights="global")
    trained, scorer = fit_arrays(USERS, ITEMS, VALUES, N, M, given, 1, groups=(groups, None))
    user, item = unpacked(trained.rows[0], "user", given), unpacked(trained.rows[1], "item", given)
    found = scorer.mixture(block_of(trained, np.array([3, 4])), np.array([5, 6], np.int32))
    for row, (u, i) in enumerate([(3, 5), (4, 6)]):
        h = item.groups[i]
        pairs = [(user.vectors[0][0][u], item.vectors[0][0][i])]
        pairs += [(user.vectors[1][0][u], item.vectors[1][groups[u]][i])] if groups[u] >= 0 else [None]
        pairs += [(user.vectors[2][h][u], item.vectors[2][0][i])]
        weights = np.array([0.0 if pair is None else w for pair, w in zip(pairs, scorer.weights.overall, strict=True)])
        np.testing.assert_allclose(found.weights[row], weights / weights.sum(), atol=1e-6)
        for t, pair in enumerate(pairs):
            if pair is not None:
                p, q = pair
                expected = trained.mean + p[:-1] @ q[:-1] + p[-1] + q[-1]
                assert found.means[row, t] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weights", ["global", "group", "user_item"])
@pytest.mark.parametrize("rank_by", ["mean", "lower_bound", "chance"])
def test_scores_of_blocks_are_those_of_pairs(weights: str, rank_by: str) -> None:
    trained, scorer = fitted(weights=weights, rank_by=rank_by, threshold=3.8, lower_bound_sds=1.5)
    block, items = everyone(trained)
    found = scorer.mixture(block, items)
    expected = {
        "mean": found.mean(),
        "lower_bound": found.mean() - 1.5 * found.sd(),
        "chance": (found.weights * norm.sf(3.8, found.means, found.sds)).sum(axis=1),
    }[rank_by].reshape(N, M)
    scores = scorer.score_block(block_of(trained, np.arange(N)))
    known = scorer.known_items
    np.testing.assert_allclose(scores[:, known], expected[:, known], atol=1e-5)


def test_predictions_of_the_training_ratings_are_near_them() -> None:
    trained, scorer = fitted()
    value, sd = scorer.predict(block_of(trained, USERS), ITEMS)
    assert np.sqrt(np.mean((value - VALUES) ** 2)) < 0.7 * VALUES.std()
    assert (sd > 0).all()


def test_unknown_users_and_items_get_a_distribution_around_what_is_known() -> None:
    trained, scorer = fitted()
    users = UserBlock(np.zeros((3, trained.rows[0].shape[1]), np.float32), np.zeros(3, np.float32), np.zeros(3, bool))
    found = scorer.mixture(users, np.array([0, NO_ITEM, -1], np.int32))
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    np.testing.assert_allclose(found.mean()[1:], trained.mean, atol=1e-5)
    assert abs(found.mean()[0] - trained.mean) < 2
    assert not scorer.known_items[NO_ITEM] and (found.sd() > 0).all()


def test_a_folded_in_user_of_the_training_is_predicted_nearly_alike() -> None:
    trained, scorer = fitted(weights="global", refit_iterations=4)
    counts = np.bincount(USERS, minlength=N)
    rows = (np.concatenate([[0], np.cumsum(counts)]), ITEMS, VALUES, np.ones_like(VALUES))
    vectors, bias = scorer.fold_in(rows)
    assert vectors.shape == trained.rows[0].shape and not bias.any()
    block, items = everyone(trained)
    folded = UserBlock(np.repeat(vectors, M, axis=0), np.zeros(N * M, np.float32), block.known)
    known = block.known & scorer.known_items[items]
    apart = scorer.predict(block, items)[0][known] - scorer.predict(folded, items)[0][known]
    assert np.sqrt(np.mean(apart**2)) < 0.15
    groups = unpacked(vectors, "user", scorer.params).groups
    same = groups[: N - 1] == unpacked(trained.rows[0], "user", scorer.params).groups[: N - 1]
    assert same.mean() > 0.85  # near a boundary a folded-in vector may lie on the other side


@pytest.mark.parametrize("weights", ["equal", "global", "group", "user_item"])
def test_folded_in_users_have_the_weights_of_their_group(weights: str) -> None:
    trained, scorer = fitted(weights=weights)
    counts = np.bincount(USERS, minlength=N)
    rows = (np.concatenate([[0], np.cumsum(counts)]), ITEMS, VALUES, np.ones_like(VALUES))
    folded, known = (unpacked(table, "user", scorer.params) for table in (scorer.fold_in(rows)[0], trained.rows[0]))
    for user in range(N - 1):
        alike = known.weights[: N - 1][known.groups[: N - 1] == folded.groups[user]]
        expected = scorer.weights.overall if weights == "user_item" else alike[0]
        np.testing.assert_allclose(folded.weights[user], expected, atol=1e-6)
    assert bool(np.ptp(folded.weights[: N - 1], axis=0).max() > 0.01) is (weights == "group")


def test_folded_in_users_get_the_group_that_a_column_gives() -> None:
    given = config(user_group_column="kind")
    _, scorer = fit_arrays(USERS, ITEMS, VALUES, N, M, given, 1, groups=(KIND, None))
    rows = (np.array([0, 2, 4]), np.array([0, 1, 0, 1], np.int32), np.array([3, 4, 3, 4], np.float32))
    features = (np.array([0, 1, 1]), np.array([1], np.int32), np.ones(1, np.float32))
    vectors, _ = scorer.fold_in((*rows, np.ones(4, np.float32)), features)
    assert unpacked(vectors, "user", given).groups.tolist() == [1, -1]


def test_a_mixture_of_an_earlier_version_is_refused_in_a_line() -> None:
    saved = Saved(np.zeros((1, 1), np.float32), np.zeros(1, np.float32), np.ones(1, bool), arrays={"sds": np.ones(3)})
    with pytest.raises(LakeError, match=r"of an earlier version, .*: train again"):
        MPMAScorer(saved, config())
