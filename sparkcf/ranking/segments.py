"""Quality by segment: users by activity, held-out items by popularity and by category.

    users   the mean of one measure over the users of a segment
    items   found_at_k: of the held-out items of a segment, the share that is in its user's list of k

Both are ratios of two sums over users, so columns of a summary hold both sums, and its replicates give their bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from sparkcf.kernels.metrics import Summary
from sparkcf.lake.figures import Figure

MOST_CATEGORIES = 12
FIFTHS = 5
BUCKETS = 40  # of activity: half octaves of a user's items, merged to tenths of the users
TENTHS = 10
FOUND = "found_at_k"

F64 = NDArray[np.float64]
Rows = tuple[NDArray[np.int64], NDArray[np.int32]]  # indptr (n + 1,), indices


@dataclass(frozen=True)
class Categories:
    """The most common categories. `member` : bool (m, c), whether an item has a category."""

    names: tuple[str, ...]
    member: NDArray[np.bool_]

    @classmethod
    def of(cls, items: DataFrame, n_items: int) -> Categories:
        """Collect the column `categories` of the table of items; one Spark job."""
        rows = items.select("item_idx", "categories").where("categories IS NOT NULL").toPandas()
        lists = pa.array(rows["categories"].astype(object), pa.list_(pa.string()))
        names, owner = pc.list_flatten(lists), pc.list_parent_indices(lists)
        counted = [(c["counts"], c["values"]) for c in pc.value_counts(names).to_pylist() if c["values"]]
        kept = tuple(name for _, name in sorted(counted, key=lambda c: (-c[0], c[1]))[:MOST_CATEGORIES])
        place = pc.fill_null(pc.index_in(names, value_set=pa.array(kept, pa.string())), -1)
        place = place.to_numpy(zero_copy_only=False)
        item = rows["item_idx"].to_numpy(np.int64)[owner.to_numpy(zero_copy_only=False)]
        known = (place >= 0) & (item < n_items)
        member = np.zeros((n_items, len(kept)), bool)
        member[item[known], place[known]] = True
        return cls(kept, member)


@dataclass(frozen=True)
class Segments:
    """The segments of a test.

    measure, column : the measure by activity and its place among the measures of a user; its k is that of the lists.
    group : int8 (m,), the fifth of the pairs that an item belongs to, 0: the most popular items; FIFTHS: no pairs.
    categories : None: none are known.
    """

    measure: tuple[str, int]
    column: int
    group: NDArray[np.int8]
    categories: Categories | None

    @classmethod
    def of(
        cls,
        names: Sequence[tuple[str, int]],
        measure: tuple[str, int],
        popularity: NDArray[np.float32],
        categories: Categories | None,
    ) -> Segments:
        """`popularity` : number of users of every item (m,) in the train part."""
        order = np.argsort(-popularity, kind="stable")
        before = np.cumsum(popularity[order], dtype=np.float64) - popularity[order]
        group = np.full(len(popularity), FIFTHS, np.int8)
        group[order] = np.minimum(FIFTHS * before / max(popularity.sum(), 1), FIFTHS - 1)
        group[popularity <= 0] = FIFTHS
        return cls(measure, list(names).index(measure), group, categories)

    @property
    def width(self) -> int:
        """Columns of `columns`."""
        return 2 * (BUCKETS + FIFTHS + 1 + self._n_categories)

    @property
    def _n_categories(self) -> int:
        return len(self.categories.names) if self.categories else 0

    def columns(self, values: F64, seen: Rows, heldout: Rows, ranked: NDArray[np.int32]) -> F64:
        """What users add to the two sums of every segment: (n, width), first all numerators.

        Parameters
        ----------
        values : measures of the users (n, names).
        seen, heldout : items of the users.
        ranked : lists (n, K), padded with -1.
        """
        n, m, k = len(values), len(self.group), self.measure[1]
        users = np.zeros((n, BUCKETS))
        users[np.arange(n), bucket_of(np.diff(seen[0]))] = 1.0
        row, item = np.repeat(np.arange(n), np.diff(heldout[0])), heldout[1]
        listed = ranked[:, :k]
        keys = (np.arange(n)[:, None] * m + listed)[listed >= 0]
        hit = np.isin(row * m + item, keys)
        cell = row * (FIFTHS + 1) + self.group[item]
        size = n * (FIFTHS + 1)
        held = [np.bincount(cell, minlength=size).reshape(n, -1)]
        hits = [np.bincount(cell, weights=hit, minlength=size).reshape(n, -1)]
        for category in range(self._n_categories):
            assert self.categories is not None
            has = self.categories.member[item, category]
            held.append(np.bincount(row, weights=has, minlength=n)[:, None])
            hits.append(np.bincount(row, weights=has & hit, minlength=n)[:, None])
        return np.column_stack([users * values[:, self.column, None], *hits, users, *held])

    def figures(self, system: str, summary: Summary, start: int) -> Iterator[Figure]:
        """The figures of a system. `start` : place of the first of the columns in the summary."""
        half = self.width // 2
        counts = summary.sums[start + half : start + self.width]
        for number, (first, last) in enumerate(tenths(counts[:BUCKETS]), 1):
            low, high = edge(first), edge(last + 1) - 1
            name = f"activity {number} {low:,}" + (f"-{high:,} items" if high > low else " items")
            yield self._figure(system, summary, start, half, slice(first, last + 1), self.measure, name)
        found = (FOUND, self.measure[1])
        for fifth in range(FIFTHS + 1):
            n = int((self.group == fifth).sum())
            label = f"fifth {fifth + 1}, {n:,} items" if fifth < FIFTHS else f"no pairs, {n:,} items"
            place = BUCKETS + fifth
            if counts[place]:
                name = f"popularity {fifth + 1} {label}"
                yield self._figure(system, summary, start, half, slice(place, place + 1), found, name)
        for category in range(self._n_categories):
            place = BUCKETS + FIFTHS + 1 + category
            assert self.categories is not None
            if counts[place]:
                name = f"category {self.categories.names[category]}"
                yield self._figure(system, summary, start, half, slice(place, place + 1), found, name)

    def _figure(
        self,
        system: str,
        summary: Summary,
        start: int,
        half: int,
        places: slice,
        measure: tuple[str, int],
        name: str,
    ) -> Figure:
        above = slice(start + places.start, start + places.stop)
        below = slice(above.start + half, above.stop + half)
        part = Summary(
            round(summary.sums[below].sum()),
            summary.left_out,
            summary.sums[above].sum(keepdims=True),
            summary.replicate_sums[:, below].sum(axis=1),
            summary.replicate_sums[:, above].sum(axis=1, keepdims=True),
        )
        mean, lower, upper = part.result()
        bounds = (None, None) if np.isnan(lower[0]) else (float(lower[0]), float(upper[0]))
        return Figure(system, *measure, float(mean[0]), *bounds, part.counted, name)


def bucket_of(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """The half octave of a user's number of items: floor(2 log2(items + 1)), at most BUCKETS - 1."""
    return np.minimum(np.floor(2 * np.log2(items + 1.0) + 1e-9), BUCKETS - 1).astype(np.int64)


def edge(bucket: int) -> int:
    """The least number of items in a bucket or in those above."""
    return int(np.ceil(2 ** (bucket / 2) - 1e-9)) - 1


def tenths(users: F64) -> list[tuple[int, int]]:
    """First and last bucket of at most TENTHS groups, in order, each of about a tenth of the users or of one bucket.

    `users` : users of every bucket.
    """
    least, groups = users.sum() / TENTHS, []
    first, held = -1, 0.0
    for bucket in np.flatnonzero(users):
        first = int(bucket) if first < 0 else first
        held += users[bucket]
        if held >= least * (1 - 1e-9):
            groups.append((first, int(bucket)))
            first, held = -1, 0.0
    if first >= 0:
        last = int(np.flatnonzero(users)[-1])
        groups.append((groups.pop()[0], last) if groups else (first, last))
    return groups
