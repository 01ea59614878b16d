"""Models of other packages, registered in the entry-point group `sparkcf.models` under the models' names.

In the pyproject.toml of such a package:

    [project.entry-points."sparkcf.models"]
    knn = "sparkcf_knn:KNN"

The class is a subclass of `sparkcf.models.contract.Model`; its attribute `section` is the class of its parameters.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sparkcf.config.section import ModelSection
from sparkcf.errors import ConfigError, first_line

GROUP = "sparkcf.models"
INSTALL = f"install the package that registers it (entry points {GROUP})"
CONTRACT = "sparkcf.models.contract.Model"


def installed() -> dict[str, EntryPoint]:
    """The entry points by the models' names; does not load them."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.value)}


@cache
def plugin(name: str) -> Any:
    """Load and check the class of an installed model.

    Raises
    ------
    ConfigError
        The class cannot be loaded, is no subclass of `Model`, or lacks a part of it; the message names the part.
    """
    point = installed()[name]
    label = f"model {name} ({point.value}{f' of {point.dist.name}' if point.dist else ''})"
    try:
        found = point.load()
    except Exception as error:  # any error of the other package's module
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{label} does not load: {reason}; fix or uninstall that package") from error
    if CONTRACT not in (f"{base.__module__}.{base.__qualname__}" for base in getattr(found, "__mro__", ())):
        raise ConfigError(f"{label} breaks the contract: it is not a subclass of {CONTRACT}; derive it from that class")
    lacking = sorted(found.__abstractmethods__) + ([] if hasattr(found, "section") else ["section"])
    if lacking:
        raise ConfigError(f"{label} breaks the contract of {CONTRACT}: it lacks {', '.join(lacking)}")
    section = found.section
    if not (isinstance(section, type) and issubclass(section, ModelSection)):
        raise ConfigError(f"{label} breaks the contract: section={section!r} is not a subclass of ModelSection")
    if section.section != name:
        raise ConfigError(
            f"{label} breaks the contract: its section is named {section.section!r}, the entry point {name!r}"
        )
    return found
