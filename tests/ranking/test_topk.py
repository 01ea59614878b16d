"""Top-K lists on Spark against a full sort in numpy, and what a list must never hold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.data.arrow import collect_factors, csr_of
from sparkcf.kernels.csr import take_rows
from sparkcf.kernels.vectors import unit_rows
from sparkcf.models.contract import InnerProduct
from sparkcf.models.contract_data import Saved
from sparkcf.ranking.scorers import share_scorer
from sparkcf.ranking.topk import Catalogue, share_ranker, share_similarity, top_k

USERS = "user_idx int, factor array<float>, seen array<int>"
ITEMS = "idx int, factor array<float>, bias float"
User = tuple[int, list[float] | None, list[int] | None]
Lists = dict[int, list[tuple[int, float, str]]]


@dataclass(frozen=True)
class Side:
    """The items of an inner product, and what may be listed of them."""

    vectors: np.ndarray
    bias: np.ndarray
    eligible: np.ndarray
    fallback: np.ndarray

    def share(self, spark: SparkSession, fused: bool = True):
        saved = Saved(self.vectors, self.bias, np.ones(len(self.bias), bool))
        catalogue = Catalogue(self.eligible, self.fallback)
        return share_ranker(spark, share_scorer(spark, InnerProduct, saved), catalogue, fused)


def items(vectors: list[list[float]], **changes: object) -> Side:
    matrix = np.array(vectors, np.float32)
    m = len(matrix)
    sides = {"bias": np.zeros(m), "eligible": np.ones(m, bool), "fallback": np.arange(m)} | changes
    types = {"bias": np.float32, "eligible": bool, "fallback": np.float32}
    return Side(matrix, **{name: np.array(sides[name], types[name]) for name in types})


@pytest.fixture(scope="module")
def listed(spark: SparkSession) -> Callable[..., Lists]:
    def ask(users: list[User], side: Side, k: int, partitions: int = 2, fused: bool = True) -> Lists:
        rows = spark.createDataFrame(users, USERS).repartition(partitions)
        found: Lists = {}
        for row in (
            top_k(rows, side.share(spark, fused), side.vectors.shape[1], k).orderBy("user_idx", "position").collect()
        ):
            lines = found.setdefault(row["user_idx"], [])
            lines.append((row["item_idx"], row["score"], row["reason"]))
            assert row["position"] == len(lines)  # 1, 2, 3, … without a gap
        return found

    return ask


def sort_all(users: list[User], side: Side, k: int) -> Lists:
    """The same by sorting every item for every user: best score first, ties by item."""
    found: Lists = {}
    for user, factor, seen in users:
        if factor is None:
            scores, reason = side.fallback.astype(np.float64), "fallback"
        else:
            scores, reason = side.vectors.astype(np.float64) @ np.array(factor) + side.bias, "model"
        allowed = [i for i in np.flatnonzero(side.eligible) if i not in set(seen or ())]
        best = sorted(allowed, key=lambda item: (-scores[item], item))[:k]
        if best:
            found[user] = [(int(i), float(scores[i]), reason) for i in best]
    return found


def many_users(rng: np.random.Generator, n: int, m: int, rank: int) -> list[User]:
    """Users of small whole numbers, so that many scores tie; some without factors, seen items, or any item left."""
    users: list[User] = []
    for user in range(n):
        factor = None if user % 5 == 0 else rng.integers(-2, 3, rank).astype(float).tolist()
        seen = None if user % 4 == 0 else rng.choice(m, rng.integers(0, m), replace=False).tolist()
        users.append((3 * user + 1, factor, list(range(m)) if user in (7, 10) else seen))
    return users


@pytest.mark.parametrize("k", [1, 4, 17, 25])
def test_lists_are_those_of_a_full_sort(listed: Callable[..., Lists], k: int) -> None:
    rng = np.random.default_rng(k)
    m = 17
    eligible = rng.random(m) < 0.8
    popularity = rng.integers(0, 4, m)
    side = items(rng.integers(-2, 3, (m, 3)), bias=rng.integers(-2, 3, m), eligible=eligible, fallback=popularity)
    users = many_users(rng, 60, m, 3)
    expected = sort_all(users, side, k)
    assert listed(users, side, k) == expected
    assert listed(users, side, k, fused=False) == expected  # by blocks of scores, as a model without vectors is ranked
    assert 22 not in expected and 31 not in expected  # they have seen everything: no row at all


def test_lists_do_not_depend_on_the_partitions(listed: Callable[..., Lists]) -> None:
    rng = np.random.default_rng(0)
    side, users = items(rng.normal(size=(40, 5))), many_users(rng, 50, 40, 5)
    one = listed(users, side, 9, 1)
    assert listed(users, side, 9, 2) == one == listed(users, side, 9, 7)


def test_ties_are_broken_by_the_item_index(listed: Callable[..., Lists]) -> None:
    side = items([[1.0], [2.0], [1.0], [2.0], [1.0]], fallback=[3, 1, 3, 3, 0])
    found = listed([(0, [1.0], [1]), (1, None, None)], side, 4)
    assert [item for item, _, _ in found[0]] == [3, 0, 2, 4]
    assert [item for item, _, _ in found[1]] == [0, 2, 3, 1]


def test_items_are_ranked_by_the_product_plus_their_bias(listed: Callable[..., Lists]) -> None:
    side = items([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]], bias=[0.5, -2.0, 2.0])
    assert listed([(0, [1.0, 1.0], None)], side, 3)[0] == [(2, 4.0, "model"), (0, 2.5, "model"), (1, 1.0, "model")]


def test_a_user_without_factors_gets_the_popular_items_that_they_have_not_seen(listed: Callable[..., Lists]) -> None:
    side = items([[9.0], [1.0], [5.0]], fallback=[1, 8, 4], bias=[7, 0, 0])
    found = listed([(0, None, [1]), (1, [-1.0], None)], side, 2)
    assert found[0] == [(2, 4.0, "fallback"), (0, 1.0, "fallback")]
    assert found[1] == [(1, -1.0, "model"), (0, -2.0, "model")]


def test_one_user_and_one_item(listed: Callable[..., Lists]) -> None:
    side = items([[2.0]])
    assert listed([(5, [3.0], None)], side, 1) == {5: [(0, 6.0, "model")]}
    assert listed([(5, [3.0], [0])], side, 1) == {}
    assert listed([], side, 1) == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_factor_that_is_not_finite_gives_no_row_rather_than_a_false_one(
    listed: Callable[..., Lists], bad: float
) -> None:
    side = items([[1.0], [bad], [2.0]])
    assert listed([(0, [1.0], None), (1, [bad], None)], side, 3) == {0: [(2, 2.0, "model"), (0, 1.0, "model")]}


def test_a_catalogue_is_what_the_tables_hold(spark: SparkSession) -> None:
    popularity = spark.createDataFrame([(0, 7.0), (2, 3.0), (5, 1.0)], "item_idx int, score float")
    banned = spark.createDataFrame([(2,), (1,)], "item_idx int")
    catalogue = Catalogue.of(popularity, 6, banned)
    assert catalogue.eligible.tolist() == [True, False, False, True, True, True]
    assert catalogue.popularity.tolist() == [7, 0, 3, 0, 0, 1]
    assert Catalogue.of(popularity, 6).eligible.all()


@pytest.mark.parametrize("types", [ITEMS, "idx long, factor array<double>, bias double"])
def test_factors_are_collected_as_float32_arrays(spark: SparkSession, types: str) -> None:
    rows = [(4, [1.0, 2.0], 0.5), (0, [3.0, 4.0], 0.0), (2, [5.0, 6.0], -1.0)]
    vectors, bias, known = collect_factors(spark.createDataFrame(rows, types).repartition(3), 6, 2)
    assert vectors.tolist() == [[3, 4], [0, 0], [5, 6], [0, 0], [1, 2], [0, 0]]
    assert bias.tolist() == [0, 0, -1, 0, 0.5, 0] and vectors.dtype == bias.dtype == np.float32
    assert known.tolist() == [True, False, True, False, True, False]
    empty = [(1, [], 0.0), (3, [], 0.0)]  # of a model whose scores do not come from vectors
    vectors, _, known = collect_factors(spark.createDataFrame(empty, types), 4, 0)
    assert vectors.shape == (4, 0) and known.tolist() == [False, True, False, True]


def test_several_item_sides_are_kept_apart(listed: Callable[..., Lists]) -> None:
    one, other = items([[1.0], [2.0]]), items([[2.0], [1.0]])
    users: list[User] = [(0, [1.0], None)]
    assert [listed(users, side, 1)[0][0][0] for side in (one, other, one)] == [1, 0, 1]


def test_unit_vectors_are_shared_without_a_second_item_side_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).normal(size=(20_001, 64)).astype(np.float32)
    vectors[5] = 0
    files: list[str] = []
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(addFile=files.append))
    model: Any = SimpleNamespace(open=InnerProduct)
    saved = Saved(vectors, np.zeros(len(vectors), np.float32), np.ones(len(vectors), bool))
    monkeypatch.setattr("sparkcf.ranking.topk.SLICE", 1000)
    tracemalloc.start()
    try:
        share_similarity(spark, model, saved, share_scorer(spark, InnerProduct, saved))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < vectors.nbytes / 4
    shared = [np.load(file) for file in files[3:]]  # after the model's own three arrays
    assert np.array_equal(shared[0], unit_rows(vectors)) and np.flatnonzero(~shared[2]).tolist() == [5]


def test_csr_of_reads_nulls_and_slices_of_a_column() -> None:
    column = pa.array([[9], [1, 2], None, [], [3]], pa.list_(pa.int32()))
    indptr, indices = csr_of(column)
    assert indptr.tolist() == [0, 1, 3, 3, 3, 4] and indices.tolist() == [9, 1, 2, 3]
    assert indptr.dtype == np.int64 and indices.dtype == np.int32
    indptr, indices = csr_of(column[1:])
    assert indptr.tolist() == [0, 2, 2, 2, 3] and indices.tolist() == [1, 2, 3]


def test_take_rows_takes_rows_in_the_asked_order() -> None:
    indptr, values = np.array([0, 2, 2, 3, 6]), np.array([5, 6, 7, 1, 2, 3])
    taken, entries = take_rows(indptr, np.array([3, 1, 0]))
    assert taken.tolist() == [0, 3, 3, 5] and values[entries].tolist() == [1, 2, 3, 5, 6]
    assert take_rows(indptr, np.empty(0, np.int64))[0].tolist() == [0]


def test_lists_are_typed_as_they_are_stored(spark: SparkSession) -> None:
    users: DataFrame = spark.createDataFrame([(0, [1.0], None)], USERS)
    ranked = top_k(users, items([[1.0]]).share(spark), 1, 1)
    assert [(f.name, f.dataType.simpleString()) for f in ranked.schema] == [
        ("user_idx", "int"),
        ("position", "int"),
        ("item_idx", "int"),
        ("score", "float"),
        ("reason", "string"),
    ]
    assert ranked.where(F.isnan("score")).count() == 0
