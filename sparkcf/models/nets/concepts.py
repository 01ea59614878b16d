"""MacridVAE on Spark: a scorer of blocks of users, and the table of its concepts.

With z (K, d) of a user, h (m, d) and c (m, K) of the items:   score_i = log sum_k c_ik exp(cos(z_k, h_i) / tau)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from sparkcf.config.nets import MacridVAEConfig
from sparkcf.data.shared import share
from sparkcf.errors import ConfigError
from sparkcf.kernels.concepts import assignments, concept_mass, normalised_mutual_information
from sparkcf.kernels.vectors import unit_rows
from sparkcf.lake.arrays import Arrays
from sparkcf.models.contract import Scorer
from sparkcf.models.contract_data import (
    F32,
    I32,
    Features,
    FitFigure,
    Fitted,
    LocalData,
    Rows,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.explanation import Explanation, Part
from sparkcf.models.nets.fit import Encoder, NetModel, Retrained, Sizes
from sparkcf.spark import DataFrame, F

STABILITY = "concept_stability"  # mean normalised mutual information of items' concepts over pairs of seeds
LED = "users_led"


class MacridVAEModel(NetModel[MacridVAEConfig]):
    """MacridVAE."""

    section = MacridVAEConfig
    has_latent = False
    tables = ("item_concepts",)
    item_tables = tables

    @property
    def width(self) -> int:
        return self.params.concepts * self.params.latent_dim

    @property
    def item_width(self) -> int:
        return self.params.latent_dim

    def check(self, data: TrainingData | LocalData) -> None:
        if self.params.concepts > data.n_items:
            raise ConfigError(
                f"macridvae.concepts={self.params.concepts} of {data.n_items:,} items: set at most {data.n_items:,}"
            )

    def sizes_of(self, state: Arrays) -> Sizes:
        return {"n_items": len(state["items"])}

    def local_check(self, data: LocalData) -> None:
        self.check(data)

    def item_arrays(self, state: Arrays) -> tuple[F32, F32]:
        unit = unit_rows(state["items"])
        return unit, np.zeros(len(unit), np.float32)

    def figures(self, data: TrainingData, state: Arrays, retrained: Retrained) -> list[FitFigure]:
        """The number of users that each concept leads, and the stability of the concepts with `stability_seeds`."""
        figures = self._led(data.pairs, self._rows(data, state))
        seeds = range(self.seed + 1, self.seed + 1 + self.params.stability_seeds)
        trained = [state, *(retrained(seed) for seed in seeds)] if seeds else []
        labels = [_assigned(each, self.params).argmax(axis=1) for each in trained]
        similarities = [normalised_mutual_information(a, b) for a, b in combinations(labels, 2)]
        return [*figures, FitFigure(STABILITY, float(np.mean(similarities)))] if similarities else figures

    def user_figures(self, pairs: DataFrame, fitted: Fitted) -> list[FitFigure]:
        return self._led(pairs, fitted.tables["item_concepts"])

    def _led(self, pairs: DataFrame, assigned: DataFrame) -> list[FitFigure]:
        """The number of users that each concept leads: that with the largest sum of their items' probabilities.

        `assigned` : item_idx, concept, probability.
        """
        of_items = assigned.select("item_idx", "concept", "probability")
        of_user = pairs.join(of_items, on="item_idx", how="inner").groupBy("user_idx", "concept")
        masses = of_user.agg(F.sum("probability").alias("mass"))
        best = F.max_by("concept", F.struct("mass", -F.col("concept")))
        led = masses.groupBy("user_idx").agg(best.alias("concept")).groupBy("concept").count().collect()
        users = {row["concept"]: row["count"] for row in led}
        return [FitFigure(LED, float(users.get(k, 0)), f"concept {k}") for k in range(self.params.concepts)]

    def stored_tables(self, data: TrainingData, state: Arrays) -> dict[str, DataFrame]:
        return {"item_concepts": self._rows(data, state)}

    def _rows(self, data: TrainingData, state: Arrays) -> DataFrame:
        """item_idx, users, concept, probability of the items of the pairs, a row per item and concept."""
        shared = share(data.pairs.sparkSession, assigned=_assigned(state, self.params))

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            import pyarrow as pa

            (assigned,) = shared.open()
            k = assigned.shape[1]
            for batch in batches:
                idx, users = (column.to_numpy(zero_copy_only=False).astype(np.int32) for column in batch.columns)
                concepts = np.tile(np.arange(k, dtype=np.int32), len(idx))
                columns = [np.repeat(idx, k), np.repeat(users, k), concepts, assigned[idx].ravel()]
                names = ["item_idx", "users", "concept", "probability"]
                yield pa.RecordBatch.from_arrays([pa.array(c) for c in columns], names=names)

        present = data.pairs.groupBy("item_idx").agg(F.count(F.lit(1)).alias("users"))
        return present.mapInArrow(work, "item_idx int, users int, concept int, probability float")

    def open(self, saved: Saved) -> ConceptScorer:
        return ConceptScorer(saved, self)


def _assigned(state: Arrays, params: MacridVAEConfig) -> F32:
    return assignments(unit_rows(state["items"]), unit_rows(state["prototypes"]), params.temperature)


class ConceptScorer(Scorer):
    """Scores blocks of users; a user's vector is K vectors of unit length, side by side."""

    def __init__(self, saved: Saved, model: MacridVAEModel) -> None:
        self.known_items, self.items = saved.item_known, saved.item_vectors  # of unit length; 0 for an unknown item
        self._state, self._model = saved.arrays, model

    @cached_property
    def assigned(self) -> F32:
        """c (m, K)."""
        prototypes = unit_rows(self._state["prototypes"])
        return assignments(self.items, prototypes, self._model.params.temperature)

    @cached_property
    def _encoder(self) -> Encoder:
        return self._model.encoder(self._state)

    def of_concepts(self, users: UserBlock) -> F32:
        """z (n, K, d)."""
        return users.vectors.reshape(len(users), self._model.params.concepts, -1)

    def score_block(self, users: UserBlock) -> F32:
        z, tau = self.of_concepts(users), self._model.params.temperature
        scores = np.zeros((len(users), len(self.items)), np.float32)
        for k in range(z.shape[1]):  # one concept at a time: memory for two blocks of scores
            scores += concept_mass(z[:, k], self.items, self.assigned[:, k], tau)
        with np.errstate(divide="ignore"):
            return np.log(scores, out=scores)

    def concepts(self, users: UserBlock, items: I32) -> I32 | None:
        at = np.maximum(items, 0)
        tau = np.float32(self._model.params.temperature)
        cosines = np.einsum("nkd,njd->njk", self.of_concepts(users), self.items[at]) / tau
        with np.errstate(divide="ignore"):
            logits = cosines + np.log(self.assigned[at])
        return np.where(items >= 0, logits.argmax(axis=2), -1).astype(np.int32)

    def explain(self, user: UserBlock, item: int) -> Explanation:
        """What each concept brings to exp(score)."""
        z, tau = self.of_concepts(user)[0].astype(np.float64), self._model.params.temperature
        masses = np.exp(z @ self.items[item].astype(np.float64) / tau) * self.assigned[item]
        parts = [Part("concept", f"concept {k}", None, float(mass)) for k, mass in enumerate(masses)]
        return Explanation.summing(float(np.log(masses.sum())), parts, "exp(score)")

    def because(self, users: UserBlock, items: I32) -> None:
        """None: `concepts` names the reason."""
        return None

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        vectors = self._encoder.of_rows(rows)
        return vectors, np.zeros(len(vectors), np.float32)

    def likeness(self) -> F32:
        return self.items

    def user_encoder(self) -> Any:
        """See `AutoencoderScorer.user_encoder`."""
        return self._model.exported_encoder(self._state, self.items, self.known_items)
