"""What a training says while it runs."""

from __future__ import annotations

from typing import Any

import pytest

from sparkcf.jobs import train


def test_the_time_left_of_a_long_training_is_told(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    told: list[str] = []

    class Shown:
        def update(self, text: str, done: int, of: int) -> None:
            told.append(text)

    times = iter([100.0, 104.0, 108.0, 112.0])
    monkeypatch.setattr(train.time, "monotonic", lambda: next(times))
    on_progress = train.progress_of(Shown(), 20)  # type: ignore[arg-type]
    entry: dict[str, Any] = {"objective": 1.0, "seconds": 4.0}
    for sweep in (11, 12, 13, 19):  # resumed after the tenth
        on_progress({"sweep": sweep} | entry)
    on_progress({"note": "hello"})
    assert "left" not in told[0] and told[1].endswith(", at most 32 s left") and told[2].endswith(", at most 28 s left")
    assert "left" not in told[3]  # a second or two
    assert "note: hello" in capsys.readouterr().err
