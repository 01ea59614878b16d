"""What every model promises, on a matrix of four users and five items with an empty row and an empty column.

A new model is one more line in CASES.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract import Context, Fit, Known
from sparkcf.models.registry import MODELS, Model, rank_of
from sparkcf.ranking.topk import ItemSide, rank_users

CASES = {
    "als, implicit": ("model=als",),
    "als, classic weights": ("model=als", "als.form=hu_koren"),
    "als, exact": ("model=als", "als.solver=cholesky"),
    "als, explicit": ("model=als", "als.mode=explicit"),
    "als, explicit with biases": ("model=als", "als.mode=explicit", "als.biases=true"),
    "als, blocks of dimensions": ("model=als", "als.solver=subspace", "als.subspace_size=1"),
    "als, non-negative": ("model=als", "als.nonnegative=true", "als.solver=cholesky"),
    "hals": ("model=hals",),
    "hals, explicit with biases": ("model=hals", "hals.mode=explicit", "hals.biases=true"),
    "hals, non-negative": ("model=hals", "hals.nonnegative=true", "hals.form=frobenius"),
    "fm, als": ("model=fm", "fm.learner=als"),
    "fm, mcmc": ("model=fm",),
    "fm, sgd": ("model=fm", "fm.learner=sgd"),
    "fm, its items alone": ("model=fm", "fm.learner=als", "fm.fields=[{name: had, of: history}, {name: i, of: item}]"),
    "multvae": ("model=multvae", "multvae.hidden=[6]", "multvae.anneal_cap=0.01"),
    "multvae, Gaussian": ("model=multvae", "multvae.hidden=[]", "multvae.likelihood=gaussian"),
    "multdae": ("model=multdae", "multdae.workers=2"),
    "popularity": ("model=popularity",),
}
SMALL = ("rank=2", "iterations=4", "regularization=0.1", "workers=1")
BASE = ("ds=2024-01-31", "input.path=none", *(f"{section}.{key}" for section in ("als", "fm", "hals") for key in SMALL))
BASE += ("fm.burn_in=1", "fm.samples=2", "fm.sgd={epochs: 9, batch_size: 2, learning_rate: 0.05, workers: 1}")
BRIEF = (
    "latent_dim=2",
    "epochs=9",
    "batch_size=2",
    "learning_rate=0.05",
    "dropout=0",
    "workers=1",
    "validation_share=0",
)
BASE += tuple(f"{section}.{key}" for section in ("multvae", "multdae") for key in BRIEF)
VALUES = np.array([[5, 0, 3, 0, 1], [0, 4, 0, 0, 2], [0, 0, 0, 0, 0], [1, 0, 0, 0, 5]])
USERS, ITEMS = [0, 1, 3], [0, 1, 2, 4]  # user 2 has nothing, and nobody has item 3
ROWS = (  # rows to fold in: like user 0; like nobody; nothing
    np.array([0, 3, 4, 4]),
    np.array([0, 2, 4, 1], np.int32),
    np.array([5, 3, 1, 4], np.float32),
)


@dataclass(frozen=True)
class Case:
    model: Model
    config: Config
    pairs: DataFrame
    context: Context
    fitted: Fit
    items: ItemSide
    users: dict[int, np.ndarray]

    @property
    def rank(self) -> int:
        return rank_of(self.config)

    def fold_in(self, *rows: np.ndarray) -> np.ndarray:
        ones = np.ones_like(rows[2])  # weights
        known = Known(self.items.vectors, self.items.bias, len(ITEMS), self.fitted.mean, state=self.fitted.state)
        vectors, biases = self.model.fold_in((*rows, ones), known, self.config)
        assert biases.shape == (len(vectors),) and biases.dtype == np.float32 and np.isfinite(biases).all()
        return vectors


def test_every_model_has_a_case() -> None:
    assert {load_config((), [*BASE, *overrides]).model for overrides in CASES.values()} == set(MODELS)


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("contract")
    config = load_config((), [*BASE, *CASES[request.param]])
    cells = [(int(u), int(i), float(VALUES[u, i])) for u, i in zip(*np.nonzero(VALUES), strict=True)]
    pairs = spark.createDataFrame(cells, "user_idx int, item_idx int, value double")
    model = MODELS[config.model]
    tables = LakeTables(spark, str(folder / "lake"))
    context = Context(saved=str(folder / "saved"), tables=tables, snapshot="contract")
    fitted = model.fit(pairs, 4, 5, config, context)
    vectors, bias = np.zeros((5, rank_of(config)), np.float32), np.zeros(5, np.float32)
    for row in fitted.item.collect():
        vectors[row["idx"]], bias[row["idx"]] = row["factor"], row["bias"]
    popular = (VALUES > 0).sum(axis=0).astype(np.float32)
    users = {row["idx"]: np.array(row["factor"]) for row in fitted.user.collect()}
    yield Case(model, config, pairs, context, fitted, ItemSide(vectors, bias, popular > 0, popular), users)
    fitted.release()
    assert not fitted.kept.is_cached


def test_rows_with_entries_have_finite_factors_and_no_others(case: Case) -> None:
    for side, present in (("user", USERS), ("item", ITEMS)):
        frame = getattr(case.fitted, side)
        columns = {f.name: f.dataType.simpleString() for f in frame.schema}
        latent = {"latent": "array<float>"} if "latent" in columns else {}  # of a net's users
        assert columns == {"idx": "int", "factor": "array<float>", "bias": "float"} | latent
        rows = frame.orderBy("idx").collect()
        assert [row["idx"] for row in rows] == present
        assert np.array([row["factor"] for row in rows]).shape == (len(present), case.rank)
        assert all(np.isfinite([*row["factor"], row["bias"]]).all() for row in rows)
        assert any(any(row["factor"]) for row in rows)


def test_the_log_is_finite_and_its_objective_ends_lower(case: Case) -> None:
    objectives = [entry["objective"] if "sweep" in entry else entry["loss"] for entry in case.fitted.log]
    assert np.isfinite(objectives).all()
    drawn = case.config.model == "fm" and case.config.fm.learner == "mcmc"  # a sample, no optimum: it may rise
    assert drawn or not objectives or objectives[-1] <= objectives[0]
    assert np.isfinite(case.fitted.mean)


def test_the_same_seed_gives_the_same_factors(case: Case) -> None:
    again = case.model.fit(case.pairs, 4, 5, case.config, case.context)
    try:
        for row in again.user.collect():
            np.testing.assert_allclose(row["factor"], case.users[row["idx"]], atol=1e-6)
    finally:
        again.release()


def test_fold_in_gives_every_row_a_finite_vector(case: Case) -> None:
    vectors = case.fold_in(*ROWS)
    assert vectors.shape == (3, case.rank) and vectors.dtype == np.float32
    assert np.isfinite(vectors).all() and vectors[0].any()
    nothing = case.fold_in(np.zeros(1, np.int64), ROWS[1][:0], ROWS[2][:0])
    assert nothing.shape == (0, case.rank)


def test_fold_in_of_many_rows_is_that_of_each_alone(case: Case) -> None:
    indptr, indices, values = ROWS
    whole = case.fold_in(*ROWS)
    for row in range(3):
        here = slice(indptr[row], indptr[row + 1])
        alone = case.fold_in(indptr[row : row + 2] - indptr[row], indices[here], values[here])
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_lists_hold_unseen_items_once_for_k_below_equal_and_above_the_items(case: Case, k: int) -> None:
    factors = [case.users.get(user) for user in range(4)]
    column = pa.array([None if f is None else f.tolist() for f in factors], pa.list_(pa.float32()))
    indptr = np.concatenate([[0], np.cumsum((VALUES > 0).sum(axis=1))])
    seen = np.nonzero(VALUES)[1].astype(np.int32)
    ranked, scores, has_factor = rank_users(column, indptr, seen, case.items, k)
    assert has_factor.tolist() == [True, True, False, True]
    assert ranked.shape == scores.shape == (4, k)
    for user in range(4):
        listed = ranked[user][ranked[user] >= 0].tolist()
        unseen = set(ITEMS) - set(np.flatnonzero(VALUES[user]))
        assert len(listed) == len(set(listed)) == min(k, len(unseen))
        assert set(listed) <= unseen
        assert np.isfinite(scores[user][: len(listed)]).all()
        assert (np.diff(scores[user][: len(listed)]) <= 0).all()
