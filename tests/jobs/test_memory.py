"""The memory of the largest Python process: children count, JVMs do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparkcf.jobs.memory import PROC, PeakMemory, largest_python

HOME = os.environ | {"PYTHONHOME": sys.base_prefix}  # where a copied interpreter finds its library
HOLD = "import sys; held = bytearray(b'1' * 400_000_000); print('ready', flush=True); sys.stdin.read()"

pytestmark = pytest.mark.skipif(not (PROC / "self" / "statm").exists(), reason="the system has no /proc")


def largest_with_child(program: str) -> int:
    """What is measured while a child of this process holds 400 MB."""
    child = subprocess.Popen([program, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=HOME)
    try:
        assert child.stdout.readline() == "ready\n"
        return largest_python({child.pid, os.getpid()}) - largest_python(set())
    finally:
        child.communicate()


def test_the_largest_process_counts_and_a_jvm_does_not(tmp_path: Path) -> None:
    java = shutil.copy2(Path(sys.executable).resolve(), tmp_path / "java")
    own = largest_python({os.getpid()})
    assert 400e6 <= largest_with_child(sys.executable) < own + 600e6
    assert largest_with_child(str(java)) < own + 100e6
    assert largest_python(set()) == 0


class Cluster:
    """As much of a session as tells that its workers are elsewhere."""

    master = "spark://host:7077"

    @property
    def sparkContext(self) -> Cluster:
        return self


def test_on_a_cluster_nothing_is_measured() -> None:
    with PeakMemory(Cluster()) as memory:
        pass
    assert memory.peak is None
