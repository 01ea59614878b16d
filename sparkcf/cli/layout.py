"""How a table fits a terminal: figures whole, titles cut, other words folded; columns that do not fit stand below."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len
from rich.text import Text

GAP, EDGES = 3, 4  # letters between two columns, and around a table
LEAST = 16  # letters that a longer column of words keeps
CUT = ("title", "reason")  # columns that lose their ends; others, such as ids, are folded and lose nothing
FIGURE = re.compile(r"[+−-]?\d.{0,29}")  # also with its unit or bounds; a day


@dataclass(frozen=True)
class Column:
    """A column of texts. `numeric` : its values are numbers."""

    name: str
    cells: Sequence[str]
    numeric: bool = False

    @cached_property
    def needed(self) -> int:
        return max(map(cell_len, (self.name, *self.cells)))

    @cached_property
    def whole(self) -> bool:
        """Whether its texts are neither cut nor folded."""
        filled = [cell for cell in self.cells if cell]
        return self.numeric or (self.name not in CUT and bool(filled) and all(map(FIGURE.fullmatch, filled)))

    @property
    def least(self) -> int:
        return self.needed if self.whole else min(self.needed, LEAST)

    def within(self, width: int) -> Column:
        """The column with its texts cut."""
        return Column(self.name, [shortened(cell, width) for cell in self.cells])


def blocks(columns: Sequence[Column], width: int) -> list[list[tuple[Column, int]]]:
    """The tables that show the columns one below the other: each column with its width; the first one is in all."""
    groups = [[columns[0]]]
    for column in columns[1:]:
        wider = [*groups[-1], column]
        if len(wider) > 2 and sum(one.least for one in wider) > _room(len(wider), width):
            groups.append([columns[0], column])
        else:
            groups[-1] = wider
    return [_fitted(group, width) for group in groups]


def _fitted(group: Sequence[Column], width: int) -> list[tuple[Column, int]]:
    room = _room(len(group), width) - sum(one.needed for one in group if one.whole)
    most = share([one.needed for one in group if not one.whole], room)
    sized = [(one, one.needed if one.whole else min(one.needed, most)) for one in group]
    return [(one.within(size) if one.name in CUT and not one.whole else one, size) for one, size in sized]


def _room(n: int, width: int) -> int:
    return width - EDGES - GAP * (n - 1)


def share(needs: Sequence[int], room: int) -> int:
    """The largest width, at least LEAST, so that the columns have room if none of them is wider."""
    for place, needed in enumerate(sorted(needs)):
        most = room // (len(needs) - place)
        if needed > most:
            return max(most, LEAST)
        room -= needed
    return max(needs, default=LEAST)


def shortened(text: str, width: int) -> str:
    """The text, cut so that it ends with … if it is wider."""
    cut = Text(text)
    cut.truncate(width, overflow="ellipsis")
    return cut.plain
