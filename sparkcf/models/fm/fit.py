"""Factorization machines on Spark, by a gang or by gradient descent.

    rows ──one shuffle──▶ two copies, by user and by item ──▶ sweeps ──▶ samples: w_0 and every feature's (v, w)

`sparkcf.models.fm.arrays` fits in this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.config.fm import FMConfig
from sparkcf.data.arrow import collect_factors, lengths, vectors_to_arrow
from sparkcf.data.pairs import Reads, Texts, last_items
from sparkcf.data.shared import share
from sparkcf.lake.arrays import Shapes
from sparkcf.models.contract import InnerProduct, Model, check_unweighted
from sparkcf.models.contract_data import (
    F32,
    F64,
    I32,
    Described,
    Features,
    FitRun,
    Fitted,
    Rows,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.explanation import Explanation, Part
from sparkcf.models.fm.explain import entries_of, field_terms
from sparkcf.models.fm.factors import (
    fm_state_shapes,
    fold_in_fm,
    plan_of,
    sample_count,
    sample_width,
    terms,
    unknown_vectors,
    without_biases,
)
from sparkcf.models.fm.features import features_of, fields_of, rows_of
from sparkcf.models.fm.frames import BATCH, Learned, feature_factors, folded_in_context, folded_side
from sparkcf.models.fm.links import answers
from sparkcf.models.fm.rows import FMPlan, FMRows, make_plan
from sparkcf.models.fm.samples import Sample
from sparkcf.models.fm.sgd import by_descent
from sparkcf.models.fm.sweeps import NO_ROWS, train_fm
from sparkcf.training.blocks import ITEM, KINDS, USER, row_ids
from sparkcf.training.gang import Gang, check_slots, worker_threads
from sparkcf.training.gang_stage import gang_result, text_rows, value_rows
from sparkcf.training.launch import check_launch
from sparkcf.training.saved_sweeps import SavedSweeps
from sparkcf.training.shuffle import shuffled

RESULT = "kind string, text string, idx int, factor array<float>"


class FM(Model[FMConfig]):
    """A factorization machine, learned by exact sweeps of a gang or by gradient descent."""

    section = FMConfig
    tables = ("feature_factors",)

    @property
    def reads(self) -> Reads:
        """Values or labels, with their context if fields need it."""
        kind: Literal["values", "labels"] = "values" if self.params.task == "regression" else "labels"
        texts = {f.dictionary: Texts(f.dictionary, f.table, f.column) for f in self.params.fields if f.dictionary}
        return Reads(kind, self.params.contextual, attributes=True, texts=tuple(texts.values()))

    @property
    def width(self) -> int:
        return sample_count(self.params) * sample_width(self.params)

    @property
    def rounds(self) -> int:
        return self.params.sgd.epochs if self.params.learner == "sgd" else self.params.iterations

    def packed_by(self) -> dict[str, Any]:
        return self.params.model_dump(mode="json", include={"fields", "task"})

    def check_settings(self, pairs: DataFrame) -> None:
        check_unweighted(pairs, "model=fm")
        if self.params.learner == "sgd":
            check_launch(pairs.sparkSession, self.params.sgd.workers, self.params.sgd.section)
        else:
            check_slots(pairs.sparkSession, self.params.workers, self.name)

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """Train by the configured learner, and fold the parameters into factors.

        Raises
        ------
        ConfigError
            Too few task slots, dynamic allocation, weights, or a field without data in the tables.
        TrainingError
            There is no row, or a parameter is not finite.
        """
        spark, params = data.pairs.sparkSession, self.params
        check_unweighted(data.pairs, "model=fm")
        if run.warm_start:
            run.on_progress({"note": "train.warm_start is ignored: fm starts from random parameters"})
        features = features_of(data, params)
        plan = self._plan(features, data, worker_threads(spark))
        rows = rows_of(data.pairs, features)
        if params.learner == "sgd":
            learned = by_descent(rows, plan, data, run)
        else:
            learned = by_gang(rows, plan, run)
        w0, everywhere = learned.state["w0"], share(spark, everywhere=learned.state["everywhere"])
        user, item = (
            folded_side(learned.own(name), name, frame, w0, everywhere, plan)
            for name, frame in (("user", features.serving), ("item", features.item))
        )
        sizes = np.array([f.size for f in plan.fields])
        return Fitted(
            user,
            item,
            learned.log,
            arrays=learned.state | {"sizes": sizes, "scales": features.scales},
            tables={"feature_factors": feature_factors(learned, plan)},
            cached=learned.cached,
        )

    def open(self, saved: Saved) -> FMScorer:
        return FMScorer(saved, self.params)

    def shapes(self, data: TrainingData) -> Shapes:
        return fm_state_shapes(fields_of(self.params, data.n_users, data.n_items, data.dictionary), self.params)

    def user_features(self, data: TrainingData, fitted: Fitted) -> DataFrame:
        return features_of(data, self.params, fitted.arrays["scales"]).serving

    def in_context(self, pairs: DataFrame, data: TrainingData, fitted: Fitted) -> DataFrame | None:
        """See `Model.in_context`; if the pairs have no column `previous`, the user's last item is used."""
        if not self.params.contextual:
            return None
        features = features_of(data, self.params, fitted.arrays["scales"])
        ids = next((f.name for f in self.params.fields if f.of == "user"), "")
        table = fitted.tables["feature_factors"].where(F.col("field") == ids)
        own = table.select(F.col("feature_idx").alias("user_idx"), F.col("samples").alias("own"))
        if "previous" not in pairs.columns:
            pairs = pairs.join(last_items(data.pairs), on="user_idx", how="left")
        everywhere = share(pairs.sparkSession, everywhere=fitted.arrays["everywhere"].astype(np.float32))
        plan = self._plan(features, data, threads=1)
        found = folded_in_context(pairs, own, features, fitted.arrays["w0"], everywhere, plan)
        return found.withColumn("bias", F.lit(0.0).cast("float"))

    def _plan(self, features: Any, data: TrainingData, threads: int) -> FMPlan:
        return make_plan(self.params, features.fields, data.n_users, data.n_items, self.seed, threads)


