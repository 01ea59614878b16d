"""Spark MLlib's ALS and ours minimise the same objective with the same parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession

from sparkcf.models.als.fit import fit
from tests.models.als.dense_als import Problem, objective, settings

N, M, RANK, ITERATIONS = 60, 40, 3, 25


def planted(form: str) -> Problem:
    rng = np.random.default_rng(11)
    strength = rng.gamma(1.0, 1.0, (N, 2)) @ rng.gamma(1.0, 1.0, (2, M))
    seen = rng.random((N, M)) < 0.15 + 0.5 * (strength > np.quantile(strength, 0.7))
    seen[-1] = False
    values = np.where(seen, np.ceil(strength), 0.0)
    changes = {
        "rank": RANK,
        "iterations": 100,
        "regularization": 1.0 if form == "hu_koren" else 0.2,
        "regularization_exponent": 1.0,
        "alpha": 3.0,
    }
    return Problem(values, seen, settings(form, **changes, workers=1))


@pytest.mark.parametrize("form", ["hu_koren", "explicit"])
def test_mllib_reaches_the_same_objective(spark: SparkSession, tmp_path: Path, form: str) -> None:
    spark.sparkContext.setCheckpointDir(str(tmp_path))  # or its lineage overflows the stack of the JVM
    problem = planted(form)
    users, items, values = problem.triples()
    rows = pd.DataFrame({"user_idx": users, "item_idx": items, "value": values})
    pairs = spark.createDataFrame(rows, "user_idx int, item_idx int, value float").coalesce(1).cache()
    config = problem.config
    theirs = ALS(
        rank=RANK,
        maxIter=ITERATIONS,
        regParam=config.regularization,
        implicitPrefs=form == "hu_koren",
        alpha=config.alpha,
        numUserBlocks=1,
        numItemBlocks=1,
        checkpointInterval=2,
        userCol="user_idx",
        itemCol="item_idx",
        ratingCol="value",
        seed=5,
    ).fit(pairs)
    ours = fit(pairs, N, M, config, 7)
    reached = {}
    for name, sides in (
        ("theirs", (theirs.userFactors.collect(), theirs.itemFactors.collect())),
        ("ours", (ours.user_factors.collect(), ours.item_factors.collect())),
    ):
        p, q = np.zeros((N, RANK)), np.zeros((M, RANK))
        for factors, side in zip((p, q), sides, strict=True):
            for row in side:
                factors[row[0]] = row[1]
        reached[name] = objective(problem, p, q, np.zeros(N), np.zeros(M))["objective"]
    ours.release()
    pairs.unpersist()
    assert reached["ours"] == pytest.approx(reached["theirs"], rel=1e-3)
    assert ours.log[-1]["objective"] == pytest.approx(reached["ours"], rel=1e-5)
    assert reached["ours"] < 0.9 * objective(problem, p * 0, q * 0, np.zeros(N), np.zeros(M))["objective"]
