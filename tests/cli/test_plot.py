"""The plot of a comparison: well-formed whatever the names, inside its frame, ticks that are round."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from sparkcf.cli.plot import BOTTOM, FONT, HEIGHT, LEFT, TOP, WIDTH, Point, even_ticks, label_places, log_ticks, plot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(points: list[Point]) -> ElementTree.Element:
    return ElementTree.fromstring(plot(points, "ndcg@100 by q2", "training time in seconds", "ndcg@100"))


def test_texts_of_strangers_stay_texts() -> None:
    odd = "</text><b>&\"'\x1b\x00"
    tree = drawn([Point(odd, 1.0, 0.3, 0.3, 0.3)])
    assert "</text><b>&\"'\\x1b\\x00" in [element.text for element in tree.iter(f"{SVG}text")]
    assert not list(tree.iter(f"{SVG}b"))


@pytest.mark.parametrize(
    "points",
    [
        [Point("one", 3.0, 0.3, 0.29, 0.31)],
        [Point("same", 3.0, 0.0, 0.0, 0.0), Point("place", 3.0, 0.0, 0.0, 0.0)],
        [Point("fast", 0.001, 0.1, 0.1, 0.1), Point("slow", 86_400.0, 0.9, 0.8, 1.0)],
        [Point("error", 1.0, 1.2, 1.1, 1.3), Point("below zero", 2.0, -1.2, -1.2, -1.2)],
    ],
)
def test_every_mark_is_inside_the_frame(points: list[Point]) -> None:
    tree = drawn(points)
    for circle in tree.iter(f"{SVG}circle"):
        assert LEFT <= float(circle.get("cx")) <= WIDTH and TOP <= float(circle.get("cy")) <= HEIGHT - BOTTOM
    for text in tree.iter(f"{SVG}text"):
        assert all(math.isfinite(float(text.get(name))) for name in ("x", "y")) and text.text
    assert tree.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}" and WIDTH == 390 and FONT >= 11


def test_ticks_are_round_and_few() -> None:
    assert even_ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert even_ticks(0.183, 0.342) == [0.2, 0.25, 0.3]
    assert even_ticks(-0.1, 0.1) == [-0.1, -0.05, 0, 0.05, 0.1]
    assert log_ticks(0.7, 40.0) == [1, 2, 5, 10, 20]
    assert log_ticks(0.9, 400.0) == [1, 3, 10, 30, 100, 300]
    assert log_ticks(0.5, 90_000.0) == [1, 10, 100, 1000, 10_000]


def test_labels_of_points_in_one_place_do_not_cover_each_other() -> None:
    boxes = label_places([(200.0, 150.0 + i) for i in range(5)], ["multvae", "multdae", "ease", "als", "hals"])
    assert all(a.covers(b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
    (edge,) = label_places([(WIDTH - 16.0, TOP + 4.0)], ["a-name-of-some-length"])
    assert edge.right < WIDTH and edge.left > LEFT
