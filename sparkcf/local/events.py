"""A frame or arrays of interactions as arrays with dense indices, and the pairs that a model reads from these.

    frame ──checked──▶ Events ──preference──▶ pairs (LocalData)

The rules are those of the jobs, see `sparkcf.data.pairs`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparkcf.config.root import Config
from sparkcf.data.pairs import Reads
from sparkcf.errors import ConfigError, InputError
from sparkcf.models.contract_data import F64, I32, LocalData

Data: TypeAlias = "pd.DataFrame | Sequence[Any]"
NEEDED, OPTIONAL = ("user_id", "item_id"), ("value", "ts", "event")
DAY_S = 86_400
LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
WHOLE = re.compile(r"-?[0-9]{1,19}")
FIRST_S, LAST_S = (dt.datetime(*day, tzinfo=dt.UTC).timestamp() for day in ((1, 1, 2), (9999, 12, 31)))  # of a date


@dataclass(frozen=True)
class Ids:
    """The ids of one side in the order of their dense indices: sorted whole numbers, or sorted texts."""

    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, column: pd.Series) -> Ids:
        return cls(np.unique(_comparable(column)))

    @classmethod
    def in_order(cls, ids: Any) -> Ids:
        """The given ids, each once, in their order."""
        return cls(pd.unique(pd.Series(_comparable(pd.Series(ids)))))

    def index(self, ids: Any) -> NDArray[np.int64]:
        """Dense indices (n,); -1 for an unknown id."""
        asked = _comparable(pd.Series(ids))
        if asked.dtype.kind != self.values.dtype.kind:
            asked = asked.astype(str).astype(object) if self.values.dtype == object else _numbers(asked)
        return pd.Index(self.values).get_indexer(pd.Index(asked)).astype(np.int64)


def _comparable(column: pd.Series) -> NDArray[Any]:
    """Ids as int64 if all are whole numbers, else as texts. Raises InputError for infinity and beyond int64."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    kind = pd.api.types.infer_dtype(column, skipna=False) if column.dtype == object else None
    whole = kind == "integer" or pd.api.types.is_integer_dtype(column.dtype)
    if kind in ("floating", "mixed-integer-float") or pd.api.types.is_float_dtype(column.dtype):
        column = column.astype(np.float64)
        if np.isinf(column).any():
            raise InputError("an id is infinite: give whole numbers or texts")
        whole = bool((column == column.round()).all())
    if not whole:
        return column.astype(str).to_numpy(object)
    for id_ in (column.min(), column.max()) if len(column) else ():
        if not LEAST < int(id_) <= MOST:
            raise InputError(f"the id {int(id_)} is no whole number of 64 bits: give such ids as texts")
    return column.to_numpy().astype(np.int64)


def _numbers(texts: NDArray[Any]) -> NDArray[np.int64]:
    """Texts as whole numbers; the least int64 for one that is none, or beyond int64: no id is a text here."""
    found = [int(text) if WHOLE.fullmatch(text) else LEAST for text in map(str, texts)]
    return np.array([number if LEAST <= number <= MOST else LEAST for number in found], np.int64)


@dataclass(frozen=True)
class Events:
    """Interactions, sorted by user and item, and in each pair by time.

    users, items : int32 (n,).
    values : float64 (n,).
    ts : float64 (n,), seconds since 1970 (UTC); zeros without times.
    weights : float64 (n,), of the events.
    """

    users: I32
    items: I32
    values: F64
    ts: F64
    weights: F64

    def __len__(self) -> int:
        return len(self.users)

    def where(self, kept: NDArray[np.bool_]) -> Events:
        return Events(self.users[kept], self.items[kept], self.values[kept], self.ts[kept], self.weights[kept])

    @property
    def keys(self) -> NDArray[np.int64]:
        """A number for each pair, (n,), ascending."""
        return pair_keys(self.users, self.items)


