"""One Spark session for all tests, small and quiet; a lake in a folder of its own for each test that asks."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.quick import SESSION_OPTIONS

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
os.environ["PYSPARK_PYTHON"] = sys.executable
# A failed task is tried again, as on a cluster.
os.environ["PYSPARK_SUBMIT_ARGS"] = shlex.join(
    ["--master", "local[2,3]", "--driver-memory", "3g", *SESSION_OPTIONS, "pyspark-shell"]
)


@pytest.fixture(scope="session")
def spark() -> Iterator:
    from sparkcf.jobs.session import open_session, stop_session

    session, started = open_session()
    yield session
    if started:
        stop_session(session)


@pytest.fixture
def config(tmp_path: Path) -> Callable:
    """Build a configuration for a small input in this test's own lake: `config("als.rank=4", path=…)`."""
    from sparkcf.config.load import load_config

    def build(*overrides: str, path: str | Path = "none.csv") -> object:
        base = ["ds=2024-01-31", f"input.path={path}", f"lake.root={tmp_path / 'lake'}", "evaluation.bootstrap=20"]
        return load_config((), [*base, *overrides])

    return build


@pytest.fixture
def los_angeles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The host's clock is that of Los Angeles."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/Los_Angeles")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def shared_data() -> Path:
    """The folder of larger data sets, where there is one beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED / "data"


# Files are dealt whole to the processes that test: those that take longest first, so that none is left for the end.
LONGEST = (
    "faults/test_cluster.py",
    "airflow/test_nightly.py",
    "faults/test_processes.py",
    "jobs/test_nightly.py",
    "jobs/test_forget.py",
    "models/test_contract.py",
    "jobs/test_fold_in.py",
    "bench/test_bench.py",
    "models/fm/test_moments.py",
    "faults/test_object_store.py",
    "models/nets/test_spark.py",
    "test_documents.py",
    "models/nets/test_collaborative.py",
    "jobs/test_clean_faults.py",
    "jobs/test_clean.py",
    "jobs/test_plugin.py",
    "models/nets/test_concepts.py",
    "jobs/test_tune.py",
    "jobs/test_compare.py",
    "models/als/test_spark.py",
    "ranking/test_evaluate.py",
    "training/test_loop.py",
    "models/nets/test_ncf.py",
    "jobs/test_dirty_data.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {str(ROOT / "tests" / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))  # stable: a file's tests keep their order