class FMScorer(InnerProduct):
    """Predicts the mean over the samples, and their spread; an unknown user or item contributes 0 to a(x)."""

    def __init__(self, saved: Saved, params: FMConfig) -> None:
        super().__init__(saved)
        self.params, self._state = params, saved.arrays

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        vectors = fold_in_fm(rows[:3], self.item_vectors, self._state, self.params, features)
        return vectors, np.zeros(len(vectors), np.float32)

    def likeness(self) -> F32:
        return without_biases(self.item_vectors, self.params)

    def explain(self, user: UserBlock, item: int) -> Explanation:
        """Linear terms, and each product of fields of the user with fields of the item; see `factors.terms`."""
        found = terms(user.vectors[0], self.item_vectors[item], self.params)
        parts = [Part("fields", name, None, value) for name, value in found]
        score = float(user.vectors[0].astype(np.float64) @ self.item_vectors[item])
        return Explanation.summing(score, parts)

    def explain_described(self, user: UserBlock, item: int, described: Described) -> Explanation:
        """Linear terms and pairs of single fields; as `explain` where fields are of the context."""
        assert user.rows is not None
        found = None
        if not self.params.contextual:
            entries = entries_of(described, user.rows, self.params, self._state["scales"])
            plan = plan_of(self._state, self.params, len(self.item_vectors))
            found = field_terms(user.vectors[0], self.item_vectors[item], entries, self._state, plan)
        if found is None:
            return self.explain(user, item)
        score = float(user.vectors[0].astype(np.float64) @ self.item_vectors[item])
        return Explanation.summing(score, [Part("fields", name, None, value) for name, value in found])

    def predict(self, users: UserBlock, items: I32) -> tuple[F64, F64]:
        unknown_user, unknown_item = unknown_vectors(self._state["w0"], self.params)
        known = self.knows(items)
        left = np.where(users.known[:, None], users.vectors, unknown_user).astype(np.float64)
        right = np.where(known[:, None], self.item_vectors[np.where(known, items, 0)], unknown_item)
        samples = sample_count(self.params)
        products = (left * right).reshape(len(items), samples, sample_width(self.params))
        values = answers(products.sum(axis=2) * samples, self.params)
        return values.mean(axis=1), values.std(axis=1)


