"""Item vectors on a plane, concepts, and predicted intervals of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparkcf.lake.concepts import Concepts
from sparkcf.lake.query import Lake
from sparkcf.lake.scan import Scan
from sparkcf.report.counts import Catalogue, Events
from sparkcf.report.night import NightRun

MOST_VECTORS = 200_000
MOST_PREDICTIONS = 200_000
COLOURED = 6  # categories with a colour of their own
SHOWN_PAIRS = 40  # pairs whose intervals are drawn

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ItemMap:
    """Item vectors on the plane of their first two principal components.

    points : (n, 2), of the n items with most events.
    group : (n,), place in `groups`; -1: another category or none.
    groups : names of the categories that have a colour.
    explained : share of the variance of both components together.
    items : items with a vector.
    """

    points: F64
    group: NDArray[np.int32]
    groups: tuple[str, ...]
    explained: float
    items: int


@dataclass(frozen=True)
class Intervals:
    """Predictions with a distribution.

    n : predictions read.
    sd : standard deviations (n,).
    levels : levels of the outermost quantiles; None: the model writes none.
    middle, low, high : mean and outermost quantiles of some pairs in order of the mean; without quantiles ± 1.96 sd.
    """

    n: int
    sd: F64
    levels: tuple[float, float] | None
    middle: F64
    low: F64
    high: F64


def read_map(lake: Lake, run: NightRun, catalogue: Catalogue, events: Events, most: int) -> ItemMap | None:
    """None: the run's items have no vectors of two numbers or more."""
    if not lake.has("item_factors"):
        return None
    scan = Scan(lake, "item_factors", ("item_id", "factor"), run.partition, most=MOST_VECTORS)
    pieces = list(scan)
    if not pieces:
        return None
    rows = pa.concat_tables(pieces)
    rows = rows.filter(pc.greater(pc.list_value_length(rows["factor"]), 1))
    lengths = pc.unique(pc.list_value_length(rows["factor"]))
    if rows.num_rows < 3 or len(lengths) != 1:
        return None
    rows = rows.sort_by("item_id")
    vectors = pc.list_flatten(rows["factor"]).to_numpy().astype(np.float64).reshape(rows.num_rows, -1)
    codes = catalogue.codes(rows["item_id"])
    vectors, codes = vectors[codes >= 0], codes[codes >= 0]
    points, explained = principal_plane(vectors)
    popular = np.argsort(-events.by_item[codes], kind="stable")[:most]
    first = catalogue.first[codes[popular]]
    common = np.argsort(-np.bincount(first[first >= 0], minlength=len(catalogue.categories)), kind="stable")
    groups = [int(c) for c in common[:COLOURED] if (first == c).any()]
    group = np.full(len(popular), -1, np.int32)
    for place, category in enumerate(groups):
        group[first == category] = place
    names = tuple(catalogue.categories[c] for c in groups)
    return ItemMap(points[popular], group, names, explained, len(vectors))


def principal_plane(vectors: F64) -> tuple[F64, float]:
    """Coordinates (n, 2) on the first two principal components of vectors (n, d), and their share of the variance.

    The largest entry of a component by magnitude is positive, so that equal vectors give equal coordinates.
    """
    centred = vectors - vectors.mean(axis=0)
    variance, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    total = float(variance.sum())
    return centred @ (axes * signs), float(variance[-2:].sum() / total) if total > 0 else 0.0


def read_concepts(lake: Lake, run: NightRun) -> list[dict[str, Any]]:
    """Summaries of the concepts of a run: see `Concepts.summaries`. Empty: it has none."""
    for name in ("item_concepts", "item_factors"):  # a failed run may have the one without the other
        if not lake.has(name) or not lake.files(lake.open(name), None, run.partition):
            return []
    found: list[dict[str, Any]] = Concepts.of_run(lake, run).summaries().to_pylist()
    return found


def read_intervals(lake: Lake, run: NightRun) -> Intervals | None:
    """None: the run has no predictions with a standard deviation."""
    if not lake.has("predictions"):
        return None
    scan = Scan(lake, "predictions", ("value", "sd", "quantiles"), run.partition, most=MOST_PREDICTIONS)
    pieces = [piece.filter(pc.is_valid(piece["sd"])) for piece in scan]
    rows = pa.concat_tables(pieces) if pieces else None
    if rows is None or not rows.num_rows:
        return None
    value, sd = (rows[name].to_numpy().astype(np.float64) for name in ("value", "sd"))
    order = np.argsort(value, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(SHOWN_PAIRS, len(order))).round().astype(np.int64)]
    low, high, levels = value[shown] - 1.96 * sd[shown], value[shown] + 1.96 * sd[shown], None
    quantiles = rows["quantiles"].take(pa.array(shown)).to_pylist()  # of the few that are shown
    if quantiles and all(quantiles):
        ends = [(min(q, key=_level), max(q, key=_level)) for q in quantiles]
        levels = (ends[0][0]["level"], ends[0][1]["level"])
        low, high = (np.array([end[side]["value"] for end in ends]) for side in (0, 1))
    return Intervals(rows.num_rows, sd, levels, value[shown], low, high)


def _level(quantile: dict[str, float]) -> float:
    return quantile["level"]
