"""The mixture from the lake's tables to lists, predicted distributions and folded-in users."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.jobs.evaluate import evaluate_run
from sparkcf.jobs.fold_in import fold_in_users
from sparkcf.jobs.predict import predict_pairs
from sparkcf.jobs.recommend import recommend_run
from sparkcf.jobs.train import train_model
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from tests.models.mpma.data import ITEMS, KIND, USERS, VALUES, M, N

DAY = dt.date(2024, 1, 31)
SETTINGS = """model=mpma mpma.rank=3 mpma.base_iterations=5 mpma.iterations=2 mpma.refit_iterations=1 mpma.user_groups=2
    mpma.item_groups=2 mpma.min_group=2 mpma.workers=1 mpma.user_group_column=kind mpma.rank_by=lower_bound
    mpma.regularization=0.3 mpma.weights=group input.path=none topk.k=5 evaluation.protocol=q3 evaluation.bootstrap=5"""


def config(root: Path, *more: str) -> Config:
    return load_config((), [*SETTINGS.split(), f"ds={DAY}", f"lake.root={root}", *more])


def write(tables: LakeTables) -> None:
    """The ratings, and users with a kind."""
    noon = dt.datetime(DAY.year, DAY.month, DAY.day, 12)
    rows = [
        (f"u{u}", f"i{i}", "rating", float(value), noon, "log", DAY)
        for u, i, value in zip(USERS.tolist(), ITEMS.tolist(), VALUES.tolist(), strict=True)
    ]
    names = ["user_id", "item_id", "event", "value", "ts", "source", "ds"]
    absent = {name: F.lit(None) for name in ("context", "replaced")}
    tables.append("interactions", tables.spark.createDataFrame(rows, names).withColumns(absent))
    sides = {
        "user": [(f"u{u}", u, noon, {"kind": "ab"[KIND[u]]}) for u in range(N)],
        "item": [(f"i{i}", i, noon, {"kind": "x"}) for i in range(M)],
    }
    for side, given in sides.items():
        schema = f"{side}_id string, {side}_idx int, first_seen timestamp, attributes map<string,string>"
        frame = tables.spark.createDataFrame(given, schema)
        others = [f for f in TABLES[f"{side}s"].schema.fields if f.name not in frame.columns]
        tables.append(f"{side}s", frame.select("*", *(F.lit(None).cast(f.dataType).alias(f.name) for f in others)))


def test_a_run_goes_from_the_lake_to_lists_and_distributions(spark: SparkSession, tmp_path: Path) -> None:
    root, pairs = tmp_path / "lake", tmp_path / "pairs.csv"
    tables = LakeTables(spark, str(root))
    write(tables)
    pairs.write_text("user_id,item_id\nu1,i1\nu2,i3\nnobody,i1\nu1,none\n")
    run_id = train_model(spark, config(root))["run_id"]
    assert evaluate_run(spark, config(root, f"run_id={run_id}"))
    metrics = tables.read("metrics").where(F.col("run_id") == run_id)
    measured = {row["metric"] for row in metrics.select("metric").distinct().collect()}
    assert {"coverage_80", "crps", "log_likelihood", "rmse", "mixture_weight", "users_in_group"} <= measured
    weights = {
        row["segment"]: row["value"]
        for row in metrics.where(F.col("metric").isin("group_weight", "mixture_weight")).collect()
    }
    check_groups(tables, run_id, weights, dict(zip((f"u{u}" for u in range(N)), KIND.tolist(), strict=True)))
    counts = recommend_run(spark, config(root, f"run_id={run_id}"))["counts"]
    assert counts["users_model"] == N - 1 and counts["nan_scores"] == 0
    levels = (f"predict.path={pairs}", "predict.quantiles=[0.25, 0.75]", f"run_id={run_id}")
    counts = predict_pairs(spark, config(root, *levels))["counts"]
    assert (counts["pairs"], counts["unknown_users"], counts["unknown_items"]) == (4, 1, 1)
    rows = {(row["user_id"], row["item_id"]): row for row in tables.read("predictions").collect()}
    for row in rows.values():
        low, high = row["quantiles"]
        assert (low["level"], high["level"]) == (0.25, 0.75) and low["value"] < row["value"] < high["value"]
        assert row["sd"] > 0 and row["component"] in ("global", "user_local", "item_local")
    folded = fold_in_users(spark, config(root, f"run_id={run_id}"))
    assert folded["counts"]["users_kept"] == N - 1
    check_groups(tables, folded["run_id"], weights, {}, without=1)  # who has no rating
    assert not list(root.glob("_progress/*"))


NAMES = ("global", "user_local", "item_local")


def check_groups(
    tables: LakeTables, run_id: str, weights: dict[str, float], kinds: dict[str, int], without: int = 0
) -> None:
    """Every user and item of a run has the weights of its group; the users' groups are those of their kind.

    `weights` : figures of the fit by segment: of a user group, an item group and a component, and of a component.
    """
    found = {}
    for side in ("user", "item"):
        rows = tables.read(f"{side}_groups").where(F.col("run_id") == run_id).collect()
        known = tables.read(f"{side}_factors").where(F.col("run_id") == run_id).select(f"{side}_id").collect()
        assert sorted(row[f"{side}_id"] for row in rows) == sorted(row[0] for row in known)
        assert sum(row["group_number"] is None for row in rows) == (without if side == "user" else 0)
        assert {row["group_number"] for row in rows} <= {0, 1, None}
        found[side] = {row[f"{side}_id"]: row for row in rows}
    groups = [
        np.array([found[side][f"{side[0]}{n}"]["group_number"] for n in index])
        for side, index in (("user", USERS), ("item", ITEMS))
    ]
    table = np.array([[[weights[f"groups {g}, {h}: {name}"] for name in NAMES] for h in (0, 1)] for g in (0, 1)])
    assert np.ptp(table, axis=(0, 1)).max() > 0.001
    of_ratings = table[groups[0], groups[1]]
    for side, of_rating in zip(("user", "item"), groups, strict=True):
        for row in found[side].values():
            expected = [weights[name] for name in NAMES]
            if row["group_number"] is not None:
                expected = of_ratings[of_rating == row["group_number"]].mean(axis=0)
            assert [*row["weights"]] == [*NAMES]
            np.testing.assert_allclose([*row["weights"].values()], expected, atol=1e-5)
    if kinds:
        assert len({(kinds[user], row["group_number"]) for user, row in found["user"].items()}) == 2  # a kind a group
