"""Nets over users' rows on Spark: fitted from packed rows; the executors then encode all users in blocks.

    user_rows ──petastorm, torch──▶ weights ──shared──▶ user rows encoded ──▶ user factors, item factors

A net whose last layer is linear ends in an inner product: the user's factor is the layer's input, the item's factor its
weights. So top-K, evaluation, gate and queries work as for every other model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.nets import MultDAEConfig, MultVAEConfig, NetConfig
from sparkcf.data.arrow import vectors_to_arrow
from sparkcf.data.packed import PackedRows, unpack
from sparkcf.data.pairs import Reads
from sparkcf.data.shared import share, share_state
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.lake.arrays import Arrays, Shapes
from sparkcf.lake.frames import one_row
from sparkcf.models.contract import InnerProduct, Model, Scorer
from sparkcf.models.contract_data import (
    F32,
    Features,
    FitFigure,
    FitRun,
    Fitted,
    LocalData,
    LocalFit,
    LocalRun,
    Rows,
    Saved,
    TrainingData,
)
from sparkcf.spark import DataFrame, F, StorageLevel
from sparkcf.training.launch import TrainingSpec, check_launch, class_name, launch

if TYPE_CHECKING:
    from sparkcf.data.packing import Snapshot

FACTORS = "idx int, factor array<float>, bias float"
BLOCK = 2_000  # rows encoded at once
FACTORY = "sparkcf.models.nets.registry:net_of"
BOUNDS = {"multinomial": (0.0, math.inf), "gaussian": (-math.inf, math.inf), "logistic": (0.0, 1.0)}  # of values
NetParams = TypeVar("NetParams", bound=NetConfig)
Sizes = dict[str, int]  # n_users, n_items
Retrained = Callable[[int], Arrays]  # weights of the same training with another seed


class NetModel(Model[NetParams]):
    """A net over users' rows, trained by gradient in separate processes."""

    packs_rows = True
    fits_locally = True
    has_latent: bool = True  # the latent vector differs from a user's factor and is stored beside it
    local_two_sided: bool = False  # in this process it trains on items' rows too

    @property
    def reads(self) -> Reads:
        return Reads("positives")

    @property
    def rounds(self) -> int:
        return self.params.epochs

    @property
    def validation_share(self) -> float:  # type: ignore[override]
        return self.params.validation_share

    def packed_by(self) -> dict[str, Any]:
        return {"validation_share": self.validation_share}

    def check_settings(self, pairs: DataFrame) -> None:
        check_launch(pairs.sparkSession, self.params.workers, self.name)

    def pack(self, data: TrainingData) -> dict[str, Snapshot]:
        assert data.packing is not None
        user_rows = data.packing.rows(data.pairs, "user", self.validation_share)
        item_rows = self.item_rows(data)
        return {"user": user_rows} | ({"item": item_rows} if item_rows else {})

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """Pack the pairs, train the net on them and encode every user.

        Raises
        ------
        ConfigError
            Settings of Spark under which the processes cannot run together, or no folder for checkpoints.
        TrainingError
            A loss is not finite, or a process died.
        """
        if data.packing is None or run.checkpoint_dir is None:
            raise ConfigError(f"model={self.name} needs a folder that every process can write: set train.progress")
        if run.warm_start:
            run.on_progress({"note": f"{self.name} starts from its seed, not from an earlier run"})
        workers = check_launch(data.pairs.sparkSession, self.params.workers, self.name)
        self.check(data)
        packed = self.pack(data)
        user_rows, item_rows = packed["user"], packed.get("item")
        spec = TrainingSpec(
            self.name,
            FACTORY,
            class_name(self.params),
            self.params.model_dump_json(),
            self.seed,
            self.net_data(data, run.checkpoint_dir),
            "user_idx",
            user_rows.train,
            user_rows.validation,
            run.checkpoint_dir,
            item_train=item_rows.train if item_rows else (),
        )
        log, state = self._trained(spec, workers, data, run)
        if warning := collapse_warning(log, self.collapse_cure):
            run.on_progress({"note": warning})

        def retrained(seed: int) -> Arrays:
            again = replace(spec, seed=seed, checkpoint_dir=f"{run.checkpoint_dir}-seed{seed}")
            return self._trained(again, workers, data, run)[1]

        figures = self.figures(data, state, retrained)
        users = self.user_factors(data, data.packing.read(user_rows), state)
        cached = users.persist(StorageLevel.MEMORY_AND_DISK)  # unpersisted by `Fitted.release`
        cached.count()  # encodes; the snapshot and the checkpoints are not read after this
        items = self.item_factors(data, state, item_rows)
        tables = self.stored_tables(data, state)
        stored = {name: state[name] for name in self.shapes(data)}
        return Fitted(cached, items, log, arrays=stored, tables=tables, cached=cached, figures=figures)

    def _trained(
        self, spec: TrainingSpec, workers: int, data: TrainingData, run: FitRun
    ) -> tuple[list[dict[str, Any]], Arrays]:
        """The log of a training, and what it learned."""
        from sparkcf.training.checkpoint import Checkpoints

        log = launch(data.pairs.sparkSession, spec, workers, run.on_progress)
        checkpoints = Checkpoints(spec.checkpoint_dir)
        net = self.net_to_train(spec.data)
        learned = self.learned(net, checkpoints.best(net), data)
        checkpoints.clear()
        return log, learned

    def learned(self, net: Any, trained: Arrays, data: TrainingData | LocalData) -> Arrays:
        """The weights to store, and further arrays that factors are made of.

        Parameters
        ----------
        net : the net as it was trained, with its initial weights.
        trained : its trained weights.
        """
        return {name: trained[name] for name in self.shapes(data)}

    def collapse_cure(self, side: str) -> str:
        """What to set where most latent dimensions of a side, "user" or "item", are inactive."""
        return f"lower {self.name}.anneal_cap or {self.name}.latent_dim, or raise {self.name}.anneal_steps"

    def check(self, data: TrainingData) -> None:
        """Raise TrainingError, before packing, for values that the likelihood excludes."""

    def item_rows(self, data: TrainingData) -> Snapshot | None:
        """Packed rows of items, for a net that trains on them too."""
        return None

    def net_data(self, data: TrainingData, folder: str) -> dict[str, Any]:
        """Plain values from which every process builds the net. `folder`: for files with larger data."""
        return {"n_items": data.n_items, "n_users": data.n_users}

    def net_to_train(self, known: dict[str, Any]) -> Any:
        """The net as the processes build it from `net_data`."""
        from sparkcf.models.nets.registry import net_of

        return net_of(known, self.params, self.seed)  # type: ignore[arg-type]

    def net_to_serve(self, sizes: Sizes) -> Any:
        """The net without the parts that only training needs; its state is what is stored."""
        from sparkcf.models.nets.registry import build_net

        return build_net(sizes, self.params, self.seed, trains=False)  # type: ignore[arg-type]

    def sizes_of(self, state: Arrays) -> Sizes:
        """The sizes of a stored net."""
        raise NotImplementedError

    def user_factors(self, data: TrainingData, rows: DataFrame, state: Arrays) -> DataFrame:
        """idx, factor, bias (and latent) of every user of the packed rows."""
        return self.encoded(rows, state)

    def item_factors(self, data: TrainingData, state: Arrays, item_rows: Snapshot | None) -> DataFrame:
        """idx, factor, bias of every item of the pairs."""
        return item_vectors(data.pairs, *self.item_arrays(state))

    def item_arrays(self, state: Arrays) -> tuple[F32, F32]:
        """Vectors (n_items, item_width) and biases (n_items,) of all items."""
        raise NotImplementedError

    def fit_local(self, data: LocalData, run: LocalRun) -> LocalFit:
        from sparkcf.models.nets.local import fit_net

        return fit_net(self, data, run.on_progress)

    def local_check(self, data: LocalData) -> None:
        """Raise ConfigError or TrainingError for settings or values with which a fit in this process would fail."""

    def local_net_data(self, data: LocalData, rows: PackedRows, folder: str) -> dict[str, Any]:
        """As `net_data`. `rows` : the users' rows to train on. `folder` is read until the net is built."""
        return {"n_items": data.n_items, "n_users": data.n_users}

    def local_items(self, state: Arrays, rows: PackedRows | None) -> tuple[F32, F32]:
        """As `item_arrays`. `rows` : the items' rows, for a model that trains on these too."""
        return self.item_arrays(state)

    def local_users(self, state: Arrays, rows: PackedRows, held: NDArray[np.bool_]) -> F32:
        """Vectors (n, width) of users' rows. `held` : bool (n,), rows that were kept for validation."""
        from sparkcf.models.nets.local import encoded

        return encoded(self.encoder(state), rows, self.width)

    def figures(self, data: TrainingData, state: Arrays, retrained: Retrained) -> list[FitFigure]:
        """Figures of the fit as a whole."""
        return []

    def stored_tables(self, data: TrainingData, state: Arrays) -> dict[str, DataFrame]:
        """The frames of `tables`."""
        return {}

    def shapes(self, data: TrainingData | LocalData) -> Shapes:
        from sparkcf.training.checkpoint import shapes_of

        return shapes_of(self.net_to_serve({"n_items": data.n_items, "n_users": data.n_users}))

    def open(self, saved: Saved) -> Scorer:
        return NetScorer(saved, self)

    def encoder(self, state: Arrays, side: str = "user") -> Encoder:
        return Encoder(self.net_to_serve(self.sizes_of(state)), state, side)

    def exported_encoder(self, state: Arrays, item_vectors: F32, known_items: NDArray[np.bool_]) -> Any:
        """The users' encoder, with the items that a scorer has, as an `ExportedEncoder`."""
        from sparkcf.models.nets.exported import KnownItems, exported
        from sparkcf.training.checkpoint import load_into

        net = self.net_to_serve(self.sizes_of(state))
        load_into(net, state)
        return exported(net, KnownItems(item_vectors, known_items))

    def encoded(self, rows: DataFrame, state: Arrays, side: str = "user") -> DataFrame:
        """FACTORS (and latent) of packed rows, encoded in blocks, on the executor's GPU if it has one."""
        shared, has_latent = share_state(rows.sparkSession, state), self.has_latent

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            import pyarrow as pa

            encoder = self.encoder(shared.open(), side)
            for batch in batches:
                for first in range(0, batch.num_rows, BLOCK):
                    part = batch.slice(first, BLOCK)
                    ids = part.column(0).to_numpy(zero_copy_only=False)
                    vectors = encoder(unpack(ids, part.column(1).to_pylist(), part.column(2).to_pylist()))
                    columns = [part.column(0), vectors_to_arrow(vectors[0]), pa.array(np.zeros(len(ids), np.float32))]
                    names = ["idx", "factor", "bias"]
                    if has_latent:
                        columns, names = [*columns, vectors_to_arrow(vectors[1])], [*names, "latent"]
                    yield pa.RecordBatch.from_arrays(columns, names=names)

        packed = rows.select(f"{side}_idx", "items", "values")
        return packed.mapInArrow(work, f"{FACTORS}, latent array<float>" if has_latent else FACTORS)


