"""The fold_in job: vectors of new and changed users against the items of an earlier run, without training.

pairs now ─┐
pairs then ─┴▶ rows that differ, rows without a vector ──solved, items fixed──┐
the run's user_factors ───── rows that are the same ──────────────────────────┴▶ user_factors of a new run
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.pairs import pairs, user_rows
from sparkcf.data.shared import SharedArrays, SharedState, share, share_state
from sparkcf.errors import ConfigError, LakeError, NotFoundError, TrainingError
from sparkcf.jobs.publish import published_run
from sparkcf.jobs.train import (
    INPUTS,
    attributes,
    fitted_mean,
    index_size,
    of_run,
    read_events,
    write_factors,
    write_log,
)
from sparkcf.kernels.als import gramian
from sparkcf.lake.runs import Run, find_run, start_run
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.weights import read_state, write_state
from sparkcf.models.contract import Arrays, Context, Fit, Known
from sparkcf.models.fm.factors import fm_state_shapes
from sparkcf.models.fm.features import features_of, fields_of
from sparkcf.models.fm.frames import entries_of_column
from sparkcf.models.nets.fit import state_shapes
from sparkcf.models.registry import MODELS, rank_of
from sparkcf.progress import say, step
from sparkcf.ranking.topk import collect_factors, csr_of, vectors_of

STATES = ("trained", "evaluated", "recommended", "refused", "published")
BATCH = 10_000  # users that are solved at once
SOLVED = "idx int, factor array<float>, bias float, kept boolean"


def fold_in_users(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Write a new run: the vectors of `run_id`, else of the published run, brought up to the interactions of now.

    Users whose pairs are those of the run keep their vectors. New and changed ones are solved by the model's own row
    solve with the run's parameters and items; an item without a factor is left out of their rows, and a user left with
    none gets no vector. Users without pairs get none either. The items' factors are the run's. The new run's stored
    configuration names the run that it stands on as its `run_id`.

    Returns the new run's id, its base's and counts. Whatever fails once the base is found good is written into `runs`.

    Raises
    ------
    NotFoundError
        Nothing of the model is published and no run is named, or there is no such run.
    LakeError
        The base's factors, its mean or the table versions that it was trained on are no longer there.
    ConfigError
        `ds` is earlier than the base's.
    """
    tables = LakeTables(spark, config.lake.root)
    base = base_run(tables, config)
    mean = checked_mean(tables, base)
    config = base.fitted_with(config).model_copy(update={"run_id": base.run_id})
    run = start_run(tables, "fold_in", config, {name: tables.version(name) for name in INPUTS})
    try:
        return _fold_in(tables, config, base, run, mean)
    except BaseException as error:
        run.update("failed", reason=f"{type(error).__name__}: {error}"[:500])
        raise


def base_run(tables: LakeTables, config: Config) -> Run:
    """The run that `run_id` names, else the published one. Raises NotFoundError, or ConfigError for an earlier day."""
    if not config.run_id:
        row = published_run(tables, config.model)
        if row is None:
            raise NotFoundError(
                f"no run of model {config.model} is published, so there are no items to fold users in against: "
                "run jobs/nightly.py or jobs/publish.py first, or name a trained run by run_id=…"
            )
        config = config.model_copy(update={"run_id": row["run_id"]})
    base = find_run(tables, config, STATES)
    if config.ds < base.row["ds"]:
        raise ConfigError(
            f"ds={config.ds} is before run {base.run_id} of {base.row['ds']}, which knows what came later: "
            f"set ds={base.row['ds']} or later, or name an earlier run by run_id=…"
        )
    return base


def checked_mean(tables: LakeTables, base: Run) -> float:
    """The mean that the base's biases stand on, 0 without biases."""
    items = tables.read("item_factors").where(of_run(base.row["model"], base.run_id))
    n_items, biased = items.agg(F.count(F.lit(1)), F.max(F.col("bias") != 0)).first()
    if not n_items:
        raise LakeError(f"run {base.run_id} has no item factors in {tables.root}: name another by run_id=…")
    mean = fitted_mean(tables, base.run_id)
    if mean is None and biased:
        raise LakeError(f"run {base.run_id} has biases and was trained before their mean was kept: run jobs/train.py")
    return mean or 0.0


def _fold_in(tables: LakeTables, config: Config, base: Run, run: Run, mean: float) -> dict[str, Any]:
    say(f"  against the items of run {base.run_id} of {base.row['ds']}")
    of_base = of_run(config.model, base.run_id)
    users, items = (
        tables.read(f"{side}_factors").where(of_base).select(F.col(f"{side}_idx").alias("idx"), "factor", "bias")
        for side in ("user", "item")
    )
    then = config.model_copy(update={"ds": base.row["ds"]})
    before = user_rows(pairs(read_events(tables, then, base), then))
    paired = pairs(read_events(tables, config, run), config)
    now = user_rows(paired)
    with step("fold in users", tables.spark) as shown:
        vectors, bias, known = collect_factors(items, index_size(tables, run, "items"), rank_of(config))
        shared = share(tables.spark, vectors=vectors, bias=bias, known=known, gram=gramian(vectors))
        state = state_of(tables, base, config)
        against = Against(shared, share_state(tables.spark, state), int(known.sum()), mean)
        rows = marked(now, before, users)
        if config.model == "fm":
            rows = rows.join(_features(tables, paired, state, config, base, run), on="user_idx", how="left")
        solved = solve_rows(rows, against, config)
        solved = solved.persist(StorageLevel.MEMORY_AND_DISK)  # counted, then written; released below
        fitted = Fit(solved.where("factor IS NOT NULL").select("idx", "factor", "bias"), items, [], solved, mean, state)
        try:
            counts = counted(solved, config)
            write_factors(tables, "user", fitted, config, run)
            counts["items"] = write_factors(tables, "item", fitted, config, run)
            if state:
                write_state(tables.root, run.run_id, state)
        finally:
            fitted.release()
        shown.note = (
            f"{counts['users_folded_in']:,} solved, {counts['users_kept']:,} kept, "
            f"{counts['users_without_known_items']:,} without an item that the run knows"
        )
    write_log(tables, run, fitted)
    run.update("trained", counts=counts)
    return {"run_id": run.run_id, "base_run_id": base.run_id, "counts": run.counts}


