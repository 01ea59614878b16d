"""The concepts of a run, read from the lake without Spark: summaries and lists within a concept.

item_concepts, item_factors, user_factors, items ──▶ summaries, a user's list within a concept, one dimension varied
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparkcf.errors import ConfigError, LakeError, NotFoundError
from sparkcf.kernels.concepts import F32, concept_mass
from sparkcf.kernels.vectors import unit_rows
from sparkcf.lake.query import Day, Lake, RunOfModel

TYPICAL = 5  # items of a summary
TYPICAL_CATEGORIES = 3
LEAST_ITEMS = 5  # of a category in a concept; the share of fewer is not shown
STEPS = (-0.5, -0.25, 0.0, 0.25, 0.5)  # values of the varied dimension of a unit vector


@dataclass(frozen=True)
class Concepts:
    """The concepts of a run.

    items : external ids (m,).
    users : (m,), number of users who have the item.
    vectors : float32 (m, d), of unit length.
    assigned : float32 (m, K), probabilities.
    config : the run's configuration.
    users_led : number of users that each concept leads; None if the run's metrics are gone.
    """

    lake: Lake
    run: RunOfModel
    items: list[str]
    users: NDArray[np.int64]
    vectors: F32
    assigned: F32
    config: dict[str, Any]
    users_led: list[int | None]

    @classmethod
    def read(cls, lake: Lake, model: str | None = None, ds: Day = None) -> Concepts:
        """Read the concepts of the published run.

        Raises
        ------
        ConfigError
            The model has no concepts.
        NotFoundError, LakeError
            As in `Lake.published`.
        """
        return cls.of_run(lake, lake.published(model, ds))

    @classmethod
    def of_run(cls, lake: Lake, run: RunOfModel) -> Concepts:
        """Read the concepts of a run. Raises as `read`."""
        rows = lake.read("item_concepts", None, run.partition) if lake.has("item_concepts") else None
        if rows is None or not rows.num_rows:
            raise ConfigError(f"{run} has no concepts: name a model with concepts, such as --model macridvae")
        factors = lake.read("item_factors", None, run.partition, ("item_id", "factor"))
        ids, vectors = factors["item_id"].to_pylist(), _vectors(factors["factor"])
        place = {item: number for number, item in enumerate(ids)}
        assigned = np.zeros((len(ids), max(rows["concept"].to_pylist()) + 1), np.float32)
        at = [place[item] for item in rows["item_id"].to_pylist()]
        assigned[at, rows["concept"].to_numpy()] = rows["probability"].to_numpy()
        users = np.zeros(len(ids), np.int64)
        users[at] = rows["users"].to_numpy()
        return cls(
            lake, run, ids, users, vectors, assigned, _config(lake, run), _users_led(lake, run, assigned.shape[1])
        )

    @property
    def temperature(self) -> float:
        """Cosines are divided by it."""
        return float(self.config[self.run.model]["temperature"])

    @property
    def unread_ban(self) -> str | None:
        """Path of the run's `topk.ineligible`, whose items `list_within` does not leave out; None: there is none."""
        path: str | None = self.config["topk"]["ineligible"]
        return path

    def summaries(self) -> pa.Table:
        """A row per concept: concept, items, users_led, categories, typical.

        items : number of items whose most probable concept it is.
        users_led : number of users that it leads.
        categories : categories whose share in the concept exceeds that in all items by most.
        typical : titles of the concept's items with the largest users x probability.
        """
        read = self.lake.read("items", None, None, ("item_id", "title", "categories")).to_pylist()
        described = {row["item_id"]: row for row in read}
        titles, categories = ([described[item][name] for item in self.items] for name in ("title", "categories"))
        leading = self.assigned.argmax(axis=1)
        total = Counter(c for each in categories for c in set(each or ()))
        rows = []
        for concept in range(self.assigned.shape[1]):
            members = np.flatnonzero(leading == concept)
            mass = self.assigned[members, concept] * self.users[members]
            typical = members[np.argsort(-mass, kind="stable")[:TYPICAL]]
            rows.append(
                {
                    "concept": concept,
                    "items": len(members),
                    "users_led": self.users_led[concept],
                    "categories": _distinguishing(
                        Counter(c for i in members for c in set(categories[i] or ())), total, len(members), len(leading)
                    ),
                    "typical": "; ".join(titles[i] or self.items[i] for i in typical),
                }
            )
        return pa.Table.from_pylist(rows).replace_schema_metadata(self._origin())

    def list_within(self, user: str, concept: int, k: int) -> pa.Table:
        """A user's items ranked by a concept's contribution to their scores: position, item_id, title, score.

        Items that the run's configuration keeps from lists are left out: those that the user has, unless
        `topk.exclude_seen` is false, and those that `topk` and `rerank.exclude` exclude, but see `unread_ban`.
        """
        self.check(concept)
        mass, listed = self._mass(self._user(user)[concept], concept), self._eligible()
        if self.config["topk"]["exclude_seen"]:
            seen = set(self.lake.read("interactions", ("user_id", [user]))["item_id"].to_pylist())
            listed &= np.array([item not in seen for item in self.items], bool)
        order = np.argsort(-np.where(listed, mass, -1.0), kind="stable")[: min(k, int(listed.sum()))]
        with np.errstate(divide="ignore"):
            return self._listed(order, np.log(mass[order]))

    def varied(self, concept: int, dimension: int, k: int, user: str | None = None) -> pa.Table:
        """The ranking within a concept as one dimension of its vector varies: value, position, item_id, title, score.

        The vector is the user's, else the centre of the concept's items. The dimension takes the values STEPS; the rest
        of the vector keeps its direction.
        """
        self.check(concept, dimension)
        z = self._center(concept) if user is None else self._user(user)[concept]
        tables = []
        for value in STEPS:
            moved = z.copy()
            moved[dimension] = 0.0
            rest = np.linalg.norm(moved)
            moved *= np.sqrt(1.0 - value**2) / rest if rest else 0.0
            moved[dimension] = value
            mass = self._mass(moved, concept)
            order = np.argsort(-mass, kind="stable")[:k]
            listed = self._listed(order, np.log(np.maximum(mass[order], 1e-30)))
            tables.append(listed.add_column(0, "value", pa.array([value] * len(order))))
        return pa.concat_tables(tables)

    def check(self, concept: int, dimension: int = 0) -> None:
        """Raise ConfigError for a concept or a dimension out of range."""
        for name, value, n in (
            ("concept", concept, self.assigned.shape[1]),
            ("dimension", dimension, self.vectors.shape[1]),
        ):
            if not 0 <= value < n:
                raise ConfigError(f"{name} {value} is not in {self.run}: it has {name}s 0 to {n - 1}")

    def _eligible(self) -> NDArray[np.bool_]:
        """Whether `topk.categories`, `topk.exclude_categories` and `rerank.exclude` allow each item, bool (m,)."""
        topk, excluded = self.config["topk"], self.config.get("rerank", {}).get("exclude")
        wanted, unwanted = set(topk["categories"]), set(topk["exclude_categories"])
        if not (wanted or unwanted or excluded):
            return np.ones(len(self.items), bool)
        rows = self.lake.read("items", None, None, ("item_id", "categories", "attributes")).to_pylist()
        allowed = set()
        for row in rows:
            categories, attributes = set(row["categories"] or ()), dict(row["attributes"] or ())
            banned = not categories.isdisjoint(unwanted) or (bool(wanted) and categories.isdisjoint(wanted))
            for rule in excluded:
                texts = categories if rule["by"] == "categories" else {attributes.get(rule["by"])}
                banned = banned or not texts.isdisjoint(rule["values"])
            if not banned:
                allowed.add(row["item_id"])
        return np.array([item in allowed for item in self.items], bool)

    def _mass(self, z: F32, concept: int) -> F32:
        return concept_mass(z[None], self.vectors, self.assigned[:, concept], self.temperature)[0]

    def _center(self, concept: int) -> F32:
        center = self.assigned[:, concept] @ self.vectors
        return unit_rows(center[None])[0]

    def _user(self, user: str) -> F32:
        """z (K, d)."""
        rows = self.lake.read("user_factors", ("user_id", [user]), self.run.partition, ("user_id", "factor"))
        if not rows.num_rows:
            raise NotFoundError(f"user {user!r} has no vector in {self.run}: the run was trained without this user")
        return _vectors(rows["factor"]).reshape(self.assigned.shape[1], -1)

    def _listed(self, order: NDArray[np.intp], scores: NDArray[Any]) -> pa.Table:
        ids = [self.items[i] for i in order]
        columns = {"position": range(1, len(ids) + 1), "item_id": ids}
        rows = pa.table({name: pa.array(list(column)) for name, column in columns.items()})
        rows = self.lake.with_titles(rows).append_column("score", pa.array(scores.astype(np.float32)))
        return rows.replace_schema_metadata(self._origin())

    def _origin(self) -> dict[str, str]:
        return {**self.run.partition, "ds": str(self.run.ds)}


