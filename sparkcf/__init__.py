"""sparkcf: from raw interaction logs to published recommendation tables, nightly, on Spark."""

from __future__ import annotations

from sparkcf.runtime import check_python

check_python()

__version__ = "0.1.0"
__all__ = ["Lake", "__version__"]


def __getattr__(name):
    if name == "Lake":
        from sparkcf.lake.query import Lake

        return Lake
    raise AttributeError("module 'sparkcf' has no attribute %r" % name)  # noqa: UP031
