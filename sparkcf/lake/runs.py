"""The table `runs`: one row per run, from its start to its end."""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.activity import activity
from sparkcf.config.root import Config
from sparkcf.errors import ConfigError, LakeError, NotFoundError, NothingNew, first_line
from sparkcf.lake.frames import frame_of
from sparkcf.lake.leases import NOBODY, Lease, Watch, leased_runs
from sparkcf.lake.lost import lost_file
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables, sql_date
from sparkcf.progress import say
from sparkcf.redact import redacted
from sparkcf.version import __version__

WITHOUT_MODEL = ("clean", "forget", "maintain")  # jobs that are the same for every model
FITS = ("train", "fold_in")  # jobs whose runs have factors
WAITING = ("trained", "evaluated", "recommended")  # states of a run that is not published yet
NEXT = {"trained": "jobs/evaluate.py and jobs/recommend.py", "evaluated": "jobs/recommend.py"}  # by a run's state
_watch = Watch()  # of the leases of other jobs, for the life of this process


@dataclass
class Run:
    """A run and its row in `runs`; `update` writes the row."""

    tables: LakeTables
    row: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    lease: Lease | None = None  # while a job works on it

    @property
    def run_id(self) -> str:
        return str(self.row["run_id"])

    @property
    def state(self) -> str:
        return str(self.row["state"])

    def fitted_with(self, config: Config) -> Config:
        """The configuration with all settings that shape a fit replaced by the run's own.

        So `evaluate` and `recommend` always use the model that was trained.

        Raises LakeError if this version of the code does not accept the run's parameters.
        """
        try:
            own = config.with_shaping(json.loads(self.row["config"]))
        except ConfigError as error:
            raise LakeError(
                f"run {self.run_id} was trained with parameters that this version does not accept: {error}; train again"
            ) from None
        before, after = config.shaping(), own.shaping()
        if changed := [name for name, value in after.items() if value != before[name]]:
            say(f"  note: using {', '.join(changed)} of run {self.run_id} instead of the configured values")
        return own

    def update(self, state: str, reason: str | None = None, counts: dict[str, int] | None = None) -> None:
        """Write the run's new state and what this job measured; `counts` are added. A running run's lease ends."""
        was_running = self.state == "running"
        self.row |= {"state": state, "reason": reason and redacted(reason)}
        self._write({name: F.lit(self.row[name]) for name in ("state", "reason")}, counts or {})
        if was_running:
            self.end_lease()

    def record(self, counts: dict[str, int] | None = None, done: bool = False) -> None:
        """Write counts and what this job measured; the state is left to other jobs, which may change it meanwhile.

        Parameters
        ----------
        done : clear the reason that a failure of a step left; the one of a refusal stays.
        """
        new: dict[str, Column] = {}
        if done and self.state != "refused":
            self.row["reason"] = None
            new["reason"] = F.when(F.col("state") == "refused", F.col("reason"))  # by a publish meanwhile
        self._write(new, counts or {})

    def note(self, reason: str) -> None:
        """Write why a step failed; the state is left as it is in the table, and the reason of a refusal stays."""
        reason = redacted(reason)
        if self.state != "refused":
            self.row["reason"] = reason
        kept = F.when(F.col("state") == "refused", F.col("reason"))
        self._write({"reason": kept.otherwise(F.lit(reason))}, {})

    def end_lease(self) -> None:
        if self.lease is not None:
            self.lease.end()
            self.lease = None

    def _write(self, new: dict[str, Column], counts: dict[str, int]) -> None:
        now, steps = _now(), activity.seconds(self.run_id)
        steps = {name: round(spent, 3) for name, spent in steps.items()}
        counts = {name: int(n) for name, n in counts.items()}
        new["counts"], new["seconds"] = _added("counts", counts), _added("seconds", steps)
        self.counts.update(counts)
        self.row |= {"counts": self.counts, "seconds": (self.row.get("seconds") or {}) | steps}
        self.row |= {"updated_at": now, "ended_at": now}
        for name in ("updated_at", "ended_at"):
            new[name] = F.lit(f"{now.isoformat()}Z")  # a datetime would be of the host's zone
        if activity.peak_bytes is not None:
            self.row["peak_bytes"] = max(activity.peak_bytes, self.row.get("peak_bytes") or 0)
            new["peak_bytes"] = F.greatest("peak_bytes", F.lit(activity.peak_bytes))
        self.row["application_id"] = self.tables.spark.sparkContext.applicationId
        new["application_id"] = F.lit(self.row["application_id"])
        self.tables.update("runs", f"run_id = '{self.run_id}'", new)
        activity.runs[self.run_id] = self.row


