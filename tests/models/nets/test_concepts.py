"""Concepts from a fit to the command line, and priors of side features from the lake's tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf import Lake
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.jobs.fold_in import fold_in_users
from sparkcf.jobs.recommend import recommend_run
from sparkcf.jobs.train import train_model
from sparkcf.kernels.concepts import assignments, concept_mass, normalised_mutual_information
from sparkcf.kernels.vectors import unit_rows
from sparkcf.lake.concepts import Concepts
from sparkcf.lake.published import append_published
from sparkcf.lake.tables import LakeTables
from tests.cli.conftest import run  # noqa: F401
from tests.jobs.test_fold_in import BEFORE, DAY, write

N, M = 40, 16
LIKED = {(f"u{u}", f"i{i}"): 5.0 for u in range(N) for i in range(M) if i % 2 == u % 2 and (u // 2 + i) % 8 < 6}


def test_mutual_information_is_one_for_the_same_labels_by_other_names_and_none_for_a_single_one() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 2])
    assert normalised_mutual_information(labels, 5 - labels) == pytest.approx(1.0)
    assert normalised_mutual_information(labels, np.zeros(7, int)) == 0.0
    # Joint 1/4 each: H = log 2 each, I = 0.
    assert normalised_mutual_information(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.0)
    # p = (2/3, 1/3) and (1/3, 2/3) with the joint (1/3, 1/3; 0, 1/3): I = 0.1744, H = 0.6365 each.
    assert normalised_mutual_information(np.array([0, 0, 1]), np.array([0, 1, 1])) == pytest.approx(0.2740, abs=1e-4)


def test_what_concepts_add_sums_to_the_score() -> None:
    random = np.random.default_rng(1)
    items, prototypes = (unit_rows(random.normal(size=(n, 4)).astype(np.float32)) for n in (6, 3))
    assigned = assignments(items, prototypes, 0.3)
    np.testing.assert_allclose(assigned.sum(axis=1), 1, rtol=1e-6)
    z = unit_rows(random.normal(size=(3, 4)).astype(np.float32))
    whole = sum(assigned[:, k] * np.exp(items @ z[k] / 0.3) for k in range(3))
    parts = sum(concept_mass(z[k][None], items, assigned[:, k], 0.3)[0] for k in range(3))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def config(root: Path, *overrides: str) -> Config:
    given = (
        f"ds={DAY} lake.root={root} input.path=none model=macridvae topk.k=3 topk.similar_items=2 topk.concepts=true"
    )
    for model in ("macridvae", "bivae"):
        small = "epochs=6 batch_size=16 learning_rate=0.02 workers=1 hidden=[8] latent_dim=4 validation_share=0.1"
        given += "".join(f" {model}.{setting}" for setting in small.split())
    return load_config((), [*given.split(), "macridvae.concepts=2", *overrides])


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("concepts") / "lake"
    tables = LakeTables(spark, str(root))
    write(tables, {BEFORE: LIKED})
    kinds = F.when(F.substring("item_id", 2, 9).cast("int") % 2 == 0, "even").otherwise("odd")
    number = F.substring("item_id", 2, 9).cast("double")
    told = tables.read("items").select(
        *(c for c in tables.read("items").columns if c not in ("categories", "title", "numbers")),
        F.array(kinds, F.lit("all")).alias("categories"),
        F.concat(F.lit("Title "), "item_id").alias("title"),
        F.create_map(F.lit("year"), number, F.lit("same"), F.lit(1.0)).alias("numbers"),
    )
    tables.replace("items", told.select(*tables.read("items").columns).localCheckpoint(), "true")
    return root


@pytest.fixture(scope="module")
def published(spark: SparkSession, root: Path) -> str:
    run_id = train_model(spark, config(root, "macridvae.stability_seeds=1"))["run_id"]
    recommend_run(spark, config(root, f"run_id={run_id}"))
    append_published(LakeTables(spark, str(root)), "macridvae", DAY, run_id, "publish", 1)
    return str(run_id)


@pytest.mark.slow
def test_concepts_of_a_published_run(spark: SparkSession, root: Path, published: str) -> None:
    lake = Lake(root)
    rows = lake.recommendations("u3", 3, model="macridvae")
    assert set(rows["reason"]) <= {"concept 0", "concept 1"} and len(rows) == 3
    read = Concepts.read(lake, "macridvae")
    np.testing.assert_allclose(read.assigned.sum(axis=1), 1, rtol=1e-5)
    assert len(read.items) == M and read.users.sum() == len(LIKED)
    summaries = read.summaries().to_pylist()
    assert [row["concept"] for row in summaries] == [0, 1]
    assert sum(row["items"] for row in summaries) == M and sum(row["users_led"] for row in summaries) == N
    listed = read.list_within("u3", 1, 4).to_pylist()
    assert not {row["item_id"] for row in listed} & {item for user, item in LIKED if user == "u3"}
    assert [row["score"] for row in listed] == sorted((row["score"] for row in listed), reverse=True)
    assert listed[0]["title"] == f"Title {listed[0]['item_id']}"
    varied = read.varied(1, 2, 3, "u3").to_pylist()
    assert len(varied) == 15 and {row["value"] for row in varied} == {-0.5, -0.25, 0.0, 0.25, 0.5}
    figures = lake.metrics(published)
    stability = figures[figures["metric"] == "concept_stability"]["value"]
    assert len(stability) == 1 and 0 <= stability.iloc[0] <= 1
    assert not figures["segment"].str.startswith("dimension", na=False).any()
    by_dimension = lake.metrics(published, dimensions=True)
    assert by_dimension["segment"].str.startswith("dimension", na=False).sum() == 6 * 2 * 4
    assert {"active_units", "kl"} <= set(figures["metric"])


@pytest.mark.slow
def test_concepts_on_the_command_line(root: Path, published: str, run) -> None:  # noqa: F811
    code, out, err = run("concepts", "--lake", str(root), "--format", "json")
    assert (code, err) == (0, "") and len(json.loads(out)) == 2
    code, out, _ = run(
        "recommend", "--user", "u3", "--concept", "1", "--k", "2", "--lake", str(root), "--format", "json"
    )
    assert code == 0 and [row["position"] for row in json.loads(out)] == [1, 2]
    for wrong, said in (
        (("concepts", "--vary", "9:0"), "concept 9 is not in run"),
        (("concepts", "--vary", "1:99"), "dimension 99 is not in run"),
        (("concepts", "--vary", "one"), "give a concept and a dimension, such as 3:17"),
        (("recommend", "--user", "nobody", "--concept", "1"), "user 'nobody' has no vector"),
    ):
        code, _, err = run(*wrong, "--lake", str(root))
        assert code in (1, 2) and said in err and err.count("\n") == 1


@pytest.mark.slow
def test_folding_users_in_keeps_the_concepts(spark: SparkSession, root: Path, published: str) -> None:
    tables = LakeTables(spark, str(root))
    folded = fold_in_users(spark, config(root, f"run_id={published}"))["run_id"]
    rows = tables.read("item_concepts").groupBy("run_id").count().collect()
    assert {row["run_id"]: row["count"] for row in rows}.get(folded) == M * 2
    lake = Lake(root)
    served = lake.published("macridvae")
    led, again = (Concepts.of_run(lake, replace(served, run_id=run_id)).users_led for run_id in (published, folded))
    assert again == led and sum(led) == N


@pytest.mark.slow
def test_what_does_not_go_with_the_data_is_refused_before_training(spark: SparkSession, root: Path) -> None:
    for overrides, error, said in (
        (("macridvae.concepts=17",), ConfigError, "macridvae.concepts=17 of 16 items: set at most 16"),
        (
            ("model=bivae", "bivae.binary=false", "bivae.likelihood=bernoulli", "preference.weight=value"),
            TrainingError,
            r"240 of 240 pairs have a value that bivae\.likelihood=bernoulli excludes \(it takes 0 and 1\)",
        ),
        (("model=bivae", "bivae.item_prior=[{of: number, column: none}]"), ConfigError, "no row of items has none"),
        (
            ("model=bivae", "bivae.item_prior=[{of: number, column: same}]"),
            ConfigError,
            "same is the same in all 16 rows of items",
        ),
    ):
        with pytest.raises(error, match=said):
            train_model(spark, config(root, *overrides))


@pytest.mark.slow
def test_a_prior_of_the_lakes_features_and_items_that_are_folded_in(
    spark: SparkSession, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparkcf.data.inputs import Inputs
    from sparkcf.jobs.base import read_fitted, training_data
    from sparkcf.lake.runs import find_run
    from sparkcf.models.registry import model_of
    from sparkcf.ranking.scorers import saved_of

    prior = "bivae.item_prior=[{of: categories}, {of: number, column: year}]"
    chosen = config(root, "model=bivae", prior, "bivae.epochs=12")
    run_id = train_model(spark, chosen)["run_id"]
    tables = LakeTables(spark, str(root))
    chosen = chosen.model_copy(update={"run_id": run_id})
    found, model = find_run(tables, chosen, ("trained",)), model_of(chosen)
    inputs = Inputs(tables, found.row["inputs"])
    data = training_data(model, inputs, inputs.events(chosen.ds), chosen)
    fitted = read_fitted(tables, model, found, data, chosen)
    saved = saved_of(model, fitted, data.n_items)
    scorer = model.open(saved)
    known = tables.read("item_rows").where(F.col("item_idx") == 3).orderBy("snapshot").collect()[-1]
    users = np.frombuffer(known["items"], np.int32)
    rows = (np.array([0, len(users)]), users, np.ones(len(users), np.float32), np.ones(len(users), np.float32))
    np.testing.assert_allclose(scorer.fold_in_items(rows)[0], saved.item_vectors[3], atol=1e-5)
    assert not list(root.glob("_progress/*"))
    recommend_run(spark, chosen)
    assert "note: topk.concepts=true: bivae has no concepts, so no reason names one" in capsys.readouterr().err
    listed = tables.read("recommendations").where(F.col("run_id") == run_id).select("reason").distinct().collect()
    assert {row["reason"] for row in listed} <= {"model", "fallback"}
