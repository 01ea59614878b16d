"""Evaluation: fit on the train part of a split, rank for the tested users, measure the model and the baseline.

The measures are the functions of `kernels.metrics`, called on one block of users at a time. A block returns sums (also
for each bootstrap replicate), so any partitioning gives the same figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from sparkcf.config.root import Config
from sparkcf.data.arrow import csr_of, entries_of
from sparkcf.data.pairs import popularity, row_lists
from sparkcf.data.split import Split, split
from sparkcf.errors import ConfigError, GateRefused
from sparkcf.kernels.metrics import Summary, mae, merge, ranking_measures, rating_errors, rmse, summarize, unpack
from sparkcf.kernels.mixture import CALIBRATION_MEASURES
from sparkcf.lake.figures import Figure
from sparkcf.lake.frames import kept, side_by_side
from sparkcf.models.contract import Model
from sparkcf.models.contract_data import FitRun, Fitted, Saved, TrainingData
from sparkcf.ranking.predict import predicted
from sparkcf.ranking.rerank import MEASURES, Lists
from sparkcf.ranking.rerank_items import excluded_items, share_reranker
from sparkcf.ranking.scorers import SharedScorer, rows_of, saved_of, share_scorer, user_block
from sparkcf.ranking.segments import Categories, Segments
from sparkcf.ranking.topk import Catalogue, SharedRanker, share_ranker

SYSTEMS = ("model", "popularity")
RERANKED = ("plain", "reranked")  # the model's lists of topk.k before and after the rules of `rerank`
CALIBRATED = "calibration"  # of the model's distributions
WARM, COLD = "warm", "cold"  # segments of the users for whom the model has a vector or a row, and of the others


@dataclass(frozen=True)
class Evaluation:
    """Figures of the model and the baseline on one split, as rows of the table `metrics`."""

    protocol: str
    note: str
    figures: list[Figure]

    def value(self, metric: str, k: int | None, system: str = "model", segment: str | None = None) -> float:
        wanted = (system, metric, k, segment)
        return next(f.value for f in self.figures if (f.system, f.metric, f.k, f.segment) == wanted)


def settings_of(config: Config) -> dict[str, Any]:
    """Settings that decide the test set: figures of two runs are comparable if these are equal.

    `seed` and `bootstrap` also decide the bootstrap draws: replicates of two runs are paired if these are equal too.
    """
    evaluation = config.evaluation
    settings = {
        "holdout_share": evaluation.holdout_share,
        "positive_from": config.preference.positive_from,
        "seed": config.seed,
        "bootstrap": evaluation.bootstrap,
    }
    if evaluation.protocol in ("q1", "q2"):
        settings["min_user_items"] = evaluation.min_user_items
    if evaluation.protocol == "q1":
        settings["foldin_share"] = evaluation.foldin_share
    return settings


def check_protocol(model: Model[Any], config: Config) -> None:
    """Raise ConfigError for protocol q3 with a model that predicts no ratings."""
    if config.evaluation.protocol == "q3" and model.reads.pairs != "values":
        raise ConfigError(
            f"evaluation.protocol=q3 measures predicted ratings, and model={model.name} predicts none: "
            "set model=als and als.mode=explicit, or model=fm or mpma, or use another protocol"
        )


@dataclass(frozen=True)
class ItemInputs:
    """What lists are measured by beside the held-out part: the lake's items, and the events (item_idx, ts)."""

    items: DataFrame
    events: DataFrame


def evaluate(
    events: DataFrame,
    model: Model[Any],
    data: TrainingData,
    config: Config,
    run: FitRun | None = None,
    items: DataFrame | None = None,
) -> Evaluation:
    """Split, fit, rank and measure.

    Parameters
    ----------
    events : indexed interactions: user_idx, item_idx, event, value, ts.
    data : the model's other inputs; its pairs are replaced by those of the split.
    items : the lake's table of items, to measure lists by category and by the rules of `rerank` too; None: they are
        not.

    Raises
    ------
    ConfigError
        Protocol q3 with a model that predicts no ratings.
    GateRefused
        The train part or the held-out part of the split is empty.
    """
    check_protocol(model, config)
    with persisted_split(events, model, config) as parts:
        data = replace(data, pairs=parts.train)
        fitted = model.fit(data, run or FitRun())
        try:
            inputs = None if items is None else ItemInputs(items, events)
            figures = measured(parts, model, data, fitted, config, inputs)
        finally:
            fitted.release()
    return Evaluation(config.evaluation.protocol, parts.note, figures)


