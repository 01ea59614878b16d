"""The charts of the page, each a function of arrays that returns an SVG element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from sparkcf.report.svg import BAD, GOOD, INK, LINE, MUTED, OTHER, SERIES, chart

Array = NDArray[Any]
MOST_POINTS = 160  # of a line
LONGEST = 22  # letters of a label
Interval = tuple[str, float, float, float]  # label, value, lower, upper bound


def forest(name: str, label: str, rows: Sequence[Interval], axis: str, less_is_better: bool = False) -> str:
    """Differences with their bounds, one below the other, against 0. Colour: better, worse, or within chance."""

    def draw(axes: Axes) -> None:
        for place, (_, value, lower, upper) in enumerate(rows):
            colour = MUTED
            if lower > 0 or upper < 0:
                colour = GOOD if (value > 0) != less_is_better else BAD
            axes.plot([lower, upper], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot([value], [place], "o", color=colour, markersize=5)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [shortened(row[0]) for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(axis)

    return chart(draw, name, label, height=62 + 22 * len(rows))


def by_day(name: str, label: str, days: Array, counts: Array) -> str:
    """Events by day; of many days the mean of equal spans."""
    first = days.min()
    offset = (days - first).astype(np.int64)
    span = max(1, int(np.ceil((offset.max() + 1) / MOST_POINTS)))
    binned = np.bincount(offset // span, weights=counts.astype(float)) / span
    starts = first + np.arange(len(binned)) * span

    def draw(axes: Axes) -> None:
        axes.fill_between(starts, binned, step="post", color=SERIES[0], alpha=0.3, linewidth=0)
        axes.plot(starts, binned, drawstyle="steps-post", color=SERIES[0], linewidth=1.2)
        axes.set_ylim(0)
        axes.set_ylabel("events a day" if span == 1 else f"events a day, mean of {span} days")
        axes.yaxis.set_major_formatter(FuncFormatter(_compact))
        _few_dates(axes)

    return chart(draw, name, label)


def _few_dates(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def tails(name: str, label: str, curves: Sequence[tuple[str, Array, Array]]) -> str:
    """How much the most frequent items hold. `curves` : colour, share of the items, share held."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for colour, x, y in curves:
            axes.plot(x, y, color=colour, linewidth=1.8)
        axes.set_xlabel("share of the items, most frequent first")
        axes.set_ylabel("share held")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return chart(draw, name, label, height=230)


def curve(name: str, label: str, x: Sequence[float], y: Sequence[float], axis: str) -> str:
    """A figure of the fit by sweep or epoch."""

    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=SERIES[0], linewidth=1.6, marker="o" if len(x) < 25 else "", markersize=3)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_compact))

    return chart(draw, name, label, height=150)


def trials(name: str, label: str, numbers: Array, values: Array, best: Array, axis: str) -> str:
    """Values of trials as points, and the best up to each as steps."""

    def draw(axes: Axes) -> None:
        axes.plot(numbers, values, "o", color=OTHER, markersize=4)
        axes.step(numbers, best, where="post", color=SERIES[0], linewidth=1.6)
        axes.set_xlabel("trial")
        axes.set_ylabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_compact))

    return chart(draw, name, label)


def segments(name: str, label: str, names: Sequence[str], systems: Sequence[tuple[str, Array]], axis: str) -> str:
    """A measure by segment. `systems` : colour and (n, 3): value, lower and upper bound; NaN: not measured."""

    def draw(axes: Axes) -> None:
        place = np.arange(len(names), dtype=float)
        for number, (colour, values) in enumerate(systems):
            at = place + 0.16 * (number - (len(systems) - 1) / 2)
            axes.hlines(at, values[:, 1], values[:, 2], color=colour, linewidth=2)
            axes.plot(values[:, 0], at, "o", color=colour, markersize=4.5)
        axes.set_yticks(place, [shortened(text) for text in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(False, axis="y")
        axes.set_xlim(left=0)
        axes.set_xlabel(axis)
        axes.spines["left"].set_visible(False)

    return chart(draw, name, label, height=60 + 22 * len(names))


def calibration(name: str, label: str, nominal: Array, found: Array, bounds: Array) -> str:
    """Share of the values inside central intervals against the share that should be. `bounds` : (n, 2)."""

    def draw(axes: Axes) -> None:
        axes.plot([0.4, 1], [0.4, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.vlines(nominal, bounds[:, 0], bounds[:, 1], color=SERIES[0], linewidth=2)
        axes.plot(nominal, found, "o-", color=SERIES[0], markersize=5, linewidth=1.2)
        axes.set_xlabel("share that the interval should hold")
        axes.set_ylabel("share that it held")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return chart(draw, name, label, height=210)


def intervals(name: str, label: str, middle: Array, low: Array, high: Array) -> str:
    """Predictions of some pairs in ascending order, each with its interval."""

    def draw(axes: Axes) -> None:
        place = np.arange(len(middle))
        axes.vlines(place, low, high, color=SERIES[0], linewidth=2.4, alpha=0.5)
        axes.plot(place, middle, "o", color=SERIES[0], markersize=3)
        axes.set_xticks([])
        axes.set_xlabel(f"{len(middle)} pairs in order of their prediction")
        axes.set_ylabel("predicted value")

    return chart(draw, name, label)


def histogram(name: str, label: str, values: Array, axis: str) -> str:
    def draw(axes: Axes) -> None:
        counts, edges = np.histogram(values[np.isfinite(values)], bins=30)
        axes.stairs(counts, edges, fill=True, color=SERIES[0], alpha=0.6)
        axes.set_xlabel(axis)
        axes.set_ylabel("predictions")
        axes.yaxis.set_major_formatter(FuncFormatter(_compact))

    return chart(draw, name, label)


def plane(name: str, label: str, points: Array, group: Array) -> str:
    """Points of the plane (n, 2), coloured by group; -1: another or none, drawn first."""

    def draw(axes: Axes) -> None:
        for number in range(-1, int(group.max(initial=-1)) + 1):
            x, y = points[group == number].T
            colour = OTHER if number < 0 else SERIES[number]
            axes.plot(x, y, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.4 if number < 0 else 0.8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(LINE)

    return chart(draw, name, label, height=300)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _compact(value: float, _: Any = None) -> str:
    """A number in few letters, such as 12k or 3.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"
