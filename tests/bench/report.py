"""What every benchmark prints: a table for people, and one JSON object as its last line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A measured value and what it should reach; `at_least` False: at most."""

    name: str
    value: float
    goal: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return bool(self.value >= self.goal if self.at_least else self.value <= self.goal)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [[str(c) for c in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finish(name: str, size: str, goals: Sequence[Goal]) -> None:
    """Print the goals, met or not, and the JSON line."""
    print()
    rows = [
        (g.name, f"{g.value:.4f}", f"{'≥' if g.at_least else '≤'} {g.goal:g}", "met" if g.met else "NOT MET")
        for g in goals
    ]
    print_table(("goal", "value", "wanted", ""), rows)
    machine = {"cores": os.cpu_count(), "device": "cpu"}
    listed = [{"name": g.name, "value": float(g.value), "goal": g.goal, "met": g.met} for g in goals]
    print(json.dumps({"benchmark": name, "size": size, "machine": machine, "goals": listed}))
