"""Factorization machines by a gang on Spark.

    rows ──one shuffle──▶ two copies, by user and by item ──▶ sweeps ──▶ samples: w_0 and every feature's (v, w)

`sparkcf.models.fm.arrays` is the same in this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.shared import share
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.models.als.fit import vectors_to_arrow
from sparkcf.models.contract import Context, Fit
from sparkcf.models.fm.factors import unknown_vectors
from sparkcf.models.fm.features import features_of, rows_of
from sparkcf.models.fm.frames import BATCH, Learned, feature_factors, folded_in_context, folded_side, lengths
from sparkcf.models.fm.rows import FMPlan, FMRows, make_plan
from sparkcf.models.fm.sgd import by_descent
from sparkcf.models.fm.sweeps import NO_ROWS, Sample, train_fm
from sparkcf.ranking.topk import collect_factors
from sparkcf.training.blocks import ITEM, KINDS, USER, row_ids
from sparkcf.training.gang import Gang, check_slots, joined, listening, worker_threads
from sparkcf.training.shuffle import shuffled

RESULT = "kind string, idx int, factor array<float>, log string"
COLUMNS = ("kind", "idx", "factor", "log")
ROW_TYPES = (np.int32, np.int32, np.float32, np.int64)
LISTS = (np.int32, np.float32)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


def fit_fm(pairs: DataFrame, n_users: int, n_items: int, config: Config, context: Context) -> Fit:
    """Fit on Spark by the configured learner, and fold what it learned into factors.

    Parameters
    ----------
    pairs : user_idx, item_idx, value (classification: 1 or 0) and, for fields of the moment, see
        `preferences.in_their_moments`. context : see `features.features_of`.

    Raises
    ------
    ConfigError
        Too few task slots, dynamic allocation, weights, or a field that the tables have nothing for.
    TrainingError
        There is no row, or a parameter is not finite.
    """
    spark, fm = pairs.sparkSession, config.fm
    if "weight" in pairs.columns:
        raise ConfigError("preference.weight=event: model=fm takes every row with weight 1; set it to one")
    features = features_of(pairs, n_users, n_items, config, context)
    plan = make_plan(fm, features.fields, n_users, n_items, config.seed, worker_threads(spark))
    rows = rows_of(pairs, features)
    learned = by_descent(rows, plan, context) if fm.learner == "sgd" else by_gang(rows, plan, context)
    sizes = np.array([f.size for f in plan.fields])
    w0, everywhere = learned.state["w0"], share(spark, everywhere=learned.state["everywhere"])
    user, item = (
        folded_side(learned.own(name), name, frame, w0, everywhere, plan)
        for name, frame in (("user", features.serving), ("item", features.item))
    )
    state = learned.state | {"sizes": sizes, "scales": features.scales}

    def in_context(pairs: DataFrame) -> DataFrame:
        return folded_in_context(pairs, learned.own("user"), features, w0, everywhere, plan)

    table = feature_factors(learned, plan)
    return Fit(
        user,
        item,
        learned.log,
        learned.kept,
        state=state,
        features=table,
        unknown=unknown_vectors(w0, fm),
        in_context=in_context if fm.contextual else None,
        serving=lambda known: features_of(known, n_users, n_items, config, context, features.scales).serving,
    )


def by_gang(rows: DataFrame, plan: FMPlan, context: Context) -> Learned:
    """Exact sweeps by a gang of workers in one barrier stage."""
    spark, fm = rows.sparkSession, plan.config
    workers = check_slots(spark, fm.workers, fm.section)
    with listening(spark, context.heard) as report_to:

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            with joined(workers, fm.timeout_s, report_to) as gang:
                try:
                    samples, log = train_fm(_received_rows(batches), plan, gang)
                except TrainingError as error:  # raised by all workers at once; a retry would end the same way
                    if gang.rank == 0:
                        yield _lines("error", [str(error)])
                else:
                    yield from _result(samples, log, plan, gang)

        trained = shuffled(rows, workers).mapInArrow(work, RESULT, barrier=True)
        # With a shuffle behind it Spark starts a failed barrier stage again; without, it gives the job up.
        kept = trained.repartition(workers, "idx").persist(StorageLevel.MEMORY_AND_DISK)
        try:
            told = kept.where("log IS NOT NULL").select("kind", "log").collect()
            told = told or [{"kind": "error", "log": NO_ROWS}]
            for row in told:
                if row["kind"] == "error":
                    raise TrainingError(row["log"])
        except BaseException:
            kept.unpersist()
            raise
    log = sorted((json.loads(r["log"]) for r in told if r["kind"] == "log"), key=lambda entry: entry["sweep"])
    state = {
        name: np.array(values) for r in told if r["kind"] == "state" for name, values in json.loads(r["log"]).items()
    }
    samples, width = len(state["w0"]), fm.rank + 1
    common = kept.where(F.col("kind") == "everywhere").select("idx", "factor", F.lit(0.0).cast("float").alias("bias"))
    table = collect_factors(common, plan.everywhere, samples * width)[0].reshape(plan.everywhere, samples, width)
    state["everywhere"] = np.ascontiguousarray(table.transpose(1, 0, 2))
    return Learned(kept, log, state)


def _received_rows(batches: Iterable[Any]) -> list[FMRows]:
    """Arrow batches of `shuffled` as the rows of both copies."""
    import pyarrow as pa

    batches = list(batches)
    if not batches:
        plain, lists = ([np.empty(0, t) for t in types] for types in (ROW_TYPES, LISTS))
        return [FMRows(*plain, np.zeros(1, np.int64), *lists)] * 2
    table = pa.Table.from_batches(batches).combine_chunks()
    kind = table.column("kind").to_numpy()
    parts = []
    for side in (USER, ITEM):
        part = table.take(pa.array(np.flatnonzero(kind == side))).combine_chunks()
        plain = [
            part.column(c).to_numpy().astype(t) for c, t in zip(("row", "col", "value", "key"), ROW_TYPES, strict=True)
        ]
        feat, val = (part.column(c).combine_chunks() for c in ("feat", "val"))
        ptr = np.concatenate([[0], np.cumsum(lengths(feat), dtype=np.int64)])
        lists = (c.flatten().to_numpy(zero_copy_only=False).astype(t) for c, t in zip((feat, val), LISTS, strict=True))
        parts.append(FMRows(*plain, ptr, *lists))
    return parts


def _result(samples: list[Sample], log: list[dict[str, Any]], plan: FMPlan, gang: Gang) -> Iterator[Any]:
    """A worker's own features, and from the first worker everything else, as Arrow batches of RESULT."""
    if gang.rank == 0:
        yield _lines("log", [json.dumps(entry) for entry in log])
        yield _lines("state", [json.dumps(_state(samples, plan))])
        everywhere = np.stack([sample.everywhere for sample in samples], axis=1)
        yield from _vectors("everywhere", np.arange(len(everywhere)), everywhere)
    for side, name in enumerate(KINDS):
        if samples[0].own[side] is not None:
            own = np.stack([sample.own[side] for sample in samples], axis=1)
            yield from _vectors(name, row_ids(plan.sizes[side], gang.rank, gang.size), own)


def _state(samples: list[Sample], plan: FMPlan) -> dict[str, list[Any]]:
    """What folding in needs of every sample: w_0, the noise's precision, the prior of the users' field."""
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
        n = len(ids[part])
        columns = [pa.array([kind] * n), pa.array(ids[part].astype(np.int32)), vectors_to_arrow(flat[part])]
        yield pa.RecordBatch.from_arrays([*columns, pa.nulls(n, pa.string())], names=COLUMNS)


def _lines(kind: str, lines: list[str]) -> Any:
    import pyarrow as pa

    n = len(lines)
    nothing = (pa.nulls(n, pa.int32()), pa.nulls(n, pa.list_(pa.float32())))
    return pa.RecordBatch.from_arrays([pa.array([kind] * n), *nothing, pa.array(lines)], names=COLUMNS)
