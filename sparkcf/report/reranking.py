"""What the rules of `rerank` cost and won: measures of the same users' lists before and after them."""

from __future__ import annotations

import json

from sparkcf.config.rerank import RerankConfig
from sparkcf.report.gather import Gathered
from sparkcf.report.night import Difference, Measure, NightRun, difference
from sparkcf.report.parts import Cell, Part, Section, Words, table
from sparkcf.report.words import named, number, short, signed

BEFORE, AFTER = "plain", "reranked"  # systems of `metrics`
FIRST = ("ndcg_at_k", "recall_at_k", "coverage_at_k", "intra_list_diversity_at_k")
LESS_IS_BETTER = ("calibration_kl_at_k",)
UNJUDGED = ("exploration_share_at_k", "novelty_at_k")


def reranking(found: Gathered) -> Section | None:
    """A table of each run whose lists were re-ranked; None: no run's were."""
    parts: list[Part] = []
    for run in found.night.runs:
        measures = _measures(run)
        if measures:
            heads = ["measure", "difference", "before", "after"]
            caption = f"{run.model}, {_rules(run)}"
            parts.append(table(heads, [_row(run, measure) for measure in measures], caption=named(caption)))
    if not parts:
        return None
    said = (
        "The model's lists of the tested users before and after the rules. Differences are of the same users and "
        "draws; coverage is of all lists together and has no bounds. The gate compares the lists before the rules."
    )
    return Section("reranking", "Re-ranking: cost and gain", [*parts, Words(said)])


def _measures(run: NightRun) -> list[Measure]:
    """The measures at the length of the published lists, the largest that was measured; NDCG first."""
    keys = [key for key in run.figures.by if key[0] == AFTER and key[3] is None] if run.figures else []
    longest = max((key[2] or 0 for key in keys), default=0)
    order = {metric: place for place, metric in enumerate(FIRST)}
    chosen = {key[1:3] for key in keys if key[2] == longest}
    return sorted(chosen, key=lambda measure: (order.get(measure[0], len(FIRST)), measure[0]))


def _row(run: NightRun, measure: Measure) -> list[Cell | str]:
    assert run.figures is not None
    before, after = (run.figures.get(measure, system) for system in (BEFORE, AFTER))
    apart = difference(after, before, True)
    bounds = after is not None and after.lower is not None
    shown = signed(apart) if bounds or apart is None else f"{apart.value:+.4f}".replace("-", "−")
    values = [number(figure.value if figure else None) for figure in (before, after)]
    return [short(measure), Cell(shown, _tone(measure[0], apart) if bounds else ""), *values]


def _tone(metric: str, apart: Difference | None) -> str:
    if apart is None or metric in UNJUDGED:
        return ""
    if apart.lower <= 0 <= apart.upper:
        return "even"
    return "better" if (apart.value > 0) != (metric in LESS_IS_BETTER) else "worse"


def _rules(run: NightRun) -> str:
    """The settings of `rerank` that differ from the defaults."""
    usual = RerankConfig().model_dump(mode="json")
    own = {key: value for key, value in run.config.get("rerank", {}).items() if value != usual.get(key)}
    return ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in own.items()) or "default rules"
