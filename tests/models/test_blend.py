"""A blend's ranks, weights and lists on arrays, and a fit on Spark that learns weights and reads its arrays back."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.sql import SparkSession

from sparkcf.config.load import load_config
from sparkcf.config.models import BlendConfig
from sparkcf.errors import ConfigError
from sparkcf.kernels.blend import add_reciprocal_ranks, blend_weights
from sparkcf.models.blend import Blend, BlendScorer, learn
from sparkcf.models.contract import InnerProduct
from sparkcf.models.contract_data import FitRun, Saved, TrainingData, UserBlock
from sparkcf.ranking.scorers import saved_of
from sparkcf.ranking.topk import Catalogue, Ranker

N, M, RANK = 60, 30, 4


def test_ranks_are_counted_among_new_items() -> None:
    scores = np.array([[5, 4, 3, 2, -np.inf], [1, 1, 1, np.nan, 2]], np.float32)
    had = (np.array([0, 2, 2]), np.array([0, 2], np.int32))
    out = np.zeros((2, 5), np.float32)
    add_reciprocal_ranks(scores, had, 2.0, 10.0, 2, out)
    # Of user 0 item 1 is the first new one and item 3 the second; items 0 and 2 would be first and second.
    np.testing.assert_allclose(out[0], [2 / 11, 2 / 11, 2 / 12, 2 / 12, 0], rtol=1e-6)
    np.testing.assert_allclose(out[1], [2 / 12, 0, 0, 0, 2 / 11], rtol=1e-6)


def members(seed: int) -> tuple[list[InnerProduct], list[UserBlock], tuple[np.ndarray, np.ndarray]]:
    """Two members that each know half of the tastes, one of noise, and what users really like next."""
    rng = np.random.default_rng(seed)
    taste, items = rng.normal(size=(N, 2 * RANK)), rng.normal(size=(M, 2 * RANK))
    truth = taste @ items.T
    ranked = np.argsort(-truth, axis=1)
    had, held = np.sort(ranked[:, 0:12:3], axis=1), np.sort(ranked[:, 1:6:3], axis=1)
    rows = (np.arange(N + 1) * had.shape[1], had.ravel().astype(np.int32), *[np.ones(had.size, np.float32)] * 2)
    halves = [(taste[:, :RANK], items[:, :RANK]), (taste[:, RANK:], items[:, RANK:])]
    halves.append((rng.normal(size=(N, RANK)), rng.normal(size=(M, RANK))))
    known = [Saved(v.astype(np.float32), np.zeros(M, np.float32), np.ones(M, bool)) for _, v in halves]
    blocks = [UserBlock(u.astype(np.float32), np.zeros(N, np.float32), np.ones(N, bool), rows) for u, _ in halves]
    return (
        [InnerProduct(saved) for saved in known],
        blocks,
        (np.arange(N + 1) * held.shape[1], held.ravel().astype(np.int32)),
    )


def test_learned_weights_beat_each_member_and_drop_noise() -> None:
    scorers, blocks, heldout = members(1)
    config = BlendConfig(rank_constant=5)
    found = learn(scorers, blocks, heldout, config)
    assert found.weights.sum() == pytest.approx(1) and found.blend is not None
    assert found.blend > max(found.members) + 0.02
    assert found.weights[2] < min(found.weights[:2])
    again = learn(scorers, blocks, heldout, config)
    np.testing.assert_array_equal(again.weights, found.weights)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_never_ends_below_a_member(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = np.tile(np.arange(150, dtype=np.int32), (40, 1))
    shares = [(1 / (60 + np.argsort(rng.random((40, 150)), axis=1))).astype(np.float32) for _ in range(3)]
    heldout = (np.arange(41) * 2, rng.permutation(np.repeat(np.arange(40), 2)).astype(np.int32))
    weights, alone, reached = blend_weights(shares, items, heldout)
    assert reached >= max(alone) > 0 and weights.sum() == pytest.approx(1)


def test_lists_of_a_blend_are_those_of_the_formula() -> None:
    scorers, blocks, _ = members(2)
    config, weights = BlendConfig(), np.array([0.5, 0.3, 0.2])
    blend = BlendScorer(scorers, [RANK] * 3, weights, config, ["a", "b", "c"])
    users = UserBlock(
        np.concatenate([b.vectors for b in blocks], axis=1), blocks[0].bias, blocks[0].known, blocks[0].rows
    )
    assert users.rows is not None
    ranker = Ranker(blend, Catalogue(np.ones(M, bool), np.zeros(M, np.float32)))
    listed, scores = ranker.rank(users, users.rows[:2], 5)
    for user in range(N):
        had, expected = users.rows[1][users.rows[0][user] : users.rows[0][user + 1]], np.zeros(M)
        for weight, scorer, block in zip(weights, scorers, blocks, strict=True):
            own = scorer.score_block(block.take(np.array([user])))[0]
            new = [i for i in np.argsort(-own, kind="stable") if i not in had]
            for rank, item in enumerate(new, 1):
                expected[item] += weight / (60 + rank)
        np.testing.assert_allclose(scores[user], np.sort(expected)[::-1][:5], rtol=1e-5)
        assert len({*listed[user]} & {*had}) == 0
    one = users.take(np.array([3]))
    explained = blend.explain(one, int(listed[3, 0]))
    assert sum(part.value for part in explained.parts) == pytest.approx(scores[3, 0], rel=1e-5)
    assert [part.label.split(":")[0] for part in explained.parts] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("blend.members=[{model: als}]", r"blend\.members"),
        (
            "blend.members=[{model: als}, {model: blend}]",
            r"members\[1\]: model='blend': a blend merges the lists of als",
        ),
        ("blend.members=[{model: als}, {model: easy}]", r"members\[1\]: model='easy'"),
        ("blend.members=[{model: als, params: {rnk: 3}}, {model: ease}]", r"members\[0\]: .*rnk"),
        ("blend.weights=[1, 2, 3]", r"weights=\[1\.0, 2\.0, 3\.0\] of 2 members: give one for each"),
        ("blend.weights=[0, 0]", r"not all of them 0"),
    ],
)
def test_bad_members_and_weights_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config((), ["ds=2024-01-31", "input.path=x", "model=blend", override])


def test_a_member_that_reads_values_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"blend\.members: als reads more than positives"):
        Blend(BlendConfig(members=({"model": "als", "params": {"mode": "explicit"}}, {"model": "ease"})), 1)


@pytest.mark.parametrize("n_items", [M - 2, M + 3])
def test_a_blend_opens_for_fewer_or_more_items_than_its_fit_had(n_items: int) -> None:
    """The last items of the fit had no pair, or items were added since."""
    rng, n_known = np.random.default_rng(7), M - 2
    chosen = ({"model": "als", "params": {"rank": RANK}}, {"model": "popularity"})
    model = Blend(BlendConfig(members=chosen, weights=(0.6, 0.4)), 1)
    known = np.arange(M) < n_known
    arrays = {"weights": np.array([0.6, 0.4])}
    for number in range(2):
        arrays |= {f"{number}:bias": np.zeros(M, np.float32), f"{number}:known": known.astype(np.uint8)}
    vectors = np.zeros((M + 3, RANK + 1), np.float32)
    vectors[:n_known] = rng.normal(size=(n_known, RANK + 1))
    rows = (np.array([0, 3]), np.array([1, 4, 7], np.int32), *[np.ones(3, np.float32)] * 2)
    found = []
    for n in (M, n_items):
        scorer = model.open(Saved(vectors[:n], np.zeros(n, np.float32), np.arange(n) < n_known, dict(arrays)))
        folded, bias = scorer.fold_in(rows)
        user = UserBlock(folded, bias, np.ones(1, bool), rows)
        found.append(scorer.score_block(user))
        assert found[-1].shape == (1, n) and scorer.known_items.sum() == n_known
        assert scorer.explain(user, 2).score == pytest.approx(float(found[-1][0, 2]))
    np.testing.assert_allclose(found[1][:, :n_known], found[0][:, :n_known], rtol=1e-6)


def test_a_fit_learns_weights_and_scores_as_its_members_do(spark: SparkSession) -> None:
    rng = np.random.default_rng(4)
    likes = [(u, i) for u in range(N) for i in range(M) if rng.random() < (0.7 if u % 3 == i % 3 else 0.1)]
    pairs = spark.createDataFrame([(u, i, 1.0) for u, i in likes], "user_idx int, item_idx int, value double")
    small = {"rank": 3, "iterations": 6, "workers": 1, "regularization": 0.05}
    chosen = (
        {"model": "als", "params": small},
        {"model": "ease", "params": {"regularization": 5}},
        {"model": "popularity"},
    )
    model, notes = Blend(BlendConfig(members=chosen), 1), []
    data = TrainingData(pairs, N, M)
    fitted = model.fit(data, FitRun(on_progress=notes.append))
    assert any("blend weights: 1 als" in entry["note"] for entry in notes)
    figures = {(figure.metric, figure.segment): figure.value for figure in fitted.figures}
    alone = [figures["validation_ndcg_at_100", f"member {label}"] for label in model.labels]
    assert figures["validation_ndcg_at_100", None] >= max(alone) > 0
    assert figures["blend_weight", "member 3 popularity"] < 0.3
    assert {name: array.shape for name, array in fitted.arrays.items()} == dict(model.shapes(data))
    saved = saved_of(model, fitted, M)
    scorer = model.open(saved)
    np.testing.assert_allclose(scorer.members[0].item_vectors, saved.item_vectors[:, :3])
    row = {item for user, item in likes if user == 0}
    rows = (np.array([0, len(row)]), np.array(sorted(row), np.int32), *[np.ones(len(row), np.float32)] * 2)
    stored = np.array(fitted.user_factors.where("idx = 0").first()["factor"], np.float32)
    folded, _ = scorer.fold_in(rows)
    assert np.corrcoef(stored[:3], folded[0, :3])[0, 1] > 0.9 and folded[0, 3] == stored[3] == 1
    scores = scorer.score_block(UserBlock(folded, np.zeros(1, np.float32), np.ones(1, bool), rows))[0]
    best = [i for i in np.argsort(-scores) if i not in row][:3]
    assert all(i % 3 == 0 for i in best)  # of the taste of user 0
    fitted.release()
    assert fitted.cached is not None and not fitted.cached.is_cached
