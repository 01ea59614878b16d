"""A run's lists as batches of users, read from the lake in bounded memory and turned into columns or JSON.

All work on rows is Arrow's; Python sees a value a user at most.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkcf.errors import LakeError, NotFoundError
from sparkcf.lake.query import Day, Lake

TABLE = "recommendations"
ROWS = 1 << 19  # of a batch that is read; about 100 MB with all texts
OF_RUN = ("ds", "model", "run_id", "user_id", "position")  # columns that are not about one item of a list
ESCAPED = '["\\\\\x00-\x1f]'  # characters that JSON escapes
SAMPLED = 20  # lists of a batch that are compared after writing
Items = list[dict[str, Any]]  # a user's list


@dataclass(frozen=True)
class Run:
    """The run whose results are exported."""

    model: str
    run_id: str
    ds: dt.date

    @property
    def partition(self) -> dict[str, str]:
        return {"model": self.model, "run_id": self.run_id}

    def __str__(self) -> str:
        return f"run {self.run_id} (model {self.model}, of {self.ds})"


def find_run(lake: Lake, model: str | None = None, ds: Day = None, run_id: str | None = None) -> Run:
    """The published run of a model and day, or the run that is named.

    Raises
    ------
    NotFoundError
        Nothing is published so, or there is no such run, or it is a run without a model.
    """
    if run_id is None:
        found = lake.published(model, ds)
        return Run(found.model, found.run_id, found.ds)
    rows = {row["run_id"]: row for row in lake.run_rows(limit=2**31).to_pylist()}
    row = rows.get(run_id)
    if row is None or row["model"] is None:
        known = ", ".join([name for name, row in rows.items() if row["model"]][:3]) or "none"
        raise NotFoundError(f"no run {run_id!r} of a model in lake {lake.root}: the newest are {known}")
    return Run(row["model"], run_id, row["ds"])


@dataclass(frozen=True)
class Lists:
    """Whole lists of some users.

    users : text (n,), external ids.
    offsets : int32 (n + 1,), where each user's list begins and ends in `items`.
    items : columns by name, (rows,): item_id, score, reason and what else the table has about an item of a list.

    Two users with three and one items: users [u, v], offsets [0, 3, 4], items {item_id: [a, b, c, a], …}.
    """

    users: pa.Array
    offsets: pa.Array
    items: dict[str, pa.Array]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def rows(self) -> int:
        return len(self.items["item_id"])

    def with_titles(self, titles: pa.Table) -> Lists:
        """The lists with a column `title`; null for an item without one."""
        found = pc.index_in(self.items["item_id"], value_set=titles["item_id"])
        title = _plain(titles["title"].take(found))
        return Lists(self.users, self.offsets, {**self.items, "title": title})

    def as_structs(self) -> pa.Array:
        """A list of structs a user."""
        values = pa.StructArray.from_arrays(list(self.items.values()), names=list(self.items))
        return pa.ListArray.from_arrays(self.offsets, values)

    def as_json(self) -> pa.Array:
        """An array of objects a user, as text: [{"item_id":"a","score":0.5,"reason":"model"},…]."""
        parts: list[Any] = []
        for name, column in self.items.items():
            parts += [("{" if not parts else ",") + json.dumps(name) + ":", _json_values(column)]
        objects = pc.binary_join_element_wise(*parts, "}", "")
        joined = pc.binary_join(pa.ListArray.from_arrays(self.offsets, objects), ",")
        return pc.binary_join_element_wise("[", joined, "]", "")

    def sample(self) -> Lists:
        """A few of the lists: the first, the last and some between."""
        places = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64))
        offsets = self.offsets.to_numpy()
        lengths = offsets[places + 1] - offsets[places]
        rows = np.concatenate([np.arange(offsets[p], offsets[p + 1]) for p in places])
        taken = {name: column.take(pa.array(rows)) for name, column in self.items.items()}
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return Lists(self.users.take(pa.array(places)), pa.array(ends), taken)


def read_lists(lake: Lake, run: Run, rows: int = ROWS) -> Iterator[Lists]:
    """All lists of a run, in the order of the table's files.

    A list is a stretch of rows of one user with the positions 1, 2, …, as the job writes it. Stretches that begin
    later are kept to the end and sorted.

    Parameters
    ----------
    rows : of a batch; a list is never cut.

    Raises
    ------
    NotFoundError
        The run has no lists.
    LakeError
        A list lacks a position, or a score is not finite.
    """
    scattered: list[pa.Table] = []
    empty = True
    for table in _stretches(lake, run, rows):
        starts, whole = _starts(table), _whole(table)
        if not whole.all():
            keep = np.repeat(whole, np.diff(np.append(starts, table.num_rows)))
            scattered.append(table.filter(pa.array(~keep)))
            table = table.filter(pa.array(keep))
        if table.num_rows:
            empty = False
            yield _lists(table)
    if scattered:
        table = pa.concat_tables(scattered).sort_by([("user_id", "ascending"), ("position", "ascending")])
        table = table.combine_chunks()
        if not (whole := _whole(table)).all():
            user = table["user_id"][int(_starts(table)[np.argmin(whole)])].as_py()
            raise LakeError(f"the list of user {user!r} in run {run.run_id} has gaps: run its recommend step again")
        yield _lists(table)
    elif empty:
        raise NotFoundError(f"run {run.run_id} (model {run.model}) has no lists: run its recommend step first")


def read_titles(lake: Lake) -> pa.Table:
    """item_id and title of every item that has a title."""
    items = lake.read("items", columns=("item_id", "title"))
    return items.filter(pc.is_valid(items["title"])).combine_chunks()


def as_items(text: str) -> Items:
    """A list from its JSON, with scores as float32, as `plain_items` gives them."""
    return plain_items(json.loads(text))


def plain_items(items: Items) -> Items:
    """A list whose numbers are rounded to float32, so that lists from any store are comparable."""
    return [{n: float(np.float32(v)) if isinstance(v, int | float) else v for n, v in item.items()} for item in items]


def _stretches(lake: Lake, run: Run, rows: int) -> Iterator[pa.Table]:
    """The table's rows in batches that end where a user's rows end."""
    rest: pa.Table | None = None
    for batch in lake.stream(TABLE, run.partition, rows):
        table = batch if rest is None else pa.concat_tables([rest, batch])
        last = int(_starts(table)[-1])
        rest = table.slice(last)
        if last:
            yield table.slice(0, last).combine_chunks()
    if rest is not None:
        yield rest.combine_chunks()


def _starts(table: pa.Table) -> np.ndarray:
    """Where each stretch of rows of one user begins; the table has rows."""
    users = _plain(table["user_id"])
    changes = pc.not_equal(users.slice(1), users.slice(0, len(users) - 1))
    return np.concatenate([[0], np.flatnonzero(changes.to_numpy(zero_copy_only=False)) + 1])


def _whole(table: pa.Table) -> np.ndarray:
    """Whether each stretch has the positions 1, 2, …, in order."""
    starts = _starts(table)
    lengths = np.diff(np.append(starts, table.num_rows))
    expected = np.arange(table.num_rows) - np.repeat(starts, lengths) + 1
    return np.logical_and.reduceat(table["position"].to_numpy() == expected, starts)


def _lists(table: pa.Table) -> Lists:
    starts = _starts(table)
    columns = {"item_id": table["item_id"], "score": table["score"]}
    columns |= {name: table[name] for name in table.column_names if name not in (*OF_RUN, *columns)}
    items = {name: _plain(column) for name, column in columns.items()}
    if not pc.all(pc.is_finite(items["score"])).as_py():
        raise LakeError("a score is not finite: run the recommend step again, or `sparkcf doctor --deep`")
    offsets = pa.array(np.append(starts, table.num_rows).astype(np.int32))
    return Lists(_plain(table["user_id"]).take(pa.array(starts)), offsets, items)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _json_values(column: pa.Array) -> pa.Array:
    """The values of a column as JSON texts."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return pc.fill_null(pc.cast(column, pa.string()), "null")
    encoded = column.dictionary_encode()  # few texts, of many rows
    texts = encoded.dictionary
    if pc.any(pc.match_substring_regex(texts, ESCAPED)).as_py():
        quoted = pa.array([json.dumps(text, ensure_ascii=False) for text in texts.to_pylist()], pa.string())
    else:
        quoted = pc.binary_join_element_wise('"', texts, '"', "")
    return pc.fill_null(quoted.take(encoded.indices), "null")
