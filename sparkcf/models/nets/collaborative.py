"""Neural collaborative filtering on Spark: makes vectors of users and items after training, and scores blocks.

    embeddings ──▶ user factors, item factors ──GMF, MLP──▶ scores

A score is no inner product. Users kept for validation, and users of later days, are folded in by gradient steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.nets import NCFConfig, SideField
from sparkcf.data.arrow import vectors_to_arrow
from sparkcf.data.packed import PackedRows, unpack
from sparkcf.data.pairs import Reads
from sparkcf.data.shared import share, share_state
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.kernels.ncf import ItemParts, Weights, item_parts, score_pairs, score_users
from sparkcf.lake.arrays import Arrays, Shapes
from sparkcf.lake.frames import one_row
from sparkcf.models.contract import Scorer, check_unweighted
from sparkcf.models.contract_data import (
    F32,
    F64,
    I32,
    Features,
    Fitted,
    LocalData,
    Rows,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.nets.fit import FACTORS, NetModel, Sizes, check_local_values, check_values, item_vectors
from sparkcf.models.nets.side_fields import collected_features, encoded_features, n_features_of, texts_of
from sparkcf.spark import DataFrame, F

if TYPE_CHECKING:
    from sparkcf.data.packing import Snapshot

USERS, COLD_USERS, ITEMS = "user_vectors", "cold_user_vectors", "item_vectors"  # learned, and not stored as arrays


class NCFModel(NetModel[NCFConfig]):
    """GMF, MLP or NeuMF."""

    section = NCFConfig
    has_latent = False

    @property
    def width(self) -> int:
        return self.params.width

    @property
    def validation_share(self) -> float:  # type: ignore[override]
        """0 for ratings: the NDCG of lists says little about them."""
        return 0.0 if self.params.objective == "rating" else self.params.validation_share

    @property
    def reads(self) -> Reads:
        kind: Literal["values", "positives"] = "values" if self.params.objective == "rating" else "positives"
        fields = [(f"{side}s", f) for side, listed in self._fields().items() for f in listed]
        texts = tuple(texts_of(table, f) for table, f in fields if f.of != "number")
        return Reads(kind, attributes=bool(fields) or self.params.item_content is not None, texts=texts)

    def _fields(self) -> dict[str, tuple[SideField, ...]]:
        return {"user": self.params.user_features, "item": self.params.item_features}

    def check_settings(self, pairs: DataFrame) -> None:
        super().check_settings(pairs)
        if self.params.objective == "rating":
            check_unweighted(pairs, "ncf.objective=rating")

    def check(self, data: TrainingData) -> None:
        """Raise TrainingError for values or users that the objective excludes, ConfigError for weights of ratings."""
        objective = self.params.objective
        if objective == "rating":
            check_unweighted(data.pairs, "ncf.objective=rating")
            return
        value = F.col("value")
        outside = F.isnan(value) | (value < 0) | (value == float("inf"))
        setting = f"{self.name}.objective={objective}"
        check_values(data.pairs, outside, setting, "it takes 0 and more", f"{self.name}.objective=rating")
        if objective == "cross_entropy" and not self.params.negatives_seen:
            n_items = data.pairs.select("item_idx").distinct().count()
            counts = data.pairs.groupBy("user_idx").agg(F.count(F.lit(1)).alias("n")).where(F.col("n") >= n_items)
            users, first = one_row(counts.agg(F.count(F.lit(1)), F.min("user_idx")))
            if users:
                raise TrainingError(self._no_negatives(f"{users:,} users, the first of user_idx {first},", n_items))

    def _no_negatives(self, users: str, n_items: int) -> str:
        return (
            f"{users} have all {n_items:,} items, so ncf.negatives={self.params.negatives} cannot be drawn for them: "
            "set ncf.negatives_seen=true or ncf.objective=softmax"
        )

    def local_check(self, data: LocalData) -> None:
        if self.reads.attributes:
            raise ConfigError("ncf.user_features, item_features and item_content are read by the jobs only")
        objective = self.params.objective
        if objective == "rating":
            if data.weights is not None:
                raise ConfigError("ncf.objective=rating weighs every rating 1: set preference.weight=one")
            return
        check_local_values(data, 0.0, np.inf, f"{self.name}.objective={objective}", f"{self.name}.objective=rating")
        if objective == "cross_entropy" and not self.params.negatives_seen:
            n_items = int(data.present()[1].sum())
            users = int((np.bincount(data.users) >= n_items).sum())
            if users:
                raise TrainingError(self._no_negatives(f"{users:,} users", n_items))

    def local_net_data(self, data: LocalData, rows: PackedRows, folder: str) -> dict[str, Any]:
        from sparkcf.training.side_features import store_item_counts

        counts = store_item_counts(folder, np.bincount(data.items, minlength=data.n_items))
        average = float(data.values.mean(dtype=np.float64)) if self.params.objective == "rating" else 0.0
        return super().local_net_data(data, rows, folder) | {"counts": counts, "average": average}

    def item_arrays(self, state: Arrays) -> tuple[F32, F32]:
        return state[ITEMS], np.zeros(len(state[ITEMS]), np.float32)

    def local_users(self, state: Arrays, rows: PackedRows, held: NDArray[np.bool_]) -> F32:
        opened = {name: array for name, array in state.items() if name not in (USERS, COLD_USERS, ITEMS)}
        vectors: F32 = state[USERS][rows.ids]
        kept, items = np.flatnonzero(held), state[ITEMS]
        if len(kept):
            scorer = NCFScorer(Saved(items, items[:, 0], np.ones(len(items), bool), opened), self)
            part = rows.take(kept)
            cold = _cold(state[COLD_USERS], part.ids)
            vectors[kept] = scorer.folded(part.indptr, part.indices, part.values, cold)
        return vectors

    def net_data(self, data: TrainingData, folder: str) -> dict[str, Any]:
        from sparkcf.training.side_features import store_content, store_features, store_item_counts

        sizes = super().net_data(data, folder)
        counted: Any = data.pairs.groupBy("item_idx").count().toPandas()
        counts = np.zeros(data.n_items, np.int64)
        counts[counted["item_idx"].to_numpy()] = counted["count"].to_numpy()
        known: dict[str, Any] = sizes | {"counts": store_item_counts(folder, counts)}
        if self.params.objective == "rating":
            known["average"] = float(one_row(data.pairs.agg(F.avg("value")))[0] or 0.0)
        features, scales = {}, {}
        for side, fields in self._fields().items():
            if fields:
                encoded = encoded_features(data, side, fields, f"{self.name}.{side}_features")
                features[side] = collected_features(encoded.rows, sizes[f"n_{side}s"]), encoded.n_features
                scales[side] = encoded.scales.tolist()
        if self.params.item_content is not None:
            known["content"] = store_content(folder, *self._content(data))
        return known | ({"features": store_features(folder, features), "scales": scales} if features else {})

    def _content(self, data: TrainingData) -> tuple[F32, NDArray[np.bool_]]:
        """The items' vectors (n_items, d), each number standardised over the items that have one, and which have one.

        Raises ConfigError if no item has one, or their lengths differ.
        """
        name = self.params.item_content
        key = f"{self.name}.item_content={name}"
        if data.items is None or "vectors" not in data.items.columns:
            raise ConfigError(f"{key}: the table of items has no vectors: set input.items and run jobs/clean.py")
        rows = self._with_content(data.items).where(F.col("idx") < data.n_items)
        sizes = rows.groupBy(F.size("vector")).count().orderBy(F.desc("count")).collect()
        if not sizes:
            raise ConfigError(f"{key}: no row of items has it: set input.items.columns.vectors, or leave it out")
        if len(sizes) > 1:
            (usual, count), (odd, few) = sizes[:2]
            raise ConfigError(
                f"{key}: the vectors of {few:,} items have {odd} numbers and those of {count:,} have {usual}: give all "
                "the same length"
            )
        found: Any = rows.toPandas()
        given = np.stack(found["vector"].to_numpy()).astype(np.float32)
        varies = (given != given[0]).any(axis=0)
        if not varies.any():
            raise ConfigError(
                f"{key}: the vectors of all {len(given):,} items are the same and cannot distinguish them: leave it out"
            )
        vectors, has = np.zeros((data.n_items, given.shape[1]), np.float32), np.zeros(data.n_items, bool)
        idx = found["idx"].to_numpy()
        means, deviations = given.mean(axis=0, dtype=np.float64), given.std(axis=0, dtype=np.float64)
        vectors[idx] = np.where(varies, (given - means) / np.where(varies, deviations, 1.0), 0.0)
        has[idx] = True
        return vectors, has

    def _with_content(self, items: DataFrame) -> DataFrame:
        """idx, vector of the items that have content."""
        vector = F.col("vectors")[self.params.item_content]
        return items.select(F.col("item_idx").alias("idx"), vector.alias("vector")).where("vector IS NOT NULL")

    def shapes(self, data: TrainingData | LocalData) -> Shapes:
        from sparkcf.training.checkpoint import shapes_of

        fields = self.params.user_features
        n_user_features = 0 if isinstance(data, LocalData) else n_features_of(data, "user", fields)
        return shapes_of(self.net_to_serve({"n_items": data.n_items, "n_user_features": n_user_features}))

    def sizes_of(self, state: Arrays) -> Sizes:
        return {"n_items": len(state["mass"]), "n_user_features": len(state.get("users.of_features", ()))}

    def learned(self, net: Any, trained: Arrays, data: TrainingData | LocalData) -> Arrays:
        """The weights to store, and the vectors of all users and items, with and without users' own embeddings."""
        import torch

        from sparkcf.training.checkpoint import load_into

        load_into(net, trained)
        with torch.inference_mode():
            users = torch.arange(data.n_users)
            vectors = {
                USERS: net.users(users),
                COLD_USERS: net.users.cold(users if self.params.user_features else users[:1]),
                ITEMS: net.item_vectors(),
            }
        return super().learned(net, trained, data) | {name: vector.detach().numpy() for name, vector in vectors.items()}

    def user_factors(self, data: TrainingData, rows: DataFrame, state: Arrays) -> DataFrame:
        """Trained users have their embeddings, validation users are folded in, others with features have these."""
        shared = share_state(rows.sparkSession, state)

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            opened = shared.open()
            users, cold, items = (opened.pop(name) for name in (USERS, COLD_USERS, ITEMS))
            scorer = NCFScorer(Saved(items, items[:, 0], np.ones(len(items), bool), opened), self)
            for batch in batches:
                ids, packed_items, packed_values, split = batch.columns
                idx = ids.to_numpy(zero_copy_only=False)
                vectors = users[idx]
                held = np.flatnonzero(split.to_numpy(zero_copy_only=False) == "validation")
                if len(held):
                    part = unpack(idx[held], *(c.take(held).to_pylist() for c in (packed_items, packed_values)))
                    vectors[held] = scorer.folded(part.indptr, part.indices, part.values, _cold(cold, idx[held]))
                yield _factors(idx, vectors)

        packed = rows.select("user_idx", "items", "values", "split").mapInArrow(work, FACTORS)
        if not self.params.user_features:
            return packed
        known = rows.select(F.col("user_idx").alias("idx"))
        others = self._featured(data, "user").join(known, on="idx", how="left_anti")
        vectors = share(rows.sparkSession, vectors=state[COLD_USERS])

        def from_features(batches: Iterable[Any]) -> Iterator[Any]:
            (cold,) = vectors.open()
            for batch in batches:
                idx = batch.column(0).to_numpy(zero_copy_only=False)
                yield _factors(idx, cold[idx])

        return packed.unionByName(others.mapInArrow(from_features, FACTORS))

    def item_factors(self, data: TrainingData, state: Arrays, item_rows: Snapshot | None) -> DataFrame:
        """Factors of the items of the pairs, and of the other items that have features or content."""
        present = data.pairs.select("item_idx")
        if self.params.item_features:
            present = present.union(self._featured(data, "item"))
        if self.params.item_content is not None and data.items is not None:
            present = present.union(self._with_content(data.items).where(F.col("idx") < data.n_items).select("idx"))
        return item_vectors(present, state[ITEMS], np.zeros(data.n_items, np.float32))

    def _featured(self, data: TrainingData, side: str) -> DataFrame:
        """idx of the users or items that have a feature."""
        n = data.n_users if side == "user" else data.n_items
        scales = np.tile([0.0, 1.0], (len(self._fields()[side]), 1))
        rows = encoded_features(data, side, self._fields()[side], f"{self.name}.{side}_features", scales).rows
        return rows.where((F.col("idx") < n) & (F.size("features") > 0)).select("idx")

    def user_features(self, data: TrainingData, fitted: Fitted) -> DataFrame | None:
        fields, key = self.params.user_features, f"{self.name}.user_features"
        if not fields:
            return None
        rows = encoded_features(data, "user", fields, key, fitted.arrays["users.scales"]).rows
        return rows.where(F.size("features") > 0).withColumnRenamed("idx", "user_idx")

    def open(self, saved: Saved) -> NCFScorer:
        return NCFScorer(saved, self)


