"""What every benchmark prints: a table for people, and one JSON object as its last line."""

from __future__ import annotations

import argparse
import json
import os
import sys
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


def run(name: str, measures: dict[str, Any], quickly: tuple[str, ...], about: str | None, real: bool) -> None:
    """The command line of a benchmark of parts.

    Parameters
    ----------
    measures : by name, (rounds, quick, goals) -> None.
    quickly : those that `--quick` runs.
    real : whether the real data are here; else every part runs quickly.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(measures))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="real", help="ignored: the data are real where they are here")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(measures):
        sys.exit(f"{name}: --only {','.join(sorted(unknown))}: known are {', '.join(measures)}")
    quick = given.quick or not real
    goals: list[Goal] = []
    for part in wanted:
        if part in quickly or not quick:
            measures[part](1 if given.quick else given.rounds, quick, goals)
    finish(name, "quick" if quick else "real", goals)
