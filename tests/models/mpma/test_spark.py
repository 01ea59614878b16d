"""The mixture on Spark: a gang fits what one process fits; groups of a column; distributions of pairs and in q3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.models.contract_data import FitRun, TrainingData
from sparkcf.models.mpma.fit import MPMA, fit_arrays
from sparkcf.models.mpma.layout import unpacked
from sparkcf.ranking.evaluate import evaluate
from sparkcf.ranking.predict import predicted
from sparkcf.ranking.scorers import share_fitted
from tests.models.mpma.data import ITEMS, KIND, USERS, VALUES, M, N, config

LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def data(spark: SparkSession) -> TrainingData:
    rows = list(zip(USERS.tolist(), ITEMS.tolist(), VALUES.tolist(), strict=True))
    pairs = spark.createDataFrame(rows, "user_idx int, item_idx int, value float").repartition(3)
    kinds = [(u, {} if u % 10 == 7 else {"kind": "ab"[KIND[u]]}) for u in range(N)]
    users = spark.createDataFrame(kinds, "user_idx int, attributes map<string,string>")
    return TrainingData(pairs, N, M, users=users)


def table(frame: DataFrame, n: int) -> np.ndarray:
    rows = frame.collect()
    found = np.zeros((n, len(rows[0]["factor"])), np.float32)
    for row in rows:
        found[row["idx"]] = row["factor"]
    return found


def test_two_workers_on_spark_fit_what_one_process_fits(spark: SparkSession, data: TrainingData) -> None:
    given, notes = config(workers=2, weights="group"), list[dict[str, Any]]()
    fitted = MPMA(given, 1).fit(data, FitRun(on_progress=notes.append))
    trained, scorer = fit_arrays(USERS, ITEMS, VALUES, N, M, given, 1)
    np.testing.assert_allclose(table(fitted.user_factors, N)[: N - 1], trained.rows[0][: N - 1], atol=5e-3)
    assert fitted.log[-1]["objective"] == pytest.approx(trained.log[-1]["objective"], rel=1e-3)
    figures = {(figure.metric, figure.segment): figure.value for figure in fitted.figures}
    assert sum(v for (name, _), v in figures.items() if name == "mixture_weight") == pytest.approx(1)
    assert sum(v for (name, _), v in figures.items() if name == "users_in_group") == N - 1
    model = MPMA(given, 1)
    pairs = data.pairs.limit(50).union(spark.createDataFrame([(3, None, 1.0)], data.pairs.schema))
    vectors = fitted.user_factors.withColumnRenamed("idx", "user_idx")
    shared = share_fitted(spark, model, fitted, M)
    joined = pairs.join(vectors, on="user_idx", how="left").withColumn("value", F.col("value").cast("double"))
    rows = predicted(joined, shared, model.width, "user_idx", "value", levels=LEVELS, actual="value").collect()
    assert len(rows) == 51 and {row["component"] for row in rows} <= set(given.components)
    for row in rows:
        low, middle, high = (entry["value"] for entry in row["quantiles"])
        assert low < middle < high and tuple(entry["level"] for entry in row["quantiles"]) == LEVELS
        assert abs(middle - row["predicted"]) < 3 * row["sd"]
        assert row["coverage_80"] == (low <= row["value"] <= high)
    assert scorer.component_names() == given.components
    fitted.release()


def test_groups_of_a_column_are_its_values_and_gaps_are_counted(data: TrainingData) -> None:
    given, notes = config(user_group_column="kind", workers=2), list[dict[str, Any]]()
    model = MPMA(given, 1)
    assert model.reads.attributes
    fitted = model.fit(data, FitRun(on_progress=notes.append))
    groups = unpacked(table(fitted.user_factors, N), "user", given).groups[: N - 1]
    expected = np.where(np.arange(N) % 10 == 7, -1, KIND)[: N - 1]  # the more frequent kind is group 0
    np.testing.assert_array_equal(groups, expected)
    assert any("9 users are in no group" in entry.get("note", "") for entry in notes)
    features = {row["user_idx"]: row["features"] for row in model.user_features(data, fitted).collect()}
    assert features[3][0]["feat"] == KIND[3] and 7 not in features
    fitted.release()


def test_protocol_q3_measures_the_calibration(spark: SparkSession, data: TrainingData) -> None:
    given = load_config((), ["ds=2024-01-31", "input.path=none", "model=mpma", "evaluation.protocol=q3"])
    events = data.pairs.select("*", F.lit("rating").alias("event"), F.lit(0).cast("timestamp").alias("ts"))
    events = events.withColumn("context", F.lit(None).cast("map<string,string>"))
    found = evaluate(events, MPMA(config(workers=1), 1), data, given)
    coverage = [found.value(f"coverage_{share}", None) for share in (50, 80, 95)]
    assert 0 < coverage[0] < coverage[1] < coverage[2] <= 1
    assert found.value("crps", None) < found.value("mae", None)
    assert found.value("rmse", None) < found.value("rmse", None, "popularity")
    assert np.isfinite(found.value("log_likelihood", None))


def test_what_does_not_suit_the_model_is_named(data: TrainingData) -> None:
    def fit(given: Any = None, **changed: Any) -> None:
        MPMA(given or config(workers=1), 1).fit(replace(data, **changed), FitRun())

    with pytest.raises(ConfigError, match=r"preference.weight=event or .*: model=mpma weighs every rating 1"):
        fit(pairs=data.pairs.withColumn("weight", F.lit(1.0)))
    with pytest.raises(ConfigError, match=r"user_group_column=kind: there is no table of users"):
        fit(config(user_group_column="kind", workers=1), users=None)
    with pytest.raises(ConfigError, match=r"user_group_column=age: no row of users has it"):
        fit(config(user_group_column="age", workers=1))
    with pytest.raises(TrainingError, match=r"mpma.user_groups=90, but only 89 rows have ratings"):
        fit(config(user_groups=90, workers=1))
    with pytest.raises(TrainingError, match="no rating to train on"):
        fit(pairs=data.pairs.where("false"))
