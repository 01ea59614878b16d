"""Compile kernels with numba: without the GIL, and with numba's disk cache if it can work."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core.codegen import get_host_cpu_features

Function = TypeVar("Function", bound=Callable[..., Any])


def _use_wide_vectors() -> None:
    """Let LLVM use 512-bit vectors if the CPU has them; without them, LLVM's default, kernels are a tenth slower."""
    features = get_host_cpu_features()
    if "+avx512f" in features.split(",") and numba.config.CPU_FEATURES is None:
        numba.config.CPU_FEATURES = f"{features},-prefer-256-bit"


_use_wide_vectors()


def kernel(**options: Any) -> Callable[[Function], Function]:
    """Make a decorator that compiles a function with `numba.njit`.

    A kernel runs without the GIL, so that a caller may run several in threads. Its machine code is cached on disk,
    because each Python worker of Spark is a new process that would otherwise compile the kernel again.

    numba can cache a function only if its source is a regular file (not part of a zip or wheel, nor typed at a prompt),
    and if the folder of the source or the user's cache folder can be written. Otherwise numba refuses to define a
    cached function; the kernel is then compiled in each process: slower to start, equal in result.

    numba checks the time and size of the function's own source file only. A kernel must therefore call only compiled
    functions of its own file: a change in another file would not be noticed.

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
        if not (settings["cache"] and os.path.isfile(function.__code__.co_filename)):
            return numba.njit(**plain)(function)
        try:
            return numba.njit(**settings)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return numba.njit(**plain)(function)

    return compile_function
