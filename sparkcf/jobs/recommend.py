"""The recommend job: top-K lists and neighbours of a run, written under its id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.ingest import read_listing
from sparkcf.data.pairs import pairs
from sparkcf.errors import NotFoundError
from sparkcf.jobs.train import index_size, of_run, read_events
from sparkcf.lake.runs import Run, find_run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.als.fit import vectors_to_arrow
from sparkcf.models.popularity import popularity
from sparkcf.models.registry import comparable, rank_of
from sparkcf.progress import step
from sparkcf.ranking.topk import ItemSide, item_side, top_k


def recommend_run(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Write the top-K lists of all users (or of `topk.users`) and the items' neighbours for a trained run.

    Returns the run's id and counts: users, by model and by fallback, and rows.
    """
    tables = LakeTables(spark, config.lake.root)
    run = find_run(tables, config, ("trained", "evaluated", "recommended", "refused"))
    config = run.fitted_with(config)
    events = read_events(tables, config, run)
    users = tables.read("users", run.row["inputs"]["users"])
    items = tables.read("items", run.row["inputs"]["items"])
    side = _item_side(tables, events, items, config, run)
    with step(f"recommend top {config.topk.k}", spark) as shown:
        wanted = _wanted_users(users, config)
        counts = _write_lists(tables, wanted, events, items, side, config, run)
        shown.note = (
            f"{counts['recommendations']:,} rows, {counts['users']:,} users, {counts['users_fallback']:,} by fallback"
        )
    if config.topk.similar_items:
        with step("find similar items", spark) as shown:
            counts["similar_items"] = _write_similar(tables, items, side, config, run)
            shown.note = f"{counts['similar_items']:,} rows"
    run.update("recommended", counts=counts)
    return {"run_id": run.run_id, "counts": counts}


def _item_side(tables: LakeTables, events: DataFrame, items: DataFrame, config: Config, run: Run) -> ItemSide:
    factors = tables.read("item_factors").where(of_run(config.model, run.run_id))
    renamed = factors.select(F.col("item_idx").alias("idx"), "factor", "bias")
    by_users = config.popularity.model_copy(update={"by": "users"})
    known = popularity(pairs(events, config), by_users)
    size, rank = index_size(tables, run, "items"), rank_of(config)
    return item_side(renamed, known, size, rank, banned_items(tables.spark, items, config))


def banned_items(spark: SparkSession, items: DataFrame, config: Config) -> DataFrame | None:
    """item_idx of what may not be recommended, by table and by category; None where there is no such wish."""
    banned = []
    if config.topk.ineligible:
        listed = read_listing(spark, "topk.ineligible", config.topk.ineligible, ("item_id",)).distinct()
        banned.append(items.join(listed, on="item_id", how="left_semi"))
    has = F.coalesce(F.col("categories"), F.array().cast("array<string>"))
    if config.topk.categories:
        _check_categories(items, config.topk.categories, "topk.categories")
        wanted = F.array(*map(F.lit, config.topk.categories))
        banned.append(items.where(~F.arrays_overlap(has, wanted)))
    if config.topk.exclude_categories:
        _check_categories(items, config.topk.exclude_categories, "topk.exclude_categories")
        banned.append(items.where(F.arrays_overlap(has, F.array(*map(F.lit, config.topk.exclude_categories)))))
    if not banned:
        return None
    whole = banned[0].select("item_idx")
    for more in banned[1:]:
        whole = whole.union(more.select("item_idx"))
    return whole.distinct()


def _check_categories(items: DataFrame, names: tuple[str, ...], key: str) -> None:
    known = sorted(r[0] for r in items.select(F.explode("categories")).distinct().collect())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NotFoundError(
            f"{key}: no item is of category {unknown[0]!r}: there are {', '.join(known[:30]) or 'none'}"
        )


def _wanted_users(users: DataFrame, config: Config) -> DataFrame:
    if not config.topk.users:
        return users
    wanted = users.where(F.col("user_id").isin(*config.topk.users))
    found = {r["user_id"] for r in wanted.select("user_id").collect()}
    missing = [u for u in config.topk.users if u not in found]
    if missing:
        some = [r["user_id"] for r in users.orderBy("user_idx").select("user_id").limit(3).collect()]
        raise NotFoundError(f"topk.users: unknown user {missing[0]!r}: users look like {', '.join(map(repr, some))}")
    return wanted


