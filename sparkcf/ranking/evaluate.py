"""Evaluation: fit on the train part of a split, rank for the tested users, measure, beside the popularity baseline.

The measures are the functions of `kernels.metrics`, called on a block of users at a time. What leaves a block is a sum
(with the sums of its bootstrap replicates), so any partitioning gives the same figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from sparkcf.config.root import Config
from sparkcf.data.pairs import user_rows
from sparkcf.data.shared import share_state
from sparkcf.data.split import Split, split
from sparkcf.errors import ConfigError, GateRefused
from sparkcf.kernels.metrics import mae, merge, ranking_measures, rating_errors, rmse, summarize, unpack
from sparkcf.models.contract import ALONE, Context, Fit, Known
from sparkcf.models.fm.frames import entries_of_column
from sparkcf.models.popularity import popularity
from sparkcf.models.registry import MODELS, rank_of
from sparkcf.ranking.topk import ItemSide, csr_of, item_side, rank_users, vectors_of

SYSTEMS = ("model", "popularity")
Figure = tuple[str, str, int | None, float, float | None, float | None, int]  # system, metric, k, value, bounds, users


@dataclass(frozen=True)
class Evaluation:
    """Figures of the model and of the baseline on one split, as rows of the table `metrics`."""

    protocol: str
    note: str
    figures: list[Figure]

    def value(self, metric: str, k: int | None, system: str = "model") -> float:
        return next(f[3] for f in self.figures if f[:3] == (system, metric, k))


def evaluate(events: DataFrame, n_users: int, n_items: int, config: Config, context: Context = ALONE) -> Evaluation:
    """Split, fit, rank and measure.

    Parameters
    ----------
    events : indexed interactions: user_idx, item_idx, event, value, ts. context : of the fit.

    Raises
    ------
    ConfigError
        Protocol q3 and a model that predicts no ratings.
    GateRefused
        The split leaves nothing to train on or nobody to test.
    """
    if config.evaluation.protocol == "q3" and not config.explicit:
        raise ConfigError(
            f"evaluation.protocol=q3 measures predicted ratings, and model={config.model} predicts none: "
            "set model=als and als.mode=explicit, or model=fm, or take another protocol"
        )
    parts = split(events, config)
    _check_split(parts, config)
    fitted = MODELS[config.model].fit(parts.train, n_users, n_items, config, context)
    try:
        if config.evaluation.protocol == "q3":
            figures = _rating_figures(parts, fitted, config)
        else:
            figures = _ranking_figures(parts, fitted, n_items, config)
    finally:
        fitted.release()
    return Evaluation(config.evaluation.protocol, parts.note, figures)


def _check_split(parts: Split, config: Config) -> None:
    for name, frame in (("train", parts.train), ("held-out", parts.heldout)):
        if frame.isEmpty():
            raise GateRefused(
                f"evaluation.protocol={config.evaluation.protocol}: the {name} part is empty ({parts.note}): "
                "change evaluation.holdout_share or the protocol"
            )


def _ranking_figures(parts: Split, fitted: Fit, n_items: int, config: Config) -> list[Figure]:
    rank = rank_of(config)
    by_users = config.popularity.model_copy(update={"by": "users"})
    items = item_side(fitted.item, popularity(parts.train, by_users), n_items, rank, None)
    folded = config.evaluation.protocol == "q1"
    known = user_rows(parts.known).select("user_idx", F.col("row.item_idx").alias("seen"), "row.value", "row.weight")
    heldout = parts.heldout.groupBy("user_idx").agg(F.sort_array(F.collect_list("item_idx")).alias("heldout"))
    factors = fitted.user.select(F.col("idx").alias("user_idx"), "factor")
    users = heldout.join(known, on="user_idx", how="left").join(factors, on="user_idx", how="left")
    if folded and fitted.serving:
        users = users.join(fitted.serving(parts.known), on="user_idx", how="left")
    has_features = "features" in users.columns
    shared, state = items.share(users.sparkSession), share_state(users.sparkSession, fitted.state)
    trained = parts.train.select("user_idx").distinct().count()
    evaluation, model, mean = config.evaluation, MODELS[config.model], fitted.mean
    depth, present = max(evaluation.ks), int(items.eligible.sum())

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        opened = shared.open()
        share = opened.fallback.astype(np.float64) / max(trained, 1)
        with threadpool_limits(1, user_api="blas"):
            for batch in batches:
                if batch.num_rows == 0:
                    continue
                seen, held = csr_of(batch.column("seen")), csr_of(batch.column("heldout"))
                users = batch.column("user_idx").to_numpy(zero_copy_only=False).astype(np.int64)
                factor = batch.column("factor")
                if folded:
                    own = (batch.column(name).flatten() for name in ("value", "weight"))
                    rows = (*seen, *(column.to_numpy(zero_copy_only=False).astype(np.float32) for column in own))
                    features = entries_of_column(batch.column("features")) if has_features else None
                    fit = Known(opened.vectors, opened.bias, present, mean, state=state.open(), features=features)
                    vectors, _ = model.fold_in(rows, fit, config)
                    factor = pa.array(list(vectors), pa.list_(pa.float32()))
                for system in SYSTEMS:
                    column = factor if system == "model" else pa.nulls(len(users), pa.list_(pa.float32()))
                    ranked, _, has_factor = rank_users(column, *seen, opened, depth)
                    values = ranking_measures(ranked, *held, evaluation.ks, share)[1]
                    values = np.column_stack([values, has_factor])
                    packed = summarize(values, users, config.seed, evaluation.bootstrap).pack()
                    listed = np.stack([_listed(ranked[:, :k], len(share)) for k in evaluation.ks])
                    data = [[system], [packed.tobytes()], [listed.tobytes()]]
                    types = (pa.string(), pa.binary(), pa.binary())
                    columns = [pa.array(d, t) for d, t in zip(data, types, strict=True)]
                    yield pa.RecordBatch.from_arrays(columns, names=["system", "summary", "listed"])

    rows = users.mapInArrow(work, "system string, summary binary, listed binary").toLocalIterator()
    return _merged(rows, items, config)


def _listed(ranked: Any, n_items: int) -> Any:
    """Which items stand in any list, as bits: uint8 (n_items / 8,)."""
    mask = np.zeros(n_items, bool)
    mask[ranked[ranked >= 0]] = True
    return np.packbits(mask)


def _merged(rows: Iterable[Any], items: ItemSide, config: Config) -> list[Figure]:
    ks = config.evaluation.ks
    empty = np.empty((0, 1), np.int32)
    names = ranking_measures(empty, np.zeros(1, np.int64), empty[:, 0], ks, np.ones(1))[0]
    parts: dict[str, list[Any]] = {system: [] for system in SYSTEMS}
    listed = {system: np.zeros((len(ks), len(_listed(empty, len(items.bias)))), np.uint8) for system in SYSTEMS}
    for row in rows:
        summary = unpack(np.frombuffer(row["summary"]), len(names) + 1, config.evaluation.bootstrap)
        parts[row["system"]].append(summary)
        listed[row["system"]] |= np.frombuffer(row["listed"], np.uint8).reshape(len(ks), -1)
    figures: list[Figure] = []
    for system in SYSTEMS:
        summary = merge(parts[system])
        mean, lower, upper = summary.result()
        for column, (metric, k) in enumerate(names):
            bounds = _bounds_or_none(lower[column], upper[column])
            figures.append((system, metric, k, float(mean[column]), *bounds, summary.counted))
        figures.append((system, "warm_users", None, float(mean[-1]), None, None, summary.counted))
        for place, k in enumerate(ks):
            share = np.unpackbits(listed[system][place]).sum() / max(int(items.eligible.sum()), 1)
            figures.append((system, "coverage_at_k", k, float(share), None, None, summary.counted))
    return figures


def _rating_figures(parts: Split, fitted: Fit, config: Config) -> list[Figure]:
    """RMSE and MAE of the predicted ratings; the baseline predicts the training mean."""
    rank, seed, replicates = rank_of(config), config.seed, config.evaluation.bootstrap
    overall = float(parts.train.agg(F.avg("value")).first()[0])
    user = fitted.user.select(F.col("idx").alias("user_idx"), F.col("factor").alias("p"), F.col("bias").alias("b"))
    item = fitted.item.select(F.col("idx").alias("item_idx"), F.col("factor").alias("q"), F.col("bias").alias("c"))
    if fitted.in_context:
        whole = fitted.in_context(parts.heldout).withColumnRenamed("factor", "p").withColumn("b", F.lit(0.0))
    else:
        whole = parts.heldout.join(user, on="user_idx", how="left")
    rows = whole.join(item, on="item_idx", how="left").select("user_idx", "value", "p", "b", "q", "c")
    mean, unknown = fitted.mean, fitted.unknown

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            users = batch.column("user_idx").to_numpy(zero_copy_only=False).astype(np.int64)
            actual = batch.column("value").to_numpy(zero_copy_only=False)
            known_user, p = vectors_of(batch.column("p"), rank)
            known_item, q = vectors_of(batch.column("q"), rank)
            if unknown is not None:
                p[~known_user], q[~known_item] = unknown
            bias = [np.nan_to_num(batch.column(n).to_numpy(zero_copy_only=False)) for n in ("b", "c")]
            predicted = mean + bias[0] + bias[1] + np.einsum("nk,nk->n", p, q, dtype=np.float64)
            if unknown is None and not mean:  # without biases a cold row has nothing but the mean to go by
                predicted = np.where(known_user & known_item, predicted, overall)
            for system, guess in (("model", predicted), ("popularity", np.full(len(users), overall))):
                packed = summarize(rating_errors(actual, guess), users, seed, replicates).pack()
                yield pa.RecordBatch.from_arrays(
                    [pa.array([system]), pa.array([packed.tobytes()], pa.binary())],
                    names=["system", "summary"],
                )

    summaries: dict[str, list[Any]] = {system: [] for system in SYSTEMS}
    for row in rows.mapInArrow(work, "system string, summary binary").toLocalIterator():
        summaries[row["system"]].append(unpack(np.frombuffer(row["summary"]), 2, replicates))
    figures: list[Figure] = []
    for system in SYSTEMS:
        summary = merge(summaries[system])
        for name, measure in (("rmse", rmse), ("mae", mae)):
            value, lower, upper = measure(summary)
            figures.append((system, name, None, value, *_bounds_or_none(lower, upper), summary.counted))
    return figures


def _bounds_or_none(lower: float, upper: float) -> tuple[float | None, float | None]:
    return (None, None) if np.isnan(lower) else (float(lower), float(upper))
