"""Read, merge and check a configuration.

Precedence, lowest first: defaults, `--config` files in their order, `key=value` on the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, create_model

from sparkcf.config.models import SECTIONS
from sparkcf.config.plugins import INSTALL, installed, plugin
from sparkcf.config.root import Config
from sparkcf.config.yaml import parse_yaml
from sparkcf.errors import ConfigError, UnknownModelError

HIDDEN = ("observe", "forget")  # sections whose values no message shows: secret addresses, users' ids


def load_config(files: Iterable[str | Path] = (), overrides: Iterable[str] = ()) -> Config:
    """Read the files, apply the overrides and check the result.

    Parameters
    ----------
    files : paths of YAML files; a later file wins, key by key.
    overrides : `dotted.key=value` strings; the value is read as YAML.

    Raises
    ------
    ConfigError
        A file is missing or not a YAML mapping; a key is unknown; a value has the wrong type or range.
    """
    return parse_config(merge_sources(read_sources(files, overrides)))


@dataclass(frozen=True)
class Source:
    """Values that a file or the command line sets, nested as the sections are."""

    name: str
    values: dict[str, Any]

    def sets(self, key: str) -> bool:
        """Whether it sets a dotted key, or replaces a section that would hold it."""
        found: Any = self.values
        for part in key.split("."):
            if not isinstance(found, Mapping):
                return True
            if part not in found:
                return False
            found = found[part]
        return True


def read_sources(files: Iterable[str | Path] = (), overrides: Iterable[str] = ()) -> list[Source]:
    """The files and overrides, in the order in which they win: the last one does. Raises ConfigError."""
    sources = [Source(str(file), read_yaml(Path(file))) for file in files]
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"argument {override!r} is not key=value, for example als.rank=64")
        try:
            value = parse_yaml(text) if text.strip() else None
        except (yaml.YAMLError, ValueError):  # such as 2024-02-30: the key's own check reports the error
            value = text
        sources.append(Source("command line", nest(key.strip().split("."), value)))
    return sources


def merge_sources(sources: Iterable[Source]) -> dict[str, Any]:
    """The values of all sources, later ones over earlier ones."""
    values: dict[str, Any] = {}
    for source in sources:
        merge(values, source.values)
    return values


def parse_config(values: Mapping[str, Any]) -> Config:
    """Build the configuration from values. Raises ConfigError."""
    kind = config_class(_plugins_in(values))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error.errors(), kind)) from None


def check_incomplete(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for values that are wrong whatever is set beside them."""
    kind = config_class(_plugins_in(values))
    try:
        kind.model_validate(values)
    except ValidationError as error:
        if wrong := [one for one in error.errors() if one["type"] != "missing"]:
            raise ConfigError(_explain(wrong, kind)) from None


@cache
def config_class(plugins: frozenset[str] = frozenset()) -> type[Config]:
    """The configuration class, with a section for every model of this package and for the given plugins."""
    sections = SECTIONS | {name: plugin(name).section for name in sorted(plugins)}
    fields: dict[str, Any] = {name: (kind, kind()) for name, kind in sections.items()}
    return create_model("Config", __base__=Config, **fields)


def model_names() -> list[str]:
    """Names of all models, including those of other packages."""
    return sorted({*SECTIONS, *installed()})


def _plugins_in(values: Mapping[str, Any]) -> frozenset[str]:
    """The other packages' models that the values name, as a model or by a section of parameters.

    Raises UnknownModelError.
    """
    several = values.get("models") or ()
    wanted = [values.get("model"), *(several if isinstance(several, list | tuple) else ())]
    for name in wanted:
        if isinstance(name, str) and name not in SECTIONS and name not in installed():
            raise UnknownModelError(
                f"configuration key model={name!r}: unknown model; known are {', '.join(model_names())}; "
                f"for a model of another package {INSTALL}",
                name,
            )
    named = {name for name in [*wanted, *values] if isinstance(name, str)}
    return frozenset(named & installed().keys() - SECTIONS.keys())


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; empty for an empty file. Raises ConfigError."""
    try:
        loaded = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"configuration file {path} is not YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration file {path}: expected `key: value` lines, found a {type(loaded).__name__}")
    return loaded


def nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Set the values of `new` in `into`, key by key within sections."""
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(errors: Iterable[Any], kind: type[Config]) -> str:
    return "; ".join(_explain_one(e, kind) for e in errors)


def _explain_one(e: Any, kind: type[Config]) -> str:
    loc = [str(part) for part in e["loc"]]
    key = ".".join(loc)
    if e["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], known := _known_keys(kind, loc[:-1]), n=1)
        hint = f"did you mean {'.'.join([*loc[:-1], near[0]])}?" if near else f"known here: {', '.join(known)}"
        return f"unknown configuration key {key}: {hint}"
    if e["type"] == "missing":
        return f"configuration key {key} is missing: set it in a --config file or as {key}=…"
    message = e["msg"].removeprefix("Value error, ")
    if not key:
        return f"configuration: {message}"
    shown = repr(e.get("input"))
    hidden = isinstance(e.get("input"), dict) or loc[0] in HIDDEN
    shown = "" if hidden else f"={shown if len(shown) < 80 else shown[:77] + '…'}"
    return f"configuration key {key}{shown}: {message[0].lower() + message[1:]}"


def _known_keys(kind: type[Config], loc: list[str]) -> list[str]:
    section: Any = kind
    for part in loc:
        if part.isdigit():  # the place within a list, whose entries are sections
            continue
        field = section.model_fields[part].annotation
        options = [field, *getattr(field, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)
