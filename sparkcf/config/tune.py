"""Search spaces: a YAML file of configuration keys of one model, each with the values to search.

als.rank: {int: [32, 128], step: 32}
als.regularization: {log: [0.001, 0.03]}
als.solver: {choice: [cg, cholesky]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sparkcf.config.load import merge, nest, parse_config, read_yaml
from sparkcf.config.root import Config
from sparkcf.errors import ConfigError

KINDS = ("int", "float", "log", "choice")
EXAMPLE = "{int: [32, 128], step: 32}, {float: [0, 1]}, {log: [0.001, 0.1]} or {choice: [a, b]}"
INSIDE = 0.37  # a place in a range of floats whose value is no whole number


@dataclass(frozen=True)
class Range:
    """The values of one key.

    kind : int, float, log or choice.
    values : the choices; of a range its least and its largest value.
    step : distance of two values; None: 1 for int, none for float and log.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    step: float | None = None

    def probes(self) -> tuple[Any, ...]:
        """Values that are all valid if the range is."""
        if self.kind in ("float", "log") and self.step is None:
            low, high = self.values
            return (low, high, low + INSIDE * (high - low))
        return self.values


def search_space(config: Config) -> tuple[Range, ...]:
    """The ranges of `tune.space`, checked against the model's parameters.

    Raises
    ------
    ConfigError
        There is no file, or it is no YAML mapping; a key is unknown or of another section than the model's; a range is
        empty or of the wrong type for its key.
    """
    file = config.tune.space
    if not file:
        raise ConfigError("configuration key tune.space is empty: name a search space, such as conf/tune/als.yaml")
    given = read_yaml(Path(file))
    if not type(config.params).model_fields:
        raise ConfigError(f"tune.space: model={config.model} has no parameters to tune")
    if not given:
        raise ConfigError(f"tune.space: {file} has no keys: add a line such as `als.rank: {{int: [32, 128]}}`")
    ranges = tuple(_range(file, config, str(key), value) for key, value in given.items())
    for found in ranges:
        for value in found.probes():
            _check(file, config, found.key, value)
    return ranges


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with the values of some keys. Raises ConfigError if they are not valid together."""
    merged = config.model_dump(mode="json")
    merged["observe"] = config.observe.model_dump()  # JSON has its secrets masked
    for key, value in values.items():
        merge(merged, nest(key.split("."), value))
    return parse_config(merged)


def _range(file: str, config: Config, key: str, given: Any) -> Range:
    section, dot, _ = key.partition(".")
    if section != config.model or not dot:
        known = hasattr(config, section) and dot
        cure = f"set model={section}" if known else f"a search space has keys such as {config.model}.…"
        raise ConfigError(f"tune.space: {file}: key {key} is no parameter of model={config.model}: {cure}")
    kinds = [kind for kind in KINDS if isinstance(given, dict) and kind in given]
    if len(kinds) != 1 or set(given) - {kinds[0], "step"}:
        raise ConfigError(f"tune.space: {file}: key {key} has {given!r}: expected {EXAMPLE}")
    kind, step = kinds[0], given.get("step")
    values = given[kind]
    if kind == "choice":
        return _choices(file, key, values, step)
    numbers = (int,) if kind == "int" else (int, float)
    if not (isinstance(values, list) and len(values) == 2 and all(_is(value, numbers) for value in values)):
        expected = "two whole numbers" if kind == "int" else "two numbers"
        raise ConfigError(f"tune.space: {file}: key {key} has {kind}: {values!r}: expected {expected}, [low, high]")
    low, high = values
    if not low < high:
        raise ConfigError(f"tune.space: {file}: key {key} has an empty range {values}: give the lower number first")
    if kind == "log" and (low <= 0 or step is not None):
        raise ConfigError(f"tune.space: {file}: key {key}: a log range begins above 0 and has no step, not {given!r}")
    if step is not None and not (_is(step, numbers) and 0 < step <= high - low):
        raise ConfigError(f"tune.space: {file}: key {key} has step {step!r}: expected a number up to {high - low}")
    return Range(key, kind, (low, high) if kind == "int" else (float(low), float(high)), step)


def _choices(file: str, key: str, values: Any, step: Any) -> Range:
    plain = isinstance(values, list) and all(v is None or isinstance(v, str | int | float) for v in values)
    if not plain or len(values) < 2 or len(set(map(repr, values))) < len(values) or step is not None:
        raise ConfigError(
            f"tune.space: {file}: key {key} has choice: {values!r}: expected a list of two or more different values"
        )
    return Range(key, "choice", tuple(values))


def _is(value: Any, numbers: tuple[type, ...]) -> bool:
    """Whether a value is a finite number of one of the types."""
    return isinstance(value, numbers) and not isinstance(value, bool) and abs(cast(float, value)) < math.inf


def _check(file: str, config: Config, key: str, value: Any) -> None:
    """Raise ConfigError if the key does not exist or does not take the value.

    Values that only other values of the space make valid are no error here.
    """
    try:
        with_values(config, {key: value})
    except ConfigError as error:
        if f"key {key}" in str(error):
            raise ConfigError(f"tune.space: {file}: {error}") from None
