"""Train factorization machines by gradient descent, from packed files or from memory.

    rows ──packed──▶ example_rows, a snapshot ──petastorm, torch──▶ [v, w] of every feature ──▶ `frames.Learned`

Features are numbered as at a worker of a gang: those held by every worker, then users, then items. The objective is
that of ALS; for classification the loss is logistic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.data.arrow import vectors_to_arrow
from sparkcf.data.packed import PackedRows
from sparkcf.data.shared import share
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.lake.frames import one_row
from sparkcf.models.contract_data import FitRun, TrainingData
from sparkcf.models.fm.frames import BATCH, Learned
from sparkcf.models.fm.rows import FMData, FMPlan, part_starts
from sparkcf.models.fm.sweeps import NO_ROWS
from sparkcf.training.blocks import ITEM, KINDS, USER
from sparkcf.training.launch import TrainingSpec, check_launch, class_name, launch

F32 = NDArray[np.float32]
TABLE = "kind string, idx int, factor array<float>"
FACTORY = "sparkcf.models.fm.net:net_of"


def descend(rows: PackedRows, plan: FMPlan, on_progress: Any) -> tuple[float, F32, list[dict[str, Any]]]:
    """Train on rows in this process; returns w_0, the table of all features, float32 (m, k + 1), and the log.

    Parameters
    ----------
    rows : a row's first entry is its target, the others are features numbered by `part_starts`.
    """
    import torch

    from sparkcf.models.fm.net import net_of
    from sparkcf.training.feed import MemoryFeed
    from sparkcf.training.group import Group
    from sparkcf.training.loop import train

    config = plan.config
    targets = rows.values[rows.indptr[:-1]]
    net = net_of(net_data(plan, float(targets.mean()), len(rows)), config, plan.seed)
    feed = MemoryFeed(rows, config.sgd.batch_size, plan.seed)
    log = train(net, feed, config.sgd, plan.seed, Group(0, 1, torch.device("cpu")), on_progress=on_progress)
    state = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    table = state["table"].copy()
    features = np.delete(rows.indices, rows.indptr[:-1])
    table[np.bincount(features, minlength=len(table)) == 0] = 0.0  # features without rows: the prior's mean
    return float(state["w0"][0]), table, log


def examples_of(data: FMData, plan: FMPlan) -> PackedRows:
    """Rows in the form that `descend` reads."""
    ids = [
        column + start
        for side, column, start in zip((USER, ITEM), (data.users, data.items), part_starts(plan), strict=True)
        if any(f.side == side for f in plan.fields)
    ]
    n, counts = len(data.y), np.diff(data.ptr)
    first = np.column_stack([np.zeros(n, np.int32), *ids]).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(counts + first.shape[1])]).astype(np.int64)
    heads = indptr[:-1, None] + np.arange(first.shape[1])
    indices, values = np.empty(indptr[-1], np.int32), np.ones(indptr[-1], np.float32)
    indices[heads], values[indptr[:-1]] = first, data.y
    rest = np.ones(indptr[-1], bool)
    rest[heads] = False
    indices[rest], values[rest] = data.feat, data.val
    return PackedRows(data.users.astype(np.int64), indptr, indices, values)


def by_descent(rows: DataFrame, plan: FMPlan, data: TrainingData, run: FitRun) -> Learned:
    """Train by mini-batches, in one process or several.

    Raises
    ------
    ConfigError
        Spark settings that do not allow processes to train together, or no folder for checkpoints.
    TrainingError
        There is no row, a loss is not finite, or a process died.
    """
    from sparkcf.models.fm.net import net_of
    from sparkcf.training.checkpoint import Checkpoints

    spark, config = rows.sparkSession, plan.config
    if data.packing is None or run.checkpoint_dir is None:
        raise ConfigError("fm.learner=sgd needs a folder that every process can write: set train.progress")
    workers = check_launch(spark, config.sgd.workers, config.sgd.section)
    n, mean = one_row(rows.agg(F.count(F.lit(1)), F.avg("value")))
    if not n:
        raise TrainingError(NO_ROWS)
    examples = _examples(rows, plan)
    snapshot = data.packing.examples(examples, n)
    known = net_data(plan, float(mean), n)
    params = (class_name(config), config.model_dump_json(), plan.seed)
    spec = TrainingSpec("fm", FACTORY, *params, known, "user_idx", snapshot.train, (), run.checkpoint_dir)
    log = launch(spark, spec, workers, run.on_progress)
    checkpoints = Checkpoints(run.checkpoint_dir)
    state = checkpoints.best(net_of(known, config, plan.seed))
    present = examples.select(F.explode(F.slice("features", 2, F.size("features"))).alias("feature")).distinct()
    listed: Any = present.toPandas()
    seen = listed["feature"].to_numpy(np.int64)
    table = np.zeros_like(state["table"])
    table[seen] = state["table"][seen]  # features without rows: the prior's mean
    checkpoints.clear()
    kept = _table_frame(spark, table, plan).persist()
    prior = np.array([plan.penalties()[next((n for n, f in enumerate(plan.fields) if f.side == USER), 0)]])
    precision = np.repeat(prior, [config.rank, 1], axis=1)
    learned = {
        "w0": state["w0"].astype(np.float64),
        "noise_precision": np.ones(1),
        "precision": precision,
        "mean": np.zeros_like(precision),
        "everywhere": table[None, : plan.everywhere],
    }
    return Learned(kept, log, learned)


def net_data(plan: FMPlan, mean: float, n: int) -> dict[str, Any]:
    """Plain values from which a process builds the net: sizes and penalties of the fields, pairs, initial w_0."""
    places = {None: 0, USER: 1, ITEM: 2}
    order = sorted(range(len(plan.fields)), key=lambda number: places[plan.fields[number].side])
    if plan.config.task == "classification":
        share = min(max(mean, 1e-3), 1 - 1e-3)
        mean = float(np.log(share / (1 - share)))
    return {
        "sizes": [plan.fields[number].size for number in order],
        "pairs": plan.pairs[np.ix_(order, order)].tolist(),
        "penalty": (plan.penalties()[order] / n).tolist(),
        "mean": mean,
    }


def _examples(rows: DataFrame, plan: FMPlan) -> DataFrame:
    """user_idx, key, features and values, whose first entries are 0 and the target."""
    ids = []
    for side, start in zip((USER, ITEM), part_starts(plan), strict=True):
        if any(f.side == side for f in plan.fields):
            ids.append((F.col(f"{KINDS[side]}_idx") + start).cast("int"))
    one = F.lit(1.0).cast("float")
    target = F.col("value").cast("float")
    return rows.select(
        "user_idx",
        "key",
        F.concat(F.array(F.lit(0), *ids), "feat").alias("features"),
        F.concat(F.array(target, *(one for _ in ids)), "val").alias("values"),
    )


def _table_frame(spark: Any, table: F32, plan: FMPlan) -> DataFrame:
    """TABLE of all features, in the form of a gang's result."""
    shared = share(spark, table=table)
    users, items = part_starts(plan)

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        (table,) = shared.open()
        for batch in batches:
            whole = batch.column(0).to_numpy(zero_copy_only=False)
            for first in range(0, len(whole), BATCH):
                at = whole[first : first + BATCH]
                part = np.searchsorted([users, items], at, side="right")
                kinds = np.array(["everywhere", *KINDS[:2]], object)[part]
                idx = (at - np.array([0, users, items])[part]).astype(np.int32)
                columns = [pa.array(kinds.tolist()), pa.array(idx), vectors_to_arrow(table[at])]
                yield pa.RecordBatch.from_arrays(columns, names=["kind", "idx", "factor"])

    return spark.range(len(table)).mapInArrow(work, TABLE)
