"""A study of jobs/tune.py, read from the JSON file that it writes: its trials, and the settings that were chosen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sparkcf.config.root import RATING_MEASURES
from sparkcf.errors import ConfigError
from sparkcf.report import charts
from sparkcf.report.parts import Figures, Part, Section, Words, drawn, table
from sparkcf.report.words import named, number

MOST_BYTES = 50_000_000  # of a file; a trial takes about 400
Setting = bool | int | float | str | None


class Trial(BaseModel):
    """`state` : complete, pruned or failed. `value` : of a pruned one the last before it was stopped."""

    model_config = ConfigDict(strict=True, frozen=True)
    number: int
    state: str
    value: float | None
    params: dict[str, Setting]


class Tested(BaseModel):
    """The best trial on the test part."""

    model_config = ConfigDict(strict=True, frozen=True)
    value: float


class Study(BaseModel):
    """`best` : number of the trial whose settings were chosen."""

    model_config = ConfigDict(strict=True, frozen=True)
    study: str
    model: str
    measure: str
    protocol: str
    best: int
    test: Tested
    trials: list[Trial]

    @property
    def chosen(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.number == self.best), None)


def read_study(path: str) -> Study:
    """Read a study's file. Raises ConfigError if it cannot be read, or is none of a finished study."""
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise ConfigError(f"--study {path}: a file of more than {MOST_BYTES:,} bytes is no study of jobs/tune.py")
        found = Study.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"--study {path} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
        raise ConfigError(f"--study {path} is no JSON file of jobs/tune.py: {why}") from None
    if found.chosen is None or found.chosen.value is None or not math.isfinite(found.chosen.value):
        raise ConfigError(f"--study {path} has no result of its best trial, {found.best}: run jobs/tune.py again")
    return found


def tuning(study: Study | None) -> Section | None:
    """The best value by trial, and the chosen settings beside those that were tried; None: no study was named."""
    if study is None or study.chosen is None:
        return None
    states = Counter(trial.state for trial in study.trials)
    ended = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    said = (
        f"{study.study}: {len(study.trials)} trials of {study.model} ({ended}), compared by {study.measure} on the "
        f"validation part of {study.protocol}. The best is trial {study.best}: {number(study.chosen.value)}, and "
        f"{number(study.test.value)} on the test part, which was measured once."
    )
    body = [[key, _text(value), _tried(study, key)] for key, value in study.chosen.params.items()]
    parts: list[Part] = [Words(named(said, 600)), Figures([drawn("Trials and the best so far", _chart(study))])]
    return Section("study", "Tuning", [*parts, table(["key", "chosen", "tried"], body, left=3)])


def completed(study: Study) -> list[tuple[int, float]]:
    """Number and value of each trial that ran to its end, in order."""
    ended = ((trial.number, trial.value) for trial in study.trials if trial.state == "complete")
    return sorted((number, value) for number, value in ended if value is not None and math.isfinite(value))


def _chart(study: Study) -> str:
    numbers, values = np.array(completed(study)).T
    best = (np.minimum if study.measure in RATING_MEASURES else np.maximum).accumulate(values)
    return charts.trials("study", "Trials and the best so far", numbers, values, best, named(study.measure, 40))


def _tried(study: Study, key: str) -> str:
    tried: Sequence[Setting] = [trial.params[key] for trial in study.trials if key in trial.params]
    numbers = [value for value in tried if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(tried):
        return f"{_text(min(numbers))} to {_text(max(numbers))}"
    return ", ".join(sorted({_text(value) for value in tried}))


def _text(value: Setting) -> str:
    return f"{value:.4g}" if isinstance(value, float) else named(value)