def _write_lists(
    tables: LakeTables,
    users: DataFrame,
    events: DataFrame,
    items: DataFrame,
    side: ItemSide,
    config: Config,
    run: Run,
) -> dict[str, int]:
    factors = tables.read("user_factors").where(of_run(config.model, run.run_id)).select("user_idx", "factor")
    wanted = users.select("user_idx", "user_id").join(factors, on="user_idx", how="left")
    if config.topk.exclude_seen:
        seen = events.groupBy("user_idx").agg(F.sort_array(F.collect_set("item_idx")).alias("seen"))
        wanted = wanted.join(seen, on="user_idx", how="left")
    else:
        wanted = wanted.withColumn("seen", F.lit(None).cast("array<int>"))
    ranked = top_k(wanted, side.share(tables.spark), config.topk.k)
    named = (
        ranked.join(users.select("user_idx", "user_id"), on="user_idx", how="inner")
        .join(items.select("item_idx", "item_id"), on="item_idx", how="inner")
        .select("user_id", "position", "item_id", "score", "reason", *_labels(config, run))
    )
    # Sorted by user, so that the file statistics lead a reader to one row group.
    ordered = named.repartitionByRange("user_id").sortWithinPartitions("user_id", "position")
    ordered = ordered.persist(StorageLevel.MEMORY_AND_DISK)  # written, then counted; released below
    try:
        tables.replace("recommendations", ordered, of_run(config.model, run.run_id))
        first = ordered.where("position = 1").groupBy("reason").agg(F.count(F.lit(1)).alias("users")).collect()
        rows = ordered.agg(F.count(F.lit(1)), F.count(F.when(F.isnan("score"), 1))).first()
    finally:
        ordered.unpersist()
    by_reason = {r["reason"]: r["users"] for r in first}
    return {
        "users": users.count(),
        "users_model": by_reason.get("model", 0),
        "users_fallback": by_reason.get("fallback", 0),
        "recommendations": rows[0],
        "nan_scores": rows[1],
    }


def _labels(config: Config, run: Run) -> list[Any]:
    return [
        F.lit(config.ds).alias("ds"),
        F.lit(config.model).alias("model"),
        F.lit(run.run_id).alias("run_id"),
    ]


def _unit_rows(config: Config) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Rows with what is compared of their `factor`, of length 1; a row of zeros is nobody's neighbour: left out."""

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            if batch.num_rows == 0:
                continue
            flat = batch.column("factor").flatten().to_numpy(zero_copy_only=False)
            vectors = comparable(flat.reshape(len(batch), -1), config)
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
            kept = norms > 0
            unit = (vectors[kept] / norms[kept, None]).astype(np.float32)
            columns = [column.filter(pa.array(kept)) for column in batch.columns]
            columns[batch.schema.get_field_index("factor")] = vectors_to_arrow(unit)
            yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

    return work


def _write_similar(tables: LakeTables, items: DataFrame, side: ItemSide, config: Config, run: Run) -> int:
    compared = comparable(side.vectors, config)
    norms = np.linalg.norm(compared, axis=1, keepdims=True)
    unit = np.divide(compared, norms, out=np.zeros_like(compared), where=norms > 0)
    cosine = ItemSide(unit, np.zeros_like(side.bias), side.eligible, side.fallback)
    factors = tables.read("item_factors").where(of_run(config.model, run.run_id))
    seen = F.array("item_idx").alias("seen")  # an item is not its own neighbour
    rows = factors.select(F.col("item_idx").alias("user_idx"), "factor", seen)
    ranked = top_k(
        rows.mapInArrow(_unit_rows(config), rows.schema), cosine.share(tables.spark), config.topk.similar_items
    )
    ids = items.select("item_idx", "item_id")
    named = (
        ranked.withColumnRenamed("item_idx", "similar_idx")
        .join(ids.withColumnRenamed("item_idx", "user_idx"), on="user_idx", how="inner")
        .join(ids.toDF("similar_idx", "similar_item_id"), on="similar_idx", how="inner")
        .select("item_id", "position", "similar_item_id", "score", *_labels(config, run))
    )
    ordered = named.repartitionByRange("item_id").sortWithinPartitions("item_id", "position")
    tables.replace("similar_items", ordered, of_run(config.model, run.run_id))
    return tables.last_metrics("similar_items").get("numOutputRows", 0)
