"""The runs of a night with their verdicts and measures, from the tables `runs`, `published` and `metrics`."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sparkcf.errors import NotFoundError
from sparkcf.lake.figures import Figure
from sparkcf.lake.query import Lake, PublishedRun
from sparkcf.lake.run_details import Row, changes_between, plain_row
from sparkcf.ranking.gate import Measured, difference_of

FITS = ("train", "fold_in")  # jobs whose runs have a model
RATING_PROTOCOL = "q3"
BASELINE = "popularity"  # the system that every model is compared with
Measure = tuple[str, int | None]


@dataclass(frozen=True)
class Difference:
    """A difference of two figures with its 95 % bounds. `paired` : of the same bootstrap draws."""

    value: float
    lower: float
    upper: float
    paired: bool


@dataclass(frozen=True)
class Figures:
    """The measures of one run by one protocol.

    by : figures by system, measure, k and segment; None: all tested users.
    """

    run_id: str
    protocol: str
    settings: Mapping[str, Any]
    by: Mapping[tuple[str, str, int | None, str | None], Figure]

    def get(self, measure: Measure, system: str = "model", segment: str | None = None) -> Figure | None:
        return self.by.get((system, *measure, segment))

    def as_measured(self) -> Measured:
        return Measured(self.run_id, self.protocol, self.settings, {})


@dataclass(frozen=True)
class NightRun:
    """A run of a model.

    published : its row of `published`; None: it never was.
    before : the run of the model that readers had before; None: there was none.
    changes : (key, before, now) of each setting that differs from the run of the model before.
    earlier : id of the run that `changes` compares with.
    log : the fit's log: (metric, numbers, values).
    """

    row: Row
    config: Mapping[str, Any]
    published: PublishedRun | None
    before: PublishedRun | None
    changes: tuple[tuple[str, Any, Any], ...]
    earlier: str | None
    figures: Figures | None = None
    old: Figures | None = None
    log: tuple[tuple[str, list[float], list[float]], ...] = field(default=())

    @property
    def run_id(self) -> str:
        return str(self.row["run_id"])

    @property
    def model(self) -> str:
        return str(self.row["model"])

    @property
    def ds(self) -> dt.date:
        day: dt.date = self.row["ds"]
        return day

    @property
    def state(self) -> str:
        return str(self.row["state"])

    @property
    def partition(self) -> dict[str, str]:
        return {"model": self.model, "run_id": self.run_id}

    def __str__(self) -> str:
        return f"run {self.run_id} of {self.model}"

    def gate_measure(self) -> Measure:
        """The measure that the gate compares, and its k."""
        gate = self.config.get("gate", {})
        metric = gate.get("metric", "auto")
        if metric == "auto":
            metric = "rmse" if self.figures and self.figures.protocol == RATING_PROTOCOL else "ndcg_at_k"
        return metric, int(gate.get("at", 100)) if metric.endswith("_at_k") else None

    def to_popularity(self, measure: Measure) -> Difference | None:
        """The measure minus that of the baseline on the same users."""
        if self.figures is None:
            return None
        return difference(self.figures.get(measure), self.figures.get(measure, BASELINE), True)

    def to_old(self, measure: Measure, segment: str | None = None) -> Difference | None:
        """The measure minus that of the run before; None: they were not measured alike."""
        if self.figures is None or self.old is None:
            return None
        new, old = self.figures.as_measured(), self.old.as_measured()
        if not new.tests_like(old):
            return None
        mine, before = self.figures.get(measure, segment=segment), self.old.get(measure, segment=segment)
        return difference(mine, before, new.draws_like(old))


@dataclass(frozen=True)
class Night:
    """The runs of models of one logical date, in the order of their start, and the load of that day."""

    ds: dt.date
    runs: tuple[NightRun, ...]
    load: Row | None


def read_night(lake: Lake, run_ids: Sequence[str] = (), ds: dt.date | None = None, models: Sequence[str] = ()) -> Night:
    """Read the runs of a night: those named, or the newest run of each model on a day.

    Parameters
    ----------
    ds : default: the latest day that has runs.
    models : only these; empty: all.

    Raises
    ------
    NotFoundError
        There is no such run, or it is not one of a model; or the day has no run.
    LakeError
        There is no lake, or one of its tables cannot be read.
    """
    rows = [plain_row(row) for row in lake.run_rows(limit=2**31).to_pylist()]  # newest first
    fits = [row for row in rows if row["job"] in FITS]
    chosen = _named(lake, rows, run_ids) if run_ids else _newest(lake, fits, ds, models)
    day = max(row["ds"] for row in chosen)
    load = next((row for row in rows if row["job"] == "clean" and row["ds"] == day and row["counts"]), None)
    published = _published(lake)
    runs = [_with_history(row, fits, published) for row in chosen]
    return Night(day, tuple(_with_figures(lake, runs)), load)


def _named(lake: Lake, rows: Sequence[Row], run_ids: Sequence[str]) -> list[Row]:
    by_id = {row["run_id"]: row for row in rows}
    examples = ", ".join([row["run_id"] for row in rows if row["job"] in FITS][:3]) or "none"
    for run_id in run_ids:
        if run_id not in by_id:
            raise NotFoundError(f"no run {run_id!r} in lake {lake.root}: name one of the newest, {examples}")
        if (job := by_id[run_id]["job"]) not in FITS:
            raise NotFoundError(f"run {run_id!r} is of the job {job}: name a run of a model, such as {examples}")
    return [by_id[run_id] for run_id in dict.fromkeys(run_ids)]


def _newest(lake: Lake, fits: Sequence[Row], ds: dt.date | None, models: Sequence[str]) -> list[Row]:
    if not fits:
        raise NotFoundError(
            f"no model was trained in lake {lake.root} yet: run `make nightly` or jobs/nightly.py first"
        )
    of_models = [row for row in fits if not models or row["model"] in models]
    if not of_models:
        known = ", ".join(sorted({row["model"] for row in fits}))
        raise NotFoundError(f"no run of model {', '.join(models)} in lake {lake.root}: there are runs of {known}")
    days = sorted({row["ds"] for row in of_models}, reverse=True)
    if ds is not None and ds not in days:
        shown = ", ".join(str(day) for day in days[:5])
        raise NotFoundError(f"no model was trained for {ds} in lake {lake.root}: the newest days are {shown}")
    found: dict[str, Row] = {}
    for row in of_models:
        if row["ds"] == (ds or days[0]):
            found.setdefault(row["model"], row)
    return sorted(found.values(), key=lambda row: (row["started_at"], row["run_id"]))


def _published(lake: Lake) -> list[PublishedRun]:
    """All publications in the order in which readers followed them."""
    rows = lake.read("published").to_pylist() if lake.has("published") else []
    return sorted((PublishedRun(**row) for row in rows), key=lambda run: (run.model, run.ds, run.sequence))


def _with_history(row: Row, fits: Sequence[Row], published: Iterable[PublishedRun]) -> NightRun:
    of_model = [run for run in published if run.model == row["model"]]
    own = next((place for place, run in enumerate(of_model) if run.run_id == row["run_id"]), None)
    if own is None:
        end = row["ended_at"] or row["updated_at"]
        before = [run for run in of_model if run.ds <= row["ds"] and run.published_at <= end]
    else:
        before = of_model[:own]
    earlier = next((r for r in fits if r["model"] == row["model"] and r["started_at"] < row["started_at"]), None)
    return NightRun(
        row,
        json.loads(row["config"] or "{}"),
        None if own is None else of_model[own],
        before[-1] if before else None,
        tuple(changes_between(earlier, row)) if earlier else (),
        earlier["run_id"] if earlier else None,
    )


def _with_figures(lake: Lake, runs: Sequence[NightRun]) -> list[NightRun]:
    if not lake.has("metrics"):
        return list(runs)
    ids = sorted({run.run_id for run in runs} | {run.before.run_id for run in runs if run.before})
    rows = lake.read("metrics", ("run_id", ids))
    if "segment" not in rows.column_names:  # a lake written before segments were introduced
        rows = rows.append_column("segment", pa.nulls(rows.num_rows, pa.string()))
    rows = rows.filter(pc.invert(pc.fill_null(pc.starts_with(rows["segment"], "dimension "), False)))
    by_run: dict[str, list[Row]] = {run_id: [] for run_id in ids}
    for row in rows.to_pylist():
        by_run[row["run_id"]].append(row)
    return [_measured_run(run, by_run) for run in runs]


def _measured_run(run: NightRun, by_run: Mapping[str, Sequence[Row]]) -> NightRun:
    own = _by_protocol(run.run_id, by_run[run.run_id])
    old = _by_protocol(run.before.run_id, by_run[run.before.run_id]) if run.before else {}
    wanted = run.config.get("evaluation", {}).get("protocol")
    if wanted not in own:
        wanted = max(own.keys() & old.keys() or own, default=None)
    figures = own.get(wanted) if wanted else None
    known = {name: getattr(run, name) for name in NightRun.__dataclass_fields__}
    known |= {"figures": figures, "old": old.get(wanted or ""), "log": tuple(_log(by_run[run.run_id]))}
    return NightRun(**known)


def _by_protocol(run_id: str, rows: Sequence[Row]) -> dict[str, Figures]:
    protocols = dict.fromkeys(sorted(row["protocol"] for row in rows if row["protocol"] != "fit"))
    found = {}
    for protocol in protocols:
        of_it = [row for row in rows if row["protocol"] == protocol]
        figures = [Figure._make(row.get(name) for name in Figure._fields) for row in of_it]
        settings: dict[str, Any] = next((json.loads(row["settings"]) for row in of_it if row.get("settings")), {})
        by = {(f.system, f.metric, f.k, f.segment): f for f in figures}
        found[protocol] = Figures(run_id, protocol, settings, by)
    return found


def _log(rows: Sequence[Row]) -> Iterable[tuple[str, list[float], list[float]]]:
    of_fit = [r for r in rows if r["protocol"] == "fit" and r["k"] is not None and r["segment"] is None]
    for metric in sorted({row["metric"] for row in of_fit}):
        points = sorted((row["k"], row["value"]) for row in of_fit if row["metric"] == metric)
        yield metric, [float(k) for k, _ in points], [float(value) for _, value in points]


def difference(new: Figure | None, old: Figure | None, paired: bool) -> Difference | None:
    """`new` minus `old`; None: one of them was not measured. `paired` : they have the same draws."""
    if new is None or old is None:
        return None
    return Difference(*difference_of(new, old, paired), paired=paired and bool(new.replicates and old.replicates))
