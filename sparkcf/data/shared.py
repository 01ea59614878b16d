"""Arrays for every executor: written to files once, handed out by Spark once, mapped into memory by the tasks."""

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
    """A name for some arrays that every executor can open."""

    token: str
    names: tuple[str, ...]

    def open(self) -> tuple[NDArray[Any], ...]:
        """The arrays in the order of their names; a process maps them once. What is written to them stays its own."""
        return _open(self.token, self.names)


@dataclass(frozen=True)
class SharedState:
    """A name for arrays with names of their own."""

    arrays: SharedArrays
    names: tuple[str, ...]

    def open(self) -> dict[str, NDArray[Any]]:
        return dict(zip(self.names, self.arrays.open(), strict=True))


def share_state(spark: Any, state: dict[str, NDArray[Any]]) -> SharedState:
    """Hand arrays by names that need not be fit for files to the executors."""
    numbered = {f"part{number:03}": array for number, array in enumerate(state.values())}
    return SharedState(share(spark, **numbered), tuple(state))


def share(spark: Any, **arrays: NDArray[Any]) -> SharedArrays:
    """Hand the arrays to the executors as files."""
    token = secrets.token_hex(6)
    for name, array in arrays.items():
        path = Path(_outbox().name, f"{token}-{name}.npy")
        np.save(path, np.ascontiguousarray(array), allow_pickle=False)
        spark.sparkContext.addFile(str(path))
    return SharedArrays(token, tuple(arrays))


@cache
def _outbox() -> tempfile.TemporaryDirectory[str]:
    """A folder that lives as long as this process: an executor that starts late fetches every file ever shared."""
    return tempfile.TemporaryDirectory(prefix="sparkcf-")


@lru_cache(maxsize=16)
def _open(token: str, names: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    from pyspark import SparkFiles

    leave_out_jars()
    # Mode c: writable to numpy, so that kernels need no second compilation for arrays that may only be read.
    paths = (SparkFiles.get(f"{token}-{name}.npy") for name in names)
    return tuple(_mapped(path) for path in paths)


def _mapped(path: str) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        return np.load(path, allow_pickle=False)


def leave_out_jars() -> None:
    """Take jars off this process's path of modules, where Spark puts its own for the worker processes.

    No Python module lies in it, but every Python task begins with `importlib.invalidate_caches()`, which reads the
    names of its 5,000 files anew: 0.02 s each time, twice.
    """
    sys.path[:] = [entry for entry in sys.path if not entry.endswith(".jar")]
    for entry in [entry for entry in sys.path_importer_cache if entry.endswith(".jar")]:
        del sys.path_importer_cache[entry]