def collapse_warning(log: list[dict[str, Any]], cure: Callable[[str], str]) -> str | None:
    """A warning if fewer than half of a side's latent dimensions are active, else None.

    `cure` : see `NetModel.collapse_cure`.
    """
    if not log:
        return None
    best = max(log, key=lambda entry: (entry.get("ndcg_at_100", 0.0), entry["epoch"]))
    for side in ("", "item_"):
        active, size = best.get(f"{side}active_units"), len(best.get(f"{side}kl_by_dimension", ()))
        if active is not None and active < size / 2:
            whose = side[:-1] or "user"
            return f"{active} of {size} latent dimensions of {whose}s are active (posterior collapse): {cure(whose)}"
    return None


class LinearDecoderModel(NetModel[NetParams]):
    """A net whose last layer is linear over the items, `output`."""

    @property
    def width(self) -> int:
        return self.params.decoder[-1] if self.params.decoder else self.params.latent_dim

    def check(self, data: TrainingData) -> None:
        likelihood = self.params.likelihood  # type: ignore[attr-defined]
        least, most = BOUNDS[likelihood]
        value = F.col("value")
        outside = F.isnan(value) | (value < least) | (value > most) | (F.abs(value) == float("inf"))
        range_text = f"it takes {least:g} to {most:g}"
        setting = f"{self.name}.likelihood={likelihood}"
        check_values(data.pairs, outside, setting, range_text, f"{self.name}.likelihood=gaussian")

    def open(self, saved: Saved) -> AutoencoderScorer:
        return AutoencoderScorer(saved, self)

    def sizes_of(self, state: Arrays) -> Sizes:
        return {"n_items": len(state["output.bias"])}

    def local_check(self, data: LocalData) -> None:
        least, most = BOUNDS[self.params.likelihood]  # type: ignore[attr-defined]
        setting = f"{self.name}.likelihood={self.params.likelihood}"  # type: ignore[attr-defined]
        check_local_values(data, least, most, setting, f"{self.name}.likelihood=gaussian")

    def item_arrays(self, state: Arrays) -> tuple[F32, F32]:
        return state["output.weight"], state["output.bias"]


