"""sparkcf: from raw interaction logs to published recommendation tables, nightly, on Spark."""

from __future__ import annotations

from sparkcf.runtime import check_python

check_python()

__version__ = "0.1.0"
__all__ = ["Lake", "__version__"]


def __getattr__(name):  # noqa: ANN001, ANN202  (keeps `import sparkcf` free of pandas and delta-rs)
    if name == "Lake":
        from sparkcf.query import Lake

        return Lake
    raise AttributeError("module 'sparkcf' has no attribute %r" % name)  # noqa: UP031
