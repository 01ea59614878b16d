"""The sections about quality: measures with paired differences, comparison, training curves, segments, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparkcf.config.root import RATING_MEASURES
from sparkcf.lake.compared import Comparison
from sparkcf.lake.figures import Figure
from sparkcf.ranking.gate import difference_of
from sparkcf.report import charts
from sparkcf.report.gather import Gathered, gain
from sparkcf.report.night import BASELINE, Difference, Measure, NightRun
from sparkcf.report.parts import Cell, Drawn, Figures, Heading, Legend, Part, Section, Words, drawn, table
from sparkcf.report.svg import SERIES
from sparkcf.report.words import judged, number, percent, seconds, short, signed, size

SEGMENTED = 5  # models whose quality by segment is drawn: a page stays below a megabyte
CURVES = 2  # charts of training for each model
LEAST_INTEREST = 2  # of a figure of a fit that is neither of validation nor the objective
UNINTERESTING = ("seconds", "rows", "learning_rate", "kl_weight", "item_kl_weight")  # of a fit's log
WITHOUT_PREDICTIONS = (
    "Predicted intervals of single pairs, such as those of mpma and fm, are shown once jobs/predict.py has written "
    "predictions of the run: no night does."
)
SHARES = (0.5, 0.8, 0.95)  # that central intervals should hold: coverage_50, coverage_80, coverage_95
KINDS = (  # of segments, by how their names begin; first what the segment is called
    ("users by vector", ("all", "warm", "cold")),
    ("users by activity", ("activity ",)),
    ("items by popularity", ("popularity ",)),
    ("categories", ("category ",)),
)


def quality(found: Gathered) -> Section:
    """Today against popularity and against the run that readers had before."""
    runs = [run for run in found.night.runs if run.figures is not None]
    if not runs:
        return Section("quality", "Quality", [Words("No run of this night has been evaluated.")])
    parts: list[Part] = []
    for measure in dict.fromkeys(run.gate_measure() for run in runs):
        parts += _overview(measure, [run for run in runs if run.gate_measure() == measure])
    parts.append(
        Words(
            "Every difference has 95 % bounds by bootstrap over the tested users. A difference is paired if both were "
            "measured with the same draws: users in both tests are compared with themselves."
        )
    )
    for run in runs:
        parts += [Heading(run.model), _measures(run)]
    return Section("quality", "Quality", parts)


def _overview(measure: Measure, runs: Sequence[NightRun]) -> list[Part]:
    less = measure[0] in RATING_MEASURES
    pictures: list[Drawn] = []
    for other, differences in (
        ("popularity's", [(run.model, run.to_popularity(measure)) for run in runs]),
        ("the run before's", [(run.model, run.to_old(measure)) for run in runs]),
    ):
        rows = [(model, d.value, d.lower, d.upper) for model, d in differences if d is not None and finite(d)]
        if rows:
            title = f"{short(measure)} minus {other}"
            name = f"forest-{measure[0]}-{measure[1] or 0}-{len(pictures)}"
            axis = "less is better" if less else "more is better"
            pictures.append(drawn(title, charts.forest(name, title, rows, axis, less)))
    body: list[list[Cell | str]] = []
    heads = ["model", short(measure), "popularity", "to popularity", "before", "to the run before", "users"]
    for run in runs:
        mine, baseline = (run.figures.get(measure, system) if run.figures else None for system in ("model", BASELINE))
        old = run.old.get(measure) if run.old else None
        apart, since = run.to_popularity(measure), run.to_old(measure)
        body.append(
            [
                run.model,
                bounded(mine),
                number(baseline.value if baseline else None),
                Cell(signed(apart), judged(apart, measure)),
                number(old.value if old else None),
                Cell(signed(since) + _unpaired(since), judged(since, measure)),
                f"{mine.users:,}" if mine else "–",
            ]
        )
    protocols = sorted({run.figures.protocol for run in runs if run.figures})
    caption = f"The gate's measure by {', '.join(protocols)}" + ("; less is better" if less else "")
    return [Figures(pictures), table(heads, body, caption=caption)]


def _measures(run: NightRun) -> Part:
    """All measures of a run at the gate's length of lists."""
    figures, at = run.figures, run.gate_measure()[1]
    assert figures is not None
    measures = [key[1:3] for key in figures.by if key[0] == "model" and key[3] is None]
    rows: list[list[Cell | str]] = []
    for measure in sorted(m for m in dict.fromkeys(measures) if m[1] in (None, at)):
        mine, baseline = figures.get(measure), figures.get(measure, BASELINE)
        apart, since = run.to_popularity(measure), run.to_old(measure)
        bounds = mine is not None and mine.lower is not None
        judge = judged if bounds and not measure[0].startswith("novelty") else lambda *_: ""
        rows.append(
            [
                short(measure),
                bounded(mine),
                number(baseline.value if baseline else None),
                Cell(signed(apart) if bounds else "–", judge(apart, measure)),
                Cell(signed(since) + _unpaired(since) if bounds else "–", judge(since, measure)),
            ]
        )
    return table(["measure", "today", "popularity", "to popularity", "to the run before"], rows)