def check_values(pairs: DataFrame, outside: Any, setting: str, takes: str, other: str) -> None:
    """Raise TrainingError where pairs have a value that a setting excludes.

    Parameters
    ----------
    outside : condition on `value`, true for excluded values.
    setting : the setting as `key=value`, for the message.
    takes : the values that the setting takes, for the message.
    other : a setting that takes all values, for the message.
    """
    wrong, total = one_row(pairs.agg(F.count(F.when(outside, 1)), F.count(F.lit(1))))
    if wrong:
        raise TrainingError(excluded(wrong, total, setting, takes, other))


def check_local_values(data: LocalData, least: float, most: float, setting: str, other: str) -> None:
    """As `check_values`, for values below `least` or above `most`."""
    wrong = int(((data.values < least) | (data.values > most)).sum())
    if wrong:
        raise TrainingError(excluded(wrong, len(data.values), setting, f"it takes {least:g} to {most:g}", other))


def excluded(wrong: int, total: int, setting: str, takes: str, other: str) -> str:
    return (
        f"{wrong:,} of {total:,} pairs have a value that {setting} excludes ({takes}): "
        f"set preference.weight=one, or {other}"
    )


class MultVAEModel(LinearDecoderModel[MultVAEConfig]):
    """Mult-VAE and RecVAE."""

    section = MultVAEConfig

    def collapse_cure(self, side: str) -> str:
        if self.params.kl_per_item is None:
            return super().collapse_cure(side)
        return f"lower {self.name}.kl_per_item or {self.name}.latent_dim"


