"""Users and items whose number of events is out of bounds, and notes on suspicious ids.

Events are counted without exact duplicates, so that a log delivered twice does not change who is out of bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.config.input import CleanConfig

LEAST_LIMIT = 10_000  # events; the smallest limit that `auto` sets
TIMES_USUAL = 50  # `auto`'s limit as a multiple of the 99th percentile of events per user
MOST_ROUNDS = 20
LARGEST = 3  # users that are reported


@dataclass(frozen=True)
class Outliers:
    """The users and items to reject, with their reasons."""

    users: DataFrame | None  # user_id, reason; None: no user
    items: DataFrame | None  # item_id, reason; None: no item
    figures: dict[str, int]
    notes: tuple[str, ...]
    kept: tuple[DataFrame, ...]  # persisted frames, released by the caller

    @property
    def any(self) -> bool:
        return self.users is not None or self.items is not None

    def keep(self, rows: DataFrame) -> DataFrame:
        """Rows of users and items that are not rejected."""
        for key, rejected in (("user_id", self.users), ("item_id", self.items)):
            if rejected is not None:
                rows = rows.join(rejected, on=key, how="left_anti")
        return rows

    def with_reason(self, rows: DataFrame) -> DataFrame:
        """Set `reason` of the rejected users' and items' rows that have none yet."""
        for key, rejected in (("user_id", self.users), ("item_id", self.items)):
            if rejected is not None:
                rows = rows.join(rejected.withColumnRenamed("reason", "outlier"), on=key, how="left")
                rows = rows.withColumn("reason", F.coalesce("reason", "outlier")).drop("outlier")
        return rows


def find_outliers(events: DataFrame, users: DataFrame, config: CleanConfig) -> Outliers:
    """Find users with too many or too few events, then items with too few, once or until nothing changes.

    The rounds of `until_stable` stop after MOST_ROUNDS at the latest, with a note.

    Parameters
    ----------
    events : user_id, item_id and `values`, the number of distinct values of the row's key.
    users : user_id and `events`, the sum of the user's `values`; read three times.
    """
    kept, rejected = [], {"user_id": [], "item_id": []}
    usual = F.percentile_approx("events", 0.99, 10_000).alias("usual")
    stats = users.agg(F.sum("events").alias("events"), F.max("events").alias("most"), usual).first()
    figures, notes = {"largest_user_events": int(stats["most"] or 0)}, []
    if stats["events"]:
        notes.append(_largest(users, stats["events"]))
    most = config.max_events_per_user
    if most == "auto":
        most = max(LEAST_LIMIT, TIMES_USUAL * int(stats["usual"] or 0))

    def reject(key: str, outside: DataFrame) -> bool:
        """Add outliers to `rejected`; returns whether there are any."""
        outside = outside.persist(StorageLevel.MEMORY_AND_DISK)  # counted, then joined in every later round
        kept.append(outside)
        if outside.isEmpty():
            return False
        rejected[key].append(outside)
        return True

    def rare(side: str, low: int) -> DataFrame:
        """Users (items) with fewer than `low` events among the rows not yet rejected."""
        left = _without(events, rejected)
        counts = left.groupBy(f"{side}_id").agg(F.sum("values").alias("events"))
        return counts.where(F.col("events") < low).select(
            f"{side}_id", F.lit(f"too_few_events_of_{side}").alias("reason")
        )

    too = F.when(F.col("events") > most, "too_many_events_of_user").otherwise("too_few_events_of_user")
    low_user, low_item = config.min_events_per_user, config.min_events_per_item
    reject("user_id", users.where(~F.col("events").between(low_user, most)).select("user_id", too.alias("reason")))
    for done in range(MOST_ROUNDS):
        if low_item == 1 or not reject("item_id", rare("item", low_item)) or config.minimum == "once":
            break
        if low_user == 1 or not reject("user_id", rare("user", low_user)):
            break
        if done == MOST_ROUNDS - 1:
            notes.append(f"users and items below their minimum are left after {MOST_ROUNDS} rounds (clean.minimum)")
    frames = [reduce(DataFrame.unionByName, rejected[key]) if rejected[key] else None for key in rejected]
    return Outliers(*frames, figures, tuple(notes), tuple(kept))


def _without(events: DataFrame, rejected: dict[str, list[DataFrame]]) -> DataFrame:
    for key, frames in rejected.items():
        if frames:
            events = events.join(reduce(DataFrame.unionByName, frames), on=key, how="left_anti")
    return events


def _largest(users: DataFrame, total: int) -> str:
    top = users.orderBy(F.desc("events"), "user_id").limit(LARGEST).collect()
    shown = ", ".join(f"{_short(r['user_id'])} {r['events']:,} ({r['events'] / total:.1%})" for r in top)
    return f"users with most events: {shown}"


def alike(ids: DataFrame, name: str, plain: Column, cure: str) -> tuple[int, str | None]:
    """Number of ids that equal another id in their plain form, and a note about them.

    Parameters
    ----------
    ids : one row per id, in the column `name`.
    plain : the id's plain form.
    cure : settings that the note recommends.
    """
    groups = ids.groupBy(plain.alias("plain")).agg(
        F.count(F.lit(1)).alias("ids"), F.min(name).alias("one"), F.max(name).alias("other")
    )
    found = groups.where("ids > 1").agg(
        F.sum(F.col("ids") - 1).alias("more"), F.min(F.struct("one", "other")).alias("e")
    )
    row = found.first()
    if not row["more"]:
        return 0, None
    example = f"{_short(row['e']['one'])} and {_short(row['e']['other'])}"
    what = f"{name.removesuffix('_id')} ids equal another id once case and unicode are folded, such as {example}"
    return int(row["more"]), f"{row['more']:,} {what}: set {cure} if they are the same"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
