"""The factorization machine on Spark: what the fit in one process gives, folded into factors, and through a night."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.lake.schemas import TABLES
from sparkcf.models.contract_data import FitRun, Fitted, TrainingData
from sparkcf.models.fm.arrays import fit_fm_arrays
from sparkcf.models.fm.factors import _histories
from sparkcf.models.fm.features import features_of
from sparkcf.models.fm.rows import FMData, make_plan
from sparkcf.models.registry import model_of

N, M, RANK = 40, 15, 3
GENRES = ["drama", "comedy", "war", "noir"]
HAD_AND_GENRES = (("had", "history"), ("genres", "categories"))
FIELDS = (
    "[{name: user, of: user}, {name: item, of: item}, {name: genres, of: categories}, "
    "{name: year, of: number, column: year}, {name: had, of: history}]"
)


@pytest.fixture(scope="module")
def ratings() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    pairs = pd.DataFrame(
        [(u, i) for u in range(N) for i in range(M - 1) if rng.random() < 0.4], columns=["user_idx", "item_idx"]
    )
    p, q = rng.normal(size=(N, 2)), rng.normal(size=(M, 2))
    clean = 3 + np.einsum("nk,nk->n", p[pairs.user_idx], q[pairs.item_idx])
    pairs["value"] = (clean + 0.3 * rng.normal(size=len(pairs))).astype(np.float32)
    return pairs.astype({"user_idx": np.int32, "item_idx": np.int32})


@pytest.fixture(scope="module")
def context(spark: SparkSession) -> TrainingData:
    """Items with attributes, the last of which nobody has rated; one has none at all."""
    genres = [None if i == 2 else [GENRES[i % 4], GENRES[(i * 3 + 1) % 4]] for i in range(M)]
    rows = [(i, genres[i], None if i == 2 else {"year": float(1990 + i)}) for i in range(M)]
    items = spark.createDataFrame(rows, "item_idx int, categories array<string>, numbers map<string,double>")
    names = [(f"categories={g}", place, "categories", g) for place, g in enumerate(GENRES)]
    dictionary = spark.createDataFrame(names, TABLES["features"].schema)
    return TrainingData(items.limit(0), N, M, items=items, dictionary=dictionary)


def configured(*overrides: str) -> Config:
    base = ["ds=2024-01-31", "input.path=none", "model=fm", f"fm.rank={RANK}", f"fm.fields={FIELDS}"]
    return load_config((), [*base, "fm.iterations=6", "fm.burn_in=2", "fm.samples=3", *overrides])


def on_spark(
    spark: SparkSession, ratings: pd.DataFrame, config: Config, context: TrainingData, weight: float | None = None
) -> Fitted:
    pairs = spark.createDataFrame(ratings, "user_idx int, item_idx int, value float").repartition(3)
    pairs = pairs if weight is None else pairs.withColumn("weight", F.lit(weight))
    return model_of(config).fit(replace(context, pairs=pairs), FitRun())


def in_process(spark: SparkSession, ratings: pd.DataFrame, config: Config, context: TrainingData) -> tuple[Any, FMData]:
    """The fit in this process, of every pair that there could be, and the pairs."""
    pairs = spark.createDataFrame(ratings, "user_idx int, item_idx int, value float")
    features = features_of(replace(context, pairs=pairs), config.fm)
    has = {name: {row[0]: row["features"] for row in getattr(features, name).collect()} for name in ("user", "item")}

    def data(frame: pd.DataFrame) -> FMData:
        lists = [has["user"][u] + has["item"][i] for u, i in zip(frame.user_idx, frame.item_idx, strict=True)]
        ptr = np.concatenate([[0], np.cumsum([len(entries) for entries in lists])]).astype(np.int64)
        flat = [entry for entries in lists for entry in entries]
        feat, val = np.array([e["feat"] for e in flat], np.int32), np.array([e["val"] for e in flat], np.float32)
        users, items = frame.user_idx.to_numpy(np.int32), frame.item_idx.to_numpy(np.int32)
        return FMData(users, items, frame.value.to_numpy(np.float32), ptr, feat, val)

    fitted = fit_fm_arrays(data(ratings), features.fields, N, M, config.fm, config.seed)
    every = pd.DataFrame(
        [(u, i, 0.0) for u in has["user"] for i in range(M)], columns=["user_idx", "item_idx", "value"]
    )
    return fitted, data(every)


def vectors(frame: Any, n: int) -> np.ndarray:
    rows = frame.collect()
    found = np.zeros((n, len(rows[0]["factor"])))
    for row in rows:
        assert row["bias"] == 0
        found[row["idx"]] = row["factor"]
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ("fm.fields=[{name: user, of: user}, {name: item, of: item}]",),
        ("fm.learner=als",),
        ("fm.learner=mcmc", "fm.pairs=[[user,item],[user,genres],[genres,year],[had,item],[had,had]]"),
    ],
    ids=["ids alone", "als", "mcmc"],
)
def test_factors_hold_what_the_fit_in_one_process_predicts(spark, ratings, context, overrides) -> None:
    config = configured(*overrides)
    fitted = on_spark(spark, ratings, config, context)
    users, items = vectors(fitted.user_factors, N), vectors(fitted.item_factors, M)
    expected, every = in_process(spark, ratings, config, context)
    means, _ = expected.predict(every)
    scores = users @ items.T
    np.testing.assert_allclose(scores[every.users, every.items], means, atol=2e-3 * np.abs(means).max())
    assert [entry["sweep"] for entry in fitted.log] == [1, 2, 3, 4, 5, 6]
    assert fitted.log[-1]["objective"] == pytest.approx(expected.log[-1]["objective"], rel=1e-3)
    table = {(r["field"], r["feature_idx"]): r for r in fitted.tables["feature_factors"].collect()}
    assert len(table) == N + M + (len(GENRES) + 1 + M if len(config.fm.fields) > 2 else 0)
    mean = np.mean([samples[N + 3] for _, samples in expected.samples], axis=0)
    np.testing.assert_allclose([*table["item", 3]["factor"], table["item", 3]["bias"]], mean, atol=2e-3)
    fitted.release()


@pytest.mark.parametrize("weight, power", [("null", (-0.5, 0)), ("one", (0, 0)), ("mean", (-1, -1))])
def test_features_of_a_row_have_the_weight_that_the_field_says(spark, ratings, context, weight, power) -> None:
    """In training, and of users who are folded in by their rows alone."""
    had, genres = (f"{{name: {name}, of: {of}, weight: {weight}}}" for name, of in HAD_AND_GENRES)
    config = configured(f"fm.fields=[{{name: user, of: user}}, {{name: item, of: item}}, {had}, {genres}]")
    pairs = spark.createDataFrame(ratings, "user_idx int, item_idx int, value float")
    features = features_of(replace(context, pairs=pairs), config.fm)
    ordered = ratings.sort_values(["user_idx", "item_idx"])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(ordered.user_idx, minlength=N))])
    plan = make_plan(config.fm, features.fields, N, M, 0, 1)
    _, feat, val = _histories(indptr, ordered.item_idx.to_numpy(), plan)
    users = {row["user_idx"]: row["features"] for row in features.user.collect()}
    for user, entries in users.items():
        mine = slice(indptr[user], indptr[user + 1])
        assert [e["feat"] for e in entries] == feat[mine].tolist()
        assert [e["val"] for e in entries] == val[mine].tolist()
        np.testing.assert_allclose(val[mine], float(len(entries)) ** power[0], rtol=1e-6)
    items = {row["item_idx"]: [e["val"] for e in row["features"]] for row in features.item.collect()}
    assert items[2] == [] and items[1] == pytest.approx([2 ** power[1]] * 2)


def test_a_field_without_its_values_is_refused_in_a_line(spark, ratings, context) -> None:
    pairs = spark.createDataFrame(ratings, "user_idx int, item_idx int, value float")
    with pytest.raises(ConfigError, match=r"genres is of categories, but there is no table of items"):
        features_of(TrainingData(pairs, N, M), configured().fm)
    with pytest.raises(ConfigError, match=r"no item has categories"):
        features_of(
            TrainingData(pairs, N, M, items=context.items, dictionary=context.dictionary.limit(0)), configured().fm
        )
    with pytest.raises(ConfigError, match=r"no item has a number 'weight'"):
        fields = "fm.fields=[{name: weight, of: number, column: weight}]"
        features_of(replace(context, pairs=pairs), configured(fields).fm)


def test_weights_are_refused(spark, ratings, context) -> None:
    with pytest.raises(ConfigError, match=r"preference\.weight=event or .*: model=fm weighs every rating 1"):
        on_spark(spark, ratings, configured(), context, weight=2.0)


def test_no_pair_and_values_that_are_not_finite_end_in_a_line(spark, ratings, context) -> None:
    with pytest.raises(TrainingError, match="no row to train on"):
        on_spark(spark, ratings.head(0), configured(), context)
    broken = ratings.assign(value=np.where(np.arange(len(ratings)) == 3, np.inf, ratings.value))
    with pytest.raises(TrainingError, match=r"objective is not finite after sweep 1: raise fm\.regularization"):
        on_spark(spark, broken, configured(), context)


def test_folded_in_users_are_near_what_training_gave_them(spark, ratings, context) -> None:
    """A user of the training, folded in by the same rows, has nearly the scores that training gave."""
    from sparkcf.models.fm.factors import fm_state_shapes, fold_in_fm

    config = configured("fm.learner=als", "fm.iterations=300", f"fm.fields={FIELDS}")
    fitted = on_spark(spark, ratings, config, context)
    users, items = vectors(fitted.user_factors, N), vectors(fitted.item_factors, M)
    pairs = spark.createDataFrame(ratings, "user_idx int, item_idx int, value float")
    features = features_of(replace(context, pairs=pairs), config.fm)
    shapes = {name: array.shape for name, array in fitted.arrays.items()}
    assert shapes == fm_state_shapes(features.fields, config.fm)
    ordered = ratings.sort_values(["user_idx", "item_idx"])
    counts = np.bincount(ordered.user_idx, minlength=N)
    rows = (np.concatenate([[0], np.cumsum(counts)]), ordered.item_idx.to_numpy(), ordered.value.to_numpy())
    folded = fold_in_fm(rows, items.astype(np.float32), fitted.arrays, config.fm)
    np.testing.assert_allclose(folded @ items.T, users @ items.T, atol=0.02)
    fitted.release()
