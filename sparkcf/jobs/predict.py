"""The predict job: values, or probabilities, of a table of pairs by a run that predicts any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.clean import normalized_id, parsed_timestamp
from sparkcf.data.ingest import read_listing
from sparkcf.data.pairs import pairs as training_pairs
from sparkcf.data.shared import share
from sparkcf.errors import ConfigError
from sparkcf.jobs.fold_in import base_run, checked_mean, state_of
from sparkcf.jobs.train import attributes, index_size, of_run, read_events
from sparkcf.lake.runs import Run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract import Arrays, Context
from sparkcf.models.fm.factors import sample_count, sample_width, unknown_vectors
from sparkcf.models.fm.features import features_of
from sparkcf.models.fm.frames import folded_in_context
from sparkcf.models.fm.links import answers
from sparkcf.models.fm.rows import make_plan
from sparkcf.models.registry import rank_of
from sparkcf.progress import step
from sparkcf.ranking.topk import vectors_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
ENDS = ("user_id", "item_id")
ASKED = (*ENDS, "ts", "context")
PREDICTED = (
    "user_id string, item_id string, ts timestamp, context map<string,string>, unknown int, "
    "value double, sd double, known_user boolean, known_item boolean"
)


def predict_pairs(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Write `predictions` of the pairs in `predict.path`, by `run_id`, else by the published run.

    What the run does not know of a pair adds nothing to its value, and is counted.

    A machine with fields of the moment takes the columns `ts` and those of `input.columns.context` from the table.

    Returns the run's id and counts: pairs, unknown_users, unknown_items, unknown_values (of moments), duplicates,
    without_id.

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
    asked = _asked(spark, config)
    with step("predict", spark) as shown:
        pairs = asked.where("user_id IS NOT NULL AND item_id IS NOT NULL").distinct()
        pairs = pairs.withColumn("context", F.map_from_entries("context"))
        state = state_of(tables, run, config)
        if config.model == "fm" and config.fm.contextual:
            with_users = _in_their_moments(tables, pairs, state, config, run)
        else:
            users = _with_vectors(tables, "user", config, run.run_id)
            known = F.col("user_factor").isNotNull().alias("known_user")
            with_users = pairs.join(users, on="user_id", how="left").select("*", known, F.lit(0).alias("unknown"))
        joined = with_users.join(_with_vectors(tables, "item", config, run.run_id), on="item_id", how="left")
        defaults = unknown_vectors(state["w0"], config.fm) if config.model == "fm" else None
        predicted = joined.mapInArrow(_predict(config, mean, defaults), PREDICTED)
        labels = (F.lit(config.ds).alias("ds"), F.lit(config.model).alias("model"), F.lit(run.run_id).alias("run_id"))
        kept = predicted.persist(StorageLevel.MEMORY_AND_DISK)  # written, then counted; released below
        try:
            tables.replace("predictions", kept.select("*", *labels), of_run(config.model, run.run_id))
            row = kept.agg(
                F.count(F.lit(1)).alias("pairs"),
                F.count(F.when(~F.col("known_user"), 1)).alias("unknown_users"),
                F.count(F.when(~F.col("known_item"), 1)).alias("unknown_items"),
                F.coalesce(F.sum("unknown"), F.lit(0)).alias("unknown_values"),
            ).first()
        finally:
            kept.unpersist()
        counts = {name: int(n) for name, n in row.asDict().items()}
        whole, usable = asked.agg(F.count(F.lit(1)), F.count(F.concat("user_id", "item_id"))).first()
        counts |= {"without_id": int(whole - usable), "duplicates": int(usable) - counts["pairs"]}
        shown.note = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
    return {"run_id": run.run_id, "counts": counts}


def _asked(spark: SparkSession, config: Config) -> DataFrame:
    """ASKED of the pairs as they came, null where there is no usable id; the context as entries."""
    columns = config.input.columns
    names = columns.context if config.model == "fm" else ()
    listed = read_listing(spark, "predict.path", config.predict.path or "", ENDS, ("ts", *names))
    entries = [F.struct(F.lit(name).alias("key"), F.nullif(F.trim(name), F.lit("")).alias("value")) for name in names]
    told = F.filter(F.array(*entries), lambda entry: entry["value"].isNotNull())
    return listed.select(
        *(normalized_id(F.col(name), config.clean).alias(name) for name in ENDS),
        parsed_timestamp(F.trim("ts"), config.input.ts_formats).alias("ts"),
        told.cast("array<struct<key: string, value: string>>").alias("context"),
    )


def _with_vectors(tables: LakeTables, side: str, config: Config, run_id: str) -> DataFrame:
    factors = tables.read(f"{side}_factors").where(of_run(config.model, run_id))
    return factors.select(f"{side}_id", F.col("factor").alias(f"{side}_factor"), F.col("bias").alias(f"{side}_bias"))


def _in_their_moments(tables: LakeTables, pairs: DataFrame, state: Arrays, config: Config, run: Run) -> DataFrame:
    """Pairs with their users' vectors in the moments asked for; the item before is the user's last."""
    sizes = (index_size(tables, run, "users"), index_size(tables, run, "items"))
    context = Context(**attributes(tables, config, run))
    trained = training_pairs(read_events(tables, config, run), config)
    features = features_of(trained, *sizes, config, context, state["scales"])
    plan = make_plan(config.fm, features.fields, *sizes, config.seed, threads=1)
    ids = next((f.name for f in config.fm.fields if f.of == "user"), "")
    table = tables.read("feature_factors").where(of_run(config.model, run.run_id)).where(F.col("field") == ids)
    own = table.select(F.col("feature_idx").alias("user_idx"), F.col("samples").alias("own"))
    last = trained.groupBy("user_idx").agg(F.max(F.struct("ts", "item_idx"))["item_idx"].alias("previous"))
    named = tables.read("users", run.row["inputs"]["users"]).select("user_id", "user_idx")
    asked = pairs.join(named, on="user_id", how="left").join(last, on="user_idx", how="left")
    everywhere = share(tables.spark, everywhere=state["everywhere"].astype(np.float32))
    kept = asked.select("*", *(F.col(name).alias(f"asked_{name}") for name in ("ts", "context")))
    found = folded_in_context(kept, own, features, state["w0"], everywhere, plan)
    renamed = found.withColumnsRenamed({"asked_ts": "ts", "asked_context": "context", "factor": "user_factor"})
    return renamed.withColumn("user_bias", F.lit(0.0).cast("float"))


def _predict(config: Config, mean: float, defaults: tuple[F32, F32] | None) -> Any:
    rank = rank_of(config)

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            vectors, biases = [], []
            for place, side in enumerate(("user", "item")):
                has, values = vectors_of(batch.column(f"{side}_factor"), rank)
                if defaults is not None:
                    values[~has] = defaults[place]
                bias = batch.column(f"{side}_bias").fill_null(0.0).to_numpy(zero_copy_only=False)
                vectors.append(values)
                biases.append(bias.astype(np.float64))
            value, sd = values_of(vectors[0], vectors[1], config)
            value = value + mean + biases[0] + biases[1]
            columns = [batch.column(name) for name in (*ASKED, "unknown")] + [pa.array(value)]
            columns.append(pa.nulls(len(value), pa.float64()) if sd is None else pa.array(sd))
            columns += [batch.column("known_user"), batch.column("item_factor").is_valid()]
            names = (*ASKED, "unknown", "value", "sd", "known_user", "known_item")
            yield pa.RecordBatch.from_arrays(columns, names=names)

    return work


def values_of(users: F32, items: F32, config: Config) -> tuple[F64, F64 | None]:
    """Inner products (n,) of vectors (n, rank); of a factorization machine the mean over its samples of the value or
    probability, and their standard deviation."""
    products = users.astype(np.float64) * items
    if config.model != "fm":
        return products.sum(axis=1), None
    samples = sample_count(config.fm)
    values = products.reshape(len(users), samples, sample_width(config.fm)).sum(axis=2) * samples
    values = answers(values, config.fm)
    return values.mean(axis=1), values.std(axis=1)
