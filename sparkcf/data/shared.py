"""Share arrays with every executor: written to files once, distributed by Spark once, memory-mapped by the tasks."""

from __future__ import annotations

import secrets
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SharedArrays:
    """Handle of shared arrays that every executor can open."""

    token: str
    names: tuple[str, ...]

    def open(self) -> tuple[NDArray[Any], ...]:
        """The arrays in the order of their names, mapped once per process. Writes stay private to the process."""
        return _open(self.token, self.names)


@dataclass(frozen=True)
class SharedState:
    """Handle of shared arrays with arbitrary names."""

    arrays: SharedArrays
    names: tuple[str, ...]

    def open(self) -> dict[str, NDArray[Any]]:
        return dict(zip(self.names, self.arrays.open(), strict=True))


def share_state(spark: Any, state: dict[str, NDArray[Any]]) -> SharedState:
    """Share arrays whose names need not be valid file names."""
    numbered = {f"part{number:03}": array for number, array in enumerate(state.values())}
    return SharedState(share(spark, **numbered), tuple(state))


def share(spark: Any, **arrays: NDArray[Any]) -> SharedArrays:
    """Share arrays with the executors as files; names must be valid file names."""
    token = secrets.token_hex(6)
    for name, array in arrays.items():
        path = Path(_outbox().name, f"{token}-{name}.npy")
        np.save(path, np.ascontiguousarray(array), allow_pickle=False)
        spark.sparkContext.addFile(str(path))
    return SharedArrays(token, tuple(arrays))


@cache
def _outbox() -> tempfile.TemporaryDirectory[str]:
    """Folder kept until this process ends: an executor that starts late fetches every file ever shared."""
    return tempfile.TemporaryDirectory(prefix="sparkcf-")


@lru_cache(maxsize=16)
def _open(token: str, names: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    from pyspark import SparkFiles

    leave_out_jars()
    # Mode c: writable to numpy, so that kernels are not compiled a second time for read-only arrays.
    paths = (SparkFiles.get(f"{token}-{name}.npy") for name in names)
    return tuple(_mapped(path) for path in paths)


def _mapped(path: str) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        return np.load(path, allow_pickle=False)


def leave_out_jars() -> None:
    """Remove Spark's jars from this process's module path.

    They hold no Python module, but every Python task begins with `importlib.invalidate_caches()`, which reads the
    names of their 5,000 files again: 0.02 s each time, twice.
    """
    sys.path[:] = [entry for entry in sys.path if not entry.endswith(".jar")]
    for entry in [entry for entry in sys.path_importer_cache if entry.endswith(".jar")]:
        del sys.path_importer_cache[entry]
