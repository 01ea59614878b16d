"""The rows of a factorization machine at one worker of a gang, and what its sweeps must know: numpy, no Spark.

Every row of the data is held twice, with the worker of its user and with that of its item (`Copy`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.models import FMConfig
from sparkcf.kernels.csr import take_rows
from sparkcf.kernels.fm import group_features, list_keys
from sparkcf.training.blocks import USER, places, row_ids
from sparkcf.training.gang import Gang

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
WEIGHT_EXPONENTS = {"one": 0.0, "sqrt": -0.5, "mean": -1.0}  # FMField.weight: each of m features has the value m^this


@dataclass(frozen=True)
class Field:
    """A group of features: `size` of them; `several` of them may stand in one row; `side` USER or ITEM where they are
    the ids of that side and live with its rows, None where they stand at every worker; `of_item`: what the item has,
    else it is what the user has."""

    name: str
    size: int
    several: bool = False
    side: int | None = None
    of_item: bool = False


@dataclass(frozen=True)
class FMPlan:
    """All that a worker must know, and nothing of Spark. `pairs` bool (F, F): which fields interact."""

    config: FMConfig
    fields: tuple[Field, ...]
    pairs: NDArray[np.bool_]
    n_users: int
    n_items: int
    seed: int
    threads: int

    @property
    def sizes(self) -> tuple[int, int]:
        return self.n_users, self.n_items

    def starts(self) -> list[int]:
        """Where each field that stands at every worker begins in the table of all of them; -1 for the others."""
        starts, begin = [], 0
        for f in self.fields:
            starts.append(begin if f.side is None else -1)
            begin += f.size if f.side is None else 0
        return starts

    def penalties(self) -> NDArray[np.float64]:
        """L2 penalties of each field's vectors and weights for ALS and SGD, (fields, 2)."""
        own = [
            (self.config.regularization_of(f.name), self.config.linear_regularization_of(f.name)) for f in self.fields
        ]
        return np.array(own)

    @property
    def everywhere(self) -> int:
        return sum(f.size for f in self.fields if f.side is None)


def make_plan(
    config: FMConfig, fields: tuple[Field, ...], n_users: int, n_items: int, seed: int, threads: int
) -> FMPlan:
    names = [f.name for f in fields]
    pairs = np.array([[config.interacting(one, other) for other in names] for one in names])
    return FMPlan(config, fields, pairs, n_users, n_items, seed, threads)


def part_starts(plan: FMPlan) -> tuple[int, int]:
    """Where the users' and the items' ids begin, behind the features that stand everywhere."""
    has_users = any(f.side == USER for f in plan.fields)
    return plan.everywhere, plan.everywhere + (plan.n_users if has_users else 0)


