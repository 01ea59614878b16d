"""A comparison of models as records, a terminal table, Markdown and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkcf.cli.plot import Point, plot
from sparkcf.errors import ConfigError, NotFoundError
from sparkcf.lake.compared import COSTS, ComparedModel, Comparison
from sparkcf.lake.figures import Figure
from sparkcf.progress import printable
from sparkcf.ranking.gate import difference_of

Measure = tuple[str, int | None]
TOLD = ("name", "model", "state", "reason", "run_id", "measured_at")
FIGURE = ("metric", "k", "value", "lower", "upper", "users")
COLUMNS = [*TOLD, *FIGURE, "difference", "difference_lower", "difference_upper", *COSTS, "pairs_per_second"]
HEADS = ("model", "{measure}", "difference", "training", "pairs/s", "memory", "stored", "lists", "note")


@dataclass(frozen=True)
class Difference:
    """A measure of a model minus that of the reference, with 95 % bounds."""

    value: float
    lower: float
    upper: float


def measure_named(comparison: Comparison, text: str | None) -> Measure:
    """The measure of a text such as ndcg@100, recall_at_k@20 or rmse; None: the one that is shown first.

    Raises NotFoundError if the comparison does not have it.
    """
    if text is None:
        return comparison.metric, comparison.at
    known = comparison.measures()
    named = {alias: found for found in known for alias in (short(found), _long(found))}
    if text not in named:
        some = ", ".join(short(found) for found in known) or "none: nothing is measured yet"
        raise NotFoundError(f"the comparison has no measure {text!r}: it has {some}")
    return named[text]


def short(measure: Measure) -> str:
    metric, k = measure
    return metric.removesuffix("_at_k") + (f"@{k}" if k else "")


def _long(measure: Measure) -> str:
    metric, k = measure
    return metric + (f"@{k}" if k else "")


def difference(comparison: Comparison, one: ComparedModel, measure: Measure) -> Difference | None:
    """Difference to the reference, paired by user; None for the reference, or if one of them lacks the measure."""
    reference = comparison.reference
    if reference is None or one.name == reference.name or one.heldout != reference.heldout:
        return None
    mine, other = (found.figures.get(("model", *measure)) for found in (one, reference))
    if mine is None or other is None:
        return None
    return Difference(*difference_of(mine, other, paired=True))


def caption(comparison: Comparison, measure: Measure) -> list[str]:
    """Lines above a table: what was compared, on what, and what must be known to read it."""
    reference = comparison.reference
    lines = [f"Compared for {comparison.ds} by {comparison.protocol}, {comparison.comparison_id}"]
    if reference is None:
        return [*lines, "No model is measured yet"]
    figure, baseline = (reference.figures.get((system, *measure)) for system in ("model", "popularity"))
    if figure is not None:
        unit = "users" if measure[1] or measure[0].endswith("_at_k") else "ratings"
        lines.append(f"{short(measure)} over {figure.users:,} {unit}; differences to {reference.name}; 95 % bounds")
    if baseline is not None:
        lines.append(f"Popularity on the same {'users' if measure[1] else 'ratings'}: {_bounded(baseline)}")
    slots = sorted({one.costs["slots"] for one in comparison.models if one.measured})
    if len(slots) > 1:
        lines.append(f"Times are not comparable: the models were measured with {' and '.join(map(str, slots))} slots")
    return lines


def cells(comparison: Comparison, measure: Measure) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table as texts; the last column is left out if no model has a note."""
    heads = [head.format(measure=short(measure)) for head in HEADS]
    rows = [_row(comparison, one, measure) for one in comparison.models]
    used = len(heads) if any(row[-1] for row in rows) else len(heads) - 1
    return heads[:used], [row[:used] for row in rows]


def _row(comparison: Comparison, one: ComparedModel, measure: Measure) -> list[str]:
    name = one.name if one.name == one.model else f"{one.name} ({one.model})"
    if not one.measured:
        return [name, *[""] * 7, f"failed: {one.reason}" if one.reason else "not measured yet"]
    figure, apart, costs = one.figures.get(("model", *measure)), difference(comparison, one, measure), one.costs
    rate = _rate(one)
    return [
        name,
        _bounded(figure) if figure else "",
        f"{apart.value:+.4f} [{apart.lower:+.4f}, {apart.upper:+.4f}]" if apart else "",
        seconds(costs["train_seconds"]),
        "" if rate is None else f"{rate:,.0f}",
        size(costs["peak_bytes"]),
        size(costs["stored_bytes"]),
        seconds(costs["list_seconds"]),
        "",
    ]


