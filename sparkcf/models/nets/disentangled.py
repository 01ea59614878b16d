"""DisenGCN on Spark: every training process reads the graph from the packed rows; users are then routed in blocks.

    user rows ──▶ graph ──trained──▶ vectors of all nodes ──shared──▶ user rows routed ──▶ user factors, item factors

Scores are inner products. Users kept for validation, and users of later days, are folded in: their vectors are routed
from those of their items alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparkcf.config.nets import DisenGCNConfig
from sparkcf.data.packed import PackedRows
from sparkcf.errors import TrainingError
from sparkcf.lake.arrays import Arrays
from sparkcf.models.contract_data import F32, LocalData, TrainingData
from sparkcf.models.nets.fit import Encoder, NetModel, Sizes, check_local_values, check_values
from sparkcf.spark import F

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

    def learned(self, net: Any, trained: Arrays, data: TrainingData | LocalData) -> Arrays:
        """The arrays to store, and further vectors of all users and items."""
        from sparkcf.training.checkpoint import load_into

        load_into(net, trained)
        tables = net.eval().tables()
        vectors = {"items": tables.items, OWN: tables.users, ITEMS: tables.item_vectors}
        arrays: Arrays = {name: each.flatten(1).numpy() for name, each in vectors.items()}
        return arrays | {"scale": net.log_scale.detach().exp().numpy(), BIAS: trained[BIAS]}

    def encoder(self, state: Arrays, side: str = "user") -> Encoder:
        return super().encoder({name: state[name] for name in ("items", "scale", OWN) if name in state}, side)

    def item_arrays(self, state: Arrays) -> tuple[F32, F32]:
        return state[ITEMS], state[BIAS]

    def local_check(self, data: LocalData) -> None:
        check_local_values(data, 0.0, np.inf, f"{self.name}.loss={self.params.loss}", "preference.positive_from=0")

    def local_net_data(self, data: LocalData, rows: PackedRows, folder: str) -> dict[str, Any]:
        return super().local_net_data(data, rows, folder) | {"rows": rows}
