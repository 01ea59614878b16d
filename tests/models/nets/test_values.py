"""Values that a likelihood excludes are refused, with their number, before anything is packed or trained."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from sparkcf.config.nets import MultVAEConfig
from sparkcf.errors import TrainingError
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.nets.fit import MultVAEModel


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