def pair_keys(users: NDArray[Any], items: NDArray[Any]) -> NDArray[np.int64]:
    return users.astype(np.int64) << 32 | items.astype(np.int64)


def checked_frame(data: Data, columns: Mapping[str, str] | None = None, what: str = "data") -> pd.DataFrame:
    """The columns user_id, item_id and, where there are any, value, ts and event, of a frame or of arrays.

    Parameters
    ----------
    data : a frame, or (users, items) or (users, items, values).
    columns : names of the frame's columns by ours; other columns are ignored.
    what : name of the argument, for messages.

    Raises
    ------
    InputError
        No row, a missing column, an id that is null or empty, or a value or time that is not finite.
    """
    if not isinstance(data, pd.DataFrame):
        names = (*NEEDED, "value")
        if not isinstance(data, list | tuple) or not 2 <= len(data) <= 3:
            raise InputError(f"{what}: expected a pandas frame or (users, items, values), found {type(data).__name__}")
        if len({len(array) for array in data}) > 1:
            raise InputError(
                f"{what}: the arrays have {', '.join(str(len(a)) for a in data)} entries: give as many each"
            )
        data, columns = pd.DataFrame(dict(zip(names, map(np.asarray, data), strict=False))), None
    given = dict(columns or {})
    if unknown := sorted(set(given) - {*NEEDED, *OPTIONAL}):
        raise ConfigError(f"columns: unknown key {unknown[0]!r}; known are {', '.join((*NEEDED, *OPTIONAL))}")
    found = {}
    for name in (*NEEDED, *OPTIONAL):
        own = given.get(name, name)
        if own in data.columns:
            found[name] = data[own].reset_index(drop=True)
        elif name in NEEDED or name in given:
            has = ", ".join(map(str, list(data.columns)[:8]))
            raise InputError(f"{what}: no column {own!r} (it has {has}): pass columns={{{name!r}: NAME}}")
    if not len(data):
        raise InputError(f"{what}: no row: give at least one interaction")
    for name in NEEDED:
        missing = int((found[name].isna() | (found[name].astype(str).str.strip() == "")).sum())
        if missing:
            raise InputError(f"{what}: {missing:,} of {len(data):,} rows have no {given.get(name, name)}: drop them")
    if "value" in found:
        found["value"] = _finite(found["value"], given.get("value", "value"), what)
    if "ts" in found:
        found["ts"] = _seconds(found["ts"], given.get("ts", "ts"), what)
    return pd.DataFrame(found)