@contextmanager
def persisted_split(events: DataFrame, model: Model[Any], config: Config) -> Iterator[Split]:
    """The split of the events, persisted while it is used. Raises GateRefused if one of its parts is empty."""
    # By time the events are counted by day before they are split.
    with kept(events) if config.evaluation.protocol == "q4" else nullcontext():
        parts = split(events, model.reads, config)
        with kept(parts.marked), kept(parts.train), kept(parts.heldout):
            _check_split(parts, config)
            yield parts


def measured(
    parts: Split,
    model: Model[Any],
    data: TrainingData,
    fitted: Fitted,
    config: Config,
    inputs: ItemInputs | None = None,
) -> list[Figure]:
    """Figures of a fit of the train part, and of the baseline, on the held-out part.

    With `inputs` also by category, and with rules of `rerank` of RERANKED, at lengths up to `topk.k`.
    """
    if config.evaluation.protocol == "q3":
        return _rating_figures(parts, model, data, fitted, config)
    return _ranking_figures(parts, model, data, fitted, config, inputs)


def _check_split(parts: Split, config: Config) -> None:
    named = (("train", parts.train), ("held-out", parts.heldout))
    some = [frame.limit(1).select(F.lit(name).alias("part")) for name, frame in named]
    present = {row["part"] for row in some[0].union(some[1]).collect()}
    for name, _ in named:
        if name not in present:
            raise GateRefused(
                f"evaluation.protocol={config.evaluation.protocol}: the {name} part is empty ({parts.note}): "
                "change evaluation.holdout_share or the protocol"
            )


def _ranking_figures(
    parts: Split,
    model: Model[Any],
    data: TrainingData,
    fitted: Fitted,
    config: Config,
    inputs: ItemInputs | None,
) -> list[Figure]:
    folded = config.evaluation.protocol == "q1"
    spark = parts.train.sparkSession
    saved = saved_of(model, fitted, data.n_items)
    scorer, popular = share_scorer(spark, model.open, saved), popularity(parts.popular)
    catalogue = Catalogue.of(popular, data.n_items)
    shared, by_rules = share_ranker(spark, scorer, catalogue), None
    if inputs and config.rerank.active:
        by_rules = _by_rules(inputs, model, saved, scorer, popular, data, config)
    users = _rankable(parts, model, data, fitted, config)
    has_features = "features" in users.columns
    trained = parts.train.select("user_idx").distinct().count()
    evaluation, seed, width = config.evaluation, config.seed, model.width
    depth, short, k = max(evaluation.ks), list_lengths(config), config.topk.k
    metric, at = config.gate_measure()
    assert at is not None  # a measure of lists
    categories = Categories.of(inputs.items, data.n_items) if inputs else None
    segments = Segments.of(names_at(evaluation.ks), (metric, at), catalogue.popularity, categories)

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        ranker = shared.open()
        share = ranker.catalogue.popularity.astype(np.float64) / max(trained, 1)
        with threadpool_limits(1, user_api="blas"):
            for batch in batches:
                if batch.num_rows == 0:
                    continue
                seen, held = csr_of(batch.column("seen")), csr_of(batch.column("heldout"))
                users = batch.column("user_idx").to_numpy(zero_copy_only=False).astype(np.int64)
                tested = user_block(batch, width)
                if folded:
                    features = entries_of(batch.column("features")) if has_features else None
                    vectors, bias = ranker.scorer.fold_in(rows_of(batch), features)
                    tested = replace(tested, vectors=vectors, bias=bias, known=np.ones(len(users), bool))
                unknown = replace(tested, known=np.zeros(len(users), bool))

                def packed(
                    system: str, values: Any, items: Any, ks: Sequence[int], users: Any = users, n: int = len(share)
                ) -> Any:
                    summed = summarize(values, users, seed, evaluation.bootstrap).pack()
                    return _system_batch(system, summed, np.stack([_listed(items[:, :k], n) for k in ks]))

                for system, block in zip(SYSTEMS, (tested, unknown), strict=True):
                    ranked, _ = ranker.rank(block, seen, depth)
                    values = ranking_measures(ranked, *held, evaluation.ks, share)[1]
                    known = tested.known.astype(np.float64)  # for the baseline too: the same users
                    by_segment = segments.columns(values, seen, held, ranked)
                    values = np.column_stack([values, values * known[:, None], known, by_segment])
                    yield packed(system, values, ranked, evaluation.ks)
                if by_rules is None:
                    continue
                chooser = by_rules.open()
                assert chooser.reranker is not None
                plain = Lists(*ranker.rank(tested, seen, k))
                for system, lists in zip(RERANKED, (plain, chooser.lists(tested, users, seen, k)), strict=True):
                    values = ranking_measures(lists.items, *held, short, share)[1]
                    more = chooser.reranker.measures(lists, tested, short)[1]
                    yield packed(system, rule_columns(values, more), lists.items, short)

    rows = side_by_side(users.mapInArrow(work, "system string, summary binary, listed binary"))
    return _merged(rows, data.n_items, int(saved.item_known.sum()), config, segments, by_rules is not None)


