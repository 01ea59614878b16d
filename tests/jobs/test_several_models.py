"""A night of several models: one that fails, for whatever reason, is no reason to give up the others."""

from __future__ import annotations

import threading
import time

import pytest

from sparkcf.activity import Activity, activity
from sparkcf.config.load import load_config
from sparkcf.errors import GateRefused, SparkcfError
from sparkcf.jobs import nightly as module
from sparkcf.jobs.several import each_model

CONFIG = load_config((), ["ds=2024-01-31", "input.path=none", "models=[popularity, als, hals]"])


@pytest.fixture
def nights(spark, monkeypatch: pytest.MonkeyPatch):
    """Run the night with a model's error given by its name; returns which models were tried."""
    tried: list[str] = []

    def night(**errors: Exception) -> list[str]:
        def of_model(spark, cleaned, config):
            tried.append(config.model)
            if config.model in errors:
                raise errors[config.model]
            return {"run_id": config.model}

        monkeypatch.setattr(module, "_night_of_model", of_model)
        each = [CONFIG.model_copy(update={"model": model}) for model in CONFIG.models]
        module._nights_of_models(spark, CONFIG, each, {"counts": {}})
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


EACH = [CONFIG.model_copy(update={"model": model}) for model in CONFIG.models]


def test_models_at_once_meet_each_other_and_their_outcomes_stand_in_the_order_of_the_configuration() -> None:
    both = threading.Barrier(2, timeout=30)

    def night(config):
        if config.model != "hals":
            both.wait()  # alone neither would pass
        if config.model == "popularity":
            time.sleep(0.1)
        if config.model == "als":
            raise GateRefused("worse than before")
        return {"run_id": config.model}

    outcomes = each_model(night, EACH, 2, lambda: None)
    assert list(outcomes.done) == ["popularity", "hals"] and list(outcomes.failed) == ["als"]


def test_models_at_once_note_their_steps_and_runs_apart() -> None:
    activity.begin_job("nightly")
    both = threading.Barrier(2, timeout=30)

    def night(config):
        activity.begin_run(config.model)
        with activity.timed("train"):
            both.wait()
            with activity.timed("write"):
                both.wait()
                return {"step": activity.step, "run": activity.run_id}

    found = each_model(night, EACH[:2], 2, lambda: None).done
    assert found == {model: {"step": "train/write", "run": model} for model in ("popularity", "als")}
    assert {(one.run_id, one.name) for one in activity.steps} == {
        (model, name) for model in found for name in ("train", "train/write")
    }
    assert activity.run_id == "" and list(activity.seconds("als")) == ["train", "train/write"]
    activity.begin_job("")


def test_the_peak_of_models_at_once_is_that_of_the_process_since_each_began() -> None:
    one = Activity()
    with one.apart():
        one.begin_run("a")
        one.note_memory(9)
        with one.apart():
            one.begin_run("b")
            one.note_memory(5)
            assert one.peak_bytes == 5
        assert one.peak_bytes == 9


def test_a_signal_waits_for_the_models_at_work_cancels_what_they_start_and_begins_no_other(monkeypatch) -> None:
    monkeypatch.setattr("sparkcf.jobs.several.AGAIN_S", 0.05)
    began, cancelled, tried = threading.Barrier(3, timeout=30), threading.Event(), []

    class Stopped(threading.Thread):
        """A thread whose wait a signal ends."""

        def join(self, timeout: float | None = None) -> None:
            if timeout is None:
                began.wait()
                raise KeyboardInterrupt
            super().join(timeout)

    def night(config):
        tried.append(config.model)
        began.wait()
        assert cancelled.wait(30)  # the Spark job that it has started after the first cancellation
        raise RuntimeError("cancelled")

    monkeypatch.setattr("sparkcf.jobs.several.InheritableThread", Stopped)
    with pytest.raises(KeyboardInterrupt):
        each_model(night, EACH, 2, cancelled.set)
    assert sorted(tried) == ["als", "popularity"]
