"""Compile kernels with numba: without the GIL, and with numba's disk cache if it can work."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any, TypeVar
from zipimport import zipimporter

import numba
from numba.core.caching import CacheImpl, _CacheLocator
from numba.core.codegen import get_host_cpu_features
from numba.misc.appdirs import AppDirs

Function = TypeVar("Function", bound=Callable[..., Any])


def _use_wide_vectors() -> None:
    """Let LLVM use 512-bit vectors if the CPU has them; without them, LLVM's default, kernels are a tenth slower."""
    features = get_host_cpu_features()
    if "+avx512f" in features.split(",") and numba.config.CPU_FEATURES is None:
        numba.config.CPU_FEATURES = f"{features},-prefer-256-bit"


_use_wide_vectors()


class _ArchiveLocator(_CacheLocator):
    """Locates the cache of a kernel whose source is in a wheel or zip, such as one given by --py-files.

    The folder is named after the source text, since Spark copies the archive to a new place in every application. It is
    in NUMBA_CACHE_DIR, else in the user's cache folder.
    """

    def __init__(self, function: Callable[..., Any], source: str) -> None:
        self._digest = hashlib.sha256(source.encode()).hexdigest()
        self._py_file = function.__code__.co_filename
        self._lineno = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        base = numba.config.CACHE_DIR or AppDirs(appname="numba", appauthor=False).user_cache_dir
        return os.path.join(base, f"archive_{self._digest[:40]}")

    def get_source_stamp(self) -> str:
        return self._digest

    def get_disambiguator(self) -> str:
        return str(self._lineno)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _ArchiveLocator | None:
        loader = py_func.__globals__.get("__loader__")
        source = loader.get_source(py_func.__module__) if isinstance(loader, zipimporter) else None
        if source is None:
            return None
        locator = cls(py_func, source)
        try:
            locator.ensure_cache_path()
        except OSError:  # the folder cannot be written
            return None
        return locator


CacheImpl._locator_classes.append(_ArchiveLocator)


def kernel(**options: Any) -> Callable[[Function], Function]:
    """Make a decorator that compiles a function with `numba.njit`.

    A kernel runs without the GIL, so that a caller may run several in threads. Its machine code is cached on disk,
    because each Python worker of Spark is a new process that would otherwise compile the kernel again.

    The cache needs a function whose source is a file or part of a wheel or zip (not typed at a prompt), and a folder
    that can be written: that of the source or the user's cache folder. Otherwise numba refuses to define a cached
    function; the kernel is then compiled in each process: slower to start, equal in result.

    Only the function's own source file is checked for changes. A kernel must therefore call only compiled functions of
    its own file: a change in another file would not be noticed. So small helpers, such as splitmix64, stand in each
    file that uses them.

    Parameters
    ----------
    **options
        Options of `numba.njit`, such as `fastmath=True` or `parallel=True`. `nogil` and `cache` may be overridden;
        `cache=True` means "if it can work".

    Returns
    -------
    callable
        The decorator.

    References
    ----------
    numba documentation, "Notes on Caching": https://numba.readthedocs.io/en/stable/developer/caching.html
    """
    settings = {"nogil": True, "cache": True} | options

    def compile_function(function: Function) -> Function:
        plain = settings | {"cache": False}
        if not settings["cache"]:
            return numba.njit(**plain)(function)
        try:
            return numba.njit(**settings)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return numba.njit(**plain)(function)

    return compile_function
