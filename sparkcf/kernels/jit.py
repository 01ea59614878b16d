"""How every kernel is compiled: without the GIL, and with numba's disk cache wherever that can work."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core.codegen import get_host_cpu_features

Function = TypeVar("Function", bound=Callable[..., Any])


def _use_wide_vectors() -> None:
    """Let LLVM use 512-bit vectors where there are any: by default it does not, which costs the kernels a tenth."""
    features = get_host_cpu_features()
    if "+avx512f" in features.split(",") and numba.config.CPU_FEATURES is None:
        numba.config.CPU_FEATURES = f"{features},-prefer-256-bit"


_use_wide_vectors()


def kernel(**options: Any) -> Callable[[Function], Function]:
    """Make a decorator that compiles a function with `numba.njit`.

    A kernel runs without the GIL, so that a caller may run several in threads. Its machine code is kept on
    disk, because each Python worker of Spark is a new process that would otherwise compile it again.

    The disk cache is asked for only where the function's source is a regular file. numba stamps a cached
    function with the time and size of its source file; a package imported from a zip or a wheel on
    `sys.path`, or a function typed at a prompt, has no such file, and numba then refuses to define the
    function at all. It refuses likewise where neither the folder of the source nor the user's cache folder
    can be written, as in some containers. In both cases the function is compiled anew in each process:
    slower to start, equal in result.

    The stamp is that of the function's own file only. A kernel should therefore call compiled functions of
    its own file and no others: a change in another file would not be noticed.

    Parameters
    ----------
    **options
        Options of `numba.njit`, such as `fastmath=True` or `parallel=True`. `nogil` and `cache` may be
        overridden; `cache=True` still means "where it can work".

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
