"""The recommend job: write the top-K lists and similar items of a run."""

from __future__ import annotations

from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.fields import normalized_id
from sparkcf.data.ingest import read_listing
from sparkcf.data.pairs import liked_pairs, popularity, row_lists
from sparkcf.errors import NotFoundError
from sparkcf.jobs.base import OpenRun, open_run, read_fitted, training_data
from sparkcf.lake.factors import read_of_run, replace_of_run
from sparkcf.lake.frames import kept, one_row
from sparkcf.lake.runs import reason_recorded
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract import Model
from sparkcf.models.contract_data import Fitted, TrainingData
from sparkcf.models.registry import model_of
from sparkcf.progress import say, step
from sparkcf.ranking.rerank_items import check_attributes, excluded_items, share_reranker
from sparkcf.ranking.scorers import saved_of, share_scorer
from sparkcf.ranking.topk import Catalogue, SharedRanker, share_ranker, share_similarity, similar_items, top_k

STATES = ("trained", "evaluated", "recommended", "refused")


def recommend_run(spark: SparkSession, config: Config, opened: OpenRun | None = None) -> dict[str, Any]:
    """Write the top-K lists of all users (or of `topk.users`) and the similar items of a trained run.

    Returns the run's id and counts: rows, and users by model and by fallback.
    """
    tables = LakeTables(spark, config.lake.root)
    opened = opened or open_run(tables, config, STATES)
    with reason_recorded(opened.run):
        return _recommend(spark, tables, opened, config)


def _recommend(spark: SparkSession, tables: LakeTables, opened: OpenRun, config: Config) -> dict[str, Any]:
    run, inputs = opened.run, opened.inputs
    config = run.fitted_with(config)
    model = model_of(config)
    events = inputs.events(config.ds)
    data = training_data(model, inputs, events, config)
    users, items = inputs.read("users"), inputs.read("items")
    fitted = read_fitted(tables, model, run, data, config)
    saved = saved_of(model, fitted, data.n_items)
    opened_scorer, scorer = model.open(saved), share_scorer(spark, model.open, saved)
    if config.topk.concepts and not opened_scorer.has_concepts:
        say(f"  note: topk.concepts=true: {model.name} has no concepts, so no reason names one")
    catalogue = Catalogue.of(popularity(liked_pairs(events, config)), data.n_items, banned_items(spark, items, config))
    labels = (F.lit(config.ds).alias("ds"),)
    with step("recommend", spark, f"top {config.topk.k}") as progress:
        wanted = wanted_users(users, config).select("user_idx", "user_id")
        rules = share_reranker(spark, config, items, events, data.n_items, opened_scorer)
        ranker, topk = share_ranker(spark, scorer, catalogue, reranker=rules), config.topk
        known = rankable(wanted, model, fitted, data, events, config)
        reasons = (*(["concepts"] if topk.concepts or topk.reasons else []), *(["because"] if topk.reasons else []))
        lists = with_reasons(top_k(known, ranker, model.width, topk.k, *reasons), items)
        named = (
            lists.join(wanted, on="user_idx", how="inner")
            .join(items.select("item_idx", "item_id"), on="item_idx", how="inner")
            .select("user_id", "position", "item_id", "score", "reason", *labels)
        )
        counts = _write_lists(tables, named, model.name, run.run_id) | {"users": wanted.count()}
        progress.note = (
            f"{counts['recommendations']:,} rows, {counts['users']:,} users, {counts['users_fallback']:,} by fallback"
        )
    if config.topk.similar_items:
        with step("find similar items", spark) as progress:
            alike = share_ranker(spark, share_similarity(spark, model, saved, scorer), catalogue)
            with kept(_similar(fitted.item_factors, items, alike, config).select("*", *labels)) as found:
                replace_of_run(tables, "similar_items", _sorted(found, "item_id"), model.name, run.run_id)
            counts["similar_items"] = read_of_run(tables, "similar_items", model.name, run.run_id).count()
            progress.note = f"{counts['similar_items']:,} rows"
    run.update("recommended", counts=counts)
    return {"run_id": run.run_id, "counts": counts}


def with_reasons(lists: DataFrame, items: DataFrame) -> DataFrame:
    """Lists with a column `because`, if they have one, put into words: "because you had …", "because of concept …"."""
    if "because" not in lists.columns:
        return lists
    had = items.select(F.col("item_idx").alias("because"), F.coalesce("title", "item_id").alias("had"))
    words = F.when(F.col("reason").startswith("concept "), F.concat(F.lit("because of "), "reason")).otherwise(
        F.coalesce(F.concat(F.lit("because you had "), "had"), "reason")
    )
    return lists.join(had, on="because", how="left").withColumn("reason", words)


