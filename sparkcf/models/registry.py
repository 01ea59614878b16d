"""Models by their configuration names; a model's module is imported when the model is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sparkcf.config.models import SECTIONS
from sparkcf.config.plugins import plugin
from sparkcf.config.root import Config
from sparkcf.models.contract import Model


def model_of(config: Config) -> Model[Any]:
    """The configured model with its parameters. Raises ConfigError if another package's model is not usable."""
    model: Model[Any] = implementation(config.model)(config.params, config.seed)
    return model


def implementation(name: str) -> type[Model[Any]]:
    """The class of a model."""
    if name not in SECTIONS:
        found: type[Model[Any]] = plugin(name)
        return found
    module, _, attribute = SECTIONS[name].implementation.partition(":")
    loaded: type[Model[Any]] = getattr(import_module(module), attribute)
    return loaded
