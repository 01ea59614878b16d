"""DisenGCN on Spark: every training process reads the graph from the packed rows; users are then routed in blocks.

    user rows ──▶ graph ──trained──▶ vectors of all nodes ──shared──▶ user rows routed ──▶ user factors, item factors

Scores are inner products. Users kept for validation, and users of later days, are folded in: their vectors are routed
from those of their items alone.
"""

from __future__ import annotations

from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.config.models import DisenGCNConfig
from sparkcf.data.packing import Snapshot
from sparkcf.errors import TrainingError
from sparkcf.lake.arrays import Arrays
from sparkcf.models.contract import TrainingData
from sparkcf.models.nets.fit import Encoder, NetModel, Sizes, check_values, item_vectors

OWN, ITEMS, BIAS = "users", "item_vectors", "item_bias"  # learned, and not stored as arrays


class DisenGCNModel(NetModel[DisenGCNConfig]):
    """DisenGCN."""

    section = DisenGCNConfig
    has_latent = False

    @property
    def width(self) -> int:
        return self.params.latent_dim

    def check(self, data: TrainingData) -> None:
        if data.pairs.isEmpty():
            from sparkcf.training.graph import no_edge

            raise TrainingError(no_edge(self.name))
        value = F.col("value")
        outside = F.isnan(value) | (value < 0) | (value == float("inf"))
        setting = f"{self.name}.loss={self.params.loss}"
        check_values(data.pairs, outside, setting, "it takes 0 and more", "preference.positive_from=0")

    def net_data(self, data: TrainingData, folder: str) -> dict[str, Any]:
        assert data.packing is not None
        files = data.packing.rows(data.pairs, "user", self.validation_share).train
        return super().net_data(data, folder) | {"files": list(files)}

    def net_to_serve(self, sizes: Sizes) -> Any:
        return super().net_to_serve({"n_items": sizes["n_items"], "n_users": sizes.get("n_own", 0)})

    def sizes_of(self, state: Arrays) -> Sizes:
        return {"n_items": len(state["items"]), "n_own": len(state.get(OWN, ()))}

    def learned(self, net: Any, trained: Arrays, data: TrainingData) -> Arrays:
        """The arrays to store, and further vectors of all users and items."""
        from sparkcf.training.checkpoint import load_into

        load_into(net, trained)
        tables = net.eval().tables()
        vectors = {"items": tables.items, OWN: tables.users, ITEMS: tables.item_vectors}
        arrays: Arrays = {name: each.flatten(1).numpy() for name, each in vectors.items()}
        return arrays | {"scale": net.log_scale.detach().exp().numpy(), BIAS: trained[BIAS]}

    def encoder(self, state: Arrays, side: str = "user") -> Encoder:
        return super().encoder({name: state[name] for name in ("items", "scale", OWN) if name in state}, side)

    def item_factors(self, data: TrainingData, state: Arrays, item_rows: Snapshot | None) -> DataFrame:
        return item_vectors(data.pairs, state[ITEMS], state[BIAS])