class MultDAEModel(LinearDecoderModel[MultDAEConfig]):
    """Mult-DAE."""

    section = MultDAEConfig


class Encoder:
    """Encodes rows of a side by a net with given weights, on this process's device."""

    def __init__(self, net: Any, state: Arrays, side: str = "user") -> None:
        from sparkcf.training.checkpoint import load_into
        from sparkcf.training.group import device_of

        self._device, self._net = device_of(0), net
        load_into(net, state)
        net.to(self._device).eval()
        self._factors = net.factors if side == "user" else net.item_factors

    def __call__(self, rows: PackedRows) -> tuple[F32, ...]:
        """Factors float32 (n, width) and, where they differ from these, latent means float32 (n, latent_dim)."""
        import torch

        from sparkcf.training.loop import to_tensors

        with torch.inference_mode():
            factors = self._factors(to_tensors(rows, self._device))
        return tuple(tensor.float().cpu().numpy() for tensor in factors)

    def of_rows(self, rows: Rows) -> F32:
        """Factors float32 (n, width) of rows as a scorer takes them."""
        indptr, indices, values, _ = rows
        return self(PackedRows(np.arange(len(indptr) - 1), indptr, indices, values))[0]


class NetScorer(InnerProduct):
    """Folds in new users by the net's encoder."""

    def __init__(self, saved: Saved, model: NetModel[Any]) -> None:
        super().__init__(saved)
        self._state, self._model = saved.arrays, model

    @cached_property
    def _encoder(self) -> Encoder:
        return self._model.encoder(self._state)

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        factors = self._encoder.of_rows(rows)
        return factors, np.zeros(len(factors), np.float32)


class AutoencoderScorer(NetScorer):
    """Of a net whose user encoder can be handed over."""

    def user_encoder(self) -> Any:
        """The encoder as a file for others: see `sparkcf.models.nets.exported.ExportedEncoder`."""
        return self._model.exported_encoder(self._state, self.item_vectors, self.known_items)


def item_vectors(pairs: DataFrame, vectors: F32, bias: F32) -> DataFrame:
    """idx, factor, bias of the items of the pairs.

    Parameters
    ----------
    vectors : (n_items, width).
    bias : (n_items,).
    """
    shared = share(pairs.sparkSession, vectors=vectors, bias=bias)

    def work(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        vectors, bias = shared.open()
        for batch in batches:
            idx = batch.column(0).to_numpy(zero_copy_only=False)
            columns = [pa.array(idx.astype(np.int32)), vectors_to_arrow(vectors[idx]), pa.array(bias[idx])]
            yield pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias"])

    present = pairs.select(F.col("item_idx").alias("idx")).distinct()
    return present.mapInArrow(work, FACTORS)
