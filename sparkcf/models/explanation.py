"""Explanations of a score: named parts that sum to it, or the user's items nearest to the item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Kind = Literal["history", "bias", "fields", "concept", "component", "member", "popularity"]
Scale = Literal["score", "exp(score)", "cosine"]
MOST_ITEMS = 1_000  # of a user that a short reason is looked for among


class Part(NamedTuple):
    """A part of a score.

    kind : history: an item that the user has; bias; fields: of a factorization machine; concept; component: of a
        mixture; member: of a blend; popularity: users who have the item.
    label : its name, for a reader; empty for an item of the history.
    item : index of the item of the history; None: the part is of no item.
    value : its share of the score, on the explanation's scale.
    """

    kind: Kind
    label: str
    item: int | None
    value: float


@dataclass(frozen=True)
class Explanation:
    """Why a user's score of an item is what it is.

    score : the model's score, by which the item is ranked.
    parts : in no order.
    remainder : what the parts leave of the total, such as what a vector holds from before the items' last sweep; None
        where the parts do not sum to anything.
    exact : whether parts and remainder sum to the total by the model's own formula. If false the parts are cosines
        between the item and the user's items: a hint, which the model's score need not follow.
    scale : what parts are shares of: the score, its exponential, or nothing (cosines).
    """

    score: float
    parts: tuple[Part, ...]
    remainder: float | None
    exact: bool = True
    scale: Scale = "score"

    @property
    def total(self) -> float | None:
        """What parts and remainder sum to; None for cosines."""
        if self.scale == "cosine":
            return None
        return float(np.exp(self.score)) if self.scale == "exp(score)" else self.score

    @classmethod
    def summing(cls, score: float, parts: list[Part], scale: Scale = "score") -> Explanation:
        """An exact explanation; the remainder is what the parts leave of the total."""
        empty = cls(score, (), 0.0, True, scale)
        total = empty.total
        assert total is not None
        return cls(score, tuple(parts), total - float(sum(part.value for part in parts)), True, scale)


def of_items(items: I32, values: NDArray[np.floating]) -> list[Part]:
    """Parts of the history, from items (h,) and their values (h,)."""
    return [Part("history", "", int(item), float(value)) for item, value in zip(items, values, strict=True)]


def nearest(score: float, items: I32, cosines: F32) -> Explanation:
    """The items of a history with their similarity to an item, where a model's score has no parts."""
    return Explanation(score, tuple(of_items(items, cosines)), None, exact=False, scale="cosine")


def nearest_had(indptr: I64, indices: I32, items: I32, unit: F32) -> I32:
    """The item of every user's history whose cosine with each listed item is largest, int32 (n, k).

    -1 where no cosine is above 0. A listed item is no reason for itself. Of a history longer than MOST_ITEMS, its
    first entries are looked at.

    Parameters
    ----------
    indptr, indices : the users' items, compressed rows.
    items : int32 (n, k), the lists; -1 for none.
    unit : (m, d), the items' vectors of unit length.
    """
    out = np.full(items.shape, -1, np.int32)
    for row, listed in enumerate(items):
        had = indices[indptr[row] : indptr[row + 1]][:MOST_ITEMS]
        if len(had):
            out[row] = largest(had, listed, unit[had] @ unit[listed].T)
    return out


def strongest_had(indptr: I64, indices: I32, values: F32, items: I32, brought: Callable[[I32, F32, I32], F32]) -> I32:
    """The item of every user's history that brings most to the score of each listed item, int32 (n, k).

    -1 where none brings anything.

    Parameters
    ----------
    indptr, indices, values : the users' pairs, compressed rows.
    items : int32 (n, k), the lists; -1 for none.
    brought : gives what a history (h,) with its values brings to the scores of a list (k,), as (h, k).
    """
    out = np.full(items.shape, -1, np.int32)
    for row, listed in enumerate(items):
        here = slice(indptr[row], indptr[row + 1])
        if len(had := indices[here]):
            out[row] = largest(had, listed, brought(had, values[here], listed))
    return out


def largest(had: I32, listed: I32, values: NDArray[np.floating]) -> I32:
    """The item of a history with the largest value for each listed item, (k,); -1 where none is above 0.

    Parameters
    ----------
    had : (h,).
    listed : (k,), -1 for none.
    values : (h, k), overwritten.
    """
    values[had[:, None] == listed] = 0.0
    best = values.argmax(axis=0)
    found = (values[best, np.arange(len(listed))] > 0) & (listed >= 0)
    return np.where(found, had[best], -1).astype(np.int32)