@dataclass(frozen=True)
class FMData:
    """Rows in this process: `users`, `items` int32 (n,), `y` float32 (n,), and what the other fields have as
    compressed rows: `ptr` int64 (n + 1,), `feat` int32 into the fields other than user and item, one after the other,
    `val` float32."""

    users: I32
    items: I32
    y: F32
    ptr: I64
    feat: I32
    val: F32

    @classmethod
    def of_pairs(cls, users: NDArray[Any], items: NDArray[Any], y: NDArray[Any]) -> FMData:
        """Rows of a user and an item, and nothing else."""
        nothing = np.zeros(len(y) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
        return cls(users.astype(np.int32), items.astype(np.int32), y.astype(np.float32), *nothing)


@dataclass
class FMRows:
    """Rows as the shuffle brings them to the worker of one side: `own` int32 (n,) places there, `other` int32 (n,)
    indices of the other side, `y` float32 (n,), `key` int64 (n,) the same in both copies of a row; what the fields
    that stand at every worker have: `ptr` int64 (n + 1,), `feat` int32, `val` float32."""

    own: I32
    other: I32
    y: F32
    key: I64
    ptr: I64
    feat: I32
    val: F32


@dataclass
class Copy:
    """A worker's rows, in order of the side's places, and the table that their features point into.

    table : the features that stand everywhere, then the side's own, then those received of the other side.
    targets : y, or the latent variable of the probit.
    """

    rowptr: I64
    feat: I32
    val: F32
    y: F32
    key: I64
    table: F32
    fields: NDArray[np.int16]
    own: slice
    got: slice
    sends: list[I64]  # places here of the other copy's own features that others asked for
    targets: F32 = field(init=False)

    def __post_init__(self) -> None:
        self.targets = self.y.copy()

    @property
    def entries(self) -> tuple[I64, I32, F32]:
        return self.rowptr, self.feat, self.val


@dataclass
class Visits:
    """Where a field's features stand in a copy's rows: rows, entries, and the feature's place, ascending; `starts`
    int64 (features here + 1,): where each feature's visits begin. `groups`, of a field of which rows may have several:
    the features that any worker has rows of, in groups of which no row of any worker has two."""

    rows: I64
    entries: I64
    places: I64
    starts: I64
    present: NDArray[np.bool_]  # (features here,), over all workers
    groups: list[I64]


def feature_ids(f: Field, plan: FMPlan, gang: Gang) -> I64:
    """The features of a field that stand at this worker."""
    return np.arange(f.size) if f.side is None else row_ids(plan.sizes[f.side], gang.rank, gang.size)


def copy_rows(rows: list[FMRows], side: int, plan: FMPlan, gang: Gang) -> Copy:
    part = rows[side]
    located = {f.side: number for number, f in enumerate(plan.fields) if f.side is not None}
    own_size = places(plan.sizes[side], gang.rank, gang.size) if side in located else 0
    order = np.lexsort((part.key, part.own))
    taken, source = take_rows(part.ptr, order)
    counts = np.diff(taken)
    needed: list[I64] = [np.empty(0, np.int64)] * gang.size
    position = np.empty(0, np.int32)
    if 1 - side in located:
        wanted = np.zeros(plan.sizes[1 - side], bool)
        wanted[part.other] = True
        needed = [np.flatnonzero(wanted[w :: gang.size]) for w in range(gang.size)]
        position = np.zeros(len(wanted), np.int32)
        begin = 0
        for w, asked in enumerate(needed):
            position[w :: gang.size][asked] = np.arange(begin, begin + len(asked), dtype=np.int32)
            begin += len(asked)
    sends = [asked.copy() for asked in gang.exchange(needed)]
    received = sum(map(len, needed))
    base = plan.everywhere
    own, got = slice(base, base + own_size), slice(base + own_size, base + own_size + received)
    lists = [(part.own[order] + own.start, side)] if side in located else []
    if 1 - side in located:
        lists.append((position[part.other[order]] + got.start, 1 - side))
    first = len(lists)
    rowptr = taken + first * np.arange(len(taken))
    feat, val = np.empty(rowptr[-1], np.int32), np.ones(rowptr[-1], np.float32)
    for at, (column, _) in enumerate(lists):
        feat[rowptr[:-1] + at] = column
    rest = np.arange(len(source)) + first * (1 + np.repeat(np.arange(len(counts)), counts))
    feat[rest], val[rest] = part.feat[source], part.val[source]
    fields = np.zeros(base + own_size + received, np.int16)
    for number, (f, start) in enumerate(zip(plan.fields, plan.starts(), strict=True)):
        if f.side is None:
            fields[start : start + f.size] = number
    fields[own], fields[got] = located.get(side, 0), located.get(1 - side, 0)
    table = np.zeros((len(fields), plan.config.rank + 1), np.float32)
    made = Copy(rowptr, feat, val, part.y[order], part.key[order], table, fields, own, got, sends)
    empty = np.empty(0, np.int32)
    rows[side] = FMRows(empty, empty, made.y[:0], made.key[:0], part.ptr[:1], empty, part.val[:0])  # free them
    return made


def field_visits(copies: list[Copy], number: int, plan: FMPlan, gang: Gang) -> Visits:
    f = plan.fields[number]
    copy = copies[USER if f.side is None else f.side]
    start, size = plan.starts()[number], f.size
    if f.side is not None:
        start, size = copy.own.start, copy.own.stop - copy.own.start
    entries = np.flatnonzero((copy.fields[copy.feat] == number) & (copy.val != 0))
    entries = entries[np.argsort(copy.feat[entries], kind="stable")]
    rows = np.searchsorted(copy.rowptr, entries, side="right") - 1
    feature = copy.feat[entries].astype(np.int64) - start
    counts = np.bincount(feature, minlength=size)
    total = gang.sum(counts) if f.side is None else counts
    groups = _groups(rows, feature, len(copy.y), total, gang) if f.several else []
    return Visits(rows.astype(np.int64), entries.astype(np.int64), feature, _starts(counts), total > 0, groups)


def _groups(rows: I64, features: I64, n: int, counts: I64, gang: Gang) -> list[I64]:
    """`Visits.groups`; `counts` int64 (m,) are the features' visits over all workers.

    The features with most visits choose their groups first. Each distinct list of features counts once: as rows of one
    user or item have the same, that costs little beside a sweep.
    """
    keys = np.zeros(n, np.uint64)
    list_keys(rows, features, keys)
    one_of_each = np.zeros(n, bool)
    one_of_each[np.unique(keys, return_index=True)[1]] = True
    chosen = one_of_each[rows]
    rows, features = rows[chosen], features[chosen]
    features = gang.gather([features[np.argsort(rows, kind="stable")]] * gang.size)
    lengths = gang.gather([np.bincount(rows, minlength=n)[one_of_each]] * gang.size)
    lists = np.repeat(np.arange(len(lengths)), lengths)[np.argsort(features, kind="stable")]
    order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    starts = _starts(np.bincount(features, minlength=len(counts)))
    group = group_features(order, starts, lists, _starts(lengths), features)
    return [np.flatnonzero(group == number) for number in range(int(group.max(initial=-1)) + 1)]


def _starts(counts: NDArray[np.int64]) -> I64:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
