"""The predict job: values, or probabilities, of a table of pairs by a run that predicts any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy.special import ndtr

from sparkcf.clean import normalized_id
from sparkcf.config import Config
from sparkcf.errors import ConfigError
from sparkcf.fm.factors import sample_count, sample_width, unknown_vectors
from sparkcf.fold_in import base_run, checked_mean, state_of
from sparkcf.ingest import read_listing
from sparkcf.lake import LakeTables
from sparkcf.models import rank_of
from sparkcf.progress import step
from sparkcf.topk import vectors_of
from sparkcf.train import of_run

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
ENDS = ("user_id", "item_id")
PREDICTED = "user_id string, item_id string, value double, sd double, known_user boolean, known_item boolean"


def predict_pairs(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Write `predictions` of the pairs in `predict.path`, by `run_id`, else by the published run.

    What the run does not know of a pair adds nothing to its value, and is counted.

    Returns the run's id and counts: pairs, unknown_users, unknown_items, duplicates, without_id.

    Raises
    ------
    ConfigError
        No path, or a model that predicts no values.
    InputError
        The pairs cannot be read, or have no column user_id or item_id.
    NotFoundError
        Nothing of the model is published and no run is named.
    """
    tables = LakeTables(spark, config.lake.root)
    if not config.explicit and config.model != "fm":
        raise ConfigError(f"model={config.model} predicts no values: set model=fm, or model=als and als.mode=explicit")
    if config.predict.path is None:
        raise ConfigError("predict.path is not set: name a table with columns user_id and item_id")
    run = base_run(tables, config)
    mean = checked_mean(tables, run)
    config = run.fitted_with(config)
    listed = read_listing(spark, "predict.path", config.predict.path, ENDS)
    asked = listed.select(*(normalized_id(F.col(name), config.clean).alias(name) for name in ENDS))
    with step("predict", spark) as shown:
        pairs = asked.where("user_id IS NOT NULL AND item_id IS NOT NULL").distinct()
        ends = [_with_vectors(tables, side, config, run.run_id) for side in ("user", "item")]
        joined = pairs.join(ends[0], on="user_id", how="left").join(ends[1], on="item_id", how="left")
        state = state_of(tables, run, config)
        defaults = unknown_vectors(state["w0"], config.fm) if config.model == "fm" else None
        predicted = joined.mapInArrow(_predict(config, mean, defaults), PREDICTED)
        labels = (F.lit(config.ds).alias("ds"), F.lit(config.model).alias("model"), F.lit(run.run_id).alias("run_id"))
        tables.replace("predictions", predicted.select("*", *labels), of_run(config.model, run.run_id))
        written = tables.read("predictions").where(of_run(config.model, run.run_id))
        row = written.agg(
            F.count(F.lit(1)).alias("pairs"),
            F.count(F.when(~F.col("known_user"), 1)).alias("unknown_users"),
            F.count(F.when(~F.col("known_item"), 1)).alias("unknown_items"),
        ).first()
        counts = {name: int(n) for name, n in row.asDict().items()}
        whole, usable = asked.agg(F.count(F.lit(1)), F.count(F.concat("user_id", "item_id"))).first()
        counts |= {"without_id": int(whole - usable), "duplicates": int(usable) - counts["pairs"]}
        shown.note = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
    return {"run_id": run.run_id, "counts": counts}


def _with_vectors(tables: LakeTables, side: str, config: Config, run_id: str) -> DataFrame:
    factors = tables.read(f"{side}_factors").where(of_run(config.model, run_id))
    return factors.select(f"{side}_id", F.col("factor").alias(f"{side}_factor"), F.col("bias").alias(f"{side}_bias"))


def _predict(config: Config, mean: float, defaults: tuple[F32, F32] | None) -> Any:
    rank = rank_of(config)

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            known, vectors, biases = [], [], []
            for place, side in enumerate(("user", "item")):
                has, values = vectors_of(batch.column(f"{side}_factor"), rank)
                if defaults is not None:
                    values[~has] = defaults[place]
                bias = batch.column(f"{side}_bias").fill_null(0.0).to_numpy(zero_copy_only=False)
                known.append(has)
                vectors.append(values)
                biases.append(bias.astype(np.float64))
            value, sd = values_of(vectors[0], vectors[1], config)
            value = value + mean + biases[0] + biases[1]
            columns = [batch.column("user_id"), batch.column("item_id"), pa.array(value)]
            columns += [pa.nulls(len(value), pa.float64()) if sd is None else pa.array(sd), *map(pa.array, known)]
            yield pa.RecordBatch.from_arrays(columns, names=[part.split()[0] for part in PREDICTED.split(", ")])

    return work


def values_of(users: F32, items: F32, config: Config) -> tuple[F64, F64 | None]:
    """Inner products (n,) of vectors (n, rank); of a factorization machine the mean over its samples of the value or
    probability, and their standard deviation."""
    products = users.astype(np.float64) * items
    if config.model != "fm":
        return products.sum(axis=1), None
    samples = sample_count(config.fm)
    values = products.reshape(len(users), samples, sample_width(config.fm)).sum(axis=2) * samples
    if config.fm.task == "classification":
        values = ndtr(values)
    return values.mean(axis=1), values.std(axis=1)