def _added(column: str, values: dict[str, Any]) -> Column:
    """A map column of `runs` with the entries of `values`; entries that other jobs wrote meanwhile stay."""
    dtype = TABLES["runs"].schema[column].dataType.simpleString()
    new = F.from_json(F.lit(json.dumps(values)), dtype)
    old = F.coalesce(F.col(column), F.from_json(F.lit("{}"), dtype))
    return F.map_concat(F.map_filter(old, lambda name, _: ~F.array_contains(F.map_keys(new), name)), new)


def start_run(tables: LakeTables, job: str, config: Config, inputs: Mapping[str, int]) -> Run:
    """Start a run and write its row. `inputs`: the version of every table that the run reads.

    Runs whose job has died are closed first.
    """
    close_dead_runs(tables)
    model = None if job in WITHOUT_MODEL else config.model
    row = {
        "run_id": new_run_id(model or job, config.ds),
        "job": job,
        "model": model,
        "ds": config.ds,
        "config": config.to_json(),
        "code_version": __version__,
        "inputs": dict(inputs),
        "seed": config.seed,
        "state": "running",
        "reason": None,
        "started_at": (now := _now()),
        "updated_at": now,
        "counts": {},
        "seconds": {},
        "application_id": tables.spark.sparkContext.applicationId,
    }
    activity.begin_run(str(row["run_id"]))
    # The lease is written before the row: a running run without a lease is dead.
    run = Run(tables, row, lease=Lease(tables, str(row["run_id"])))
    with failures_recorded(run):  # a signal may come after the commit
        tables.append("runs", frame_of(tables.spark, [row], TABLES["runs"].schema))
    activity.runs[run.run_id] = row
    return run


def close_dead_runs(tables: LakeTables) -> None:
    """Note in the row of each run whose job has died that it was stopped; see `leases` for who is dead.

    A running run becomes failed. One that a later step, such as evaluate, was working on keeps its state, so that the
    step can be run again. A run between two jobs has no job that could die and stays as it is.
    """
    rows = tables.read("runs").select("run_id", "state")
    running = {row["run_id"] for row in rows.where(F.col("state") == "running").collect()}
    for run_id in sorted(running.union(leased_runs(tables))):
        death = _watch.death(tables, run_id)
        if death is None or (death == NOBODY and run_id not in running):  # its step has just ended
            continue
        if run_id in running:
            _note_stop(tables, run_id, "running", "failed", f"stopped: {death}")
        else:
            for (state,) in rows.where(F.col("run_id") == run_id).select("state").collect():
                if state in WAITING:
                    _note_stop(tables, run_id, state, state, f"stopped after it was {state}: {death}")
        _watch.remove(tables, run_id)


def _note_stop(tables: LakeTables, run_id: str, before: str, state: str, reason: str) -> None:
    new = {"state": F.lit(state), "reason": F.lit(reason)}
    if state != before:  # else `updated_at` stays: what waits for a run does not wait longer for this note
        new["updated_at"] = F.lit(f"{_now().isoformat()}Z")
    # The condition holds in the same commit: a job that has just ended its step itself is right.
    tables.update("runs", f"run_id = '{run_id}' AND state = '{before}'", new)
    say(f"  note: run {run_id} was {reason}")


@contextmanager
def recorded_run(tables: LakeTables, job: str, config: Config, inputs: Mapping[str, int]) -> Iterator[Run]:
    """Start a run; an exception in the block is written into the run's row and raised again."""
    run = start_run(tables, job, config, inputs)
    with failures_recorded(run):
        yield run


