"""A night of several models: one that fails, for whatever reason, is no reason to give up the others."""

from __future__ import annotations

import pytest

from sparkcf.config.load import load_config
from sparkcf.errors import GateRefused, SparkcfError
from sparkcf.jobs import nightly as module

CONFIG = load_config((), ["ds=2024-01-31", "input.path=none", "models=[popularity, als, hals]"])


@pytest.fixture
def nights(monkeypatch: pytest.MonkeyPatch):
    """Run the night with a model's error given by its name; returns which models were tried."""
    tried: list[str] = []

    def night(**errors: Exception) -> list[str]:
        def of_model(spark, config, cleaned):
            tried.append(config.model)
            if config.model in errors:
                raise errors[config.model]
            return {"run_id": config.model}

        monkeypatch.setattr(module, "_night_of_model", of_model)
        each = [CONFIG.model_copy(update={"model": model}) for model in CONFIG.models]
        module._nights_of_models(None, CONFIG, each, {"counts": {}})  # type: ignore[arg-type]
        return tried

    night.tried = tried  # type: ignore[attr-defined]
    return night


@pytest.mark.parametrize("error", [RuntimeError("Job aborted\n  at java"), GateRefused("worse than before")])
def test_the_other_models_are_tried_and_the_message_says_what_was_published(nights, error: Exception) -> None:
    wanted = type(error) if isinstance(error, SparkcfError) else SparkcfError
    first = str(error).splitlines()[0]
    with pytest.raises(wanted, match=rf"models als failed, published: popularity, hals; the first error: {first}$"):
        nights(als=error)
    assert nights.tried == ["popularity", "als", "hals"]


def test_an_interruption_ends_the_night_at_once(nights) -> None:
    with pytest.raises(KeyboardInterrupt):
        nights(popularity=KeyboardInterrupt())
    assert nights.tried == ["popularity"]


def test_an_interruption_behind_another_error_ends_the_night_at_once(nights) -> None:
    hidden = KeyError("o123")  # from a connection to the JVM that a signal left in the middle of an answer
    hidden.__context__ = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        nights(popularity=hidden)
    assert nights.tried == ["popularity"]


def test_a_night_without_failures_tells_of_every_model(nights) -> None:
    assert nights() == ["popularity", "als", "hals"]
