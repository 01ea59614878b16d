"""What the lists of a run are made of, and some users' histories with their old and new lists."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparkcf.lake.query import Lake
from sparkcf.lake.scan import Scan
from sparkcf.report.counts import Catalogue, Events, gini
from sparkcf.report.night import NightRun

MOST_PLACES = 3_000_000  # places in a run's lists that are read; of more, evenly spread pieces
MOST_PAIRED = 300_000  # places whose lists' diversity is measured
KEPT_USERS = 500  # whose old and new lists are compared
SEEN, LISTED = 8, 8  # a user's events and places that are shown
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Lists:
    """The lists of a run.

    exposure : places of every item of the catalogue (m,).
    share : share of the places that was read.
    coverage : share of the items that are in any list.
    inequality : Gini coefficient of the exposure.
    novelty : mean of -log2 of the items' share of the events, in bits.
    diversity : mean of 1 - cosine of the categories of two items of a list; None: without categories.
    kept : share of the places whose item was in the user's list before; None: there was none.
    fallback : share of the users with the popularity fallback; None: unknown.
    by_category : share of the places of each category (c,).
    users : some users with lists, about evenly spread.
    """

    exposure: NDArray[np.int64]
    share: float
    coverage: float
    inequality: float
    novelty: float
    diversity: float | None
    kept: float | None
    fallback: float | None
    by_category: F64
    users: pa.Array


@dataclass(frozen=True)
class Place:
    """An item in a list or in a history."""

    item_id: str
    title: str | None
    note: str


@dataclass(frozen=True)
class UserLists:
    """A user with the newest events and the first places of both lists.

    old : None without an earlier run.
    known : all items of the old list, its further places included.
    """

    user_id: str
    events: int
    history: tuple[Place, ...]
    old: tuple[Place, ...] | None
    new: tuple[Place, ...]
    known: frozenset[str] = frozenset()


def read_lists(lake: Lake, run: NightRun, catalogue: Catalogue, events: Events) -> Lists | None:
    """None: the run has no lists."""
    if not lake.has("recommendations"):
        return None
    columns = ("user_id", "item_id")
    scan = Scan(lake, "recommendations", columns, run.partition, most=MOST_PLACES)
    exposure = np.zeros(len(catalogue.ids), np.int64)
    sample: list[pa.Table] = []
    paired: list[tuple[float, int]] = []
    for piece in scan:
        codes = catalogue.codes(piece["item_id"])
        exposure += np.bincount(codes[codes >= 0], minlength=len(exposure))
        if sum(part.num_rows for part in sample) < MOST_PAIRED:
            sample.append(piece.slice(0, MOST_PAIRED))
            paired.append(_distances(sample[-1]["user_id"], codes[:MOST_PAIRED], catalogue))
    if not scan.counted:
        return None
    users = pa.concat_tables(sample)["user_id"].unique().sort()
    places = max(int(exposure.sum()), 1)
    surprise = -np.log2((events.by_item + 1) / (events.by_item.sum() + len(exposure)))
    lists_paired = sum(n for _, n in paired)
    counts = run.row["counts"]
    fallback = counts["users_fallback"] / counts["users"] if counts.get("users") else None
    return Lists(
        exposure,
        scan.share,
        float((exposure > 0).mean()),
        gini(exposure),
        float(exposure @ surprise / places),
        sum(total for total, _ in paired) / lists_paired if lists_paired else None,
        _kept(lake, run, pa.concat_tables(sample), users),
        fallback,
        exposure @ catalogue.member / places if catalogue.categories else np.empty(0),
        users,
    )


def _distances(user_ids: pa.ChunkedArray, codes: NDArray[np.int64], catalogue: Catalogue) -> tuple[float, int]:
    """Sum over the lists of the mean distance of two of their items, and the number of lists that have two."""
    known = codes >= 0
    known[known] = catalogue.member[codes[known]].any(axis=1)
    if not known.any():
        return 0.0, 0
    user = pc.dictionary_encode(user_ids).combine_chunks().indices.to_numpy(zero_copy_only=False)[known]
    member = catalogue.member[codes[known]].astype(np.float32)
    member /= np.sqrt(member.sum(axis=1, keepdims=True))
    n = np.bincount(user).astype(np.float64)
    squares = np.zeros(len(n))
    for c in range(member.shape[1]):
        squares += np.bincount(user, weights=member[:, c]) ** 2
    some = n > 1
    cosine = (squares[some] - n[some]) / (n[some] * (n[some] - 1))
    return float((1 - cosine).sum()), int(some.sum())


def _kept(lake: Lake, run: NightRun, rows: pa.Table, users: pa.Array) -> float | None:
    if run.before is None:
        return None
    chosen = _spread(users, KEPT_USERS)
    old = lake.read("recommendations", ("user_id", chosen.to_pylist()), run.before.partition, ("user_id", "item_id"))
    if not old.num_rows:
        return None
    new = rows.filter(pc.is_in(rows["user_id"], value_set=old["user_id"].unique()))
    pairs = [pc.binary_join_element_wise(part["user_id"], part["item_id"], "\x00") for part in (new, old)]
    found = pc.is_in(pairs[0], value_set=pairs[1].combine_chunks())
    return float(pc.mean(pc.cast(found, pa.float64())).as_py() or 0.0) if new.num_rows else None


def _spread(values: pa.Array, n: int) -> pa.Array:
    """n values at even distances, or all of them."""
    if len(values) <= n:
        return values
    return values.take(pa.array(np.linspace(0, len(values) - 1, n).round().astype(np.int64)))


def sample_users(lake: Lake, run: NightRun, lists: Lists, events: Events, ds: dt.date, n: int) -> list[UserLists]:
    """n users with lists, from the least active to the most active one."""
    at = pc.index_in(events.by_user["user_id"].combine_chunks(), value_set=lists.users)
    counted = events.by_user.filter(pc.is_valid(at))
    rows = pa.table({"user_id": _spread(counted["user_id"].combine_chunks(), n)}) if n else None
    if rows is None or not rows.num_rows:
        return []
    chosen: list[str] = rows["user_id"].to_pylist()
    counted = counted.filter(pc.is_in(counted["user_id"], value_set=rows["user_id"].combine_chunks()))
    active = dict(zip(counted["user_id"].to_pylist(), counted["events"].to_pylist(), strict=True))
    histories = _histories(lake, chosen, ds) if events.share == 1 else {}
    new, old = _places(lake, chosen, run.partition), {}
    if run.before is not None:
        old = _places(lake, chosen, run.before.partition)
    found = []
    for user in chosen:
        before = old.get(user, [])
        known = frozenset(place.item_id for place in before)
        shown = tuple(before[:LISTED]) if run.before is not None else None
        history, listed = tuple(histories.get(user, ())), tuple(new.get(user, [])[:LISTED])
        found.append(UserLists(user, active[user], history, shown, listed, known))
    return found


def _histories(lake: Lake, users: Sequence[str], ds: dt.date) -> dict[str, list[Place]]:
    scan = Scan(lake, "interactions", ("user_id", "item_id", "event", "value", "ts"), up_to=ds)
    wanted = pa.array(users, pa.string())
    rows = pa.concat_tables([piece.filter(pc.is_in(piece["user_id"], value_set=wanted)) for piece in scan])
    order = [("user_id", "ascending"), ("ts", "descending"), ("item_id", "ascending"), ("event", "ascending")]
    rows = _first(rows.sort_by(order), SEEN)
    return _by_user(lake, rows, lambda row: f"{row['event']} {row['value']:g} · {row['ts']:%Y-%m-%d}")


def _places(lake: Lake, users: Sequence[str], partition: Mapping[str, str]) -> dict[str, list[Place]]:
    columns = ("user_id", "position", "item_id", "reason")
    rows = lake.read("recommendations", ("user_id", list(users)), partition, columns)
    rows = rows.sort_by([("user_id", "ascending"), ("position", "ascending")])
    return _by_user(lake, rows, lambda row: "" if row["reason"] == "model" else str(row["reason"] or ""))


def _first(rows: pa.Table, n: int) -> pa.Table:
    """The first n rows of every user, of rows sorted by user."""
    user = pc.dictionary_encode(rows["user_id"]).combine_chunks()
    if not rows.num_rows:
        return rows
    codes = user.indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    return rows.filter(pa.array(place < n))


def _by_user(lake: Lake, rows: pa.Table, note: Any) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for row in lake.with_titles(rows).to_pylist():
        found.setdefault(row["user_id"], []).append(Place(row["item_id"], row["title"], note(row)))
    return found