def by_gang(rows: DataFrame, plan: FMPlan, run: FitRun) -> Learned:
    """Train by exact sweeps of a gang in one barrier stage."""
    spark, fm = rows.sparkSession, plan.config
    workers = check_slots(spark, fm.workers, fm.section)
    saved = SavedSweeps(run.checkpoint_dir) if run.checkpoint_dir and fm.save_every else None

    def work(batches: Iterable[Any], gang: Gang) -> Iterator[Any]:
        samples, log = train_fm(_received_rows(batches), plan, gang, saved)
        yield from _result(samples, log, plan, gang)

    with gang_result(shuffled(rows, workers), work, RESULT, workers, fm.timeout_s, run.on_progress, NO_ROWS) as (
        cached,
        messages,
    ):
        if saved and (problem := saved.clear()):  # no reason to fail the fit
            run.on_progress({"note": f"saved sweeps cannot be removed from {run.checkpoint_dir}: {problem}"})
        log = sorted((json.loads(text) for kind, text in messages if kind == "log"), key=lambda entry: entry["sweep"])
        parts = [json.loads(text) for kind, text in messages if kind == "state"]
        state = {name: np.array(values) for part in parts for name, values in part.items()}
        samples, width = len(state["w0"]), fm.rank + 1
        common = cached.where(F.col("kind") == "everywhere")
        common = common.select("idx", "factor", F.lit(0.0).cast("float").alias("bias"))
        table = collect_factors(common, plan.everywhere, samples * width)[0].reshape(plan.everywhere, samples, width)
        state["everywhere"] = np.ascontiguousarray(table.transpose(1, 0, 2))
        return Learned(cached, log, state)


def _received_rows(batches: Iterable[Any]) -> list[FMRows]:
    """Arrow batches of `shuffled` as the rows of both copies, by side."""
    import pyarrow as pa

    batches = list(batches)
    if not batches:
        no_ids, none = np.empty(0, np.int32), np.empty(0, np.float32)
        return [FMRows(no_ids, no_ids, none, np.empty(0, np.int64), np.zeros(1, np.int64), no_ids, none)] * 2
    table = pa.Table.from_batches(batches).combine_chunks()
    kind = table.column("kind").to_numpy()
    parts = []
    for side in (USER, ITEM):
        part = table.take(pa.array(np.flatnonzero(kind == side))).combine_chunks()
        own, other, y, key = (part.column(name).to_numpy() for name in ("row", "col", "value", "key"))
        feat, val = (part.column(name).combine_chunks() for name in ("feat", "val"))
        ptr = np.concatenate([[0], np.cumsum(lengths(feat), dtype=np.int64)])
        flat, values = (column.flatten().to_numpy(zero_copy_only=False) for column in (feat, val))
        ids = (own.astype(np.int32), other.astype(np.int32), y.astype(np.float32), key.astype(np.int64))
        parts.append(FMRows(*ids, ptr, flat.astype(np.int32), values.astype(np.float32)))
    return parts


def _result(samples: list[Sample], log: list[dict[str, Any]], plan: FMPlan, gang: Gang) -> Iterator[Any]:
    """A worker's own features, and from the first worker all other parameters and the log, as batches of RESULT."""
    if gang.rank == 0:
        yield text_rows(RESULT, "log", [json.dumps(entry) for entry in log])
        yield text_rows(RESULT, "state", [json.dumps(_state(samples, plan))])
        everywhere = np.stack([sample.everywhere for sample in samples], axis=1)
        yield from _vectors("everywhere", np.arange(len(everywhere)), everywhere)
    for side, name in enumerate(KINDS):
        tables = [table for sample in samples if (table := sample.own[side]) is not None]
        if tables:
            own = np.stack(tables, axis=1)
            yield from _vectors(name, row_ids(plan.sizes[side], gang.rank, gang.size), own)


def _state(samples: list[Sample], plan: FMPlan) -> dict[str, list[Any]]:
    """Parameters of every sample for fold-in: w_0, the noise's precision, the prior of the field of user ids."""
    user = next((number for number, f in enumerate(plan.fields) if f.side == USER), 0)
    hypers = [sample.hypers[user] for sample in samples]
    return {
        "w0": [sample.w0 for sample in samples],
        "noise_precision": [sample.noise_precision for sample in samples],
        "precision": [hyper.precision.tolist() for hyper in hypers],
        "mean": [hyper.mean.tolist() for hyper in hypers],
    }


def _vectors(kind: str, ids: NDArray[Any], vectors: F32) -> Iterator[Any]:
    import pyarrow as pa

    flat = vectors.reshape(len(vectors), int(np.prod(vectors.shape[1:])))
    for first in range(0, len(ids), BATCH):
        part = slice(first, first + BATCH)
        yield value_rows(RESULT, kind, pa.array(ids[part].astype(np.int32)), vectors_to_arrow(flat[part]))
