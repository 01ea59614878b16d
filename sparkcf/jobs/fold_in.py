"""The fold_in job: solve the vectors of new and changed users with the items of an earlier run fixed.

pairs now ─┐
pairs then ─┴▶ rows that differ, rows without a vector ──solved, items fixed──┐
the run's user_factors ───── rows that are the same ──────────────────────────┴▶ user_factors of a new run
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.arrow import entries_of, vectors_of, vectors_to_arrow
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.data.pairs import ENTRY, ROW, pairs, row_lists, user_rows
from sparkcf.errors import TrainingError
from sparkcf.jobs.base import base_run, read_fitted, training_data
from sparkcf.jobs.train import write_fitted, write_log
from sparkcf.lake.frames import one_row
from sparkcf.lake.runs import recorded_run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract_data import Fitted
from sparkcf.models.registry import model_of
from sparkcf.progress import say, step
from sparkcf.ranking.scorers import SharedScorer, known_entries, rows_of, share_fitted

BATCH = 10_000  # users solved at once
SOLVED = "idx int, factor array<float>, bias float, kept boolean"


def fold_in_users(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Write a new run: the vectors of a base run (`run_id`, else the published run), updated to today's interactions.

    Users with the same pairs as in the base run keep their vectors. New and changed users are solved by the model's row
    solve with the base run's parameters and items. Items without a factor are left out of their rows. A user without
    pairs, or without an item that has a factor, gets no vector. The items' factors are copied. The new run's stored
    configuration names the base run as its `run_id`.

    Returns the ids of the new run and of the base run, and counts. A failure after the checks of the base run is
    written into `runs`.

    Raises
    ------
    NotFoundError
        No run of the model is published and `run_id` is not set, or that run does not exist.
    LakeError
        The base run's factors, its mean or its table versions no longer exist.
    ConfigError
        `ds` is before the base run's.
    """
    tables = LakeTables(spark, config.lake.root)
    base = base_run(tables, config)
    config = base.fitted_with(config).model_copy(update={"run_id": base.run_id})
    model, then = model_of(config), Inputs(tables, base.row["inputs"])
    of_base = config.model_copy(update={"ds": base.row["ds"]})
    data = training_data(model, then, then.events(of_base.ds), of_base)
    fitted = read_fitted(tables, model, base, data, of_base)
    with recorded_run(tables, "fold_in", config, newest_versions(tables)) as run:
        say(f"  against the items of run {base.run_id} of {base.row['ds']}")
        now = Inputs(tables, run.row["inputs"])
        paired = pairs(now.events(config.ds), model.reads, config)
        with step("fold in users", spark) as progress:
            shared = share_fitted(spark, model, fitted, now.sizes[1])
            n_users = shared.open().item_fold_users
            if n_users is not None:
                fitted = with_new_items(fitted, paired.where(F.col("user_idx") < n_users), shared)
            rows = marked(user_rows(paired), user_rows(data.pairs), fitted.user_factors)
            known = replace(data, pairs=paired.where(F.col("item_idx") < data.n_items))
            if model.reads.attributes:
                known = replace(known, users=now.read("users"))
            features = model.user_features(known, fitted)
            if features is not None:
                rows = rows.join(features, on="user_idx", how="full")
            figures = model.user_figures(paired, fitted)
            solved = solve_rows(rows, shared, model.width)
            solved = solved.persist(StorageLevel.MEMORY_AND_DISK)  # counted, then written; released below
            vectors = solved.where("factor IS NOT NULL").select("idx", "factor", "bias")
            kept = {name: fitted.tables[name].drop("item_id", "model", "run_id") for name in model.item_tables}
            updated = replace(fitted, user_factors=vectors, tables=kept, figures=figures, cached=solved)
            try:
                counts = counted(solved, config)
                counts["items"] = write_fitted(now, model, updated, run)["item"]
            finally:
                updated.release()
            progress.note = (
                f"{counts['users_folded_in']:,} solved, {counts['users_kept']:,} kept, "
                f"{counts['users_without_known_items']:,} without an item known to the run"
            )
        write_log(tables, run, updated)
        run.update("trained", counts=counts)
    return {"run_id": run.run_id, "base_run_id": base.run_id, "counts": run.counts}


