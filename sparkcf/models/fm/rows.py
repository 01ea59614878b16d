"""The rows and features of a factorization machine at one worker of a gang: numpy, no Spark.

Every row of the data is held twice, by the worker of its user and by the worker of its item (`Copy`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.fm import FMConfig
from sparkcf.kernels.csr import take_rows
from sparkcf.kernels.feature_groups import group_features, list_keys
from sparkcf.training.blocks import USER, places, row_ids
from sparkcf.training.gang import Gang
from sparkcf.training.plan import Plan

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
WEIGHT_EXPONENTS = {"one": 0.0, "sqrt": -0.5, "mean": -1.0}  # FMField.weight: each of m features has value m^exponent


@dataclass(frozen=True)
class Field:
    """A group of features.

    size : number of features.
    several : whether a row may have several of them.
    side : USER or ITEM if the features are the ids of that side, each held by the worker of its row; None: held by
        every worker.
    of_item : whether the features belong to the item; else to the user or the context.
    """

    name: str
    size: int
    several: bool = False
    side: int | None = None
    of_item: bool = False


@dataclass(frozen=True)
class FMPlan(Plan[FMConfig]):
    """The plan of a factorization machine. `pairs` : bool (F, F), which fields interact."""

    fields: tuple[Field, ...]
    pairs: NDArray[np.bool_]

    def starts(self) -> list[int]:
        """Start of each field in the table of the features held by every worker; -1 for fields of ids."""
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
        """Number of features held by every worker."""
        return sum(f.size for f in self.fields if f.side is None)


def make_plan(
    config: FMConfig, fields: tuple[Field, ...], n_users: int, n_items: int, seed: int, threads: int
) -> FMPlan:
    names = [f.name for f in fields]
    pairs = np.array([[config.interacting(one, other) for other in names] for one in names])
    return FMPlan(config, n_users, n_items, seed, threads, fields, pairs)


def part_starts(plan: FMPlan) -> tuple[int, int]:
    """Start of the users' and of the items' ids, which follow the features held by every worker."""
    has_users = any(f.side == USER for f in plan.fields)
    return plan.everywhere, plan.everywhere + (plan.n_users if has_users else 0)


@dataclass(frozen=True)
class FMData:
    """Rows of data in this process; features of fields other than user and item ids are compressed rows.

    users, items : int32 (n,).
    y : float32 (n,), targets.
    ptr : int64 (n + 1,).
    feat : int32 (nnz,), numbered field after field.
    val : float32 (nnz,).
    """

    users: I32
    items: I32
    y: F32
    ptr: I64
    feat: I32
    val: F32

    @classmethod
    def of_pairs(cls, users: NDArray[Any], items: NDArray[Any], y: NDArray[Any]) -> FMData:
        """Rows of a user and an item, without further features."""
        empty = np.zeros(len(y) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
        return cls(users.astype(np.int32), items.astype(np.int32), y.astype(np.float32), *empty)


@dataclass
class FMRows:
    """Rows as shuffled to the worker of one side; features held by every worker are compressed rows.

    own : int32 (n,), places of the side's ids at this worker.
    other : int32 (n,), indices of the other side.
    y : float32 (n,), targets.
    key : int64 (n,), the same in both copies of a row.
    ptr : int64 (n + 1,).
    feat : int32 (nnz,).
    val : float32 (nnz,).
    """

    own: I32
    other: I32
    y: F32
    key: I64
    ptr: I64
    feat: I32
    val: F32


@dataclass
class Copy:
    """A worker's rows in order of the side's places, and the parameters of their features.

    rowptr, feat, val : compressed rows over `table`.
    y : float32 (n,).
    key : int64 (n,), the same in both copies of a row.
    table : float32 (m, k + 1), features held by every worker, then the side's own, then those received of the other.
    fields : int16 (m,), field of each feature.
    own, received : parts of `table`.
    sends : sends[w] : places of the other copy's own features that worker w requests.
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
    received: slice
    sends: list[I64]
    targets: F32 = field(init=False)

    def __post_init__(self) -> None:
        self.targets = self.y.copy()

    @property
    def entries(self) -> tuple[I64, I32, F32]:
        return self.rowptr, self.feat, self.val


@dataclass
class Visits:
    """Occurrences ("visits") of a field's features in a copy's rows, in order of the features.

    rows, entries : int64 (v,), row and entry of each visit.
    places : int64 (v,), ascending, place of the feature at this worker.
    starts : int64 (features here + 1,), start of each feature's visits.
    present : bool (features here,), whether any worker has a visit of the feature.
    groups : for a field with `several`: the present features, in groups of which no row of any worker has two.
    """

    rows: I64
    entries: I64
    places: I64
    starts: I64
    present: NDArray[np.bool_]
    groups: list[I64]


def feature_ids(f: Field, plan: FMPlan, gang: Gang) -> I64:
    """Numbers of the field's features that this worker holds."""
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
        for w, requested in enumerate(needed):
            position[w :: gang.size][requested] = np.arange(begin, begin + len(requested), dtype=np.int32)
            begin += len(requested)
    sends = [requested.copy() for requested in gang.exchange(needed)]
    n_received = sum(map(len, needed))
    base = plan.everywhere
    own, received = slice(base, base + own_size), slice(base + own_size, base + own_size + n_received)
    lists = [(part.own[order] + own.start, side)] if side in located else []
    if 1 - side in located:
        lists.append((position[part.other[order]] + received.start, 1 - side))
    first = len(lists)
    rowptr = taken + first * np.arange(len(taken))
    feat, val = np.empty(rowptr[-1], np.int32), np.ones(rowptr[-1], np.float32)
    for at, (column, _) in enumerate(lists):
        feat[rowptr[:-1] + at] = column
    rest = np.arange(len(source)) + first * (1 + np.repeat(np.arange(len(counts)), counts))
    feat[rest], val[rest] = part.feat[source], part.val[source]
    fields = np.zeros(base + own_size + n_received, np.int16)
    for number, (f, start) in enumerate(zip(plan.fields, plan.starts(), strict=True)):
        if f.side is None:
            fields[start : start + f.size] = number
    fields[own], fields[received] = located.get(side, 0), located.get(1 - side, 0)
    table = np.zeros((len(fields), plan.config.rank + 1), np.float32)
    copy = Copy(rowptr, feat, val, part.y[order], part.key[order], table, fields, own, received, sends)
    empty = np.empty(0, np.int32)
    rows[side] = FMRows(empty, empty, copy.y[:0], copy.key[:0], part.ptr[:1], empty, part.val[:0])  # frees memory
    return copy


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
    """Build `Visits.groups`; `counts` : int64 (m,), the features' visits over all workers.

    Features with more visits choose their groups first. Each distinct list of features is considered once; rows of the
    same user or item share their list, so the cost is small compared with a sweep.
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
