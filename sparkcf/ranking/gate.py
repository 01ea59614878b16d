"""Quality gate: decides by a statistical test whether a run may replace the published run. The users are the sample.

    margin = new − (1 − max_fall) · old        for a measure where more is better, over the same segment of users
    refused if margin < 0 and its upper 97.5 % bound is below 0 too

If both runs were measured with the same seed and number of bootstrap replicates, a user has the same bootstrap weights
in both. Then the replicates of the margin give its bound: paired for users in both tests, independent for the others.
Otherwise the bound is computed from the bounds of the two figures, as if they were independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkcf.config.root import RATING_MEASURES, GateConfig
from sparkcf.errors import GateRefused
from sparkcf.lake.figures import Figure

Z = 1.959964  # 97.5 % quantile of the normal distribution
OF_BOOTSTRAP = ("seed", "bootstrap")  # settings of the bootstrap draws, not of the test set
SEGMENTS = ((None, "all tested users"), ("warm", "users with a vector"))


@dataclass(frozen=True)
class Measured:
    """One measure of a run under one protocol."""

    run_id: str
    protocol: str
    settings: Mapping[str, Any]
    figures: Mapping[tuple[str, str | None], Figure]  # by system and segment

    @property
    def measure(self) -> str:
        """Name of the measure, such as ndcg@100."""
        return _name(self.figures["model", None])

    def tests_like(self, other: Measured) -> bool:
        """Whether both were measured under the same protocol and settings, bootstrap settings aside."""
        return self.protocol == other.protocol and _without_draws(self.settings) == _without_draws(other.settings)

    def draws_like(self, other: Measured) -> bool:
        return all(self.settings.get(name) == other.settings.get(name) for name in OF_BOOTSTRAP)


def check_lists(counts: Mapping[str, int], gate: GateConfig) -> None:
    """Raise GateRefused for lists with NaN scores, or for too many users without a list by the model.

    Parameters
    ----------
    counts : counts of the recommend job: users, users_model, users_fallback, nan_scores.
    """
    if counts.get("nan_scores"):
        raise GateRefused(f"{counts['nan_scores']:,} scores are NaN")
    users = counts.get("users", 0)
    coverage = counts.get("users_model", 0) / users if users else 0.0
    if coverage < gate.min_user_coverage:
        raise GateRefused(
            f"the model has recommendations for {coverage:.1%} of {users:,} users, "
            f"gate.min_user_coverage is {gate.min_user_coverage:.1%}"
        )
    fallback = counts.get("users_fallback", 0) / users if users else 0.0
    if fallback > gate.max_fallback_share:
        raise GateRefused(
            f"{fallback:.1%} of users have the fallback, gate.max_fallback_share is {gate.max_fallback_share:.1%}"
        )


def check_quality(new: Measured, old: Measured | None, gate: GateConfig) -> None:
    """Raise GateRefused if the model is worse than the baseline, or worse than the published run by more than chance.

    Parameters
    ----------
    old : the published run's figures, measured like the new ones (`tests_like`); None: nothing is published, or any
        fall is allowed.
    """
    mine, baseline = new.figures["model", None], new.figures["popularity", None]
    if not math.isfinite(mine.value):
        raise GateRefused(f"{_name(mine)} is {mine.value}")
    if not gate.allow_below_popularity and _worse(mine, baseline.value):
        raise GateRefused(
            f"{_shown(mine)} is worse than popularity's {_bounded(baseline)}: see docs/evaluation.md for remedies, "
            "or set gate.allow_below_popularity=true"
        )
    for segment, users in SEGMENTS:
        before = old and old.figures.get(("model", segment))
        after = new.figures.get(("model", segment))
        if not old or not before or not after:
            continue
        margin, upper = margin_of(after, before, gate.max_fall, paired=new.draws_like(old))
        if margin < 0 and upper < 0:
            fall = abs(after.value - before.value) / abs(before.value or 1.0)
            raise GateRefused(
                f"{_shown(after)} ({users}) is {fall:.1%} worse than the {_bounded(before)} over {_counted(before)} "
                f"of the published run {old.run_id}, which is more than gate.max_fall={gate.max_fall:.1%} and chance"
            )


def margin_of(new: Figure, old: Figure, max_fall: float, paired: bool) -> tuple[float, float]:
    """Margin of the new figure over the old one reduced by `max_fall`, and the margin's upper 97.5 % bound."""
    if new.metric in RATING_MEASURES:
        difference, lower, _ = difference_of(new, old, paired, 1 + max_fall)
        return -difference, -lower
    difference, _, upper = difference_of(new, old, paired, 1 - max_fall)
    return difference, upper


def difference_of(new: Figure, old: Figure, paired: bool, kept: float = 1.0) -> tuple[float, float, float]:
    """new − kept · old, with its lower 2.5 % and upper 97.5 % bound.

    Parameters
    ----------
    paired : both were measured with the same bootstrap draws, so that the bounds are those of the replicates'
        differences; else, or without replicates, the bounds are computed as if the figures were independent.
    """
    difference = new.value - kept * old.value
    if paired and new.replicates and old.replicates:
        drawn = np.array(new.replicates) - kept * np.array(old.replicates)
        drawn = drawn[np.isfinite(drawn)]
        if drawn.size:
            lower, upper = np.percentile(drawn, [2.5, 97.5])
            return difference, float(lower), float(upper)
    spread = Z * math.hypot(_standard_error(new), kept * _standard_error(old))
    return difference, difference - spread, difference + spread


def _standard_error(figure: Figure) -> float:
    if figure.lower is None or figure.upper is None:
        return 0.0
    return (figure.upper - figure.lower) / (2 * Z)


def _worse(figure: Figure, value: float) -> bool:
    return figure.value > value if figure.metric in RATING_MEASURES else figure.value < value


def _without_draws(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in OF_BOOTSTRAP}


def _name(figure: Figure) -> str:
    return figure.metric.replace("_at_k", f"@{figure.k}") if figure.k else figure.metric


def _bounded(figure: Figure) -> str:
    bounds = "" if figure.lower is None else f" [{figure.lower:.4f}, {figure.upper:.4f}]"
    return f"{figure.value:.4f}{bounds}"


def _shown(figure: Figure) -> str:
    return f"{_name(figure)} {_bounded(figure)} over {_counted(figure)}"


def _counted(figure: Figure) -> str:
    return f"{figure.users:,} {'ratings' if figure.metric in RATING_MEASURES else 'users'}"