def _cold(vectors: F32, ids: Any) -> F32:
    """Vectors without own embeddings by user; a single one is that of all users."""
    return vectors[np.minimum(ids, len(vectors) - 1)]


def _factors(idx: Any, vectors: F32) -> Any:
    """A batch of FACTORS."""
    import pyarrow as pa

    columns = [pa.array(idx.astype(np.int32)), vectors_to_arrow(vectors), pa.array(np.zeros(len(idx), np.float32))]
    return pa.RecordBatch.from_arrays(columns, names=["idx", "factor", "bias"])


class NCFScorer(Scorer):
    """Scores blocks of users; the layers of a block are computed for `kernels.ncf.PAIRS` pairs at a time."""

    def __init__(self, saved: Saved, model: NCFModel) -> None:
        self.known_items, self.items = saved.item_known, saved.item_vectors
        self._state, self._model = saved.arrays, model

    @cached_property
    def weights(self) -> Weights:
        state = {name.removeprefix("interaction."): array for name, array in self._state.items()}
        none, n_layers = np.zeros(0, np.float32), max(len(self._model.params.tower) - 1, 0)
        layers = [(state[f"layers.{n}.weight"].T, state[f"layers.{n}.bias"]) for n in range(n_layers)]
        first = None
        if layers:
            weight, bias = layers[0]
            half = len(weight) // 2
            first = (weight[:half], weight[half:], bias)
        biases = [float(state[f"{part}.bias"][0]) for part in ("gmf", "mlp") if f"{part}.bias" in state]
        gmf, mlp = (state[f"{part}.weight"][0] if f"{part}.weight" in state else none for part in ("gmf", "mlp"))
        return Weights(gmf, first, layers[1:], mlp, sum(biases), float(state["share"][0]))

    @cached_property
    def item_parts(self) -> ItemParts:
        return item_parts(self.items, self.weights)

    @cached_property
    def _net(self) -> Any:
        from sparkcf.training.checkpoint import load_into
        from sparkcf.training.group import device_of

        net = self._model.net_to_serve(self._model.sizes_of(self._state))
        load_into(net, self._state)
        return net.to(device_of(0)).eval()

    @cached_property
    def _item_tensor(self) -> Any:
        import torch

        return torch.from_numpy(np.array(self.items)).to(self._net.mass.device)

    def score_block(self, users: UserBlock) -> F32:
        return score_users(users.vectors, self.item_parts, self.weights)

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        """Vectors fitted to the rows, from the vectors of the users' features; without rows, the latter."""
        indptr, indices, values, _ = rows
        start = self._from_features(features, len(indptr) - 1)
        return self.folded(indptr, indices, values, start), np.zeros(len(start), np.float32)

    def folded(self, indptr: Any, indices: I32, values: F32, start: F32) -> F32:
        """Vectors (n, width) of rows, from those before the first gradient step, (n, width)."""
        vectors = self._net.fold_in(self._rows(indptr, indices, values), self._tensor(start), self._item_tensor)
        folded: F32 = vectors.cpu().numpy()
        return folded

    def _from_features(self, features: Features | None, n: int) -> F32:
        import torch

        if features is None:
            return np.tile(self._state["users.shared"], (n, 1))
        with torch.no_grad():  # in inference mode the net could not be used for gradients later
            vectors: F32 = self._net.users.from_features(self._rows(*features)).detach().cpu().numpy()
        return vectors

    def _rows(self, indptr: Any, indices: I32, values: F32) -> Any:
        from sparkcf.training.batch import Rows as TensorRows

        return TensorRows(*map(self._tensor, (indices.astype(np.int64), indptr, values)))

    def _tensor(self, array: Any) -> Any:
        import torch

        return torch.from_numpy(np.array(array)).to(self._net.mass.device)

    def likeness(self) -> F32:
        return self.items

    def predict(self, users: UserBlock, items: I32) -> tuple[F64, F64 | None]:
        """Scores of pairs: the predicted values of objective=rating. An unknown user or item has the shared vector."""
        inside = (items >= 0) & (items < len(self.known_items))
        at = np.where(inside, items, 0)
        known = inside & self.known_items[at]
        left = np.where(users.known[:, None], users.vectors, self._state["users.shared"])
        right = np.where(known[:, None], self.items[at], self._state["items.shared"])
        return score_pairs(left, right, self.weights).astype(np.float64), None
