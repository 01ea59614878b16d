"""DisenGCN from the lake's tables to lists, folded-in users, and a graph without an edge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.nets import DisenGCNConfig
from sparkcf.config.root import Config
from sparkcf.errors import TrainingError
from sparkcf.jobs.fold_in import fold_in_users
from sparkcf.jobs.recommend import recommend_run
from sparkcf.jobs.train import train_model
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.nets.disentangled import DisenGCNModel
from tests.jobs.test_fold_in import BEFORE, DAY, write

pytestmark = pytest.mark.slow

N, M = 40, 16
LIKED = {(f"u{u}", f"i{i}"): 5.0 for u in range(N) for i in range(M) if i % 2 == u % 2 and (u // 2 + i) % 8 < 6}


def config(root: Path, *overrides: str) -> Config:
    given = f"ds={DAY} lake.root={root} input.path=none model=disengcn topk.k=5 topk.similar_items=2"
    small = "epochs=20 batch_size=16 learning_rate=0.05 workers=1 latent_dim=8 channels=2 validation_share=0.1"
    return load_config((), [*given.split(), *(f"disengcn.{setting}" for setting in small.split()), *overrides])


def test_vectors_lists_and_fold_in_from_the_lake(spark: SparkSession, tmp_path: Path) -> None:
    """Users of even and of odd items: a list begins with the unseen items of the user's kind."""
    root = tmp_path / "lake"
    tables = LakeTables(spark, str(root))
    write(tables, {BEFORE: LIKED})
    run_id = train_model(spark, config(root))["run_id"]
    for side, n in (("user", N), ("item", M)):
        rows = tables.read(f"{side}_factors").where(F.col("run_id") == run_id).collect()
        assert len(rows) == n and np.isfinite([row["factor"] for row in rows]).all()
        assert {len(row["factor"]) for row in rows} == {8}
    counts = recommend_run(spark, config(root, f"run_id={run_id}"))["counts"]
    assert counts["users_model"] == N and counts["nan_scores"] == 0
    rows = tables.read("recommendations").where(F.col("run_id") == run_id).where("position = 1").collect()
    like = [int(row["item_id"][1:]) % 2 == int(row["user_id"][1:]) % 2 for row in rows]
    assert len(like) == N and np.mean(like) > 0.9  # also of the validation users
    new = {("guest", f"i{i}"): 5.0 for i in (1, 3, 5)}
    write(tables, {BEFORE: LIKED | new})
    folded = fold_in_users(spark, config(root, f"run_id={run_id}"))
    assert folded["counts"]["users_folded_in"] >= 1


def test_a_graph_without_an_edge_is_named_before_anything_is_packed(spark: SparkSession) -> None:
    pairs = spark.createDataFrame([], "user_idx int, item_idx int, value double")
    with pytest.raises(TrainingError, match=r"graph of disengcn has no edge.*check preference\.positive_from"):
        DisenGCNModel(DisenGCNConfig(), 1).check(TrainingData(pairs, 9, 9))


def test_values_that_are_no_weights_are_named(spark: SparkSession) -> None:
    pairs = spark.createDataFrame([(0, 0, 1.0), (0, 1, -1.0)], "user_idx int, item_idx int, value double")
    with pytest.raises(TrainingError, match=r"1 of 2 pairs have a value that disengcn\.loss=softmax excludes"):
        DisenGCNModel(DisenGCNConfig(), 1).check(TrainingData(pairs, 9, 9))
