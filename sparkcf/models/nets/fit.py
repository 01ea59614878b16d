"""Nets on Spark: fit from packed rows, factors of all users by blocks on the executors, fold-in.

    user_rows ──petastorm, torch──▶ weights ──shared──▶ user rows encoded ──▶ user factors, item factors

A net whose last layer is linear ends in an inner product: the user's factor is what that layer multiplies, the item's
factor its weights. So top-K, evaluation, gate and queries are those of every other model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.models import MultDAEConfig, MultVAEConfig
from sparkcf.config.root import Config
from sparkcf.data.packed import PackedRows, unpack
from sparkcf.data.shared import share, share_state
from sparkcf.errors import ConfigError
from sparkcf.jobs.prepare import rows_of, write_rows
from sparkcf.models.contract import Arrays, Context, Fit, Known
from sparkcf.training.launch import Job, check_launch, launch

F32 = NDArray[np.float32]
FACTORS = "idx int, factor array<float>, bias float, latent array<float>"
BLOCK = 2_000  # rows that are encoded at once


def fit_net(pairs: DataFrame, _n_users: int, n_items: int, config: Config, context: Context) -> Fit:
    """Pack the pairs into the context's snapshot, train the net of `config.model` on it, then encode every user.

    Parameters
    ----------
    pairs : user_idx, item_idx, value. context : tables, snapshot and saved must be given.

    Raises
    ------
    ConfigError
        Settings of Spark that do not go together with processes that need each other, or no folder for progress.
    TrainingError
        A loss is not finite, or a process died.
    """
    from sparkcf.models.nets.registry import build_net
    from sparkcf.training.checkpoint import Checkpoints

    tables, net = context.tables, configured(config)
    if tables is None or context.snapshot is None or context.saved is None:
        raise ConfigError(f"model={config.model} needs a folder that every process can write: set train.progress")
    spark = pairs.sparkSession
    workers = check_launch(spark, net.workers, net.section)
    snapshot = write_rows(tables, pairs, "user", context.snapshot, config)
    files = (tuple(snapshot.train), tuple(snapshot.validation))
    job = Job(config.model, net.model_dump_json(), config.seed, {"n_items": n_items}, "user_idx", *files, context.saved)
    log = launch(spark, job, workers, context.heard)
    checkpoints = Checkpoints(context.saved)
    state = checkpoints.best(build_net(n_items, net, config.seed))
    present = pairs.select(F.col("item_idx").alias("idx")).distinct()
    items = item_factors(spark, state).join(present, on="idx", how="left_semi")
    users = encode_users(rows_of(tables, "user", context.snapshot, snapshot.version), state, config)
    kept = users.persist(StorageLevel.MEMORY_AND_DISK)
    kept.count()  # encodes; from here on nothing is read from the snapshot or the checkpoints
    checkpoints.clear()
    return Fit(kept, items, log, kept, state=state)


def configured(config: Config) -> MultVAEConfig | MultDAEConfig:
    if config.net is None:
        raise ConfigError(f"model={config.model} is not trained by gradient")
    return config.net


def state_shapes(n_items: int, config: Config) -> dict[str, tuple[int, ...]]:
    """The weights that a fit over so many items has."""
    from sparkcf.models.nets.registry import build_net
    from sparkcf.training.checkpoint import shapes_of

    return dict(shapes_of(build_net(n_items, configured(config), config.seed)))


def encode_users(rows: DataFrame, state: Arrays, config: Config) -> DataFrame:
    """FACTORS of packed rows, a block at a time, on the executor's GPU where it has one."""
    shared = share_state(rows.sparkSession, state)

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        encoder = Encoder(shared.open(), config)
        for batch in batches:
            for first in range(0, batch.num_rows, BLOCK):
                part = batch.slice(first, BLOCK)
                ids = part.column(0).to_numpy(zero_copy_only=False)
                packed = unpack(ids, part.column(1).to_pylist(), part.column(2).to_pylist())
                factor, latent = encoder(packed)
                lists = [pa.FixedSizeListArray.from_arrays(pa.array(a.ravel()), a.shape[1]) for a in (factor, latent)]
                lists = [a.cast(pa.list_(pa.float32())) for a in lists]
                columns = [part.column(0), lists[0], pa.array(np.zeros(len(ids), np.float32)), lists[1]]
                yield pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias", "latent"])

    return rows.select("user_idx", "items", "values").mapInArrow(work, FACTORS)


class Encoder:
    """A net rebuilt from its weights, on this process's device, to encode rows."""

    def __init__(self, state: Arrays, config: Config) -> None:
        from sparkcf.models.nets.registry import build_net
        from sparkcf.training.checkpoint import load_into
        from sparkcf.training.group import device_of

        self._device = device_of(0)
        self._net: Any = build_net(len(state["output.bias"]), configured(config), config.seed)
        load_into(self._net, state)
        self._net.to(self._device).eval()

    def __call__(self, rows: PackedRows) -> tuple[F32, F32]:
        """Factors float32 (n, width) and latent means float32 (n, latent_dim)."""
        import torch

        from sparkcf.training.loop import to_tensors

        with torch.inference_mode():
            factor, latent = self._net.factors(to_tensors(rows, self._device))
        return factor.float().cpu().numpy(), latent.float().cpu().numpy()


def item_factors(spark: SparkSession, state: Arrays) -> DataFrame:
    """idx, factor, bias of every item: the output layer's weights, a row an item."""
    weights, bias = state["output.weight"], state["output.bias"]
    shared = share(spark, weights=weights, bias=bias)

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        weights, bias = shared.open()
        for batch in batches:
            idx = batch.column(0).to_numpy(zero_copy_only=False)
            factors = pa.FixedSizeListArray.from_arrays(pa.array(weights[idx].ravel()), weights.shape[1])
            columns = [pa.array(idx.astype(np.int32)), factors.cast(pa.list_(pa.float32())), pa.array(bias[idx])]
            yield pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias"])

    return spark.range(len(bias)).mapInArrow(work, "idx int, factor array<float>, bias float")


def fold_in_net(rows: tuple[Any, ...], known: Known, config: Config) -> tuple[F32, F32]:
    """Factors (n, width) of rows not in training, and zeros for their biases (n,)."""
    indptr, indices, values, _ = rows
    packed = PackedRows(np.arange(len(indptr) - 1), indptr, indices, values)
    factors, _ = Encoder(known.state, config)(packed)
    return factors, np.zeros(len(factors), np.float32)