def _by_rules(
    inputs: ItemInputs,
    model: Model[Any],
    saved: Saved,
    scorer: SharedScorer,
    popular: DataFrame,
    data: TrainingData,
    config: Config,
) -> SharedRanker:
    """The ranker of lists by the rules of `rerank`."""
    spark, n_items = inputs.items.sparkSession, data.n_items
    rules = share_reranker(spark, config, inputs.items, inputs.events, n_items, model.open(saved))
    excluded = [items.select("item_idx") for items in excluded_items(inputs.items, config.rerank)]
    banned = reduce(DataFrame.union, excluded).where(F.col("item_idx") < n_items) if excluded else None
    return share_ranker(spark, scorer, Catalogue.of(popular, n_items, banned), reranker=rules)


def list_lengths(config: Config) -> list[int]:
    """Lengths of the measured lists by the rules of `rerank`: `topk.k`, and those of `evaluation.ks` below it."""
    return sorted({config.topk.k, *(k for k in config.evaluation.ks if k < config.topk.k)})


def _system_batch(system: str, summary: Any, listed: Any) -> Any:
    import pyarrow as pa

    data = [pa.array([system]), *(pa.array([part.tobytes()], pa.binary()) for part in (summary, listed))]
    return pa.RecordBatch.from_arrays(data, names=["system", "summary", "listed"])


def tested_users(parts: Split) -> DataFrame:
    """The tested users with their lists of items: user_idx, heldout, seen (null for none)."""
    heldout = parts.heldout.groupBy("user_idx").agg(F.sort_array(F.collect_list("item_idx")).alias("heldout"))
    seen = parts.seen.groupBy("user_idx").agg(F.sort_array(F.collect_list("item_idx")).alias("seen"))
    return heldout.join(seen, on="user_idx", how="left")


def _rankable(parts: Split, model: Model[Any], data: TrainingData, fitted: Fitted, config: Config) -> DataFrame:
    """user_idx, heldout, seen, factor; ROW if users are folded in or their rows are read; features if folded in."""
    folded = config.evaluation.protocol == "q1"
    factors = fitted.user_factors.select(F.col("idx").alias("user_idx"), "factor")
    users = tested_users(parts).join(factors, on="user_idx", how="left")
    if folded or model.scores_rows or config.rerank.active:
        users = users.join(row_lists(parts.rows), on="user_idx", how="left")
    features = model.user_features(replace(data, pairs=parts.rows), fitted) if folded else None
    return users if features is None else users.join(features, on="user_idx", how="left")


