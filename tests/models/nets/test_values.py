"""Values that a likelihood excludes are refused, with their number, before anything is packed or trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from sparkcf.config.nets import BiVAEConfig, MultVAEConfig, NCFConfig
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.nets.collaborative import NCFModel
from sparkcf.models.nets.fit import MultVAEModel
from sparkcf.models.nets.two_sided import BiVAEModel


@pytest.mark.parametrize(
    ("likelihood", "values", "wrong"),
    [
        ("multinomial", [1.0, -1.0, 0.5], 1),
        ("multinomial", [3.0, 0.0], 0),
        ("logistic", [0.0, 1.0, 1.5, -0.1], 2),
        ("gaussian", [-5.0, 9.0], 0),
        ("gaussian", [float("nan"), float("inf"), 1.0], 2),
    ],
)
def test_values_outside_the_likelihood_are_counted(spark: SparkSession, likelihood, values, wrong) -> None:
    pairs = spark.createDataFrame([(0, n, v) for n, v in enumerate(values)], "user_idx int, item_idx int, value double")
    model = MultVAEModel(MultVAEConfig(likelihood=likelihood), 1)
    data = TrainingData(pairs, n_users=1, n_items=len(values))
    if not wrong:
        model.check(data)
        return
    with pytest.raises(TrainingError, match=rf"{wrong} of {len(values)} pairs have a value that multvae\.likelihood="):
        model.check(data)


@pytest.mark.parametrize(
    ("likelihood", "values", "wrong", "takes"),
    [
        ("poisson", [2.0, -1.0, 0.0, -0.5, float("nan")], 3, "it takes 0 and more"),
        ("bernoulli", [0.0, 1.0, 0.5, -1.0], 2, "it takes 0 and 1"),
        ("gaussian", [-5.0, float("inf")], 1, "it takes finite numbers"),
        ("poisson", [0.0, 7.0], 0, ""),
    ],
)
def test_values_outside_the_likelihood_of_both_sides_are_counted(
    spark: SparkSession, likelihood, values, wrong, takes
) -> None:
    pairs = spark.createDataFrame([(0, n, v) for n, v in enumerate(values)], "user_idx int, item_idx int, value double")
    data = TrainingData(pairs, n_users=1, n_items=len(values))
    link = "identity" if likelihood == "gaussian" else "sigmoid"
    BiVAEModel(BiVAEConfig(likelihood=likelihood, link=link), 1).check(data)  # binary: whatever the values
    model = BiVAEModel(BiVAEConfig(likelihood=likelihood, link=link, binary=False), 1)
    if not wrong:
        model.check(data)
        return
    said = rf"{wrong} of {len(values)} pairs have a value that bivae\.likelihood={likelihood} excludes \({takes}\): "
    with pytest.raises(TrainingError, match=said + r"set preference.weight=one, or bivae.binary=true"):
        model.check(data)


@pytest.mark.parametrize(("side", "kind"), [("user", "attribute"), ("item", "number")])
def test_side_features_without_any_table_are_refused_by_name(
    spark: SparkSession, tmp_path: Path, side: str, kind: str
) -> None:
    pairs = spark.createDataFrame([(0, 0, 1.0)], "user_idx int, item_idx int, value double")
    data, fields = TrainingData(pairs, n_users=1, n_items=1), ({"of": kind, "column": "age"},)
    for model, key in (
        (BiVAEModel(BiVAEConfig(**{f"{side}_prior": fields}), 1), f"bivae.{side}_prior"),
        (NCFModel(NCFConfig(**{f"{side}_features": fields}), 1), f"ncf.{side}_features"),
    ):
        said = f"^{key}: there is no table of {side}s: set input.{side}s, or leave {key} out$"
        with pytest.raises(ConfigError, match=said):
            model.net_data(data, str(tmp_path))
