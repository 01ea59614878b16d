"""The benchmarks run and say what they must: their quick form, in the session of the tests."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

# Benchmarks of speed, and what their goals that do not depend on the machine have in their names.
SPEED = {"topk": "implicit lists too", "als": "objective ÷ MLlib's", "blocks": None, "fm": "objectives apart"}
SPEED |= {"nets": "four times the rows", "bivae": None, "macridvae": None, "ncf": None, "disengcn": None, "mpma": None}
SPEED |= {"mrf": None, "export": None}


@pytest.fixture
def quick(spark, capsys, monkeypatch) -> Callable[[str], list[dict[str, Any]]]:
    """Run a benchmark's quick form; gives the goals of its last line."""

    def run(name: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [name, "--quick"])
        import_module(f"tests.bench.{name}").main()
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last["benchmark"] == name
        return last["goals"]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quality", "clean"])
def test_quick_benchmark_ends_with_a_json_line_and_reaches_its_goals(name, request, quick):
    if name == "quality":
        request.getfixturevalue("shared_data")
    # Both measure counts and figures that do not depend on the machine.
    goals = quick(name)
    assert goals and all(goal["met"] for goal in goals), goals


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steady"), SPEED.items())
def test_quick_benchmark_of_speed_runs_and_gives_figures(name, steady, quick):
    goals = quick(name)
    assert goals and all(math.isfinite(goal["value"]) and goal["value"] >= 0 for goal in goals), goals
    # Ratios of times say nothing at this size; whether the systems agree does.
    assert all(goal["met"] for goal in goals if steady and steady in goal["name"]), goals