def _listed(ranked: Any, n_items: int) -> Any:
    """Bit mask of the items that are in any list: uint8 (n_items / 8,)."""
    mask = np.zeros(n_items, bool)
    mask[ranked[ranked >= 0]] = True
    return np.packbits(mask)


def names_at(ks: Sequence[int]) -> list[tuple[str, int]]:
    """The measures of a user's list of these lengths."""
    empty = np.empty((0, 1), np.int32)
    return ranking_measures(empty, np.zeros(1, np.int64), empty[:, 0], ks, np.ones(1))[0]


def _merged(
    rows: Iterable[Any], n_items: int, n_known: int, config: Config, segments: Segments, by_rules: bool
) -> list[Figure]:
    empty = np.empty((0, 1), np.int32)
    short = list_lengths(config)
    more = [(name, k) for k in short for name in MEASURES]
    lengths = dict.fromkeys(SYSTEMS, config.evaluation.ks) | (dict.fromkeys(RERANKED, tuple(short)) if by_rules else {})
    parts: dict[str, list[Any]] = {system: [] for system in lengths}
    listed = {system: np.zeros((len(ks), len(_listed(empty, n_items))), np.uint8) for system, ks in lengths.items()}
    for row in rows:
        system = row["system"]
        n = len(names_at(lengths[system]))
        columns = 2 * n + 1 + segments.width if system in SYSTEMS else n + 2 * len(more)
        summary = unpack(np.frombuffer(row["summary"]), columns, config.evaluation.bootstrap)
        parts[system].append(summary)
        listed[system] |= np.frombuffer(row["listed"], np.uint8).reshape(len(lengths[system]), -1)
    figures: list[Figure] = []
    for system, ks in lengths.items():
        summary, names = merge(parts[system]), names_at(ks)
        if system in SYSTEMS:
            which = 2 * len(names)  # the column that tells whether the user is warm; those of the segments follow
            warm = summary.among(which, slice(len(names), which))
            figures += _figures(system, names, summary)
            figures += _figures(system, names, warm, WARM) if warm.counted else []
            gated = slice(segments.column, segments.column + 1)  # of cold users this measure alone is kept
            cold = summary.columns(gated).without(warm.columns(gated))
            figures += _figures(system, [segments.measure], cold, COLD) if cold.counted else []
            figures += segments.figures(system, summary, which + 1)
        else:
            figures += rule_figures(system, names, more, summary)
        if system == SYSTEMS[0]:
            share = warm.counted / max(summary.counted, 1)
            figures.append(Figure(system, "warm_users", None, share, None, None, summary.counted))
        for place, k in enumerate(ks):
            share = float(np.unpackbits(listed[system][place]).sum() / max(n_known, 1))
            figures.append(Figure(system, "coverage_at_k", k, share, None, None, summary.counted))
    return figures


def rule_columns(values: Any, more: Any) -> Any:
    """What users add to the sums of lists by the rules, (n, names + 2 more): `more` with 0 for NaN, and where it is.

    Parameters
    ----------
    values : measures by held-out items (n, names); all NaN for a user without such items, who is left out.
    more : measures of the lists themselves (n, more); NaN where a list or a user has none.
    """
    has = ~np.isnan(more)
    columns = np.column_stack([values, np.where(has, more, 0.0), has])
    columns[np.isnan(values).all(axis=1)] = np.nan
    return columns


def rule_figures(
    system: str, names: Sequence[tuple[str, int]], more: Sequence[tuple[str, int]], summary: Summary
) -> Iterator[Figure]:
    """Figures of a summary of `rule_columns`; each of `more` is over those who have it, and left out if nobody has."""
    yield from _figures(system, names, summary)
    for place, name in enumerate(more, len(names)):
        part = summary.among(place + len(more), slice(place, place + 1))
        if part.counted:
            yield from _figures(system, [name], part)


def _figures(
    system: str, names: Sequence[tuple[str, int | None]], summary: Summary, segment: str | None = None
) -> Iterator[Figure]:
    """Figures of one segment; the summary's first values are the measures `names`."""
    mean, lower, upper = summary.result()
    drawn = summary.replicate_means()
    for column, (metric, k) in enumerate(names):
        bounds = _bounds_or_none(lower[column], upper[column])
        yield Figure(
            system, metric, k, float(mean[column]), *bounds, summary.counted, segment, drawn[:, column].tolist()
        )


