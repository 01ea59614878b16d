"""A plot of quality against training time as SVG, legible at the width of a phone (390 px)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from sparkcf.progress import printable

WIDTH, HEIGHT = 390, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 50  # margins
FONT, LETTER = 12, 6.8  # px; the mean width of a letter at this size
LONGEST = 24  # letters of a label
COLOURS = ("#0b5cad", "#b3400b", "#1b7a3d", "#7a3fa0", "#8a6d00", "#a8235a", "#00727a", "#555555")


class Point(NamedTuple):
    """One model. `lower`, `upper`: bounds of y; both are y where there are none."""

    label: str
    x: float
    y: float
    lower: float
    upper: float


class Box(NamedTuple):
    """A rectangle of the drawing: its left, top, right and bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: Box) -> float:
        """Area that both have."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)


class Axis(NamedTuple):
    """Maps values to pixels, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else even_ticks(self.low, self.high)


def plot(points: Sequence[Point], title: str, x_name: str, y_name: str) -> str:
    """The plot as the text of an SVG file.

    Parameters
    ----------
    points : one or more, with finite values and x above 0.
    """
    x, y = x_axis([p.x for p in points]), y_axis(points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="{FONT}">',
        f"<title>{text_of(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 20, title, weight="bold"),
        *_grid(x, y),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_name + (" (log scale)" if x.log else ""), "middle"),
        f'<g transform="rotate(-90)">{_text(-(TOP + HEIGHT - BOTTOM) / 2, 14, y_name, "middle")}</g>',
    ]
    bars = [Box(x.at(p.x) - 1, y.at(p.upper), x.at(p.x) + 1, y.at(p.lower)) for p in points]
    places = label_places([(x.at(p.x), y.at(p.y)) for p in points], [shortened(p.label) for p in points], bars)
    for number, (point, box) in enumerate(zip(points, places, strict=True)):
        parts += _marked(point, box, x, y, COLOURS[number % len(COLOURS)])
    return "\n".join([*parts, "</svg>\n"])


def x_axis(values: Sequence[float]) -> Axis:
    """From 0, or by the logarithm if the values span more than a factor of 20."""
    low, high = min(values), max(values)
    if high > 20 * low:
        return Axis(low / 1.6, high * 1.6, LEFT, WIDTH - RIGHT, True)
    return Axis(0.0, 1.15 * high, LEFT, WIDTH - RIGHT)


def y_axis(points: Sequence[Point]) -> Axis:
    ends = [value for p in points for value in (p.y, p.lower, p.upper)]
    low, high = min(ends), max(ends)
    spare = 0.1 * (high - low) or 0.1 * abs(high) or 0.1
    return Axis(low - spare, high + spare, HEIGHT - BOTTOM, TOP)


def even_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values between low and high, at distances of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their multiples by 2 and 5 if they are few; at most about six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 6:
            break
    return ticks


def label_places(points: Sequence[tuple[float, float]], labels: Sequence[str], bars: Sequence[Box] = ()) -> list[Box]:
    """A box for every label near its point, where it covers the least of points, bars, other labels and margins."""
    frame = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    placed: list[Box] = []
    for (x, y), label in zip(points, labels, strict=True):
        wide = LETTER * len(label)
        lefts = (x + 8, x - 8 - wide, x - wide / 2)
        tried = [
            Box(left, y + shift - FONT / 2, left + wide, y + shift + FONT / 2)
            for shift in (0, -14, 14, -28, 28, -42, 42, -56, 56)
            for left in (lefts[:2] if shift == 0 else lefts)
        ]

        def cost(box: Box) -> float:
            inside = box.covers(frame)
            outside = (box.right - box.left) * (box.bottom - box.top) - inside
            return 3 * outside + sum(box.covers(other) for other in [*marks, *bars, *placed])

        placed.append(min(tried, key=cost))  # of equal ones the first: nearest
    return placed


def shortened(label: str) -> str:
    label = printable(label)
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def number(value: float) -> str:
    return f"{value:,.6g}"


def text_of(text: str) -> str:
    """Text as XML, control characters made visible."""
    return escape(printable(text), {'"': "&quot;"})


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", fill: str = "#222222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}">'
        f"{text_of(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(_line(at, y.end, at, y.start + 4, "#dddddd"))
        parts.append(_text(at, y.start + 17, number(tick), "middle"))
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(_line(x.start - 4, at, x.end, at, "#dddddd"))
        parts.append(_text(x.start - 7, at + 4, number(tick), "end"))
    axes = (_line(x.start, y.start, x.end, y.start, "#222222"), _line(x.start, y.end, x.start, y.start, "#222222"))
    return [*parts, *axes]


def _marked(point: Point, box: Box, x: Axis, y: Axis, colour: str) -> list[str]:
    across, up = x.at(point.x), y.at(point.y)
    parts = [_line(across, y.at(point.lower), across, y.at(point.upper), colour, 1.5)]
    parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4.5" fill="{colour}"/>')
    if abs((box.top + box.bottom) / 2 - up) > 20:  # far from its point
        parts.append(_line(across, up, min(max(across, box.left), box.right), (box.top + box.bottom) / 2, colour, 0.7))
    return [*parts, _text(box.left, box.bottom - 2, shortened(point.label), fill=colour)]
