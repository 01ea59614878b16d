"""Numbers, states and the gate's conditions in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparkcf.config.root import RATING_MEASURES
from sparkcf.ranking.gate import margin_of
from sparkcf.report.night import BASELINE, Difference, Measure, NightRun

LONGEST = 160  # letters of a title or a name
PUBLISHED, REFUSED, FAILED, OPEN = "published", "refused", "failed", "open"
CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ")


@dataclass(frozen=True)
class Check:
    """A condition of the gate. `passed` : None if it is not known."""

    condition: str
    found: str
    passed: bool | None


def named(text: object, longest: int = LONGEST) -> str:
    """Data as text of one line: without control characters and lone surrogates, cut if it is very long."""
    plain = str(text).translate(CONTROLS).encode("utf-8", "replace").decode("utf-8")
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def short(measure: Measure) -> str:
    metric, k = measure
    return metric.removesuffix("_at_k") + (f"@{k}" if k else "")


def number(value: float | None, digits: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}%}"


def signed(apart: Difference | None) -> str:
    """A difference with its bounds."""
    if apart is None:
        return "–"
    return f"{apart.value:+.4f} [{apart.lower:+.4f}, {apart.upper:+.4f}]".replace("-", "−")


def judged(apart: Difference | None, measure: Measure) -> str:
    """better, worse or even (within chance); empty: there is nothing to judge."""
    if apart is None or not (apart.lower > 0 or apart.upper < 0):
        return "" if apart is None else "even"
    return "better" if (apart.value > 0) != (measure[0] in RATING_MEASURES) else "worse"


def size(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:,.0f} MiB" if value < 10 * 2**30 else f"{value / 2**30:,.1f} GiB"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s" if value < 6000 else f"{value / 3600:,.1f} h"


def verdict(run: NightRun) -> tuple[str, str]:
    """The kind of a run's end, and the sentence that says why."""
    reason = run.row["reason"]
    if run.state == "refused":
        return REFUSED, f"The gate refused: {reason or 'no reason is stored'}."
    if run.state in ("failed", "expired"):
        return FAILED, f"The run {run.state}: {reason}." if reason else f"The run {run.state}."
    if run.published is not None:
        how = "by a rollback" if run.published.action == "rollback" else "since every condition of the gate holds"
        return PUBLISHED, f"Published for {run.published.ds}, {how}."
    return OPEN, f"Not published: its state is {run.state}." + (f" {reason}." if reason else "")


def checks(run: NightRun) -> list[Check]:
    """The gate's conditions with what was found; see docs/evaluation.md."""
    gate: Mapping[str, Any] = run.config.get("gate", {})
    counts: Mapping[str, int] = run.row["counts"]
    found = []
    if "nan_scores" in counts:
        found.append(Check("scores that are NaN", f"{counts['nan_scores']:,}", not counts["nan_scores"]))
    if counts.get("users"):
        covered, least = counts["users_model"] / counts["users"], gate.get("min_user_coverage", 0.0)
        condition = f"at least {least:.0%} of the users have a list by the model"
        found.append(Check(condition, percent(covered), covered >= least))
        most = gate.get("max_fallback_share", 1.0)
        if most < 1:
            share = counts.get("users_fallback", 0) / counts["users"]
            found.append(Check(f"at most {most:.0%} have the fallback", percent(share), share <= most))
    return found + _quality_checks(run, gate)


def _quality_checks(run: NightRun, gate: Mapping[str, Any]) -> list[Check]:
    measure = run.gate_measure()
    if run.figures is None or (mine := run.figures.get(measure)) is None:
        return [Check(f"{short(measure)} is not worse than popularity's", "not measured", None)]
    found = []
    less = measure[0] in RATING_MEASURES
    if (baseline := run.figures.get(measure, BASELINE)) is not None:
        holds = mine.value <= baseline.value if less else mine.value >= baseline.value
        allowed = gate.get("allow_below_popularity", False)
        condition = f"{short(measure)} is not worse than popularity's" + (" (not required)" if allowed else "")
        found.append(Check(condition, f"{mine.value:.4f}, popularity {baseline.value:.4f}", holds or allowed))
    most = gate.get("max_fall", 1.0)
    if run.before is None or most >= 1:
        return found
    condition = f"{short(measure)} has not fallen by more than {most:.0%} and chance"
    old = run.old.get(measure) if run.old else None
    if old is None or run.old is None or not run.figures.as_measured().tests_like(run.old.as_measured()):
        return [*found, Check(condition, "the run before was not measured alike", None)]
    paired = run.figures.as_measured().draws_like(run.old.as_measured())
    margin, upper = margin_of(mine, old, most, paired)
    return [*found, Check(condition, f"{mine.value:.4f}, before {old.value:.4f}", margin >= 0 or upper >= 0)]