def _rating_figures(
    parts: Split, model: Model[Any], data: TrainingData, fitted: Fitted, config: Config
) -> list[Figure]:
    """RMSE and MAE of the predicted ratings; the baseline predicts the training mean.

    A model that predicts a distribution has its coverage, log-likelihood and CRPS too.
    """
    seed, replicates, spark = config.seed, config.evaluation.bootstrap, parts.train.sparkSession
    overall = float(parts.train.agg(F.avg("value")).first()[0])
    pairs = model.in_context(parts.heldout, data, fitted)
    if pairs is None:
        user = fitted.user_factors.select(F.col("idx").alias("user_idx"), "factor", "bias")
        pairs = parts.heldout.join(user, on="user_idx", how="left")
        pairs = pairs.withColumn("known_user", F.col("factor").isNotNull())
    if model.scores_rows:
        pairs = pairs.join(row_lists(parts.train), on="user_idx", how="left")
    shared = share_scorer(spark, model.open, saved_of(model, fitted, data.n_items))
    rows = predicted(pairs, shared, model.width, "user_idx", "value", "known_user", actual="value")

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            users = batch.column("user_idx").to_numpy(zero_copy_only=False).astype(np.int64)
            actual = batch.column("value").to_numpy(zero_copy_only=False)
            guessed = batch.column("predicted").to_numpy(zero_copy_only=False)
            known = batch.column("known_user").to_numpy(zero_copy_only=False).astype(np.float64)
            for system, guess in (("model", guessed), ("popularity", np.full(len(users), overall))):
                errors = rating_errors(actual, guess)
                values = np.column_stack([errors, errors * known[:, None], known])
                packed = summarize(values, users, seed, replicates).pack()
                yield pa.RecordBatch.from_arrays(
                    [pa.array([system]), pa.array([packed.tobytes()], pa.binary())],
                    names=["system", "summary"],
                )
            measured = [batch.column(name) for name in CALIBRATION_MEASURES]
            if batch.num_rows and not measured[0].null_count:
                values = np.column_stack([column.to_numpy(zero_copy_only=False) for column in measured])
                packed = summarize(values, users, seed, replicates).pack()
                yield pa.RecordBatch.from_arrays(
                    [pa.array([CALIBRATED]), pa.array([packed.tobytes()], pa.binary())], names=["system", "summary"]
                )

    summaries: dict[str, list[Any]] = {system: [] for system in (*SYSTEMS, CALIBRATED)}
    for row in side_by_side(rows.mapInArrow(work, "system string, summary binary")):
        columns = len(CALIBRATION_MEASURES) if row["system"] == CALIBRATED else 5
        summaries[row["system"]].append(unpack(np.frombuffer(row["summary"]), columns, replicates))
    figures: list[Figure] = []
    for system in SYSTEMS:
        summary = merge(summaries[system])
        warm = summary.among(-1, slice(2, 4))
        for segment, part in ((None, summary), (WARM, warm), (COLD, summary.without(warm))):
            if segment is not None and not part.counted:
                continue
            drawn = part.replicate_means()
            for name, measure, replicate in (("rmse", rmse, np.sqrt(drawn[:, 0])), ("mae", mae, drawn[:, 1])):
                value, lower, upper = measure(part)
                bounds = _bounds_or_none(lower, upper)
                figures.append(Figure(system, name, None, value, *bounds, part.counted, segment, replicate.tolist()))
    if summaries[CALIBRATED]:
        names: list[tuple[str, int | None]] = [(name, None) for name in CALIBRATION_MEASURES]
        figures += _figures(SYSTEMS[0], names, merge(summaries[CALIBRATED]))
    return figures


def _bounds_or_none(lower: float, upper: float) -> tuple[float | None, float | None]:
    return (None, None) if np.isnan(lower) else (float(lower), float(upper))
