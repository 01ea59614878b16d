"""Users and items whose number of events is out of bounds, and what people should look at in an input.

Events are counted after exact duplicates are dropped: a log that delivers twice makes no bots and no regulars.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.config.input import CleanConfig

LEAST_LIMIT = 10_000  # events; `auto` calls no user with fewer a bot
TIMES_USUAL = 50  # what `auto` allows a user, in 99th percentiles of the users' counts
MOST_ROUNDS = 20
LARGEST = 3  # users that are reported


@dataclass(frozen=True)
class Outliers:
    """The users and items to reject, each with its reason; None where there are none."""

    users: DataFrame | None  # user_id, reason
    items: DataFrame | None  # item_id, reason
    figures: dict[str, int]
    notes: tuple[str, ...]
    kept: tuple[DataFrame, ...]  # persisted: to be freed by the caller

    def keep(self, rows: DataFrame) -> DataFrame:
        """The rows of the users and items that stay."""
        for key, rejected in (("user_id", self.users), ("item_id", self.items)):
            if rejected is not None:
                rows = rows.join(rejected, on=key, how="left_anti")
        return rows

    def with_reason(self, rows: DataFrame) -> DataFrame:
        """Give the rows that go theirs, where they have no `reason` yet."""
        for key, rejected in (("user_id", self.users), ("item_id", self.items)):
            if rejected is not None:
                rows = rows.join(rejected.withColumnRenamed("reason", "outlier"), on=key, how="left")
                rows = rows.withColumn("reason", F.coalesce("reason", "outlier")).drop("outlier")
        return rows


def find_outliers(events: DataFrame, config: CleanConfig) -> Outliers:
    """Users with too many or too few events, then items with too few, once or until nothing changes.

    Parameters
    ----------
    events : user_id, item_id and `values`: the rows of a key that differ.

    The rounds of `until_stable` end after MOST_ROUNDS at the latest, which is noted.
    """
    users = events.groupBy("user_id").agg(F.sum("values").alias("events"))
    users = users.persist(StorageLevel.MEMORY_AND_DISK)  # one row a user, asked three times
    kept, rejected = [users], {"user_id": [], "item_id": []}
    usual = F.percentile_approx("events", 0.99, 10_000).alias("usual")
    stats = users.agg(F.sum("events").alias("events"), F.max("events").alias("most"), usual).first()
    figures, notes = {"largest_user_events": int(stats["most"] or 0)}, []
    if stats["events"]:
        notes.append(_largest(users, stats["events"]))
    most = config.max_events_per_user
    if most == "auto":
        most = max(LEAST_LIMIT, TIMES_USUAL * int(stats["usual"] or 0))

    def reject(key: str, outside: DataFrame) -> bool:
        """Add the outliers that there are, if any."""
        outside = outside.persist(StorageLevel.MEMORY_AND_DISK)  # counted, then joined in every later round
        kept.append(outside)
        if outside.isEmpty():
            return False
        rejected[key].append(outside)
        return True

    def rare(side: str, low: int) -> DataFrame:
        """The users (items) below their minimum among the events of those that stay."""
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
    """How many ids are equal to another one in their plain form, and a note that says so.

    Parameters
    ----------
    ids : one row an id, in the column `name`. plain : its plain form. cure : what to set.
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
    what = f"{name.removesuffix('_id')} ids equal another once case and unicode are folded, such as {example}"
    return int(row["more"]), f"{row['more']:,} {what}: set {cure} if they are the same"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
