"""The parts that a section of the page is made of; page.html draws each by its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from sparkcf.report.lists import UserLists


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `tone`: better or worse. `bar`: length of a bar before the text, 0 to 1."""

    text: str
    tone: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Words:
    kind: ClassVar[str] = "words"
    text: str


@dataclass(frozen=True)
class Heading:
    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Table:
    """`numeric` : places of the columns that are aligned to the right."""

    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: frozenset[int] = frozenset()
    caption: str = ""


@dataclass(frozen=True)
class Drawn:
    """A chart with its title. `svg` is markup that matplotlib wrote, whose texts it has escaped."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Figures:
    kind: ClassVar[str] = "figures"
    figures: Sequence[Drawn]


@dataclass(frozen=True)
class Legend:
    """(name, CSS variable of the colour) each."""

    kind: ClassVar[str] = "legend"
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Concepts:
    kind: ClassVar[str] = "concepts"
    concepts: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Users:
    kind: ClassVar[str] = "users"
    users: Sequence[UserLists]


Part = Words | Heading | Table | Figures | Legend | Concepts | Users


@dataclass(frozen=True)
class Section:
    """`name` : the section's anchor."""

    name: str
    title: str
    parts: Sequence[Part]


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell | str]], left: int = 1, caption: str = "") -> Table:
    """A table whose first `left` columns are aligned to the left, the others to the right."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    return Table(heads, cells, frozenset(range(left, len(heads))), caption)


def drawn(title: str, svg: str, note: str = "") -> Drawn:
    return Drawn(title, Markup(svg), note)