def _finite(column: pd.Series, name: str, what: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    wrong = int((~np.isfinite(numbers)).sum())
    if wrong:
        raise InputError(
            f"{what}: {wrong:,} of {len(column):,} values of {name} are no finite numbers: drop these rows"
        )
    return numbers


def _seconds(column: pd.Series, name: str, what: str) -> pd.Series:
    """Times as seconds since 1970: numbers are seconds already, texts and datetimes without a zone are UTC."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        seconds = _finite(column, name, what)
        outside = (seconds < FIRST_S) | (seconds >= LAST_S)
        if outside.any():
            raise InputError(
                f"{what}: {int(outside.sum()):,} of {len(column):,} values of {name} are outside the years 1 to 9999 "
                f"as seconds since 1970, such as {seconds[outside].iloc[0]:.0f}: divide milliseconds by 1000"
            )
        return seconds
    times = pd.to_datetime(column, utc=True, errors="coerce", format="mixed")
    wrong = int(times.isna().sum())
    if wrong:
        raise InputError(f"{what}: {wrong:,} of {len(column):,} values of {name} are no times: drop these rows")
    return (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)


def events_of(frame: pd.DataFrame, users: NDArray[Any], items: NDArray[Any], config: Config) -> Events:
    """The events of a `checked_frame`.

    Of several rows with one user, item, event and time the last is kept, as by the clean job; without times every row
    counts.

    Parameters
    ----------
    users, items : dense indices of the rows.

    Raises
    ------
    InputError
        An event is not among `input.events`.
    """
    n, event = len(frame), frame.get("event")
    values = frame["value"].to_numpy(np.float64) if "value" in frame else np.ones(n)
    ts = frame["ts"].to_numpy(np.float64) if "ts" in frame else np.zeros(n)
    weights = np.ones(n)
    names = np.full(n, config.input.default_event, object) if event is None else event.astype(str).to_numpy(object)
    if config.input.events is not None:
        known = pd.Series(names).map(config.input.events)
        if known.isna().any():
            wrong, listed = names[known.isna()][0], ", ".join(config.input.events)
            raise InputError(f"{int(known.isna().sum()):,} rows have an event such as {wrong!r}; events has {listed}")
        weights = known.to_numpy(np.float64)
    if "ts" in frame:
        rows = pd.DataFrame({"user": users, "item": items, "event": names, "ts": ts})
        kept = ~rows.duplicated(keep="last").to_numpy()
        users, items, values, ts, weights = (c[kept] for c in (users, items, values, ts, weights))
    order = np.lexsort((values, ts, items, users))
    columns = (users.astype(np.int32), items.astype(np.int32), values, ts, weights)
    return Events(*(column[order] for column in columns))


def pairs_of(events: Events, reads: Reads, config: Config, n_users: int, n_items: int, threads: int = 1) -> LocalData:
    """One entry per pair as the model reads it, see `sparkcf.data.pairs.pairs`."""
    half_life, preference = config.preference.half_life_days, config.preference
    if half_life is not None and (reads.moments or reads.pairs == "labels"):
        raise ConfigError(f"preference.half_life_days: model={config.model} weighs every row 1 here; leave it out")
    decay = np.ones(len(events))
    if half_life is not None:
        end = dt.datetime.combine(config.ds + dt.timedelta(days=1), dt.time(), dt.UTC).timestamp()
        decay = np.exp2(-np.maximum(end - events.ts, 0.0) / (half_life * DAY_S))
    weights = None
    if reads.pairs == "positives":
        chosen = liked(events, config)
        events, decay = events.where(chosen), decay[chosen]
        first, sums = _grouped(events.keys)
        if preference.weight == "one":
            values = np.maximum.reduceat(decay, first) if len(first) else decay
        else:
            strength = events.weights if preference.weight == "event" else events.values
            values = sums(strength * decay)
            values = np.log1p(np.maximum(values, 0.0)) if preference.weight == "log" else values
            values = values if preference.max_weight is None else np.minimum(values, preference.max_weight)
        users, items = events.users[first], events.items[first]
    else:
        keys = events.keys
        last = np.flatnonzero(np.append(keys[1:] != keys[:-1], len(keys) > 0))
        users, items, values = events.users[last], events.items[last], events.values[last]
        if reads.pairs == "labels":
            values = liked(events, config)[last].astype(np.float64)
        elif preference.weight == "event" or half_life is not None:
            own = events.weights if preference.weight == "event" else np.ones(len(events))
            weights = (own * decay)[last].astype(np.float32)
    return LocalData(users, items, values.astype(np.float32), n_users, n_items, weights, threads)


def liked(events: Events, config: Config) -> NDArray[np.bool_]:
    """Which events are positive, bool (n,)."""
    threshold = config.preference.positive_from
    return np.ones(len(events), bool) if threshold is None else events.values >= threshold


def liked_pairs(events: Events, config: Config) -> tuple[I32, I32]:
    """Users and items of the pairs with a positive event."""
    good = events.where(liked(events, config))
    first, _ = _grouped(good.keys)
    return good.users[first], good.items[first]


def _grouped(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], Any]:
    """Where the groups of equal, ascending keys begin, and a function that sums a column by group."""
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
    return first, lambda column: np.add.reduceat(column, first) if len(first) else column
