"""Explain a published score with ids and titles: the model's explanation, its parts ordered by size."""

from __future__ import annotations

from dataclasses import dataclass

from sparkcf.lake.query import Day, Lake, RunOfModel
from sparkcf.models.contract import Explanation
from sparkcf.ranking.opened import open_published


@dataclass(frozen=True)
class NamedPart:
    """A part of a score. `item_id`, `title` : of an item of the history, else None."""

    kind: str
    label: str | None
    item_id: str | None
    title: str | None
    value: float


@dataclass(frozen=True)
class Explained:
    """The explanation of a user's score of an item.

    position : place of the item in the user's published list; None: it is not in it.
    parts : largest absolute value first.
    """

    run: RunOfModel
    user_id: str
    item_id: str
    title: str | None
    position: int | None
    explanation: Explanation
    parts: tuple[NamedPart, ...]


def explain(lake: Lake, user_id: str, item_id: str, model: str | None = None, ds: Day = None) -> Explained:
    """Explain the score of a user and an item by a published run.

    Raises
    ------
    NotFoundError
        Nothing is published, or the user or the item does not exist or is unknown to the run.
    LakeError
        There is no lake, or a table or the run's weights cannot be read.
    """
    opened = open_published(lake, model, ds)
    found = opened.explain(str(user_id), str(item_id))
    ids = opened.ids([part.item for part in found.parts if part.item is not None])
    titles = lake.titles([*ids.values(), str(item_id)])
    parts = []
    for part in sorted(found.parts, key=lambda part: -abs(part.value)):
        had = None if part.item is None else ids[part.item]
        parts.append(NamedPart(part.kind, part.label or None, had, titles.get(had) if had else None, part.value))
    listed = lake.position(opened.run, str(user_id), str(item_id))
    return Explained(opened.run, str(user_id), str(item_id), titles.get(str(item_id)), listed, found, tuple(parts))
