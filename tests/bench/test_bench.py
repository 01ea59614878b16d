"""The benchmarks run and say what they must: their quick form, in processes of their own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Benchmarks of speed, and what their goals that do not depend on the machine have in their names.
SPEED = {"topk": "implicit lists too", "als": "objective ÷ MLlib's", "blocks": None, "fm": "objectives apart"}
SPEED |= {"nets": "four times the rows", "bivae": None, "macridvae": None, "ncf": None, "disengcn": None, "mpma": None}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quality", "clean"])
def test_quick_benchmark_ends_with_a_json_line_and_reaches_its_goals(name, request):
    if name == "quality":
        request.getfixturevalue("shared_data")
    # Both measure counts and figures that do not depend on the machine.
    goals = quick(name)
    assert goals and all(goal["met"] for goal in goals), goals


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steady"), SPEED.items())
def test_quick_benchmark_of_speed_runs_and_gives_figures(name, steady):
    goals = quick(name)
    assert goals and all(math.isfinite(goal["value"]) and goal["value"] >= 0 for goal in goals), goals
    # Ratios of times say nothing at this size; whether the systems agree does.
    assert all(goal["met"] for goal in goals if steady and steady in goal["name"]), goals


def quick(name: str) -> list[dict[str, Any]]:
    """The goals of a benchmark's quick form, from its last line."""
    command = [sys.executable, "-m", f"tests.bench.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["benchmark"] == name
    return last["goals"]
