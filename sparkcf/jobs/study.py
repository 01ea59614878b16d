"""An Optuna study in a SQLite file. Needs no Spark.

Trials are drawn in batches of a fixed size: all values of a batch are drawn before one of its results is known, by a
sampler whose seed depends on the trial's number, and results are told in the order of the numbers. So a study gives the
same trials however many run at once, and after an interruption it goes on as if there had been none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparkcf.config.root import TuneConfig
from sparkcf.config.tune import Range
from sparkcf.errors import ConfigError, first_line

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


def check_optuna() -> None:
    """Raise ConfigError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError("tuning needs the package optuna: pip install 'sparkcf[tune]'") from None


class Study:
    """A study by its file and name; an existing one is continued.

    Parameters
    ----------
    file : SQLite file; made with its folder.
    name : of the study: equal for equal settings and data.
    seed : of the samplers.
    higher_is_better : the direction of the measure.

    Raises ConfigError if the file cannot be used.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        space: Sequence[Range],
        config: TuneConfig,
        seed: int,
        higher_is_better: bool = True,
    ) -> None:
        import optuna
        from sqlalchemy import URL

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.file, self.name, self._space, self._config, self._seed = file, name, space, config, seed
        self._optuna = optuna
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._study = optuna.create_study(
                storage=str(URL.create("sqlite", database=str(file))),
                study_name=name,
                direction="maximize" if higher_is_better else "minimize",
                load_if_exists=True,
                pruner=_pruner(optuna, config.pruner),
            )
        except Exception as error:  # of SQLite, of the file system, or a table of something else
            raise ConfigError(f"tune.folder: {file} cannot be used: {first_line(error)}; name another folder") from None

    def batch(self) -> list[int]:
        """Numbers of the trials of the next batch that have no result yet; empty: the study is done."""
        trials = {trial.number: trial for trial in self._study.get_trials(deepcopy=False)}
        size = self._config.parallel
        for first in range(0, self._config.trials, size):
            numbers = range(first, min(first + size, self._config.trials))
            for number in numbers:
                if number not in trials:
                    self._draw(number, self._study.ask)
                elif not self._drawn(trials[number]):  # the process was killed while it drew the trial's values
                    stored = self._optuna.trial.Trial
                    self._draw(number, partial(stored, self._study, trials[number]._trial_id))
            finished = {number for number, trial in trials.items() if trial.state.is_finished()}
            if waiting := [number for number in numbers if number not in finished]:
                return waiting
        return []

    def _drawn(self, trial: Any) -> bool:
        """Whether a trial has all its values, or needs none any more."""
        return trial.state.is_finished() or all(r.key in trial.params for r in self._space)

    def _draw(self, number: int, trial: Callable[[], Any]) -> None:
        self._study.sampler = _sampler(self._optuna, self._config.sampler, self._seed + number)
        self._suggest(trial())

    def _suggest(self, trial: Any) -> None:
        stored = self._trial(trial.number)
        for r in self._space:
            if r.key in stored.params:  # drawn again, so that the next value is what it would have been
                self._study.sampler.sample_independent(self._study, stored, r.key, stored.distributions[r.key])
            elif r.kind == "choice":
                trial.suggest_categorical(r.key, r.values)
            elif r.kind == "int":
                trial.suggest_int(r.key, *r.values, step=int(r.step or 1))
            else:
                trial.suggest_float(r.key, *r.values, step=r.step, log=r.kind == "log")

    def values(self, number: int) -> dict[str, Any]:
        """The trial's values by key, in the order of the space."""
        params = self._trial(number).params
        return {r.key: params[r.key] for r in self._space}

    def report(self, number: int, step: int, value: float) -> bool:
        """Record a result after a part of a trial; returns whether the pruner stops the trial here."""
        trial = self._optuna.trial.Trial(self._study, self._trial(number)._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a step that was reported before an interruption
            trial.report(value, step)
        return bool(trial.should_prune())

    def finish(self, number: int, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        """Record the end of a trial. `value` : its measure; None unless the state is COMPLETE."""
        trial = self._optuna.trial.Trial(self._study, self._trial(number)._trial_id)
        trial.set_user_attr("seconds", round(seconds, 3))
        trial.set_user_attr("reason", reason)
        states = self._optuna.trial.TrialState
        self._study.tell(number, value, {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}[state])

    def best(self) -> int | None:
        """Number of the best complete trial, of equal ones the first; None: there is none."""
        complete = [t for t in self._study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
        sign = -1 if self._study.direction.name == "MAXIMIZE" else 1
        return min(complete, key=lambda t: (sign * (t.value or 0.0), t.number)).number if complete else None

    def rows(self) -> list[dict[str, Any]]:
        """A row per finished trial: number, state, value, seconds, reason, params, steps."""
        states = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}
        return [
            {
                "number": t.number,
                "state": states[t.state.name],
                "value": t.value,
                "seconds": t.user_attrs.get("seconds"),
                "reason": t.user_attrs.get("reason", ""),
                "params": {r.key: t.params[r.key] for r in self._space if r.key in t.params},
                "steps": {str(step): value for step, value in sorted(t.intermediate_values.items())},
            }
            for t in self._study.get_trials(deepcopy=False)
            if t.state.is_finished()
        ]

    @property
    def test(self) -> dict[str, Any] | None:
        """What `record_test` recorded last."""
        found: dict[str, Any] | None = self._study.user_attrs.get("test")
        return found

    def record_test(self, result: Mapping[str, Any]) -> None:
        self._study.set_user_attr("test", dict(result))

    def _trial(self, number: int) -> Any:
        return next(t for t in self._study.get_trials(deepcopy=False) if t.number == number)


def _sampler(optuna: Any, name: str, seed: int) -> Any:
    return optuna.samplers.TPESampler(seed=seed) if name == "tpe" else optuna.samplers.RandomSampler(seed=seed)


def _pruner(optuna: Any, name: str) -> Any:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.pruners.NopPruner()
