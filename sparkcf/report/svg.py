"""Matplotlib figures as inline SVG: no script, no address, the same bytes for the same data, colours of the page.

A chart is drawn in stand-in colours, which become the page's CSS variables, so that it is light or dark as the page.
It is as wide as a phone, so that its text keeps its size there; on a wide screen charts stand side by side.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 340  # of a chart in CSS pixels
INK, MUTED, LINE, GOOD, BAD = "#010101", "#010102", "#010103", "#010104", "#010105"
SERIES = tuple(f"#01020{number}" for number in range(1, 8))
OTHER = "#010208"
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    GOOD: "good",
    BAD: "bad",
    OTHER: "s0",
    **{colour: f"s{number}" for number, colour in enumerate(SERIES, 1)},
}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sparkcf",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "path.simplify_threshold": 0.3,
    "axes.formatter.useoffset": False,
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
TAG = re.compile(r"<[^>]+>")
NUMBER = re.compile(r"-?\d+\.\d{2,}")
MARKERS = re.compile(r'(<g[^>]*)>\n((?:<use [^>]*style="([^"]*)"/>\n)+)</g>')  # of a series: one style for all


def chart(draw: Callable[[Axes], None], name: str, label: str, height: int = 200) -> str:
    """A chart as an SVG element.

    Parameters
    ----------
    draw : draws onto the axes, in the colours of this module.
    name : unique in the page; prefix of the element's ids.
    label : what the chart shows, for those who cannot see it.
    height : in CSS pixels.
    """
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font for measuring lacks; the browser has them
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=NO_METADATA)
    return inlined(text.getvalue(), name, label)


def inlined(text: str, name: str, label: str) -> str:
    """The SVG element of a file, for a place within a page of HTML."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<svg [^>]*>", _opening(text, label), text, count=1)
    text = re.sub(r'xlink:href="#', 'href="#', text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = TAG.sub(_shortened, text)
    text = re.sub(r'<path d="[^"]*" style="fill: none"/>\s*', "", text)  # the background, which is the page's
    text = re.sub(r"\s*\n\s*", "\n", text)
    for _ in range(3):  # groups without content, and groups of those
        text = re.sub(r"<g/>\n|<g>\n</g>\n|<defs>\n</defs>\n", "", text)
    text = MARKERS.sub(_one_style, text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.strip()


def _opening(text: str, label: str) -> str:
    found = re.search(r'viewBox="([^"]*)"', text)
    box = found[1] if found else f"0 0 {WIDTH} 200"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">'.replace("\\", "\\\\")


def _one_style(group: re.Match[str]) -> str:
    style = f' style="{group[3]}"'
    if group[2].count(style) != group[2].count("<use "):
        return group[0]
    return f"{group[1]}{style}>\n{group[2].replace(style, '')}</g>"


def _shortened(tag: re.Match[str]) -> str:
    """A tag with short numbers and without what the page sets itself."""
    text = NUMBER.sub(lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), tag[0])
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = text.replace("; stroke-linecap: square", "").replace("; stroke-linejoin: miter", "")
    return re.sub(r"\s*\n\s*", " ", text)
