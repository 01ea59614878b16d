"""NCF from the lake's tables to lists and ratings: side features, items and users without events, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.nets import NCFConfig
from sparkcf.config.root import Config
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.jobs.fold_in import fold_in_users
from sparkcf.jobs.predict import predict_pairs
from sparkcf.jobs.recommend import recommend_run
from sparkcf.jobs.train import train_model
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.nets.collaborative import NCFModel
from tests.jobs.test_fold_in import BEFORE, DAY, write

pytestmark = pytest.mark.slow

N, M = 40, 16
LIKED = {(f"u{u}", f"i{i}"): 5.0 - i % 3 for u in range(N) for i in range(M) if i % 2 == u % 2 and (u // 2 + i) % 8 < 6}
COLD = {("guest", "fresh"): 5.0}  # a user and an item that are in the tables, and whose event is taken away again
FEATURES = (
    "ncf.item_features=[{of: categories}, {of: number, column: year}]",
    "ncf.user_features=[{of: attribute, column: group, separator: '|'}]",
)


def config(root: Path, *overrides: str) -> Config:
    given = f"ds={DAY} lake.root={root} input.path=none model=ncf topk.k=17 topk.similar_items=2"
    small = "epochs=15 batch_size=16 learning_rate=0.05 workers=1 hidden=[16,8] latent_dim=4 validation_share=0.1"
    return load_config((), [*given.split(), *(f"ncf.{setting}" for setting in small.split()), *overrides])


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ncf") / "lake"
    tables = LakeTables(spark, str(root))
    write(tables, {BEFORE: LIKED | COLD})
    write(tables, {BEFORE: LIKED})
    even = {
        side: F.when(
            F.col(f"{side}_id").isin("fresh", "guest") | (F.substring(f"{side}_id", 2, 9).cast("int") % 2 == 0), "even"
        ).otherwise("odd")
        for side in ("user", "item")
    }
    year = F.create_map(F.lit("year"), F.col("item_idx").cast("double"))
    image = F.array(*(F.when(even["item"] == "even", sign).otherwise(-sign) for sign in (1.0, -2.0, 0.5)))
    changes = {
        "items": {
            "categories": F.array(even["item"]),
            "numbers": year,
            "vectors": F.create_map(F.lit("image"), image.cast("array<float>")),
        },
        "users": {"attributes": F.create_map(F.lit("group"), F.concat(even["user"], F.lit("|everyone")))},
    }
    for table, columns in changes.items():
        frame = tables.read(table)
        tables.replace(table, frame.withColumns(columns).select(*frame.columns).localCheckpoint(), "true")
    return root


def known(tables: LakeTables, run_id: str, side: str) -> dict[str, Any]:
    rows = tables.read(f"{side}_factors").where(F.col("run_id") == run_id).collect()
    return {row[f"{side}_id"]: np.array(row["factor"]) for row in rows}


def lists_of(tables: LakeTables, run_id: str) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    rows = tables.read("recommendations").where(F.col("run_id") == run_id).orderBy("user_id", "position").collect()
    for row in rows:
        lists.setdefault(row["user_id"], []).append(row["item_id"])
    return lists


def odd_before_fresh(lists: dict[str, list[str]]) -> list[float]:
    """Share of the odd items listed that stand before the new even one: for users of even items, for users of odd."""

    def share(items: list[str]) -> float:
        odd = [place for place, item in enumerate(items) if item != "fresh" and int(item[1:]) % 2]
        return float(np.mean(np.array(odd) < items.index("fresh")))

    return [float(np.mean([share(lists[f"u{u}"]) for u in range(start, N, 2)])) for start in (0, 1)]


def test_items_and_users_without_events_are_scored_by_their_features(spark: SparkSession, root: Path) -> None:
    tables = LakeTables(spark, str(root))
    run_id = train_model(spark, config(root, *FEATURES))["run_id"]
    users, items = (known(tables, run_id, side) for side in ("user", "item"))
    assert users.keys() == {"guest", *(f"u{u}" for u in range(N))}
    assert items.keys() == {"fresh", *(f"i{i}" for i in range(M))}
    assert all(vector.shape == (12,) and np.isfinite(vector).all() for vector in (users | items).values())
    counts = recommend_run(spark, config(root, f"run_id={run_id}"))["counts"]
    assert counts["users_model"] == N + 1 and counts["nan_scores"] == 0
    lists = lists_of(tables, run_id)
    assert not set(lists["u3"]) & {item for user, item in LIKED if user == "u3"}
    of_even, of_odd = odd_before_fresh(lists)
    assert of_even < 0.25 < 0.75 < of_odd
    assert sum(int(item[1:]) % 2 == 0 for item in lists["guest"] if item != "fresh") == M / 2
    firsts = [item == "fresh" or int(item[1:]) % 2 == 0 for item in lists["guest"][:6]]
    assert np.mean(firsts) > 0.5
    folded = fold_in_users(spark, config(root, f"run_id={run_id}"))
    assert folded["counts"]["users_kept"] == N + 1 and folded["counts"]["items"] == M + 1
    assert not list(root.glob("_progress/*"))


def test_an_item_without_events_is_scored_by_its_content(spark: SparkSession, root: Path) -> None:
    tables = LakeTables(spark, str(root))
    run_id = train_model(spark, config(root, "ncf.item_content=image", "ncf.content_layers=[8]", "ncf.epochs=60"))[
        "run_id"
    ]
    assert known(tables, run_id, "item").keys() == {"fresh", *(f"i{i}" for i in range(M))}
    recommend_run(spark, config(root, f"run_id={run_id}"))
    lists = lists_of(tables, run_id)
    of_even, of_odd = odd_before_fresh(lists)  # its image is that of even items
    assert of_even < 0.25 < 0.75 < of_odd


def test_content_that_cannot_be_used_is_named(spark: SparkSession, root: Path) -> None:
    with pytest.raises(ConfigError, match=r"ncf\.item_content=none: no row of items has it: set input\.items\.columns"):
        train_model(spark, config(root, "ncf.item_content=none"))
    vectors = "map('image', transform(sequence(1, if(item_idx = 1, 2, 3)), x -> float(x))) AS vectors"
    items = spark.range(5).selectExpr("int(id) AS item_idx", vectors)
    data = TrainingData(spark.createDataFrame([], "user_idx int, item_idx int, value double"), 1, 5, items=items)
    with pytest.raises(
        ConfigError, match=r"vectors of 1 items have 2 numbers and those of 4 have 3: give all the same"
    ):
        NCFModel(NCFConfig(item_content="image"), 1)._content(data)
    alike = replace(data, items=items.selectExpr("item_idx", "map('image', array(1.5f, 2f)) AS vectors"))
    with pytest.raises(ConfigError, match=r"vectors of all 5 items are the same and cannot distinguish them: leave it"):
        NCFModel(NCFConfig(item_content="image"), 1)._content(alike)


def test_ratings_are_predicted(spark: SparkSession, root: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    some = list(LIKED)[:40]
    pairs.write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i in [*some, ("nobody", "i1"), ("u1", "none")]))
    rating = ("ncf.objective=rating", "ncf.epochs=60", f"predict.path={pairs}")
    run_id = train_model(spark, config(root, *rating))["run_id"]
    counts = predict_pairs(spark, config(root, *rating, f"run_id={run_id}"))["counts"]
    assert (counts["pairs"], counts["unknown_users"], counts["unknown_items"]) == (42, 1, 1)
    rows = LakeTables(spark, str(root)).read("predictions").where(F.col("run_id") == run_id).collect()
    errors = [row["value"] - LIKED[pair] for row in rows if (pair := (row["user_id"], row["item_id"])) in LIKED]
    assert np.sqrt(np.mean(np.square(errors))) < 0.7 * np.std(list(LIKED.values()))
    assert all(1 < row["value"] < 7 for row in rows)


def test_a_feature_that_is_missing_is_named(spark: SparkSession, root: Path) -> None:
    with pytest.raises(ConfigError, match=r"ncf\.item_features: no row of items has none: set input\.items\.columns"):
        train_model(spark, config(root, "ncf.item_features=[{of: number, column: none}]"))


def checked(spark: SparkSession, cells: list[tuple[int, int, float]], **settings: Any) -> None:
    pairs = spark.createDataFrame(cells, "user_idx int, item_idx int, value double")
    NCFModel(NCFConfig(**settings), 1).check(TrainingData(pairs, 9, 9))


def test_values_and_users_that_the_objective_excludes_are_named(spark: SparkSession) -> None:
    full = [(0, 0, 1.0), (7, 0, 1.0), (7, 1, 1.0)]
    said = r"1 users, the first of user_idx 7, have all 2 items, so ncf\.negatives=4 .* set ncf\.negatives_seen=true"
    with pytest.raises(TrainingError, match=said):
        checked(spark, full)
    checked(spark, full, negatives_seen=True)
    checked(spark, full, objective="softmax")
    said = r"1 of 3 pairs have a value that ncf\.objective=softmax excludes \(it takes 0 and more\)"
    with pytest.raises(TrainingError, match=said):
        checked(spark, [*full[:2], (7, 1, -1.0)], objective="softmax")
