"""The configurations of compared models: the job's own configuration, with the values of each model's file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sparkcf.config.load import merge, parse_config, read_yaml
from sparkcf.config.root import Config
from sparkcf.config.section import ModelSection
from sparkcf.errors import ConfigError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}"
EXAMPLE = "compare.files='[conf/models/als.yaml, conf/models/ease.yaml]'"


def compared(config: Config) -> dict[str, Config]:
    """The configuration of every model of `compare.files`, in order, by the file's name without its ending.

    The file's values win over the rest of the configuration. It may set only the model and the models' parameters:
    all other values must equal those of the job, so that all models have the same data and the same test.

    Raises
    ------
    ConfigError
        There are no files, or two of one name; a file does not exist, is no YAML mapping, names no model or an unknown
        one, or sets another value.
    """
    if not config.compare.files:
        raise ConfigError(f"configuration key compare.files is empty: name the models' YAML files, such as {EXAMPLE}")
    found: dict[str, Config] = {}
    for file in config.compare.files:
        name = Path(file).stem
        if not re.fullmatch(NAME, name):
            raise ConfigError(f"compare.files: {file}: rename the file to letters, digits, '.', '_' and '-'")
        if name in found:
            raise ConfigError(f"compare.files: two files are named {name!r}: rename one, or name each model once")
        found[name] = _with_file(config, file)
    return found


def _with_file(config: Config, file: str) -> Config:
    given = read_yaml(Path(file))
    if "model" not in given:
        raise ConfigError(f"compare.files: {file} names no model: add a line such as `model: als`")
    values = config.model_dump(mode="json")
    values["observe"] = config.observe.model_dump()  # JSON has its secrets masked
    merge(values, given)
    try:
        own = parse_config(values)
    except ConfigError as error:
        raise ConfigError(f"compare.files: {file}: {error}") from None
    before, after = _shared(config), _shared(own)
    for key, value in after.items():
        if value != before[key]:
            raise ConfigError(
                f"compare.files: {file} sets {key}={_shown(value)}, but all models are compared with {key}="
                f"{_shown(before[key])}: set it for all, in a --config file or as {key}=…"
            )
    return own


def _shared(config: Config) -> dict[str, Any]:
    """Dotted keys and values of everything except the model and the models' sections."""
    own = {name for name in type(config).model_fields if isinstance(getattr(config, name), ModelSection)}
    return dict(_flat(config.model_dump(mode="json", exclude={"model", *own}), ""))


def _flat(values: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat += _flat(value, f"{key}.") if isinstance(value, dict) and value else [(key, value)]
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
