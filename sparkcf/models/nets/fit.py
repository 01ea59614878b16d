"""Nets over users' rows, on Spark: fitted from packed rows, all users encoded by blocks on the executors.

    user_rows ──petastorm, torch──▶ weights ──shared──▶ user rows encoded ──▶ user factors, item factors

A net whose last layer is linear ends in an inner product: the user's factor is what that layer multiplies, the item's
factor its weights. So top-K, evaluation, gate and queries are those of every other model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.models import MultDAEConfig, MultVAEConfig
from sparkcf.data.arrow import vectors_to_arrow
from sparkcf.data.packed import PackedRows, unpack
from sparkcf.data.pairs import Reads
from sparkcf.data.shared import share, share_state
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.lake.arrays import Arrays, Shapes
from sparkcf.lake.frames import one_row
from sparkcf.models.contract import F32, Features, FitRun, Fitted, InnerProduct, Model, Rows, Saved, TrainingData
from sparkcf.training.launch import TrainingSpec, check_launch, class_name, launch

FACTORS = "idx int, factor array<float>, bias float, latent array<float>"
BLOCK = 2_000  # rows that are encoded at once
FACTORY = "sparkcf.models.nets.registry:net_of"
BOUNDS = {"multinomial": (0.0, math.inf), "gaussian": (-math.inf, math.inf), "logistic": (0.0, 1.0)}  # of values
NetParams = TypeVar("NetParams", MultVAEConfig, MultDAEConfig)


class NetModel(Model[NetParams]):
    """An autoencoder of users' rows, trained by gradient in processes of its own."""

    @property
    def reads(self) -> Reads:
        return Reads("positives")

    @property
    def width(self) -> int:
        return self.params.decoder[-1] if self.params.decoder else self.params.latent_dim

    @property
    def rounds(self) -> int:
        return self.params.epochs

    @property
    def validation_share(self) -> float:  # type: ignore[override]
        return self.params.validation_share

    def packed_by(self) -> dict[str, Any]:
        return {"validation_share": self.validation_share}

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """Pack the pairs, train the net on them, then encode every user.

        Raises
        ------
        ConfigError
            Settings of Spark that do not go together with processes that need each other, or no folder for progress.
        TrainingError
            A loss is not finite, or a process died.
        """
        from sparkcf.training.checkpoint import Checkpoints

        if data.packing is None or run.checkpoint_dir is None:
            raise ConfigError(f"model={self.name} needs a folder that every process can write: set train.progress")
        if run.warm_start:
            run.on_progress({"note": f"{self.name} starts from its seed"})
        spark = data.pairs.sparkSession
        workers = check_launch(spark, self.params.workers, self.name)
        self._check_values(data.pairs)
        snapshot = data.packing.rows(data.pairs, "user", self.validation_share)
        spec = TrainingSpec(
            self.name,
            FACTORY,
            class_name(self.params),
            self.params.model_dump_json(),
            self.seed,
            {"n_items": data.n_items},
            "user_idx",
            snapshot.train,
            snapshot.validation,
            run.checkpoint_dir,
        )
        log = launch(spark, spec, workers, run.on_progress)
        checkpoints = Checkpoints(run.checkpoint_dir)
        trained = checkpoints.best(self._net(data.n_items, trains=True))
        state = {name: trained[name] for name in self.shapes(data)}
        present = data.pairs.select(F.col("item_idx").alias("idx")).distinct()
        items = _item_factors(spark, state).join(present, on="idx", how="left_semi")
        users = self._encoded(data.packing.read(snapshot), state)
        cached = users.persist(StorageLevel.MEMORY_AND_DISK)  # released with the fit
        cached.count()  # encodes; from here on nothing is read from the snapshot or the checkpoints
        checkpoints.clear()
        return Fitted(cached, items, log, arrays=state, cached=cached)

    def _check_values(self, pairs: DataFrame) -> None:
        """Raise TrainingError for values that the likelihood excludes."""
        likelihood, value = self.params.likelihood, F.col("value")
        least, most = BOUNDS[likelihood]
        outside = F.isnan(value) | (value < least) | (value > most) | (F.abs(value) == float("inf"))
        wrong, whole = one_row(pairs.agg(F.count(F.when(outside, 1)), F.count(F.lit(1))))
        if wrong:
            raise TrainingError(
                f"{wrong:,} of {whole:,} pairs have a value that {self.name}.likelihood={likelihood} excludes (it "
                f"takes {least:g} to {most:g}): set preference.weight=one, or {self.name}.likelihood=gaussian"
            )

    def open(self, saved: Saved) -> NetScorer:
        return NetScorer(saved, self)

    def shapes(self, data: TrainingData) -> Shapes:
        from sparkcf.training.checkpoint import shapes_of

        return shapes_of(self._net(data.n_items))

    def encoder(self, state: Arrays) -> Encoder:
        return Encoder(self._net(len(state["output.bias"])), state)

    def _net(self, n_items: int, trains: bool = False) -> Any:
        from sparkcf.models.nets.registry import build_net

        return build_net(n_items, self.params, self.seed, trains)

    def _encoded(self, rows: DataFrame, state: Arrays) -> DataFrame:
        """FACTORS of packed rows, a block at a time, on the executor's GPU where it has one."""
        shared = share_state(rows.sparkSession, state)

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            import pyarrow as pa

            encoder = self.encoder(shared.open())
            for batch in batches:
                for first in range(0, batch.num_rows, BLOCK):
                    part = batch.slice(first, BLOCK)
                    ids = part.column(0).to_numpy(zero_copy_only=False)
                    factor, latent = encoder(unpack(ids, part.column(1).to_pylist(), part.column(2).to_pylist()))
                    biases = pa.array(np.zeros(len(ids), np.float32))
                    columns = [part.column(0), vectors_to_arrow(factor), biases, vectors_to_arrow(latent)]
                    yield pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias", "latent"])

        return rows.select("user_idx", "items", "values").mapInArrow(work, FACTORS)