def banned_items(spark: SparkSession, items: DataFrame, config: Config) -> DataFrame | None:
    """item_idx of the items that `topk` and `rerank.exclude` exclude; None if they exclude none.

    Raises NotFoundError for a category, or an attribute or value of `rerank`, that no item has.
    """
    banned = []
    if config.topk.ineligible:
        banned.append(_ineligible(spark, items, config, config.topk.ineligible))
    has = F.coalesce(F.array_compact("categories"), F.array().cast("array<string>"))
    if config.topk.categories:
        _check_categories(items, config.topk.categories, "topk.categories")
        wanted = F.array(*map(F.lit, config.topk.categories))
        banned.append(items.where(~F.arrays_overlap(has, wanted)))
    if config.topk.exclude_categories:
        _check_categories(items, config.topk.exclude_categories, "topk.exclude_categories")
        banned.append(items.where(F.arrays_overlap(has, F.array(*map(F.lit, config.topk.exclude_categories)))))
    check_attributes(items, config.rerank)
    banned += excluded_items(items, config.rerank)
    if not banned:
        return None
    whole = banned[0].select("item_idx")
    for more in banned[1:]:
        whole = whole.union(more.select("item_idx"))
    return whole.distinct()


def _ineligible(spark: SparkSession, items: DataFrame, config: Config, path: str) -> DataFrame:
    """The items of the table `topk.ineligible`, whose ids are normalized as a load does."""
    listed = read_listing(spark, "topk.ineligible", path, ("item_id",))
    ids = listed.select(normalized_id(F.col("item_id"), config.clean).alias("item_id"))
    ids = ids.where("item_id IS NOT NULL").distinct()
    unknown = ids.join(items, on="item_id", how="left_anti")
    if some := unknown.orderBy("item_id").first():
        n = unknown.count()
        say(f"  note: topk.ineligible={path}: {n:,} of its ids are of no item of the lake, such as {some['item_id']!r}")
    return items.join(ids, on="item_id", how="left_semi")


def _check_categories(items: DataFrame, names: tuple[str, ...], key: str) -> None:
    known = sorted(r[0] for r in items.select(F.explode(F.array_compact("categories"))).distinct().collect())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NotFoundError(
            f"{key}: no item is of category {unknown[0]!r}: there are {', '.join(known[:30]) or 'none'}"
        )


def wanted_users(users: DataFrame, config: Config) -> DataFrame:
    """The users who get lists: `topk.users`, or all. Raises NotFoundError for a user that does not exist."""
    if not config.topk.users:
        return users
    wanted = users.where(F.col("user_id").isin(*config.topk.users))
    found = {r["user_id"] for r in wanted.select("user_id").collect()}
    missing = [u for u in config.topk.users if u not in found]
    if missing:
        some = [r["user_id"] for r in users.orderBy("user_idx").select("user_id").limit(3).collect()]
        raise NotFoundError(f"topk.users: unknown user {missing[0]!r}: users look like {', '.join(map(repr, some))}")
    return wanted


def rankable(
    users: DataFrame, model: Model[Any], fitted: Fitted, data: TrainingData, events: DataFrame, config: Config
) -> DataFrame:
    """Users (user_idx, …) with what a ranker needs: their factors, null for unknown users; rows if scored; `seen`."""
    known = users.join(fitted.user_factors.withColumnRenamed("idx", "user_idx"), on="user_idx", how="left")
    if model.scores_rows or config.topk.reasons or config.rerank.calibration:
        known = known.join(row_lists(data.pairs), on="user_idx", how="left")
    return _with_seen(known, events, config)


def _with_seen(users: DataFrame, events: DataFrame, config: Config) -> DataFrame:
    """Add `seen`, the items to exclude from a user's list; null if `topk.exclude_seen` is false."""
    if not config.topk.exclude_seen:
        return users.withColumn("seen", F.lit(None).cast("array<int>"))
    return users.join(seen_items(events), on="user_idx", how="left")


def seen_items(events: DataFrame) -> DataFrame:
    """user_idx, seen: the items of each user's events."""
    return events.groupBy("user_idx").agg(F.sort_array(F.collect_set("item_idx")).alias("seen"))


def _write_lists(tables: LakeTables, lists: DataFrame, model: str, run_id: str) -> dict[str, int]:
    with kept(lists):  # sampled for the ranges, written, counted
        replace_of_run(tables, "recommendations", _sorted(lists, "user_id"), model, run_id)
        first, by_fallback = F.col("position") == 1, F.col("reason") == "fallback"
        conditions = {
            "users_model": first & ~by_fallback,
            "users_fallback": first & by_fallback,
            "recommendations": F.lit(True),
            "nan_scores": F.isnan("score"),
        }
        row = one_row(lists.agg(*(F.count_if(condition).alias(name) for name, condition in conditions.items())))
    return row.asDict()


def _sorted(lists: DataFrame, id_column: str) -> DataFrame:
    """Sorted over all files, so that their statistics limit a query of an id to one row group."""
    return lists.repartitionByRange(id_column).sortWithinPartitions(id_column, "position")


def _similar(known: DataFrame, items: DataFrame, shared: SharedRanker, config: Config) -> DataFrame:
    """item_id, position, similar_item_id, score for the items known to the model."""
    ranked = similar_items(known, shared, config.topk.similar_items)
    ids = items.select("item_idx", "item_id")
    named = ranked.join(ids, on="item_idx", how="inner").join(
        ids.toDF("similar_idx", "similar_item_id"), on="similar_idx", how="inner"
    )
    return named.select("item_id", "position", "similar_item_id", "score")
