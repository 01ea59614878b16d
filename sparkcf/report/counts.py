"""Counts of events by day, user and item, read piece by piece; and the catalogue that they are counted over."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparkcf.lake.query import Lake
from sparkcf.lake.scan import Scan

MOST_EVENTS = 30_000_000  # of more events, evenly spread pieces are counted
MOST_CATEGORIES = 24
MERGED_AT = 2_000_000  # groups that wait at most to be merged

I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Catalogue:
    """The items of a lake.

    ids : external ids (m,).
    categories : names of the most common categories (c,), most common first.
    member : bool (m, c), whether an item has a category.
    first : (m,), the place in `categories` of an item's first category that is there; -1: it has none.
    """

    ids: pa.Array
    categories: tuple[str, ...]
    member: Bools
    first: NDArray[np.int32]

    def codes(self, ids: pa.ChunkedArray) -> I64:
        """Places of the items of a column (n,); -1: not in the catalogue."""
        encoded = pc.dictionary_encode(ids).combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):  # of an empty column
            return np.empty(0, np.int64)
        places = pc.fill_null(pc.index_in(encoded.dictionary, value_set=self.ids), -1).to_numpy(zero_copy_only=False)
        return places.astype(np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]


@dataclass(frozen=True)
class Events:
    """Counts of the events up to a day.

    total, share : events there are, and the share of them that was counted.
    days, by_day : dates in ascending order (d,), events counted of each.
    by_item : events of every item of the catalogue (m,).
    by_user : table user_id, events.
    """

    total: int
    share: float
    days: NDArray[np.datetime64]
    by_day: I64
    by_item: I64
    by_user: pa.Table

    @property
    def user_counts(self) -> I64:
        counts: I64 = self.by_user["events"].to_numpy()
        return counts


def read_catalogue(lake: Lake, up_to: dt.date) -> Catalogue | None:
    """The items of which an event up to a day is known, or none at all. None: there are none."""
    if not lake.has("items"):
        return None
    rows = lake.read("items", None, None, ("item_id", "categories", "first_seen"))
    end = pa.scalar(dt.datetime.combine(up_to, dt.time(), dt.UTC) + dt.timedelta(days=1), rows["first_seen"].type)
    rows = rows.filter(pc.fill_null(pc.less(rows["first_seen"], end), True))
    if not rows.num_rows:
        return None
    lists = rows["categories"].combine_chunks()
    names = pc.list_flatten(lists)
    owner = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    counted = pc.value_counts(names).to_pylist()  # a row a category
    ranked = sorted((c for c in counted if c["values"]), key=lambda c: (-c["counts"], c["values"]))
    kept = [c["values"] for c in ranked[:MOST_CATEGORIES]]
    place = pc.fill_null(pc.index_in(names, value_set=pa.array(kept, pa.string())), -1).to_numpy(zero_copy_only=False)
    member = np.zeros((rows.num_rows, len(kept)), bool)
    member[owner[place >= 0], place[place >= 0]] = True
    first = np.full(rows.num_rows, -1, np.int32)
    owners, at = np.unique(owner[place >= 0], return_index=True)
    first[owners] = place[place >= 0][at]
    return Catalogue(rows["item_id"].combine_chunks(), tuple(kept), member, first)


def count_events(lake: Lake, up_to: dt.date, catalogue: Catalogue) -> Events | None:
    """Count the events of loads up to a day; None: there are none."""
    if not lake.has("interactions"):
        return None
    scan = Scan(lake, "interactions", ("user_id", "item_id", "ts"), up_to=up_to, most=MOST_EVENTS)
    users, days = _Counter("user_id", pa.string()), _Counter("day", pa.date32())
    by_item = np.zeros(len(catalogue.ids), np.int64)
    for piece in scan:
        users.add(piece["user_id"])
        days.add(pc.cast(piece["ts"], pa.date32()))
        codes = catalogue.codes(piece["item_id"])
        by_item += np.bincount(codes[codes >= 0], minlength=len(by_item))
    if not scan.counted:
        return None
    by_day = days.result().sort_by("day")
    return Events(
        scan.total,
        scan.share,
        by_day["day"].to_numpy().astype("datetime64[D]"),
        by_day["events"].to_numpy(),
        by_item,
        users.result().sort_by([("events", "ascending"), ("user_id", "ascending")]),
    )


class _Counter:
    """Counts equal values of a column that comes in pieces."""

    def __init__(self, name: str, dtype: pa.DataType) -> None:
        self._name = name
        self._schema = pa.schema([(name, dtype), ("events", pa.int64())])
        self._parts: list[pa.Table] = [self._schema.empty_table()]

    def add(self, column: pa.ChunkedArray) -> None:
        counted = pa.table({self._name: column}).group_by(self._name).aggregate([([], "count_all")])
        self._parts.append(self._named(counted, "count_all"))
        if sum(part.num_rows for part in self._parts) > MERGED_AT and len(self._parts) > 2:
            self._parts = [self.result()]

    def result(self) -> pa.Table:
        summed = pa.concat_tables(self._parts).group_by(self._name).aggregate([("events", "sum")])
        return self._named(summed, "events_sum")

    def _named(self, table: pa.Table, counts: str) -> pa.Table:
        arrays: list[Any] = [table[self._name], table[counts]]
        return pa.table(arrays, names=self._schema.names).cast(self._schema)


def gini(counts: NDArray[Any]) -> float:
    """Gini coefficient of non-negative counts (n,): 0 all equal, near 1 all in one; nan: there is nothing."""
    ordered = np.sort(counts.astype(np.float64))
    n, total = len(ordered), ordered.sum()
    if not total:
        return float("nan")
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def held_by_top(counts: NDArray[Any], points: int = 101) -> tuple[NDArray[Any], NDArray[Any]]:
    """The share that the most frequent of n items hold, at `points` shares of the items: (points,), (points,)."""
    ordered = np.sort(counts.astype(np.float64))[::-1]
    held = np.concatenate([[0.0], np.cumsum(ordered)]) / max(ordered.sum(), 1.0)
    shares = np.linspace(0, 1, points)
    return shares, held[np.round(shares * len(ordered)).astype(np.int64)]
