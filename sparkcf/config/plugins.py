"""Models of other packages, registered in the entry-point group `sparkcf.models` under the models' names.

In the pyproject.toml of such a package:

    [project.entry-points."sparkcf.models"]
    knn = "sparkcf_knn:KNN"

The class implements `sparkcf.models.contract.Model`; its attribute `section` is the class of its parameters.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sparkcf.config.section import ModelSection
from sparkcf.errors import ConfigError

GROUP = "sparkcf.models"
INSTALL = f"install the package that registers it (entry points {GROUP})"
NEEDED = ("section", "reads", "fit", "open")  # attributes of a model class


def installed() -> dict[str, EntryPoint]:
    """The entry points by the models' names; does not load them."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.value)}


@cache
def plugin(name: str) -> Any:
    """Load and check the class of an installed model.

    Raises
    ------
    ConfigError
        The class cannot be loaded or lacks a part of the contract; the message names the part.
    """
    point = installed()[name]
    label = f"model {name} ({point.value}{f' of {point.dist.name}' if point.dist else ''})"
    try:
        found = point.load()
    except Exception as error:  # any error of the other package's module
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{label} does not load: {reason}; fix or uninstall that package") from error
    abstract: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
    lacking = [part for part in NEEDED if getattr(found, part, None) is None or part in abstract]
    lacking += sorted(set(abstract) - set(lacking))
    if lacking:
        raise ConfigError(
            f"{label} breaks the contract of sparkcf.models.contract.Model: it lacks {', '.join(lacking)}"
        )
    section = found.section
    if not (isinstance(section, type) and issubclass(section, ModelSection)):
        raise ConfigError(f"{label} breaks the contract: section={section!r} is not a subclass of ModelSection")
    if section.section != name:
        raise ConfigError(
            f"{label} breaks the contract: its section is named {section.section!r}, the entry point {name!r}"
        )
    return found
