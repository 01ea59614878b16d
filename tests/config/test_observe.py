"""Addresses of services are secrets: they reach the observers and nothing that is printed or stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.config.compare import compared
from sparkcf.config.load import load_config
from sparkcf.errors import ConfigError

BASE = ["ds=2024-01-31", "input.path=none"]
HOOK, MLFLOW = "https://hooks.example/SECRET", "http://user:SECRET@mlflow.example"


def test_addresses_are_used_but_never_shown() -> None:
    config = load_config((), [*BASE, f"observe.on_failure.webhook={HOOK}", f"observe.mlflow={MLFLOW}"])
    assert config.observe.on_failure.webhook and config.observe.on_failure.webhook.get_secret_value() == HOOK
    assert config.observe.mlflow and config.observe.mlflow.get_secret_value() == MLFLOW
    for shown in (config.to_json(), config.shown(), str(config), repr(config)):
        assert "SECRET" not in shown and "webhook" in shown


def test_arguments_of_the_command_are_neither_shown_nor_stored() -> None:
    config = load_config((), [*BASE, "observe.on_failure.command=[page, --token, SECRET]"])
    assert config.observe.on_failure.command == ("page", "--token", "SECRET")
    for shown in (config.to_json(), config.shown()):
        assert "SECRET" not in shown and '"page", "***", "***"' in shown


def test_every_model_of_a_comparison_has_the_addresses(tmp_path: Path) -> None:
    for name in ("als", "ease"):
        (tmp_path / f"{name}.yaml").write_text(f"model: {name}\n")
    files = f"compare.files=[{tmp_path}/als.yaml, {tmp_path}/ease.yaml]"
    found = compared(load_config((), [*BASE, files, f"observe.on_failure.webhook={HOOK}"]))
    assert [one.observe.on_failure.webhook.get_secret_value() for one in found.values()] == [HOOK] * 2


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("observe.on_failure.webhook=hooks.example/SECRET", "webhook is not an address"),
        ("observe.on_failure.webhook=file:///SECRET", "webhook is not an address"),
        ("observe.on_failure.webhook=https://user:SECRET@hooks.example/x", "webhook is not an address"),
        ("observe.on_failure.webhook='https://hooks.example/a SECRET'", "webhook is not an address"),
        ("observe.on_failure=https://hooks.example/SECRET", r"observe\.on_failure"),
        ("observe.mlflow=[http://mlflow.example/SECRET]", r"observe\.mlflow"),
        ("observe.on_failure.command=['']", "command names no program"),
        ("observe.on_failure.timeout_s=0", "timeout_s"),
        ("observe.prometheus=''", "prometheus"),
        ("log.format=xml", "text"),
    ],
)
def test_what_cannot_be_used_is_refused_without_showing_it(override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as told:
        load_config((), [*BASE, override])
    assert "SECRET" not in str(told.value)
