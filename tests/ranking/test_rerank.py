"""Rules of re-ranking on arrays and on Spark: what they read of items, the lists, their measures, reasons in words."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.rerank import RerankConfig
from sparkcf.config.root import Config
from sparkcf.data.pairs import row_lists
from sparkcf.errors import ConfigError, NotFoundError
from sparkcf.jobs.recommend import banned_items, with_reasons
from sparkcf.models.contract import InnerProduct
from sparkcf.models.contract_data import Saved, UserBlock
from sparkcf.ranking.rerank import Reranker, Rules
from sparkcf.ranking.rerank_items import build_side, check_attributes, item_side, share_reranker
from sparkcf.ranking.scorers import share_scorer
from sparkcf.ranking.topk import Catalogue, share_ranker, top_k

DAY, M = dt.date(2024, 1, 31), 12
TEXTS = {
    "categories": [["a"] if i % 3 == 0 else ["b", "c"] if i % 3 == 1 else [] for i in range(M)],
    "brand": [["x"] if i < 6 else ["y"] for i in range(M)],
}
ROWS = (np.array([0, 3, 3]), np.array([0, 1, 2], np.int32), np.array([2, 1, 5], np.float32), np.ones(3, np.float32))


def users(known: int = 2) -> UserBlock:
    return UserBlock(np.zeros((2, 1), np.float32), np.zeros(2, np.float32), np.arange(2) < known, ROWS)


def chooser(rerank: RerankConfig, since: np.ndarray | None = None, seed: int = 1, day: dt.date = DAY) -> Reranker:
    vectors = np.eye(M, dtype=np.float32)
    side = build_side(rerank, DAY, TEXTS, np.full(M, np.nan) if since is None else since, vectors)
    rules = Rules(rerank.factor, rerank.diversity, rerank.calibration, rerank.exploration, seed, day.toordinal())
    return Reranker(rules, side)


def lists(rerank: RerankConfig, k: int = 4, **more: Any) -> Any:
    """Lists of two users who both have the items in order as candidates, of scores M, M - 1, …, 1."""
    candidates = np.tile(np.arange(M, dtype=np.int32), (2, 1))
    scores = np.tile(np.arange(M, 0, -1).astype(np.float32), (2, 1))
    ids = more.pop("ids", np.array([3, 4]))
    return chooser(rerank, **more).chosen(users(), ids, candidates, scores, k)


def test_boosts_multiply_and_add_to_scores_scaled_within_the_user() -> None:
    boosted = RerankConfig(boosts=({"by": "brand", "value": "y", "multiply": 0.5, "add": 0.8},))
    found = lists(boosted)
    scaled = np.linspace(1, 0, M)
    value = np.where(np.arange(M) < 6, scaled, scaled * 0.5 + 0.8)
    assert found.items[0].tolist() == np.argsort(-value, kind="stable")[:4].tolist()
    assert found.scores[0].tolist() == [M - i for i in found.items[0].tolist()]  # the model's scores stay


def test_scores_halve_with_an_items_age() -> None:
    end = dt.datetime(2024, 2, 1, tzinfo=dt.UTC).timestamp()
    since = np.full(M, end - 10 * 86_400)
    since[5], since[6] = end, np.nan
    side = chooser(RerankConfig(half_life_days=5), since).items
    np.testing.assert_allclose(side.fresh, np.where(np.isin(np.arange(M), (5, 6)), 1, 0.25))
    assert lists(RerankConfig(half_life_days=5), since=since).items[0, :2].tolist() == [5, 6]


def test_age_raises_no_score_that_boosts_made_negative() -> None:
    """Items 0 to 5 all have -0.5, and only item 0 is fresh: the old ones would come before it."""
    end = dt.datetime(2024, 2, 1, tzinfo=dt.UTC).timestamp()
    since = np.where(np.arange(M) == 0, end, end - 100 * 86_400)
    buried = RerankConfig(half_life_days=5, boosts=({"by": "brand", "value": "x", "multiply": 0, "add": -0.5},))
    assert lists(buried, M, since=since).items[0].tolist() == [*range(6, 12), *range(6)]


def test_caps_count_values_of_categories_and_attributes() -> None:
    found = lists(RerankConfig(caps=({"by": "categories", "most": 1}, {"by": "brand", "most": 2})), 6)
    # 0 takes category a, 1 takes b and c; items without a category are left to brands: x is full, y takes 8 and 11.
    assert found.items[0].tolist() == [0, 1, 8, 11, -1, -1]
    assert np.isneginf(found.scores[0, 4:]).all()


def test_the_wanted_distribution_is_that_of_the_users_items_by_value() -> None:
    wanted = chooser(RerankConfig(calibration=0.5)).wanted(users())
    np.testing.assert_allclose(wanted, [[2 / 3, 1 / 6, 1 / 6], [0, 0, 0]])  # item 2 has no category, user 1 no item


def test_exploration_depends_on_user_and_day_alone_and_has_its_share() -> None:
    rules = RerankConfig(exploration=0.3)
    first, again = lists(rules), lists(rules)
    np.testing.assert_array_equal(first.items, again.items)
    swapped = lists(rules, ids=np.array([4, 3]))
    np.testing.assert_array_equal(swapped.items[::-1], first.items)
    many = chooser(rules)
    n = 2000
    block = UserBlock(np.zeros((n, 1), np.float32), np.zeros(n, np.float32), np.ones(n, bool))
    candidates = np.tile(np.arange(M, dtype=np.int32), (n, 1))
    scores = np.tile(np.arange(M, 0, -1).astype(np.float32), (n, 1))
    today = many.chosen(block, np.arange(n), candidates, scores, 4)
    tomorrow = chooser(rules, day=DAY + dt.timedelta(days=1)).chosen(block, np.arange(n), candidates, scores, 4)
    assert today.explored.mean() == pytest.approx(0.3, abs=0.02)
    assert (today.items != tomorrow.items).any(axis=1).mean() > 0.5


def test_measures_are_those_of_the_list_before_and_after() -> None:
    names, values = chooser(RerankConfig(exploration=0.5)).measures(
        lists(RerankConfig(exploration=0.5)), users(), [2, 4]
    )
    assert names[:3] == [("intra_list_diversity_at_k", 2), ("calibration_kl_at_k", 2), ("exploration_share_at_k", 2)]
    assert values[:, names.index(("exploration_share_at_k", 4))].tolist() == [0.5, 0.5]
    assert (values[:, 0] == 1).all() and np.isnan(values[1, 1])  # unit vectors are orthogonal; user 1 has no history


@pytest.fixture(scope="module")
def items(spark: SparkSession) -> DataFrame:
    rows = [
        (
            i,
            f"i{i}",
            f"Film {i}" if i else None,
            TEXTS["categories"][i],
            {"brand": TEXTS["brand"][i][0], "day": f"2024-01-{i + 10}"},
        )
        for i in range(M)
    ]
    schema = "item_idx int, item_id string, title string, categories array<string>, attributes map<string,string>"
    return spark.createDataFrame(rows, schema).withColumn(
        "numbers", F.create_map(F.lit("born"), F.col("item_idx") * 86400.0)
    )


def settings(*overrides: str) -> Config:
    return load_config((), ["ds=2024-01-31", "input.path=x", *overrides])


def test_what_no_item_has_ends_in_a_line_that_names_what_there_is(items: DataFrame) -> None:
    for override, said in (
        ("rerank.caps=[{by: colour, most: 1}]", r"rerank\.caps\[0\]\.by=colour: no item has it: .*brand, day"),
        ("rerank.boosts=[{by: brand, value: z}]", r"rerank\.boosts\[0\]: no item has brand 'z': there are x, y"),
        ("rerank.exclude=[{by: categories, values: [q]}]", r"no item has categories 'q': there are a, b, c"),
        ("rerank={half_life_days: 1, fresh_from: brand}", "rerank.fresh_from=brand: no item has such a time"),
    ):
        with pytest.raises(NotFoundError, match=said):
            check_attributes(items, settings(override).rerank)


def test_items_age_from_their_first_event_an_attribute_or_a_number(items: DataFrame, spark: SparkSession) -> None:
    scorer = InnerProduct(Saved(np.eye(M, dtype=np.float32), np.zeros(M, np.float32), np.ones(M, bool)))
    events = spark.sql(
        "SELECT 3 AS item_idx, TIMESTAMP'2024-01-31 00:00:00' AS ts UNION ALL SELECT 3, TIMESTAMP'2024-01-22'"
    )
    half = "rerank={half_life_days: 10, fresh_from: %s}"
    first = item_side(items, events, settings(half % "first_event"), M, scorer).fresh
    np.testing.assert_allclose(first, np.where(np.arange(M) == 3, 0.5, 1.0))
    day = item_side(items, events, settings(half % "day"), M, scorer).fresh
    np.testing.assert_allclose(day, 2.0 ** (-(22 - np.arange(M)) / 10), rtol=1e-5)
    born = item_side(items, events, settings(half % "born"), M, scorer).fresh
    assert (np.diff(born) > 0).all() or born.max() < 1e-30  # items born in 1970 have long faded


def test_rules_exclusions_and_reasons_reach_the_lists(items: DataFrame, spark: SparkSession) -> None:
    config = settings(
        "rerank={exclude: [{by: categories, values: [a]}], caps: [{by: brand, most: 2}]}", "topk.reasons=true"
    )
    vectors = np.stack([np.arange(M, 0, -1), np.ones(M)], axis=1).astype(np.float32)
    saved = Saved(vectors, np.zeros(M, np.float32), np.ones(M, bool))
    banned = banned_items(spark, items, config)
    popular = spark.createDataFrame([(i, float(i)) for i in range(M)], "item_idx int, score float")
    rules = share_reranker(
        spark, config, items, spark.createDataFrame([], "item_idx int, ts timestamp"), M, InnerProduct(saved)
    )
    ranker = share_ranker(
        spark, share_scorer(spark, InnerProduct, saved), Catalogue.of(popular, M, banned), reranker=rules
    )
    known = spark.createDataFrame(
        [(0, [1.0, 0.0], [1]), (1, None, None)], "user_idx int, factor array<float>, seen array<int>"
    )
    pairs = spark.createDataFrame([(0, 1, 1.0), (0, 0, 1.0)], "user_idx int, item_idx int, value double")
    found = with_reasons(top_k(known.join(row_lists(pairs), "user_idx", "left"), ranker, 2, 6, "because"), items)
    rows = found.orderBy("user_idx", "position").collect()
    assert [row["item_idx"] for row in rows] == [2, 4, 7, 8, 11, 10, 5, 4]  # a: 0, 3, 6, 9; x: below 6
    assert [row["reason"] for row in rows[4:]] == ["fallback"] * 4
    assert rows[0]["reason"] == "because you had Film 1"  # the nearest of items 0 and 1
    explored = top_k(
        known, share_ranker(spark, ranker.scorer, Catalogue.of(popular, M), reranker=_exploring(spark, items)), 2, 2
    )
    assert {row["reason"] for row in explored.collect() if row["user_idx"] == 0} == {"exploration"}


def _exploring(spark: SparkSession, items: DataFrame) -> Any:
    scorer = InnerProduct(Saved(np.eye(M, dtype=np.float32), np.zeros(M, np.float32), np.ones(M, bool)))
    return share_reranker(spark, settings("rerank.exploration=1"), items, items.limit(0), M, scorer)


def test_a_model_without_item_vectors_is_told_to_compare_by_categories(items: DataFrame, spark: SparkSession) -> None:
    class Bare(InnerProduct):
        likeness = InnerProduct.__mro__[1].likeness  # type: ignore[assignment]

    bare = Bare(Saved(np.eye(M, dtype=np.float32), np.zeros(M, np.float32), np.ones(M, bool)))
    with pytest.raises(ConfigError, match=r"set rerank\.similarity=categories"):
        share_reranker(spark, settings("rerank.diversity=0.3"), items, items.limit(0), M, bare)