def _features(tables: LakeTables, paired: DataFrame, state: Arrays, config: Config, base: Run, run: Run) -> DataFrame:
    """user_idx, features: what users have now, by the numbers that the base gave."""
    sizes = (index_size(tables, base, "users"), index_size(tables, base, "items"))
    told = attributes(tables, config, base) | {"users": attributes(tables, config, run)["users"]}
    known = paired.where(F.col("item_idx") < sizes[1])
    return features_of(known, *sizes, config, Context(**told), state["scales"]).serving


def state_of(tables: LakeTables, base: Run, config: Config) -> Arrays:
    """The base's weights, where its model has any beside the factors."""
    sizes = (index_size(tables, base, "users"), index_size(tables, base, "items"))
    if config.model == "fm":
        fields = fields_of(config, *sizes, attributes(tables, config, base)["dictionary"])
        return read_state(tables.root, base.run_id, fm_state_shapes(fields, config.fm))
    if config.net is None:
        return {}
    return read_state(tables.root, base.run_id, state_shapes(sizes[1], config))


@dataclass(frozen=True)
class Against:
    """What rows are solved against, for the executors.

    `items`: vectors (m, rank), bias (m,), known bool (m,): has a factor, gram (rank, rank). `present`, `mean`: items
    that were in training, and what their biases stand on.
    """

    items: SharedArrays
    state: SharedState
    present: int
    mean: float


def marked(now: DataFrame, before: DataFrame, factors: DataFrame) -> DataFrame:
    """Every user who has pairs: user_idx with factor and bias, where they still hold; else with the row to solve.

    Parameters
    ----------
    now, before : rows of users, see `user_rows`. factors : idx, factor, bias of the users who had a vector.
    """
    then = before.withColumnRenamed("row", "before")
    vectors = factors.withColumnRenamed("idx", "user_idx")
    joined = now.join(then, on="user_idx", how="left").join(vectors, on="user_idx", how="left")
    same = F.col("factor").isNotNull() & F.col("row").eqNullSafe(F.col("before"))
    return joined.select(
        "user_idx",
        *(F.when(same, F.col(name)).alias(name) for name in ("factor", "bias")),
        *(F.when(~same, F.col(f"row.{name}")).alias(name) for name in ("item_idx", "value", "weight")),
    )


def solve_rows(users: DataFrame, against: Against, config: Config) -> DataFrame:
    """`marked` users as SOLVED rows; factor is null for a user who has no item with a factor."""

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            for first in range(0, batch.num_rows, BATCH):
                yield _solved_batch(batch.slice(first, BATCH), against, config)

    more = [name for name in ("features",) if name in users.columns]
    return users.select("user_idx", "factor", "bias", "item_idx", "value", "weight", *more).mapInArrow(work, SOLVED)


def _solved_batch(batch: Any, against: Against, config: Config) -> Any:
    import pyarrow as pa

    items, item_bias, known, gram = against.items.open()
    kept, vectors = vectors_of(batch.column("factor"), items.shape[1])
    biases = batch.column("bias").fill_null(0.0).to_numpy(zero_copy_only=False).copy()
    indptr, indices = csr_of(batch.column("item_idx"))
    values, weights = (
        batch.column(name).flatten().to_numpy(zero_copy_only=False).astype(np.float32) for name in ("value", "weight")
    )
    usable = known[indices]
    indptr = np.concatenate([[0], np.cumsum(usable, dtype=np.int64)])[indptr]
    rows = (indptr, indices[usable], values[usable], weights[usable])
    features = entries_of_column(batch.column("features")) if "features" in batch.schema.names else None
    fit = Known(items, item_bias, against.present, against.mean, gram, against.state.open(), features)
    solved, solved_bias = MODELS[config.model].fold_in(rows, fit, config)
    folded = np.diff(indptr) > 0
    vectors[folded], biases[folded] = solved[folded], solved_bias[folded]
    shown = [vector if has else None for vector, has in zip(vectors, kept | folded, strict=True)]
    columns = [
        batch.column("user_idx"),
        pa.array(shown, pa.list_(pa.float32())),
        pa.array(biases),
        pa.array(kept),
    ]
    return pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias", "kept"])


def counted(solved: DataFrame, config: Config) -> dict[str, int]:
    """Users by what became of them; their sum is every user who has pairs. Solves the rows and fills the cache.

    Raises TrainingError where a solved vector is not finite.
    """
    present = F.col("factor").isNotNull()
    wrong = F.exists("factor", lambda x: F.isnan(x) | (F.abs(x) == float("inf"))) | F.isnan("bias")
    row = solved.agg(
        F.count(F.when(~F.col("kept") & present, 1)).alias("users_folded_in"),
        F.count(F.when(F.col("kept"), 1)).alias("users_kept"),
        F.count(F.when(~present, 1)).alias("users_without_known_items"),
        F.min(F.when(~F.col("kept") & wrong, F.col("idx"))).alias("wrong"),
    ).first()
    counts = row.asDict()
    first = counts.pop("wrong")
    if first is not None:
        raise TrainingError(
            f"user row {first} is not finite: raise {config.model}.regularization or look for huge values"
        )
    return {name: int(n) for name, n in counts.items()}
