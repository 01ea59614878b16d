"""How `sparkcf explain` shows an explanation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sparkcf.ranking.explain import Explained

COLUMNS = ["part", "item_id", "title", "value"]
SUMMED = {
    "score": "values sum to the score",
    "exp(score)": "values sum to the exponential of the score",
    "cosine": "not exact: this model's score has no parts; values are cosines of the item with the user's items",
}


def caption(explained: Explained) -> list[str]:
    """Lines above the table: what is explained, by which run, and what the values are."""
    run, found = explained.run, explained.explanation
    place = "not in the list" if explained.position is None else f"position {explained.position}"
    what = f"user {explained.user_id}, item {explained.item_id} {explained.title or ''}".rstrip()
    return [
        f"{run.model}, published for {run.ds}, run {run.run_id}",
        f"{what}: score {found.score:.4f}, {place}; {SUMMED[found.scale]}",
    ]


def records(explained: Explained, k: int) -> list[dict[str, Any]]:
    """A row for each of the k largest parts, one for the rest of them, and one for a remainder that can be seen."""
    shown = [_record(part.label or part.kind, part.value, part.item_id, part.title) for part in explained.parts[:k]]
    rest, found = explained.parts[k:], explained.explanation
    if rest and found.exact:
        shown.append(_record(f"{len(rest)} smaller parts", sum(part.value for part in rest)))
    total = found.total
    if total is not None and found.remainder is not None and abs(found.remainder) > 1e-4 * max(abs(total), 1e-9):
        shown.append(_record("rest of the stored vector", found.remainder))
    return shown


def as_json(explained: Explained) -> dict[str, Any]:
    """Everything, unrounded, as one object."""
    run, found = explained.run, explained.explanation
    return {
        "user_id": explained.user_id,
        "item_id": explained.item_id,
        "title": explained.title,
        "model": run.model,
        "run_id": run.run_id,
        "ds": run.ds,
        "position": explained.position,
        "score": found.score,
        "scale": found.scale,
        "exact": found.exact,
        "remainder": found.remainder,
        "parts": [asdict(part) for part in explained.parts],
    }


def _record(part: str, value: float, item_id: str | None = None, title: str | None = None) -> dict[str, Any]:
    return {"part": part, "item_id": item_id, "title": title, "value": value}
