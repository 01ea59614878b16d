"""The protocols of evaluation on arrays: as `sparkcf.data.split`, with other draws of the hash."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.root import Config
from sparkcf.data.pairs import Reads
from sparkcf.errors import GateRefused
from sparkcf.kernels.random import uniform_rows
from sparkcf.local.events import DAY_S, Events, liked_pairs, pair_keys
from sparkcf.models.contract_data import I32

Q1_USERS, Q1_ITEMS, Q2_ITEMS, Q3_PAIRS = 11, 12, 13, 14  # streams of the draws


@dataclass(frozen=True)
class LocalSplit:
    """A split.

    train : events to fit on.
    rows : events of the tested users, whose rows are folded in (q1) or scored, and whose items are not listed.
    users, items, values : the held-out pairs, (n,), sorted by user and item.
    note : description of the cut.
    cut : by time: the first day that is held out, in days since 1970.
    """

    train: Events
    rows: Events
    users: I32
    items: I32
    values: NDArray[np.float64]
    note: str
    cut: int | None = None


def split_events(events: Events, reads: Reads, config: Config) -> LocalSplit:
    """Split events by `config.evaluation.protocol`; auto is q2.

    Raises GateRefused if a part is empty, or all events are of one day (q4).
    """
    protocol = config.evaluation.protocol
    chosen = {"q1": _strong, "q3": _ratings, "q4": _by_time}.get(protocol, _weak)
    found = chosen(events, reads, config)
    for name, size in (("train", len(found.train)), ("held-out", len(found.users))):
        if not size:
            raise GateRefused(
                f"evaluation protocol {protocol}: the {name} part is empty ({found.note}): change holdout_share, "
                "min_user_items or the protocol"
            )
    return found


def _strong(events: Events, reads: Reads, config: Config) -> LocalSplit:
    evaluation = config.evaluation
    users, items = _with_enough(*liked_pairs(events, config), evaluation.min_user_items)
    wanted = np.unique(users)
    test = wanted[uniform_rows(config.seed, Q1_USERS, wanted.astype(np.int64)) < evaluation.holdout_share]
    tested = events.where(np.isin(events.users, test))
    train = events.where(np.isin(events.users, wanted) & ~np.isin(events.users, test))
    fitted = liked_pairs(train, config)[1] if reads.pairs == "positives" else train.items
    known = np.isin(items, fitted) & np.isin(users, test)
    users, items = users[known], items[known]
    held = ~_first_share(users, items, evaluation.foldin_share, config.seed, Q1_ITEMS)
    rest = _without(tested, users[held], items[held])
    return LocalSplit(
        train, rest, users[held], items[held], np.ones(held.sum()), f"{evaluation.holdout_share:.0%} of users held out"
    )


def _weak(events: Events, reads: Reads, config: Config) -> LocalSplit:
    evaluation = config.evaluation
    users, items = _with_enough(*liked_pairs(events, config), evaluation.min_user_items)
    held = ~_first_share(users, items, 1 - evaluation.holdout_share, config.seed, Q2_ITEMS)
    rest = _without(events, users[held], items[held])
    note = f"{evaluation.holdout_share:.0%} of each user's items held out"
    return LocalSplit(rest, rest, users[held], items[held], np.ones(held.sum()), note)


def _ratings(events: Events, reads: Reads, config: Config) -> LocalSplit:
    share, keys = config.evaluation.holdout_share, events.keys
    held = uniform_rows(config.seed, Q3_PAIRS, keys) < share
    last = held & np.append(keys[1:] != keys[:-1], True)
    rest, out = events.where(~held), events.where(last)
    return LocalSplit(rest, rest, out.users, out.items, out.values, f"{share:.0%} of ratings held out")


def _by_time(events: Events, reads: Reads, config: Config) -> LocalSplit:
    days, counts = np.unique(np.floor(events.ts / DAY_S), return_counts=True)
    if len(days) < 2:
        raise GateRefused("evaluation protocol q4 needs times, of two days or more: use protocol q2")
    after = np.cumsum(counts[::-1])[::-1]
    late = np.flatnonzero(after <= config.evaluation.holdout_share * len(events))
    cut = int(days[max(int(late[0]), 1) if len(late) else len(days) - 1])
    before = events.where(np.floor(events.ts / DAY_S) < cut)
    users, items = liked_pairs(events.where(np.floor(events.ts / DAY_S) >= cut), config)
    new = ~np.isin(pair_keys(users, items), before.keys)
    note = f"held out from {np.datetime64(cut, 'D')} on"
    return LocalSplit(before, before, users[new], items[new], np.ones(new.sum()), note, cut)


def _with_enough(users: I32, items: I32, least: int) -> tuple[I32, I32]:
    enough = np.bincount(users)[users] >= least if len(users) else np.zeros(0, bool)
    return users[enough], items[enough]


def _first_share(users: I32, items: I32, share: float, seed: int, stream: int) -> NDArray[np.bool_]:
    """Whether a pair is in the first part of its user's pairs, a rounded share in a hashed order; bool (n,)."""
    order = np.lexsort((items, uniform_rows(seed, stream, pair_keys(users, items)), users))
    counts = np.bincount(users) if len(users) else np.zeros(0, np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else counts
    place = np.empty(len(users), np.int64)
    place[order] = np.arange(len(users)) - begins[users[order]]
    first: NDArray[np.bool_] = place < np.floor(counts[users] * share + 0.5)
    return first


def _without(events: Events, users: I32, items: I32) -> Events:
    return events.where(~np.isin(events.keys, pair_keys(users, items)))
