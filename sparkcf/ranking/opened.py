"""A run's model opened from the lake in this process, without Spark, and its users."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sparkcf.config.load import parse_config
from sparkcf.config.plugins import INSTALL
from sparkcf.config.root import Config
from sparkcf.data.one_user import as_of, user_pairs
from sparkcf.errors import ConfigError, LakeError, NotFoundError, UnknownModelError
from sparkcf.lake.query import Day, Lake, RunOfModel
from sparkcf.lake.weights import read_all
from sparkcf.models.contract import Explanation, Model, Scorer
from sparkcf.models.contract_data import F32, Described, Rows, Saved, UserBlock
from sparkcf.models.registry import model_of

EVENTS = ("user_id", "item_id", "event", "value", "ts", "replaced")


@dataclass(frozen=True)
class OpenedModel:
    """A run's model. `n_items` : item indices are below it."""

    lake: Lake
    run: RunOfModel
    config: Config
    model: Model[Any]
    scorer: Scorer
    n_items: int

    def user(self, user_id: str) -> UserBlock:
        """A user with their vector and the pairs that the run was trained on.

        Raises NotFoundError for a user who is not in the lake, or whom the run does not know.
        """
        wanted = ("user_id", [user_id])
        rows = self.lake.read("user_factors", wanted, self.run.partition, ("user_id", "factor", "bias"))
        if not rows.num_rows:
            self.lake.check_known("user", user_id)
            raise NotFoundError(
                f"user {user_id!r} has no vector in {self.run}: the user's list is the popularity fallback"
            )
        factor, bias = rows["factor"][0].as_py(), rows["bias"][0].as_py()
        vector = np.array(factor, np.float32).reshape(1, -1)
        return UserBlock(vector, np.array([bias], np.float32), np.ones(1, bool), self._rows(user_id))

    def item(self, item_id: str) -> int:
        """Index of an item. Raises NotFoundError for one that is not in the lake, or that the run does not know."""
        self.lake.check_known("item", item_id)
        rows = self.lake.read("items", ("item_id", [item_id]), None, ("item_id", "item_idx"))
        idx = int(rows["item_idx"][0].as_py())
        if idx >= self.n_items or not self.scorer.known_items[idx]:
            raise NotFoundError(f"item {item_id!r} has no score in {self.run}: the run was trained without this item")
        return idx

    def explain(self, user_id: str, item_id: str) -> Explanation:
        """Why a user's score of an item is what it is. Raises as `user` and `item`."""
        user, item = self.user(user_id), self.item(item_id)
        if not self.model.reads.attributes:
            return self.scorer.explain(user, item)
        sides = (("user", user_id), ("item", item_id))
        rows = [self.lake.read(f"{side}s", (f"{side}_id", [key]), None, self._described(side)) for side, key in sides]
        texts: dict[str, dict[str, int]] = {}
        wanted = sorted({text.name for text in self.model.reads.texts})
        if wanted and self.lake.has("features"):
            known = self.lake.read("features", ("field", wanted)).sort_by("feature_idx").to_pylist()
            for row in known:
                of_field = texts.setdefault(row["field"], {})
                of_field[row["value"]] = len(of_field)
        return self.scorer.explain_described(user, item, Described(*(row.to_pylist()[0] for row in rows), texts))

    def _described(self, side: str) -> list[str]:
        """The columns of a side's table that have attributes."""
        there = self.lake.columns(f"{side}s")
        return [name for name in (f"{side}_id", "categories", "attributes", "numbers") if name in there]

    def ids(self, items: list[int]) -> dict[int, str]:
        """External ids of items by their index."""
        rows = self.lake.read("items", None, None, ("item_id", "item_idx"))
        idx, ids = rows["item_idx"].to_numpy(), rows["item_id"]
        chosen = np.flatnonzero(np.isin(idx, items))
        return dict(zip(idx[chosen].tolist(), ids.take(pa.array(chosen)).to_pylist(), strict=True))

    def _rows(self, user_id: str) -> Rows:
        present = self.lake.columns("interactions")
        names = [name for name in EVENTS if name in present]
        by_day = self.lake.read_by_day("interactions", ("user_id", [user_id]), names)
        events = [_in_utc(row) | {"ds": day} for day, rows in by_day for row in rows.to_pylist()]
        pairs = user_pairs(as_of(events, self.run.ds), self.model.reads, self.config)
        items = self.lake.read(
            "items", ("item_id", [pair.item_id for pair in pairs]), None, ("item_id", "item_idx")
        ).to_pylist()
        place = {row["item_id"]: row["item_idx"] for row in items}
        known = sorted((place[pair.item_id], pair) for pair in pairs if place.get(pair.item_id, 1 << 31) < self.n_items)
        known = [(idx, pair) for idx, pair in known if self.scorer.known_items[idx]]
        indices = np.array([idx for idx, _ in known], np.int32)
        values, weights = (np.array([getattr(p, name) for _, p in known], np.float32) for name in ("value", "weight"))
        return np.array([0, len(known)], np.int64), indices, values, weights


