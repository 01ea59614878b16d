"""Queries of the lake without Spark: published lists, histories, runs and measures. See `reader` for how it is read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from sparkcf.errors import ConfigError, LakeError, NotFoundError
from sparkcf.lake.reader import CURE, LakeReader, Partition, arrow_strings

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_MODEL = "als"  # the configuration's default
Day = str | dt.date | None
FINE_SEGMENTS = "^(dimension|activity|popularity|category|groups) "  # that `sparkcf metrics` shows if it is asked to
SAMPLE = 10_000  # rows that are searched for ids similar to an unknown one


class RunOfModel(Protocol):
    """A run whose model can be opened. `partition` : its values of partition columns."""

    @property
    def model(self) -> str: ...

    @property
    def run_id(self) -> str: ...

    @property
    def ds(self) -> dt.date: ...

    @property
    def partition(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class PublishedRun:
    """The row of `published` that readers follow."""

    model: str
    ds: dt.date
    sequence: int
    run_id: str
    action: str
    published_by: str
    published_at: dt.datetime

    @property
    def partition(self) -> dict[str, str]:
        return {"model": self.model, "run_id": self.run_id}

    def __str__(self) -> str:
        return f"run {self.run_id} (model {self.model}, published for {self.ds})"


class Lake(LakeReader):
    """Queries of a lake, and its tables as `LakeReader` reads them.

    A method that returns a DataFrame has a twin ending in `_rows` that returns an arrow table, without pandas.
    `frame.attrs` (or the arrow table's metadata) names the run that the rows come from: model, run_id, ds.

    root, storage_options : see `LakeReader`.
    """

    def recommendations(self, user_id: str, k: int = 10, model: str | None = None, ds: Day = None) -> pd.DataFrame:
        """A user's published list: position, item_id, title, score, reason.

        Raises
        ------
        NotFoundError
            The user, model or day does not exist, or nothing is published yet.
        LakeError
            There is no lake, or one of its tables cannot be read.
        """
        return _frame(self.recommend_rows(user_id, k, model, ds))

    def similar_items(self, item_id: str, k: int = 10, model: str | None = None, ds: Day = None) -> pd.DataFrame:
        """An item's nearest items: position, item_id, title, score. Raises as `recommendations`."""
        return _frame(self.similar_rows(item_id, k, model, ds))

    def find(self, title: str, limit: int = 20) -> pd.DataFrame:
        """Items with a text in their title, whatever its case: item_id, title. Raises NotFoundError if none has it."""
        return _frame(self.find_rows(title, limit))

    def history(self, user_id: str, limit: int = 20) -> pd.DataFrame:
        """A user's interactions, newest first: ts, item_id, title, event, value."""
        return _frame(self.history_rows(user_id, limit))

    def runs(self, limit: int = 20, model: str | None = None) -> pd.DataFrame:
        """The newest runs of all jobs, failed ones included; with `model` only the runs of that model."""
        return _frame(self.run_rows(limit, model))

    def metrics(self, run_id: str | None = None, model: str | None = None, dimensions: bool = False) -> pd.DataFrame:
        """The measures of a run, the fit's log last; without `run_id` of the published run (of `model`).

        Parameters
        ----------
        dimensions : also the figures by activity, popularity and category, the weights of `mpma` by user group and
            item group, and the KL divergences of a net's latent dimensions, a row for each dimension and epoch.
        """
        return _frame(self.metric_rows(run_id, model, dimensions))

    def published(self, model: str | None = None, ds: Day = None) -> PublishedRun:
        """The run that readers see.

        Parameters
        ----------
        model : default: `als` if it is published, else the first published model by name.
        ds : logical date; default: the latest published one. Its newest row wins.
        """
        day = day_of(ds)
        rows = self.read("published").to_pylist()
        if not rows:
            raise NotFoundError(f"nothing is published in lake {self.root} yet: {CURE}")
        models = sorted({row["model"] for row in rows})
        if model is None:
            model = DEFAULT_MODEL if DEFAULT_MODEL in models else models[0]
        if model not in models:
            raise NotFoundError(f"model {_quoted(model)} is not published: published are {_listed(models)}")
        rows = [row for row in rows if row["model"] == model]
        days = sorted({row["ds"] for row in rows}, reverse=True)
        if day is not None and day not in days:
            raise NotFoundError(f"model {model} is not published for {day}: published are {_listed(days)}")
        newest = max((row for row in rows if row["ds"] == (day or days[0])), key=lambda row: row["sequence"])
        return PublishedRun(**newest)

    def recommend_rows(self, user_id: str, k: int = 10, model: str | None = None, ds: Day = None) -> pa.Table:
        run = self.published(model, ds)
        rows = self.with_titles(self._top(k, "user", str(user_id), "recommendations", run))
        return _answered_by(rows.select(["position", "item_id", "title", "score", "reason"]), run)

    def similar_rows(self, item_id: str, k: int = 10, model: str | None = None, ds: Day = None) -> pa.Table:
        run = self.published(model, ds)
        rows = self._top(k, "item", str(item_id), "similar_items", run).drop(["item_id"])
        rows = self.with_titles(rows.rename_columns(["position", "item_id", "score"]))
        return _answered_by(rows.select(["position", "item_id", "title", "score"]), run)

    def find_rows(self, title: str, limit: int = 20) -> pa.Table:
        limit = _positive("limit", limit)
        rows = self._titled(title)
        if not rows.num_rows:
            raise NotFoundError(
                f"no item of lake {self.root} has {_quoted(title)} in its title: try a shorter part of it"
            )
        return rows.sort_by([("title", "ascending"), ("item_id", "ascending")]).slice(0, limit)

    def _titled(self, text: str) -> pa.Table:
        """item_id, title of the items that have the text in their title."""
        items = self.read("items")
        return items.filter(pc.fill_null(pc.match_substring(items["title"], text, ignore_case=True), False))

    def history_rows(self, user_id: str, limit: int = 20) -> pa.Table:
        user_id, limit = str(user_id), _positive("limit", limit)
        rows = self.read("interactions", ("user_id", [user_id]))
        if not rows.num_rows:
            self.check_known("user", user_id)
        order = [("ts", "descending"), ("item_id", "ascending"), ("event", "ascending")]
        rows = self.with_titles(rows.sort_by(order).slice(0, limit))
        return rows.select(["ts", "item_id", "title", "event", "value"])

    def run_rows(self, limit: int = 20, model: str | None = None) -> pa.Table:
        limit = _positive("limit", limit)
        rows = self.read("runs")
        if model is not None:
            models = sorted(set(rows["model"].to_pylist()) - {None})
            rows = rows.filter(pc.is_in(rows["model"], value_set=arrow_strings([str(model)])))
            if not rows.num_rows:
                raise NotFoundError(f"model {_quoted(model)} has no runs: there are {_listed(models)}")
        return rows.sort_by([("started_at", "descending"), ("run_id", "descending")]).slice(0, limit)

    def metric_rows(self, run_id: str | None = None, model: str | None = None, dimensions: bool = False) -> pa.Table:
        if run_id is not None and model is not None:
            raise ConfigError("give a run or a model, not both: a run is of one model already")
        run = self.published(model) if run_id is None else None
        run_id = run.run_id if run else str(run_id)
        rows = self.read("metrics", ("run_id", [run_id]))
        if not rows.num_rows:
            raise NotFoundError(self._without_metrics(run_id))
        rows = rows.append_column("fit", pc.is_in(rows["protocol"], value_set=arrow_strings(["fit"])))
        if "segment" not in rows.column_names:  # a lake written before segments were introduced
            rows = rows.append_column("segment", pa.nulls(rows.num_rows, pa.string()))
        if not dimensions:
            fine = pc.match_substring_regex(rows["segment"].cast(pa.string()), FINE_SEGMENTS)
            rows = rows.filter(pc.invert(pc.fill_null(fine, False)))
        rows = rows.append_column("some", pc.is_valid(rows["segment"]))
        rows = rows.sort_by([(name, "ascending") for name in ("fit", "protocol", "some", "system", "metric", "k")])
        inner = [name for name in ("fit", "some", "settings", "replicates") if name in rows.column_names]
        return _answered_by(rows.drop(inner), run)

    def check_known(self, kind: str, key: str) -> None:
        """Raise NotFoundError if there is no such user or item. `kind` : user or item."""
        if not self.read(f"{kind}s", (f"{kind}_id", [key])).num_rows:
            hint = self._examples(kind, key, f"{kind}s", {}, self._with_lists() if kind == "user" else [])
            raise NotFoundError(f"{kind} {_quoted(key)} is not in lake {self.root}{hint}")

    def _with_lists(self) -> list[str]:
        """Some users with a published list, whom every query knows; empty if nothing is published."""
        try:
            return self._sample("user_id", "recommendations", self.published().partition)
        except (NotFoundError, LakeError):
            return []

    def position(self, run: RunOfModel, user_id: str, item_id: str) -> int | None:
        """Place of an item in a user's list of a run; None: it is not in it."""
        rows = self.read("recommendations", ("user_id", [user_id]), run.partition)
        at = rows.filter(pc.is_in(rows["item_id"], value_set=arrow_strings([item_id])))["position"].to_pylist()
        return at[0] if at else None

    def titles(self, item_ids: Sequence[str]) -> dict[str, str | None]:
        """Titles of items by id."""
        rows = self.read("items", ("item_id", list(item_ids)))
        return dict(zip(rows["item_id"].to_pylist(), rows["title"].to_pylist(), strict=True))

    def with_titles(self, rows: pa.Table) -> pa.Table:
        """Rows that have item_id, with a column `title`."""
        items = self.read("items", ("item_id", rows["item_id"].unique().to_pylist()))
        found = pc.index_in(rows["item_id"], value_set=items["item_id"])
        return rows.append_column("title", items["title"].take(found))

    def _top(self, k: int, kind: str, key: str, name: str, run: PublishedRun) -> pa.Table:
        """The first k rows of a user's or item's list in a run."""
        k = _positive("k", k)
        rows = self.read(name, (f"{kind}_id", [key]), run.partition)
        if not rows.num_rows:
            raise self._without_list(kind, key, name, run)
        return rows.sort_by("position").slice(0, k)

    def _without_list(self, kind: str, key: str, name: str, run: PublishedRun) -> NotFoundError:
        if not self.files(self.open(name), None, run.partition):
            return NotFoundError(f"{run} has no rows in table {name}: run its recommend step again")
        seen = self.read(f"{kind}s", (f"{kind}_id", [key])).num_rows
        known, unknown = f"the {kind} is in the lake, but the run made no list for it", f"the lake has no such {kind}"
        hint = self._examples(kind, key, name, run.partition)
        reason = known if seen else unknown
        return NotFoundError(f"{kind} {_quoted(key)} has no {name.replace('_', ' ')} in {run}: {reason}{hint}")

    def _without_metrics(self, run_id: str) -> str:
        states = {run["run_id"]: run["state"] for run in self.run_rows(limit=2**31).to_pylist()}
        if run_id in states:
            return f"run {_quoted(run_id)} has no metrics: its state is {states[run_id]}"
        return f"no run {_quoted(run_id)} in lake {self.root}: the newest runs are {_listed(list(states))}"

    def _examples(self, kind: str, key: str, name: str, partition: Partition, shown: Sequence[str] = ()) -> str:
        """End of a message: ids similar to the wanted one, items with it in their title, and examples of ids.

        `shown` : the examples; empty: some of the table's own.
        """
        import difflib

        sample = self._sample(f"{kind}_id", name, partition)
        close = difflib.get_close_matches(key, sample, n=3, cutoff=0.75) if len(key) <= 100 else []
        meant = f"; did you mean {_listed(close)}?" if close else ""
        titled = self._titled(key).slice(0, 3).to_pylist() if kind == "item" and key.strip() else []
        if titled:
            named = ", ".join(f"{_quoted(row['item_id'])} ({row['title']})" for row in titled)
            meant += f"; titles with it: {named}"
        return f"{meant}; known {kind}s look like {_listed((shown or sample)[:3])}" if sample else ""

    def _sample(self, column: str, name: str, partition: Partition) -> list[str]:
        return list(dict.fromkeys(islice(self._ids(column, name, partition), SAMPLE)))

    def _ids(self, column: str, name: str, partition: Partition) -> Iterator[str]:
        for path in self.files(self.open(name), None, partition):
            with self.parquet(name, path) as file:
                for batch in file.iter_batches(batch_size=SAMPLE, columns=[column]):
                    yield from batch.column(0).to_pylist()


def _answered_by(rows: pa.Table, run: PublishedRun | None) -> pa.Table:
    return rows.replace_schema_metadata({**run.partition, "ds": str(run.ds)}) if run else rows


def _frame(rows: pa.Table) -> pd.DataFrame:
    frame = rows.replace_schema_metadata(None).to_pandas(maps_as_pydicts="strict")
    frame.attrs = {name.decode(): value.decode() for name, value in (rows.schema.metadata or {}).items()}
    return frame


def day_of(ds: Day) -> dt.date | None:
    """A logical date; None for None. Raises ConfigError for what is no day."""
    if isinstance(ds, dt.date):
        return dt.date(ds.year, ds.month, ds.day)
    try:
        return None if ds is None else dt.date.fromisoformat(ds)
    except (TypeError, ValueError):
        raise ConfigError(f"ds={_quoted(ds)}: a day is written YYYY-MM-DD") from None


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: a whole number from 1 is needed")
    return value


def _quoted(text: object) -> str:
    text = str(text)
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _listed(things: Sequence[object], most: int = 5) -> str:
    shown = ", ".join(str(t) if isinstance(t, dt.date) else _quoted(t) for t in things[:most])
    return shown + (f" and {len(things) - most} more" if len(things) > most else "") or "none"