def with_new_items(fitted: Fitted, paired: DataFrame, shared: SharedScorer) -> Fitted:
    """A fit with vectors of the items that it does not know, from their rows.

    Parameters
    ----------
    paired : user_idx, item_idx, value; user_idx is below the scorer's `item_fold_users`.
    """

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            for first in range(0, batch.num_rows, BATCH):
                part = batch.slice(first, BATCH)
                vectors = shared.open().fold_in_items(rows_of(part))
                columns = [part.column(0), vectors_to_arrow(vectors), pa.array(np.zeros(len(vectors), np.float32))]
                yield pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias"])

    known = fitted.item_factors.select(F.col("idx").alias("item_idx"))
    new = paired.join(known, on="item_idx", how="left_anti")
    swapped = new.select(F.col("item_idx").alias("user_idx"), F.col("user_idx").alias("item_idx"), "value")
    solved = row_lists(swapped).mapInArrow(work, "idx int, factor array<float>, bias float")
    return replace(fitted, item_factors=fitted.item_factors.unionByName(solved))


def marked(now: DataFrame, before: DataFrame, factors: DataFrame) -> DataFrame:
    """Users with their factor and bias if their row is unchanged, else with the row to solve.

    Included are users who have pairs, and users without pairs before and now who had a vector (from attributes). Users
    whose pairs are gone are left out.

    Parameters
    ----------
    now, before : rows of users, see `user_rows`.
    factors : idx, factor, bias of the users who had a vector.

    Returns
    -------
    DataFrame
        user_idx; factor and bias, or the columns ROW; the others are null.
    """
    then = before.withColumnRenamed("row", "before")
    vectors = factors.select(F.col("idx").alias("user_idx"), "factor", "bias")
    joined = now.join(then, on="user_idx", how="full").join(vectors, on="user_idx", how="full")
    same = F.col("factor").isNotNull() & F.col("row").eqNullSafe(F.col("before"))
    return joined.where(F.col("row").isNotNull() | same).select(
        "user_idx",
        *(F.when(same, F.col(name)).alias(name) for name in ("factor", "bias")),
        *(F.when(~same, F.col(f"row.{name}")).alias(column) for name, column in zip(ENTRY, ROW, strict=True)),
    )


def solve_rows(users: DataFrame, shared: SharedScorer, width: int) -> DataFrame:
    """Solve the rows of `marked` users: SOLVED; factor is null for a user without known items and features."""

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            for first in range(0, batch.num_rows, BATCH):
                yield _solved_batch(batch.slice(first, BATCH), shared, width)

    features = [name for name in ("features",) if name in users.columns]
    return users.select("user_idx", "factor", "bias", *ROW, *features).mapInArrow(work, SOLVED)


def _solved_batch(batch: Any, shared: SharedScorer, width: int) -> Any:
    import pyarrow as pa

    scorer = shared.open()
    kept, vectors = vectors_of(batch.column("factor"), width)
    biases = batch.column("bias").fill_null(0.0).to_numpy(zero_copy_only=False).copy()
    rows = known_entries(rows_of(batch), scorer.fold_items)
    features, folded = None, np.diff(rows[0]) > 0
    if "features" in batch.schema.names:
        features = entries_of(batch.column("features"))
        folded |= batch.column("features").is_valid().to_numpy(zero_copy_only=False)
    folded &= ~kept
    solved, solved_bias = scorer.fold_in(rows, features)
    vectors[folded], biases[folded] = solved[folded], solved_bias[folded]
    shown = [vector if has else None for vector, has in zip(vectors, kept | folded, strict=True)]
    columns = [batch.column("user_idx"), pa.array(shown, pa.list_(pa.float32())), pa.array(biases), pa.array(kept)]
    return pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias", "kept"])


def counted(solved: DataFrame, config: Config) -> dict[str, int]:
    """Count the users folded in, kept and without known items. Runs the solves and fills the cache.

    Raises TrainingError if a solved vector is not finite.
    """
    present = F.col("factor").isNotNull()
    wrong = F.exists("factor", lambda x: F.isnan(x) | (F.abs(x) == float("inf"))) | F.isnan("bias")
    counted = solved.agg(
        F.count(F.when(~F.col("kept") & present, 1)).alias("users_folded_in"),
        F.count(F.when(F.col("kept"), 1)).alias("users_kept"),
        F.count(F.when(~present, 1)).alias("users_without_known_items"),
        F.min(F.when(~F.col("kept") & wrong, F.col("idx"))).alias("wrong"),
    )
    counts = one_row(counted).asDict()
    first = counts.pop("wrong")
    if first is not None:
        raise TrainingError(
            f"user row {first} is not finite: raise {config.model}.regularization or look for huge values"
        )
    return {name: int(n) for name, n in counts.items()}