def _bounded(figure: Figure) -> str:
    bounds = "" if figure.lower is None else f" [{figure.lower:.4f}, {figure.upper:.4f}]"
    return f"{figure.value:.4f}{bounds}"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def size(value: int | None) -> str:
    """Bytes in the largest decimal unit of which there is at least one."""
    if value is None:
        return ""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= bytes_:
            return f"{value / bytes_:.1f} {unit}"
    return f"{value} B"


def markdown(comparison: Comparison, measure: Measure) -> str:
    """A Markdown table below its caption; texts are escaped."""
    heads, rows = cells(comparison, measure)
    lines = [f"{escaped(line)}  " for line in caption(comparison, measure)]
    lines += ["", "| " + " | ".join(heads) + " |"]
    lines.append("|" + "|".join("---:" if 0 < place < 8 else "---" for place, _ in enumerate(heads)) + "|")
    lines += ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text of which Markdown shows every character."""
    flat = printable(text).replace("\n", " ").replace("\t", " ")
    for character in "\\`*_|<>&":
        flat = flat.replace(character, f"\\{character}")
    return flat


def as_json(comparison: Comparison) -> str:
    """Every measure and every cost, unrounded, as one JSON object."""
    reference = comparison.reference
    whole = {
        "comparison_id": comparison.comparison_id,
        "ds": comparison.ds,
        "compared_at": comparison.compared_at,
        "protocol": comparison.protocol,
        "code_version": comparison.code_version,
        "inputs": comparison.inputs,
        "measure": {"metric": comparison.metric, "k": comparison.at},
        "reference": reference.name if reference else None,
        "popularity": _measures_of(reference, "popularity") if reference else [],
        "models": [_model(comparison, one) for one in comparison.models],
    }
    return json.dumps(_finite(whole), default=lambda value: value.isoformat())


def records(comparison: Comparison, measure: Measure) -> list[dict[str, Any]]:
    """COLUMNS of every model, unrounded: a measure with its difference to the reference, and the costs."""
    found = []
    for one in comparison.models:
        figure, apart = one.figures.get(("model", *measure)), difference(comparison, one, measure)
        record = dict.fromkeys(COLUMNS) | {name: getattr(one, name) for name in TOLD}
        record |= {"metric": measure[0], "k": measure[1]}
        if figure is not None:
            record |= {name: getattr(figure, name) for name in FIGURE}
        if apart is not None:
            record |= {"difference": apart.value, "difference_lower": apart.lower, "difference_upper": apart.upper}
        found.append(record | {name: one.costs[name] for name in COSTS} | {"pairs_per_second": _rate(one)})
    return found


def _rate(one: ComparedModel) -> float | None:
    """Pairs that the training read per second."""
    took: float | None = one.costs["train_seconds"]
    return one.costs["pairs"] / took if took else None


def _model(comparison: Comparison, one: ComparedModel) -> dict[str, Any]:
    told = {name: getattr(one, name) for name in TOLD}
    measures = _measures_of(one, "model")
    for found in measures:
        apart = difference(comparison, one, (found["metric"], found["k"]))
        found["difference"] = None if apart is None else vars(apart)
    return told | {name: one.costs[name] for name in COSTS} | {"pairs_per_second": _rate(one), "measures": measures}


def _measures_of(one: ComparedModel, system: str) -> list[dict[str, Any]]:
    return [{name: getattr(f, name) for name in FIGURE} for key, f in one.figures.items() if key[0] == system]


def write_plot(comparison: Comparison, measure: Measure, path: str) -> None:
    """Write a plot of the measure against the training time.

    Raises
    ------
    NotFoundError
        There is no point to show.
    ConfigError
        The file cannot be written.
    """
    points = []
    for one in comparison.models:
        figure, took = one.figures.get(("model", *measure)), one.costs["train_seconds"]
        if figure is not None and took and math.isfinite(figure.value):
            bounds = (figure.value if bound is None else bound for bound in (figure.lower, figure.upper))
            points.append(Point(one.name, took, figure.value, *bounds))
    if not points:
        raise NotFoundError(f"no model of the comparison has {short(measure)} and a training time: nothing to plot")
    title = f"{short(measure)} by {comparison.protocol}, {comparison.ds}"
    text = plot(points, title, "training time in seconds", short(measure))
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--plot {path} cannot be written: {error.strerror or error}") from None


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