def _unpaired(apart: Difference | None) -> str:
    return "" if apart is None or apart.paired else " (not paired)"


def bounded(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    return number(figure.value) + ("" if figure.lower is None else f" [{figure.lower:.4f}, {figure.upper:.4f}]")


def finite(apart: Difference) -> bool:
    return all(math.isfinite(value) for value in (apart.value, apart.lower, apart.upper))


def comparison(found: Comparison | None) -> Section | None:
    """The newest comparison of models on one snapshot; None: there is none."""
    if found is None:
        return None
    measure = (found.metric, found.at)
    reference = found.reference
    rows: list[list[Cell | str]] = []
    for one in found.models:
        figure, costs = one.figures.get(("model", *measure)), one.costs
        other = reference.figures.get(("model", *measure)) if reference else None
        apart = None
        if reference and one.name != reference.name and figure and other and one.heldout == reference.heldout:
            apart = Difference(*difference_of(figure, other, True), paired=True)
        state = bounded(figure) if figure else (one.reason or one.state)
        took = seconds(costs["train_seconds"])
        rows.append([one.name, state, Cell(signed(apart), judged(apart, measure)), took, size(costs["peak_bytes"])])
    to = f"to {reference.name}" if reference else "difference"
    caption = f"{found.comparison_id}, for {found.ds} by {found.protocol}"
    heads = ["model", short(measure), to, "training", "memory"]
    return Section("comparison", "Models compared on one snapshot", [table(heads, rows, caption=caption)])


def training(found: Gathered) -> Section:
    """What the fits logged by sweep or epoch."""
    pictures, silent = [], []
    for place, run in enumerate(found.night.runs):
        logged = sorted((log for log in run.log if _telling(log)), key=_interest)[:CURVES]
        logged = [log for log in logged if _interest(log)[0] < LEAST_INTEREST] or logged[:1]
        for metric, numbers, values in logged:
            title = f"{run.model}: {metric.replace('_', ' ')}"
            svg = charts.curve(f"fit-{place}-{metric}", title, numbers, values, "sweep or epoch")
            pictures.append(drawn(title, svg))
        if not logged:
            silent.append(run.model)
    parts: list[Part] = [Figures(pictures)] if pictures else []
    if silent:
        parts.append(Words(f"No log by sweep or epoch: {', '.join(silent)}."))
    return Section("training", "Training", parts)


def _telling(log: tuple[str, list[float], list[float]]) -> bool:
    metric, numbers, values = log
    return metric not in UNINTERESTING and len(numbers) > 1 and all(map(math.isfinite, values))


def _interest(log: tuple[str, list[float], list[float]]) -> tuple[int, str]:
    """Validation first, then the objective."""
    metric = log[0]
    order = [any(word in metric for word in words) for words in (("ndcg", "rmse", "valid"), ("objective", "loss"))]
    return order.index(True) if True in order else LEAST_INTEREST, metric


def segments(found: Gathered) -> Section:
    """The gate's measure, or recall for items, by segment of users and items."""
    pictures = []
    measured = [run for run in found.night.runs if run.figures is not None]
    shown = sorted(measured, key=lambda run: -gain(run))[:SEGMENTED]  # of equal gains the first ones
    for place, run in enumerate(run for run in measured if run in shown):
        for kind, (title, beginnings) in enumerate(KINDS):
            for measure in _segmented(run, beginnings):
                names, values = _by_segment(run, measure, beginnings)
                heading = f"{run.model}: {short(measure)}, {title}"
                systems = [(SERIES[0], values["model"]), (SERIES[1], values[BASELINE])]
                svg = charts.segments(f"segment-{place}-{kind}", heading, names, systems, short(measure))
                pictures.append(drawn(heading, svg))
    if not pictures:
        return Section("segments", "Quality by segment", [Words("The runs have no measures by segment.")])
    parts: list[Part] = [Legend([("the model", "s1"), ("popularity", "s2")]), Figures(pictures)]
    if len(measured) > SEGMENTED:
        parts.append(Words(f"Of {len(measured)} models the {SEGMENTED} that gain most on popularity."))
    return Section("segments", "Quality by segment", parts)


def _segmented(run: NightRun, beginnings: tuple[str, ...]) -> list[Measure]:
    """The one measure that is drawn by these segments: the gate's, else the first one that has them."""
    assert run.figures is not None
    found = [
        key[1:3] for key in run.figures.by if key[0] == "model" and key[3] is not None and key[3].startswith(beginnings)
    ]
    gate = run.gate_measure()
    return [gate] if gate in found else sorted(dict.fromkeys(found))[:1]


def _by_segment(
    run: NightRun, measure: Measure, beginnings: tuple[str, ...]
) -> tuple[list[str], dict[str, np.ndarray]]:
    assert run.figures is not None
    keys = [key[3] for key in run.figures.by if key[0] == "model" and key[1:3] == measure]
    named = [key for key in keys if key is not None and key.startswith(beginnings)]
    order: list[str | None] = [None] if "all" in beginnings else []
    order += sorted(named, key=_natural, reverse="all" in beginnings)  # warm before cold
    values = {}
    for system in ("model", BASELINE):
        figures = [run.figures.get(measure, system, segment) for segment in order]
        rows = [(f.value, f.lower, f.upper) if f else (None, None, None) for f in figures]
        values[system] = np.array(rows, np.float64).reshape(-1, 3)
    names = [_called(segment, run, measure) for segment in order]
    return names, values


def _natural(name: str | None) -> tuple[str, float, str]:
    """Numbers in a name by their size."""
    head, _, tail = (name or "").partition(" ")
    digits = tail.partition(" ")[0]
    return head, float(digits) if digits.isdigit() else 0.0, tail


def _called(segment: str | None, run: NightRun, measure: Measure) -> str:
    if segment is None:
        return "all tested users"
    if segment in ("warm", "cold"):
        return "with a vector" if segment == "warm" else "without a vector"
    head, _, tail = segment.partition(" ")
    return tail if head == "category" else tail.partition(" ")[2] or tail


def calibration(found: Gathered) -> Section:
    """Predicted distributions against what came true, and their widths."""
    pictures: list[Drawn] = []
    for place, one in enumerate(found.shown):
        run = one.run
        figures = [run.figures.get((f"coverage_{round(100 * s)}", None)) for s in SHARES] if run.figures else []
        measured = [(s, f) for s, f in zip(SHARES, figures, strict=False) if f is not None]
        if measured:
            nominal, held = np.array([s for s, _ in measured]), np.array([f.value for _, f in measured])
            pairs = [
                (f.value if f.lower is None else f.lower, f.value if f.upper is None else f.upper) for _, f in measured
            ]
            title = f"{run.model}: central intervals of held-out ratings"
            svg = charts.calibration(f"calibration-{place}", title, nominal, held, np.array(pairs))
            worst = max(measured, key=lambda pair: abs(pair[1].value - pair[0]))
            note = (
                f"Below the dashed line intervals are too narrow. Furthest: {worst[0]:.0%} holds {worst[1].value:.1%}."
            )
            pictures.append(drawn(title, svg, note))
        if one.intervals is not None:
            wide = one.intervals
            levels = (
                "± 1.96 standard deviations"
                if wide.levels is None
                else "quantiles {:.0%} to {:.0%}".format(*wide.levels)
            )
            title = f"{run.model}: predictions with {levels}"
            svg = charts.intervals(f"intervals-{place}", title, wide.middle, wide.low, wide.high)
            pictures.append(drawn(title, svg))
            title = f"{run.model}: standard deviations of {wide.n:,} predictions"
            svg = charts.histogram(f"deviations-{place}", title, wide.sd, "standard deviation")
            pictures.append(drawn(title, svg))
    parts: list[Part] = [Figures(pictures)] if pictures else []
    if not pictures:
        parts.append(
            Words("No run was measured by q3 with predicted distributions, and none has predictions with a spread.")
        )
    if all(one.intervals is None for one in found.shown):
        parts.append(Words(WITHOUT_PREDICTIONS))
    return Section("calibration", "Calibration and intervals", parts)


def share_of_warm(run: NightRun) -> str:
    """Share of the tested users with a vector."""
    figure = run.figures.get(("warm_users", None)) if run.figures else None
    return percent(figure.value if figure else None)
