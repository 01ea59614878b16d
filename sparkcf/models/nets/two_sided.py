"""BiVAE on Spark: packs rows of users and rows of items, and encodes both after training.

    pairs ──▶ user rows, item rows ──trained in turns──▶ two encoders ──▶ user factors, item factors

Scores are inner products of the means. Items' rows leave out the users kept for validation.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.nets import BiVAEConfig
from sparkcf.data.packed import PackedRows
from sparkcf.data.pairs import Reads
from sparkcf.errors import ConfigError
from sparkcf.lake.arrays import Arrays
from sparkcf.models.contract_data import F32, LocalData, Rows, Saved, TrainingData
from sparkcf.models.nets.fit import AutoencoderScorer, Encoder, NetModel, Sizes, check_local_values, check_values
from sparkcf.models.nets.side_fields import collected_features, encoded_features, texts_of
from sparkcf.spark import DataFrame, F, Window

if TYPE_CHECKING:
    from sparkcf.data.packing import Snapshot

OTHERS = {"user": "item", "item": "user"}


class BiVAEModel(NetModel[BiVAEConfig]):
    """BiVAE."""

    section = BiVAEConfig
    has_latent = False
    local_two_sided = True

    @property
    def width(self) -> int:
        return self.params.latent_dim

    @property
    def reads(self) -> Reads:
        sides = (("users", self.params.user_prior), ("items", self.params.item_prior))
        texts = tuple(texts_of(table, f) for table, fields in sides for f in fields if f.of != "number")
        return Reads("positives", attributes=any(fields for _, fields in sides), texts=texts)

    def collapse_cure(self, side: str) -> str:
        """The prior of side features too, where the side has none yet."""
        cure, prior = super().collapse_cure(side), f"{side}_prior"
        return cure if getattr(self.params, prior) else f"{cure}, or set {self.name}.{prior} to side features"

    def check(self, data: TrainingData) -> None:
        value, likelihood = F.col("value"), self.params.likelihood
        if self.params.binary:
            return
        not_finite = F.isnan(value) | (F.abs(value) == float("inf"))
        outside, takes = {
            "poisson": (not_finite | (value < 0), "it takes 0 and more"),
            "bernoulli": (~value.isin(0.0, 1.0), "it takes 0 and 1"),
            "gaussian": (not_finite, "it takes finite numbers"),
        }[likelihood]
        setting = f"{self.name}.likelihood={likelihood}"
        check_values(data.pairs, outside, setting, takes, f"{self.name}.binary=true")

    def item_rows(self, data: TrainingData) -> Snapshot | None:
        from sparkcf.data.packing import held_out

        assert data.packing is not None
        entries = F.count(F.lit(1)).over(Window.partitionBy("user_idx"))
        held = held_out("user", self.validation_share, data.packing.seed) & (entries > 1)
        return data.packing.rows(data.pairs.withColumn("held", held).where(~F.col("held")), "item")

    def net_data(self, data: TrainingData, folder: str) -> dict[str, Any]:
        from sparkcf.training.side_features import store_features

        sizes = super().net_data(data, folder)
        features = {}
        for side, fields in (("user", self.params.user_prior), ("item", self.params.item_prior)):
            if fields:
                encoded = encoded_features(data, side, fields, f"{self.name}.{side}_prior")
                features[side] = collected_features(encoded.rows, sizes[f"n_{side}s"]), encoded.n_features
        return sizes | ({"features": store_features(folder, features)} if features else {})

    def sizes_of(self, state: Arrays) -> Sizes:
        return {f"n_{other}s": len(state[f"{side}.encoder.input.weight"]) for side, other in OTHERS.items()}

    def item_factors(self, data: TrainingData, state: Arrays, item_rows: Snapshot | None) -> DataFrame:
        assert data.packing is not None and item_rows is not None
        return self.encoded(data.packing.read(item_rows), state, "item")

    def local_check(self, data: LocalData) -> None:
        if self.reads.attributes:
            raise ConfigError("bivae.user_prior, bivae.item_prior: only the jobs read these fields; leave them out")
        if not self.params.binary and self.params.likelihood != "gaussian":
            most = 1.0 if self.params.likelihood == "bernoulli" else np.inf
            setting = f"{self.name}.likelihood={self.params.likelihood}"
            check_local_values(data, 0.0, most, setting, f"{self.name}.binary=true")

    def local_items(self, state: Arrays, rows: PackedRows | None) -> tuple[F32, F32]:
        from sparkcf.models.nets.local import encoded

        assert rows is not None
        n_items = self.sizes_of(state)["n_items"]
        vectors = np.zeros((n_items, self.width), np.float32)
        vectors[rows.ids] = encoded(self.encoder(state, "item"), rows, self.width)
        return vectors, np.zeros(n_items, np.float32)

    def open(self, saved: Saved) -> BiVAEScorer:
        return BiVAEScorer(saved, self)


class BiVAEScorer(AutoencoderScorer):
    """Folds in new users by the users' encoder and new items by the items' encoder.

    Items that were folded in have vectors, and are scored, but the users' encoder has no input for them.
    """

    @cached_property
    def _sizes(self) -> Sizes:
        return self._model.sizes_of(self._state)

    @property
    def fold_items(self) -> NDArray[np.bool_]:
        trained = np.arange(len(self.known_items)) < self._sizes["n_items"]
        return self.known_items & trained

    @property
    def item_fold_users(self) -> int:  # type: ignore[override]
        return self._sizes["n_users"]

    @cached_property
    def _item_encoder(self) -> Encoder:
        return self._model.encoder(self._state, "item")

    def fold_in_items(self, rows: Rows) -> F32:
        return self._item_encoder.of_rows(rows)
