"""All that a page shows, gathered from the lake in bounded memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparkcf.errors import NotFoundError
from sparkcf.lake.compared import Comparison, newest_comparison
from sparkcf.lake.query import Lake
from sparkcf.report.counts import Catalogue, Events, count_events, read_catalogue
from sparkcf.report.lists import Lists, UserLists, read_lists, sample_users
from sparkcf.report.night import BASELINE, Night, NightRun, read_night
from sparkcf.report.study import Study
from sparkcf.report.vectors import Intervals, ItemMap, read_concepts, read_intervals, read_map

MAP_POINTS = 5_000  # of all maps of a page together; an item is about 50 bytes
MOST_OF_MAP = 900


@dataclass(frozen=True)
class Shown:
    """A run and what its tables hold. None or empty: the run has none."""

    run: NightRun
    lists: Lists | None = None
    item_map: ItemMap | None = None
    concepts: tuple[dict[str, Any], ...] = ()
    intervals: Intervals | None = None


@dataclass(frozen=True)
class Gathered:
    """What a page shows.

    lead : the run whose lists the users are shown with: of those with lists the one that gains most on popularity.
    never : items without any event; None: the lake has no items.
    study : the study that the page was asked to show.
    """

    night: Night
    shown: tuple[Shown, ...]
    lead: Shown | None
    catalogue: Catalogue | None
    events: Events | None
    users: tuple[UserLists, ...]
    comparison: Comparison | None
    never: int | None = None
    study: Study | None = None


def gather(
    lake: Lake,
    run_ids: Sequence[str] = (),
    ds: dt.date | None = None,
    models: Sequence[str] = (),
    users: int = 10,
) -> Gathered:
    """Read a night and everything about its runs.

    Parameters
    ----------
    users : number of users whose histories and lists are shown.
    Other parameters and errors are those of `read_night`.
    """
    night = read_night(lake, run_ids, ds, models)
    catalogue = read_catalogue(lake, night.ds)
    events = count_events(lake, night.ds, catalogue) if catalogue else None
    most = min(MOST_OF_MAP, MAP_POINTS // len(night.runs))
    shown = tuple(_shown(lake, run, catalogue, events, most) for run in night.runs)
    lead = max((one for one in shown if one.lists), key=lambda one: gain(one.run), default=None)
    sampled: list[UserLists] = []
    if lead and lead.lists and events:
        sampled = sample_users(lake, lead.run, lead.lists, events, night.ds, users)
    never = int((events.by_item == 0).sum()) if events else None
    return Gathered(night, shown, lead, catalogue, events, tuple(sampled), _comparison(lake, night.ds), never)


def _shown(lake: Lake, run: NightRun, catalogue: Catalogue | None, events: Events | None, most: int) -> Shown:
    if catalogue is None or events is None:
        return Shown(run)
    return Shown(
        run,
        read_lists(lake, run, catalogue, events),
        read_map(lake, run, catalogue, events, most),
        tuple(read_concepts(lake, run)),
        read_intervals(lake, run),
    )


def gain(run: NightRun) -> float:
    """What the run gains on popularity, as a share of it; 0: unknown."""
    measure = run.gate_measure()
    apart = run.to_popularity(measure)
    baseline = run.figures.get(measure, BASELINE) if run.figures else None
    if apart is None or baseline is None or not baseline.value:
        return 0.0
    share = apart.value / abs(baseline.value)
    return share if measure[1] else -share


def _comparison(lake: Lake, ds: dt.date) -> Comparison | None:
    """The newest comparison, unless there is none or it is of a later day."""
    if not lake.has("comparisons"):
        return None
    try:
        found = newest_comparison(lake)
    except NotFoundError:  # an empty table
        return None
    return found if found.ds <= ds else None
