"""The sections about the data, the lists, the vectors and the runs themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sparkcf.config.models import SECTIONS
from sparkcf.report import charts
from sparkcf.report.counts import Events, gini, held_by_top
from sparkcf.report.gather import Gathered, Shown
from sparkcf.report.parts import (
    Cell,
    Concepts,
    Drawn,
    Figures,
    Heading,
    Legend,
    Part,
    Section,
    Users,
    Words,
    drawn,
    table,
)
from sparkcf.report.quality import share_of_warm
from sparkcf.report.svg import INK, OTHER, SERIES
from sparkcf.report.words import named, number, percent, seconds, size

LEAST_EVENTS = 5  # items with fewer events are rarely listed
MOST_CHANGES = 60  # changed settings that are shown
SHOWN_CATEGORIES = 14


def rows(found: Gathered) -> Section:
    """The day's rows: what was read is what was kept and what was rejected, with the reasons."""
    load = found.night.load
    if load is None:
        said = f"No load of {found.night.ds} is recorded in this lake."
        return Section("rows", "Rows reconciled", [Words(said)])
    counts = load["counts"]
    parts: list[Part] = []
    if "read" in counts:
        kinds = {
            "clean": "interactions",
            "exact_duplicates": "exact duplicates",
            "superseded": "superseded by a later state",
            "quarantined": "quarantined",
        }
        kept = {name: counts.get(key, 0) for key, name in kinds.items()}
        whole = max(counts["read"], 1)
        body: list[list[Cell | str]] = []
        body += [[name, f"{n:,}", Cell(percent(n / whole, 2), bar=n / whole)] for name, n in kept.items()]
        total = sum(kept.values())
        equal = "✓ equal to the rows read" if total == counts["read"] else f"✕ {counts['read']:,} rows were read"
        body.append([Cell("sum"), f"{total:,}", Cell(equal, "better" if total == counts["read"] else "worse")])
        parts.append(table(["rows of the load", "rows", "share of the rows read"], body))
    reasons = {name.removeprefix("reason:"): n for name, n in counts.items() if name.startswith("reason:")}
    if reasons:
        most = max(reasons.values()) or 1
        ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        listed: list[list[Cell | str]] = []
        listed += [[name.replace("_", " "), f"{n:,}", Cell("", bar=n / most)] for name, n in ordered]
        parts += [Heading("Reasons of quarantine"), table(["reason", "rows", ""], listed)]
    else:
        parts.append(Words("No row was quarantined."))
    largest = counts.get("largest_user_events")
    if largest and counts.get("clean"):
        share = largest / counts["clean"]
        parts.append(Words(f"The most active user has {largest:,} of the events of this load, {share:.1%}."))
    return Section("rows", "Rows reconciled", parts)


def data(found: Gathered) -> Section:
    """Events by day, how they are spread over items, and what is cold."""
    events, catalogue = found.events, found.catalogue
    if events is None or catalogue is None:
        return Section("data", "Events, long tail, cold shares", [Words("The lake has no events up to this day.")])
    pictures = [drawn("Events by day", charts.by_day("by-day", "Events by day", events.days, events.by_day))]
    curves: list[tuple[str, Any, Any]] = [(INK, *held_by_top(events.by_item))]
    entries = [("events", "ink")]
    for number_, one in enumerate(one for one in found.shown if one.lists):
        assert one.lists is not None
        colour = SERIES[number_] if number_ < len(SERIES) else OTHER
        curves.append((colour, *held_by_top(one.lists.exposure)))
        if number_ < len(SERIES):
            entries.append((f"lists of {one.run.model}", f"s{number_ + 1}"))
    if len(curves) > len(SERIES) + 1:
        entries.append(("lists of the other models", "s0"))
    title = "Long tail: events and places in lists"
    pictures.append(drawn(title, charts.tails("tail", title, curves), "The dashed line: every item has as much."))
    cold = _cold(found, events)
    parts: list[Part] = [Figures(pictures), Legend(entries), table(["cold", "", "share"], cold, left=1)]
    if events.share < 1:
        parts.append(Words(f"Counted on evenly spread files with {events.share:.1%} of the {events.total:,} events."))
    return Section("data", "Events, long tail, cold shares", parts)


