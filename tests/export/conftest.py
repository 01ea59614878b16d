"""Small lakes that delta-rs writes: exports need no Spark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.export import build

USERS = 700


@pytest.fixture(scope="session")
def exported_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 users with lists of 5 of 40 items, whose scores are inner products of the vectors."""
    root = tmp_path_factory.mktemp("export") / "lake"
    build(root, USERS, k=5, rank=8, catalogue=40)
    return root