class MultVAEModel(NetModel[MultVAEConfig]):
    """Mult-VAE."""

    section = MultVAEConfig


class MultDAEModel(NetModel[MultDAEConfig]):
    """Mult-DAE."""

    section = MultDAEConfig


class Encoder:
    """A net with given weights, on this process's device, to encode rows."""

    def __init__(self, net: Any, state: Arrays) -> None:
        from sparkcf.training.checkpoint import load_into
        from sparkcf.training.group import device_of

        self._device, self._net = device_of(0), net
        load_into(net, state)
        net.to(self._device).eval()

    def __call__(self, rows: PackedRows) -> tuple[F32, F32]:
        """Factors float32 (n, width) and latent means float32 (n, latent_dim)."""
        import torch

        from sparkcf.training.loop import to_tensors

        with torch.inference_mode():
            factor, latent = self._net.factors(to_tensors(rows, self._device))
        return factor.float().cpu().numpy(), latent.float().cpu().numpy()


class NetScorer(InnerProduct):
    """Vectors of new users by the net's encoder."""

    def __init__(self, saved: Saved, model: NetModel[Any]) -> None:
        super().__init__(saved)
        self._state, self._model = saved.arrays, model

    @cached_property
    def _encoder(self) -> Encoder:
        return self._model.encoder(self._state)

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        indptr, indices, values, _ = rows
        factors, _ = self._encoder(PackedRows(np.arange(len(indptr) - 1), indptr, indices, values))
        return factors, np.zeros(len(factors), np.float32)


def _item_factors(spark: SparkSession, state: Arrays) -> DataFrame:
    """idx, factor, bias of every item: the output layer's weights, a row an item."""
    shared = share(spark, weights=state["output.weight"], bias=state["output.bias"])

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        weights, bias = shared.open()
        for batch in batches:
            idx = batch.column(0).to_numpy(zero_copy_only=False)
            columns = [pa.array(idx.astype(np.int32)), vectors_to_arrow(weights[idx]), pa.array(bias[idx])]
            yield pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias"])

    return spark.range(len(state["output.bias"])).mapInArrow(work, "idx int, factor array<float>, bias float")