def _distinguishing(inside: Counter[str], total: Counter[str], n: int, m: int) -> str:
    """The categories whose share in a concept of n items exceeds that in all m by most, as "Comedy 2.1x"."""
    lift = {name: count / n / (total[name] / m) for name, count in inside.items() if count >= min(LEAST_ITEMS, n)}
    best = sorted(lift, key=lambda name: (-lift[name], name))[:TYPICAL_CATEGORIES]
    return ", ".join(f"{name} {lift[name]:.1f}x" for name in best)


def _vectors(column: pa.ChunkedArray) -> F32:
    """A list column as float32 (n, d)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(column), -1)


def _config(lake: Lake, run: RunOfModel) -> dict[str, Any]:
    rows = lake.read("runs", ("run_id", [run.run_id]), None, ("run_id", "config"))
    if not rows.num_rows:
        raise LakeError(f"{run} has no row in table runs, so its configuration is unknown: publish another run")
    found: dict[str, Any] = json.loads(rows["config"][0].as_py())
    return found


def _users_led(lake: Lake, run: RunOfModel, n: int) -> list[int | None]:
    if not lake.has("metrics"):  # no run was ever evaluated
        return [None] * n
    rows = lake.read("metrics", ("run_id", [run.run_id]), None, ("run_id", "metric", "segment", "value")).to_pylist()
    led = {row["segment"]: int(row["value"]) for row in rows if row["metric"] == "users_led"}
    return [led.get(f"concept {concept}") for concept in range(n)]
