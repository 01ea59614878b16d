"""sparkcf: from raw interaction logs to published recommendation tables, nightly, on Spark; and models on frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparkcf.runtime import check_python
from sparkcf.version import __version__

check_python()

if TYPE_CHECKING:
    from sparkcf.lake.query import Lake
    from sparkcf.local.measure import Evaluation
    from sparkcf.local.recommender import Recommender, fit, load

__all__ = ["Evaluation", "Lake", "Recommender", "__version__", "fit", "load"]

# Where the names of __all__ are, which are imported when they are first used.
_PLACES = {
    "Evaluation": "sparkcf.local.measure",
    "Lake": "sparkcf.lake.query",
    "Recommender": "sparkcf.local.recommender",
    "fit": "sparkcf.local.recommender",
    "load": "sparkcf.local.recommender",
}


def __getattr__(name):
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError("module 'sparkcf' has no attribute %r" % name)  # noqa: UP031


def __dir__():
    return sorted({*globals(), *__all__})