def _cold(found: Gathered, events: Events) -> list[list[Cell | str]]:
    by_item, by_user = events.by_item, events.user_counts
    items, users = len(by_item), len(by_user)
    few = int(((by_item > 0) & (by_item < LEAST_EVENTS)).sum())
    some = int((by_user < LEAST_EVENTS).sum())
    found_rows: list[tuple[str, int, int]] = [
        ("items without any event", int((by_item == 0).sum()), items),
        (f"items with 1 to {LEAST_EVENTS - 1} events", few, items),
        (f"users with 1 to {LEAST_EVENTS - 1} events", some, users),
    ]
    for one in found.shown:
        counts = one.run.row["counts"]
        if counts.get("users"):
            name = f"users with the popularity fallback from {one.run.model}"
            found_rows.append((name, counts.get("users_fallback", 0), counts["users"]))
    return [[name, f"{n:,} of {of:,}", Cell(percent(n / max(of, 1)), bar=n / max(of, 1))] for name, n, of in found_rows]


def lists(found: Gathered) -> Section:
    """Coverage, exposure, novelty and diversity of the lists, and their mix of categories."""
    having = [one for one in found.shown if one.lists is not None]
    if not having or found.events is None or found.catalogue is None:
        return Section("lists", "Lists", [Words("The runs have no lists.")])
    heads = ["model", "coverage", "Gini", "novelty", "diversity", "kept", "fallback", "tested users with a vector"]
    body: list[list[Cell | str]] = []
    for one in having:
        assert one.lists is not None
        made = one.lists
        shown = [percent(made.coverage), number(made.inequality, 3), f"{made.novelty:.2f} bits"]
        diversity, warm = number(made.diversity, 3), share_of_warm(one.run)
        body.append([one.run.model, *shown, diversity, percent(made.kept), percent(made.fallback), warm])
    parts: list[Part] = [table(heads, body)]
    parts.append(
        Words(
            "Coverage: share of all items that are in any list. Gini: inequality of the items' places in lists, 0 if "
            f"all have as many; of the events it is {gini(found.events.by_item):.3f}. Novelty: mean of -log2 of an "
            "item's share of the events. Diversity: mean of 1 - cosine of the categories of two items of a list. "
            "Kept: share of the places whose item was in the user's list of the run before."
        )
    )
    if found.catalogue.categories:
        parts += _mix(found, having)
    if any(one.lists and one.lists.share < 1 for one in having):
        parts.append(Words("Of very long tables evenly spread pieces were read."))
    return Section("lists", "Coverage, exposure, novelty, diversity", parts)


def _mix(found: Gathered, having: list[Shown]) -> list[Part]:
    assert found.events is not None and found.catalogue is not None
    events = found.events.by_item @ found.catalogue.member / max(int(found.events.by_item.sum()), 1)
    order = np.argsort(-events, kind="stable")[:SHOWN_CATEGORIES]
    heads = ["category", "events", *(one.run.model for one in having)]
    most = max([float(events.max()), *(float(one.lists.by_category.max()) for one in having if one.lists)]) or 1.0
    body: list[list[Cell | str]] = []
    for c in order:
        shares = [events[c], *(one.lists.by_category[c] for one in having if one.lists)]
        bars = len(having) <= 3
        cells = [Cell(percent(share), bar=float(share / most) if bars else None) for share in shares]
        body.append([found.catalogue.categories[c], *cells])
    return [Heading("Categories"), table(heads, body, caption="Share of the events and of the places in lists")]


def users(found: Gathered) -> Section:
    """Some users: history, the list before, the new list."""
    if not found.users or found.lead is None:
        return Section("users", "Users", [Words("No users to show.")])
    run = found.lead.run
    said = f"Lists of {run.model}, for {len(found.users)} users from the least to the most active."
    if run.before is None:
        said += " No run of this model was published before."
    if found.events is not None and found.events.share < 1:
        said += " Histories are left out of a lake of this size: `sparkcf history --user` shows one."
    return Section("users", "Users, old list and new list", [Words(said), Users(found.users)])


