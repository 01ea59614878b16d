"""The pairs of one user from their events, without Spark: what `pairs` makes of the events of all users."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sparkcf.config.root import Config
from sparkcf.data.pairs import Reads

Event = Mapping[str, Any]  # a row of `interactions`


class Pair(NamedTuple):
    """Value and weight of an item that the user has."""

    item_id: str
    value: float
    weight: float


def as_of(events: Iterable[Event], day: dt.date) -> list[Event]:
    """The events of loads up to a day, in their state of then; see `inputs.as_of`."""
    found: list[Event] = []
    for event in events:
        if event["ds"] <= day:
            found.append(event)
        elif earlier := [state for state in event.get("replaced") or () if state["ds"] <= day]:
            found.append({**event, "value": earlier[-1]["value"]})
    return found


def user_pairs(events: Iterable[Event], reads: Reads, config: Config) -> list[Pair]:
    """The pairs of one user as `pairs.pairs` makes them for a model, in order of their items' ids.

    Parameters
    ----------
    events : item_id, event, value, ts (UTC) of the user, as of `config.ds`.
    """
    end = dt.datetime.combine(config.ds + dt.timedelta(days=1), dt.time(), dt.UTC)
    days, half_life = config.train.window_days, config.preference.half_life_days
    if days is not None:
        events = [event for event in events if event["ts"] >= end - dt.timedelta(days=days)]

    def decay(event: Event) -> float:
        age_s = max((end - event["ts"]).total_seconds(), 0.0)
        return 1.0 if half_life is None else float(2.0 ** (-age_s / (half_life * 86_400)))

    by_item: dict[str, list[Event]] = {}
    threshold = config.preference.positive_from
    for event in events:
        if reads.pairs != "positives" or threshold is None or event["value"] >= threshold:
            by_item.setdefault(event["item_id"], []).append(event)
    by_event = config.preference.weight == "event"
    found = []
    for item, own in sorted(by_item.items()):
        if reads.pairs == "positives":
            found.append(Pair(item, _strength(own, decay, config), 1.0))
            continue
        last = max(own, key=lambda event: (event["ts"], event["value"]))
        if reads.pairs == "labels":
            found.append(Pair(item, float(last["value"] >= (threshold or 0.0)), 1.0))
        else:
            weight = (_event_weight(last, config) if by_event else 1.0) * decay(last)
            found.append(Pair(item, last["value"], weight))
    return found


def _strength(events: list[Event], decay: Any, config: Config) -> float:
    preference = config.preference
    if preference.weight == "one":
        return max(decay(event) for event in events)
    summed = sum(
        (_event_weight(event, config) if preference.weight == "event" else event["value"]) * decay(event)
        for event in events
    )
    whole = math.log1p(max(summed, 0.0)) if preference.weight == "log" else summed
    return float(whole if preference.max_weight is None else min(whole, preference.max_weight))


def _event_weight(event: Event, config: Config) -> float:
    return float((config.input.events or {}).get(event["event"], 1.0))