@contextmanager
def failures_recorded(run: Run) -> Iterator[None]:
    """Hold the run's lease; write an exception in the block into the run's row, where possible, and raise it again.

    Raises LakeError as `lost_file`.
    """
    with _leased(run):
        try:
            yield
        except BaseException as error:
            told = _told(error, run.tables)
            _record(run, told, lambda reason: run.update("failed", reason))
            if told is error:
                raise
            raise told from error


@contextmanager
def reason_recorded(run: Run) -> Iterator[None]:
    """As `failures_recorded`, but the run's state stays, so that the step can be run again.

    What the step itself has written, such as a refusal, stays too. NothingNew is no failure.
    """
    with _leased(run):
        try:
            yield
        except NothingNew:
            raise
        except BaseException as error:
            told = _told(error, run.tables)
            if run.row.get("reason") != str(told):
                _record(run, told, run.note)
            if told is error:
                raise
            raise told from error


@contextmanager
def _leased(run: Run) -> Iterator[None]:
    """Hold a lease of the run during the block, unless an outer block holds it."""
    if run.lease is not None:
        yield
        return
    run.lease = Lease(run.tables, run.run_id)
    try:
        yield
    finally:
        run.end_lease()


def _told(error: BaseException, tables: LakeTables) -> BaseException:
    """The error to raise: the one about a lost file, which names the table and its version, where it is one."""
    return (lost_file(error, tables) if isinstance(error, Exception) else None) or error


def _record(run: Run, error: BaseException, write: Callable[[str], None]) -> None:
    try:
        write(f"{type(error).__name__}: {first_line(error)}"[:500])
    except Exception as second:  # such as one of a full disk; a later job closes the run
        say(f"  note: the row of run {run.run_id} cannot be written: {first_line(second)}")


def new_run_id(name: str, ds: dt.date) -> str:
    return f"{name}-{ds:%Y%m%d}-{_now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def find_run(tables: LakeTables, config: Config, states: tuple[str, ...]) -> Run:
    """The run named by `run_id`, or the newest run of the model and day; it must be in one of the states.

    Raises NotFoundError if there is none.
    """
    runs = tables.read("runs").where(F.col("job").isin(*FITS) & (F.col("model") == config.model))
    if config.run_id:
        found = runs.where(F.col("run_id") == config.run_id).collect()
        if not found:
            newest = [r["run_id"] for r in runs.orderBy(F.desc("started_at")).select("run_id").limit(3).collect()]
            raise NotFoundError(f"no run {config.run_id!r} of model {config.model}: the newest are {newest}")
        if found[0]["state"] not in states:
            raise NotFoundError(
                f"run {config.run_id} is {found[0]['state']}: a run that is {' or '.join(states)} is needed"
            )
    else:
        of_day = runs.where(f"ds = {sql_date(config.ds)}").where(F.col("state").isin(*states))
        found = of_day.orderBy(F.desc("started_at"), F.desc("run_id")).limit(1).collect()
        if not found:
            raise NotFoundError(
                f"no run of model {config.model} for {config.ds} that is {' or '.join(states)}: "
                + _cure(runs.where(f"ds = {sql_date(config.ds)}"))
            )
    row = found[0].asDict(recursive=True)
    activity.begin_run(row["run_id"])
    return Run(tables, row, dict(row["counts"] or {}))


def _cure(of_day: DataFrame) -> str:
    """What to run first, by the state of the day's newest run."""
    newest = of_day.orderBy(F.desc("started_at"), F.desc("run_id")).select("run_id", "state").first()
    if newest is None or newest["state"] not in NEXT:
        return "run jobs/train.py first"
    return f"its newest run, {newest['run_id']}, is {newest['state']}: run {NEXT[newest['state']]} first"


def trained_run(run: Run) -> Run:
    """The run that trained the items of a run: itself, or the one that its users were folded into.

    Raises NotFoundError if that run has no row any more.
    """
    while run.row["job"] == "fold_in":
        run_id = json.loads(run.row["config"])["run_id"]
        found = run.tables.read("runs").where(F.col("run_id") == run_id).collect()
        if not found:
            raise NotFoundError(f"run {run.run_id} stands on run {run_id}, which has no row any more: train again")
        run = Run(run.tables, found[0].asDict(recursive=True))
    return run


def user_name() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(tzinfo=None)
