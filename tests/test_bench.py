"""The benchmarks run and say what they must: their quick form, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quality", "clean"])
def test_quick_benchmark_ends_with_a_json_line_and_reaches_its_goals(name, request):
    if name == "quality":
        request.getfixturevalue("shared_data")
    command = [sys.executable, "-m", f"tests.bench.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["benchmark"] == name
    # Both measure counts and figures that do not depend on the machine.
    assert last["goals"] and all(goal["met"] for goal in last["goals"]), last
