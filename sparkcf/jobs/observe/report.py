"""The report of a job, which every observer gets."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparkcf.activity import TimedStep
from sparkcf.config.root import Config
from sparkcf.lake.runs import WITHOUT_MODEL

OF_SEVERAL = ("nightly", "prepare")  # jobs of all `models`
DONE = (0, 5)  # exit codes of a job that did not fail


@dataclass(frozen=True)
class JobReport:
    """A job that has started or ended. Texts hold no credentials.

    started, ended : UTC. `ended` : None while the job runs.
    application_id : Spark's; None if the job ended before Spark started.
    result : the job's last line of output; empty while it runs.
    runs : the rows of `runs` that the job wrote, by run_id.
    steps : the job's steps, those outside of runs too.
    inputs, outputs : versions of the tables read and written, by address; None: unknown.
    gate : what the gate compared, by run_id: the measure's name, and values by system.
    figures : what the job measured, by run_id: the protocol, and figures (`lake.figures.Figure`).
    """

    job: str
    config: Config
    started: dt.datetime
    ended: dt.datetime | None = None
    application_id: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: tuple[TimedStep, ...] = ()
    inputs: Mapping[str, int | None] = field(default_factory=dict)
    outputs: Mapping[str, int | None] = field(default_factory=dict)
    gate: Mapping[str, tuple[str, Mapping[str, float]]] = field(default_factory=dict)
    figures: Mapping[str, tuple[str, list[Any]]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return int(self.result["exit_code"])

    @property
    def failed(self) -> bool:
        return self.exit_code not in DONE

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the job works on; empty for a job that is the same for every model."""
        if self.job in WITHOUT_MODEL:
            return ()
        if self.job == "compare":
            return tuple(sorted({str(row["model"]) for row in self.runs.values() if row["model"]}))
        return (self.config.models if self.job in OF_SEVERAL else ()) or (self.config.model,)

    def model_of(self, run_id: str) -> str:
        """The model of a run; empty for a run without a model, and for steps outside of runs."""
        return str(self.runs.get(run_id, {}).get("model") or "")