def maps(found: Gathered) -> Section:
    """Item vectors on the plane of their first two principal components."""
    parts: list[Part] = []
    pictures: list[Drawn] = []
    without = []
    entries: list[tuple[str, str]] = []
    for place, one in enumerate(found.shown):
        shown = one.item_map
        if shown is None:
            without.append(one.run.model)
            continue
        title = f"{one.run.model}: {len(shown.points):,} of {shown.items:,} items"
        svg = charts.plane(f"map-{place}", title, shown.points, shown.group)
        note = f"The plane holds {shown.explained:.1%} of the variance."
        names = tuple((name, f"s{number_}") for number_, name in enumerate(shown.groups, 1))
        pictures.append(drawn(title, svg, note))
        if list(names) != entries:
            if entries:
                parts += [Legend([*entries, ("others", "s0")]), Figures(pictures[:-1])]
                pictures = pictures[-1:]
            entries = list(names)
    if pictures:
        parts += [Legend([*entries, ("others", "s0")]), Figures(pictures)]
        parts.append(Words("The items with most events, coloured by the first of their categories."))
    if without:
        parts.append(Words(f"No item vectors: {', '.join(without)}."))
    return Section("map", "Item vectors", parts)


def concepts(found: Gathered) -> Section | None:
    """Cards of the concepts of the models that have them; None: none has."""
    parts: list[Part] = []
    for one in found.shown:
        if one.concepts:
            parts += [Heading(one.run.model), Concepts(one.concepts)]
    return Section("concepts", "Concepts", parts) if parts else None


def costs(found: Gathered) -> Section:
    """Time and memory by step."""
    named_rows = [("load", found.night.load)] if found.night.load else []
    named_rows += [(run.model, run.row) for run in found.night.runs]
    steps = [(name, step, s) for name, row in named_rows for step, s in row["seconds"].items() if "/" not in step]
    if not steps:
        return Section("costs", "Time and memory", [Words("The runs have no times by step.")])
    most = max(s for *_, s in steps) or 1.0
    body: list[list[Cell | str]] = []
    for name, row in named_rows:
        own = [(step, s) for step, s in row["seconds"].items() if "/" not in step]
        total = sum(s for _, s in own)
        body.append([Cell(name), Cell("all steps"), Cell(seconds(total)), Cell(size(row["peak_bytes"]))])
        body += [["", step, Cell(seconds(s), bar=s / most), ""] for step, s in own]
    note = Words("Memory: the largest resident memory of a Python process while the run was in progress.")
    return Section("costs", "Time and memory", [table(["run", "step", "time", "memory"], body, left=2), note])


def versions(found: Gathered) -> Section:
    """Versions of code and tables, and the settings that changed."""
    runs = found.night.runs
    body: list[list[Cell | str]] = []
    for run in runs:
        read = ", ".join(f"{name} {version}" for name, version in sorted(run.row["inputs"].items()) if version >= 0)
        body.append([run.model, run.run_id, run.row["code_version"], str(run.row["seed"]), read or "–"])
    parts: list[Part] = [table(["model", "run", "sparkcf", "seed", "versions of the tables read"], body, left=5)]
    for run in runs:
        changes = [change for change in run.changes if _concerns(change[0], run.model)]
        if run.earlier is None:
            parts.append(Words(f"{run.model}: the first run of this model, so no settings to compare with."))
        elif not changes:
            parts.append(Words(f"{run.model}: the same settings as run {run.earlier}."))
        else:
            changed = [[key, _value(then), _value(now)] for key, then, now in changes[:MOST_CHANGES]]
            more = len(changes) - len(changed)
            caption = f"{run.model}: settings that differ from run {run.earlier}" + (f"; {more} more" if more else "")
            parts.append(table(["key", "before", "now"], changed, left=3, caption=caption))
    return Section("versions", "Versions and settings", parts)


def _concerns(key: str, model: str) -> bool:
    """Whether a setting may matter to a model: it is not in the section of another one."""
    section = key.partition(".")[0]
    return section == model or section not in SECTIONS


def _value(value: Any) -> str:
    return named(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
