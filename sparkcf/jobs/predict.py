"""The predict job: predict the values, or probabilities, of a table of pairs."""

from __future__ import annotations

from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.fields import normalized_id, parsed_timestamp
from sparkcf.data.ingest import read_listing
from sparkcf.data.inputs import Inputs
from sparkcf.data.pairs import row_lists
from sparkcf.errors import ConfigError
from sparkcf.jobs.base import base_run, read_fitted, training_data
from sparkcf.lake.factors import replace_of_run
from sparkcf.lake.forgotten import forgotten_users
from sparkcf.lake.frames import one_row
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract import Model
from sparkcf.models.contract_data import Fitted, TrainingData
from sparkcf.models.registry import model_of
from sparkcf.progress import step
from sparkcf.ranking.predict import predicted
from sparkcf.ranking.scorers import share_fitted

ENDS = ("user_id", "item_id")
CONTEXT = "array<struct<key: string, value: string>>"


def predict_pairs(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Write `predictions` of the pairs in `predict.path` by the run `run_id`, else by the published run.

    Unknown users, items and context values contribute 0 to a value; their numbers are counted. A factorization machine
    with context fields reads the columns `ts` and `input.columns.context` from the table.

    Returns the run's id and counts: pairs, unknown_users, unknown_items, unknown_values (of the context), duplicates,
    without_id.

    Raises
    ------
    ConfigError
        `predict.path` is not set, or the model predicts no values.
    InputError
        The table cannot be read, or has no column user_id or item_id.
    NotFoundError
        No run of the model is published and `run_id` is not set.
    """
    tables, model = LakeTables(spark, config.lake.root), model_of(config)
    if not model.reads.predicts:
        raise ConfigError(f"model={config.model} predicts no values: set model=fm or mpma, or als.mode=explicit")
    if config.predict.path is None:
        raise ConfigError("predict.path is not set: name a table with columns user_id and item_id")
    run = base_run(tables, config)
    config = run.fitted_with(config)
    of_run = config.model_copy(update={"ds": run.row["ds"]})
    model, inputs = model_of(config), Inputs(tables, run.row["inputs"])
    requested = _requested(spark, model, config)
    data = training_data(model, inputs, inputs.events(run.row["ds"]), of_run)
    fitted = read_fitted(tables, model, run, data, of_run)
    with step("predict", spark) as progress:
        pairs = requested.where("user_id IS NOT NULL AND item_id IS NOT NULL").distinct()
        of_forgotten = 0
        if forgotten := forgotten_users(tables):
            of_forgotten = forgotten.among(pairs).count()
            pairs = forgotten.without(pairs)
        pairs = pairs.withColumn("context", F.map_from_entries("context"))
        whole = _with_vectors(pairs, inputs, model, data, fitted)
        kept = ("user_id", "item_id", "own_ts", "own_context", "unknown", "known_user")
        shared = share_fitted(spark, model, fitted, data.n_items)
        values = predicted(whole, shared, model.width, *kept, levels=config.predict.quantiles)
        values = values.withColumnsRenamed({"own_ts": "ts", "own_context": "context", "predicted": "value"})
        values = values.persist(StorageLevel.MEMORY_AND_DISK)  # written, then counted; released below
        try:
            dated = values.withColumn("ds", F.lit(config.ds))
            replace_of_run(tables, "predictions", dated, model.name, run.run_id)
            counted = values.agg(
                F.count(F.lit(1)).alias("pairs"),
                F.count(F.when(~F.col("known_user"), 1)).alias("unknown_users"),
                F.count(F.when(~F.col("known_item"), 1)).alias("unknown_items"),
                F.coalesce(F.sum("unknown"), F.lit(0)).alias("unknown_values"),
            )
            counts = {name: int(n) for name, n in one_row(counted).asDict().items()}
        finally:
            values.unpersist()
        read, usable = one_row(requested.agg(F.count(F.lit(1)), F.count(F.concat("user_id", "item_id"))))
        duplicates = int(usable) - counts["pairs"] - of_forgotten
        counts |= {"without_id": int(read - usable), "duplicates": duplicates}
        counts |= {"forgotten": of_forgotten} if of_forgotten else {}
        progress.note = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
    run.record({"predictions": counts["pairs"]})
    return {"run_id": run.run_id, "counts": counts}


def _requested(spark: SparkSession, model: Model[Any], config: Config) -> DataFrame:
    """The table's pairs: user_id, item_id (null if unusable), ts, context as an array of entries."""
    columns = config.input.columns
    names = columns.context if model.reads.moments else ()
    listed = read_listing(spark, "predict.path", config.predict.path or "", ENDS, ("ts", *names))
    entries = [F.struct(F.lit(name).alias("key"), F.nullif(F.trim(name), F.lit("")).alias("value")) for name in names]
    typed = F.array(*entries).cast(CONTEXT)  # without entries the array has no type
    present = F.filter(typed, lambda entry: entry["value"].isNotNull())
    return listed.select(
        *(normalized_id(F.col(name), config.clean).alias(name) for name in ENDS),
        parsed_timestamp(F.trim("ts"), config.input.ts_formats).alias("ts"),
        present.alias("context"),
    )


def _with_vectors(pairs: DataFrame, inputs: Inputs, model: Model[Any], data: TrainingData, fitted: Fitted) -> DataFrame:
    """Pairs with indices and the vectors of their users, in the pair's context if the model uses one."""
    ids = inputs.read("users").select("user_id", "user_idx")
    items = inputs.read("items").select("item_id", "item_idx")
    named = pairs.join(ids, on="user_id", how="left").join(items, on="item_id", how="left")
    named = named.select("*", *(F.col(name).alias(f"own_{name}") for name in ("ts", "context")))
    found = model.in_context(named, data, fitted)
    if found is None:
        users = fitted.user_factors.select(F.col("idx").alias("user_idx"), "factor", "bias")
        found = named.join(users, on="user_idx", how="left")
        found = found.select("*", F.col("factor").isNotNull().alias("known_user"), F.lit(0).alias("unknown"))
    if model.scores_rows:
        found = found.join(row_lists(data.pairs), on="user_idx", how="left")
    return found