def open_published(lake: Lake, model: str | None = None, ds: Day = None) -> OpenedModel:
    """Open the published run of a model.

    Raises
    ------
    NotFoundError, LakeError
        As in `Lake.published`; the run's factors or weights are missing or damaged.
    """
    return open_model(lake, lake.published(model, ds))


def open_model(lake: Lake, run: RunOfModel) -> OpenedModel:
    """Open a run's model. Raises NotFoundError and LakeError if its factors or weights are missing or damaged."""
    config = _config_of(lake, run)
    fitted = model_of(config)
    factors = lake.read("item_factors", None, run.partition, ("item_idx", "factor", "bias"))
    if not factors.num_rows:
        raise LakeError(f"{run} has no item factors in lake {lake.root}: publish another run")
    idx = factors["item_idx"].to_numpy()
    n_items = int(idx.max()) + 1
    vectors, bias, known = _of_all(factors, idx, n_items)
    figures = lake.read("metrics", ("run_id", [run.run_id])).to_pylist()
    logged = {row["metric"]: row["value"] for row in figures if row["protocol"] == "fit" and row["k"] is None}
    arrays = read_all(lake.root, run.run_id)
    saved = Saved(vectors, bias, known, arrays, logged.get("mean", 0.0), logged.get("average", 0.0))
    return OpenedModel(lake, run, config, fitted, fitted.open(saved), n_items)


def _of_all(factors: pa.Table, idx: Any, n_items: int) -> tuple[F32, F32, Any]:
    """Vectors (n_items, width), biases and which items the run knows, from the rows of `item_factors`."""
    flat = factors["factor"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    vectors = np.zeros((n_items, len(flat) // len(idx)), np.float32)
    vectors[idx] = flat.reshape(len(idx), -1)
    bias, known = np.zeros(n_items, np.float32), np.zeros(n_items, bool)
    bias[idx], known[idx] = factors["bias"].to_numpy().astype(np.float32), True
    return vectors, bias, known


def _config_of(lake: Lake, run: RunOfModel) -> Config:
    """The configuration that the run was fitted with."""
    rows = lake.read("runs", ("run_id", [run.run_id]), None, ("run_id", "config"))
    if not rows.num_rows:
        raise LakeError(f"{run} has no row in table runs: publish another run")
    stored = json.loads(rows["config"][0].as_py())
    try:
        plain = parse_config({"ds": run.ds, "input": {"path": "-"}, "model": run.model})
        return plain.with_shaping(stored)
    except UnknownModelError:
        raise LakeError(f"{run}: its model {run.model} is not installed here: {INSTALL}") from None
    except ConfigError as error:
        raise LakeError(
            f"{run} was trained with parameters that this version does not accept: {error}; train again"
        ) from None


def _in_utc(event: dict[str, Any]) -> dict[str, Any]:
    ts = event["ts"]
    return event | {"ts": ts.replace(tzinfo=dt.UTC) if ts.tzinfo is None else ts.astimezone(dt.UTC)}
