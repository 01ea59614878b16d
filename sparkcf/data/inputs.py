"""Inputs of a run: the tables at the run's pinned versions, and the interactions with dense indices."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.data.pairs import indexed
from sparkcf.errors import LakeError
from sparkcf.lake.frames import one_row
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.sizing import size_queries
from sparkcf.lake.tables import LakeTables, sql_date

INPUTS = ("interactions", "users", "items", "features", "published")


def newest_versions(tables: LakeTables) -> dict[str, int]:
    """Current versions of the input tables, for a new run to pin; -1 for a table that does not exist yet."""
    return {name: tables.version(name) for name in INPUTS}


def as_of(interactions: DataFrame, day: str) -> DataFrame:
    """The events of loads up to a day (SQL date); those that a later day corrected have their last state until then."""
    until = F.expr(f"try_element_at(filter(replaced, r -> r.ds <= {day}), -1)")  # null: no load until then had it
    own = F.col("ds") <= F.expr(day)
    states = {name: F.when(own, F.col(name)).otherwise(until[name]) for name in ("value", "context")}
    return interactions.where(own | until.isNotNull()).withColumns(states)


@dataclass(frozen=True)
class Inputs:
    """The tables that a run reads, each at its pinned version."""

    tables: LakeTables
    versions: Mapping[str, int]
    # Days known to have events, and whether later days were loaded too.
    _loaded: dict[dt.date, bool] = field(default_factory=dict, compare=False, repr=False)

    def read(self, name: str) -> DataFrame:
        """Read a table at its pinned version; an empty frame if the table did not exist.

        Raises LakeError if interactions, users or items did not exist.
        """
        version = self.versions.get(name, -1)
        if version >= 0:
            return self.tables.read(name, version)
        if name in ("interactions", "users", "items"):
            raise LakeError(f"{self.tables.root} has no table {name}: run jobs/clean.py first")
        return self.tables.spark.createDataFrame([], TABLES[name].schema)

    def events(self, until: dt.date) -> DataFrame:
        """Interactions as they were loaded up to a logical date: user_idx, item_idx, event, value, ts, context.

        An event that a later day corrected has the state of the last of these days. Spark's queries are set to their
        size. Raises LakeError if there are none.
        """
        frames = [self.read(name) for name in ("interactions", "users", "items")]
        day = sql_date(until)
        loaded = frames[0].where(f"ds <= {day}")
        if until not in self._loaded:
            size_queries(self.tables.spark, loaded)
            later = not frames[0].where(f"ds > {day}").isEmpty()
            if (as_of(frames[0], day) if later else loaded).isEmpty():
                raise LakeError(
                    f"{self.tables.root} has no interactions up to {until}: run jobs/clean.py ds={until} first"
                )
            self._loaded[until] = later
        return indexed(as_of(frames[0], day) if self._loaded[until] else loaded, *frames[1:])

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """The numbers of users and of items: one more than the largest dense index."""
        last_user, last_item = (self.read(f"{side}s").agg(F.max(f"{side}_idx")) for side in ("user", "item"))
        users, items = one_row(last_user.crossJoin(last_item))
        return int(users) + 1, int(items) + 1
