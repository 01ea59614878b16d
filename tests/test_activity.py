"""Steps are timed for their run, and messages say what the process does."""

from __future__ import annotations

import datetime as dt
import json
import re
import time

import pytest

from sparkcf.activity import Activity, activity
from sparkcf.progress import say, step, use_format


@pytest.fixture(autouse=True)
def quiet():
    activity.begin_job("train")
    yield
    use_format("text")
    activity.begin_job("")


def test_a_step_counts_for_the_run_in_which_it_began_and_an_inner_one_is_named_by_both() -> None:
    one = Activity()
    with one.timed("before"):
        pass
    one.begin_run("a")
    for _ in range(2):
        with one.timed("outer"), one.timed("inner"):
            time.sleep(0.02)
    one.begin_run("b")
    with one.timed("outer"):
        pass
    assert list(one.seconds("a")) == ["outer", "outer/inner"]
    assert 0.04 <= one.seconds("a")["outer/inner"] <= one.seconds("a")["outer"] < 5
    assert one.seconds("b")["outer"] < one.seconds("a")["outer"] and list(one.seconds("")) == ["before"]


def test_a_running_step_counts_up_to_now_and_a_failed_one_up_to_its_failure() -> None:
    one = Activity()
    with pytest.raises(ZeroDivisionError), one.timed("failing"):
        time.sleep(0.02)
        assert one.step == "failing" and 0.02 <= one.seconds("")["failing"] < 5
        raise ZeroDivisionError
    assert one.step == "" and one.seconds("")["failing"] >= 0.02


def test_the_peak_is_that_of_the_run() -> None:
    one = Activity()
    one.note_memory(7)
    one.note_memory(5)
    assert one.peak_bytes == 7
    one.begin_run("a")
    assert one.peak_bytes is None


def test_a_pinned_version_is_kept_when_the_newest_is_read_too() -> None:
    one = Activity()
    for version in (None, 3, None):
        one.note_read("file:/lake/users", version)
    assert one.tables_read == {"file:/lake/users": 3}


def test_messages_as_json_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    use_format("json")
    activity.begin_run("als-1")
    with step("train", what="als") as progress:
        say('  note: "quoted", two\nlines, \x1b[31mred\x1b[0m, ü', "warning")
        say("")
        progress.update("half", 1, 2)
        progress.note = "all"
    err = capsys.readouterr().err
    entries = [json.loads(line) for line in err.splitlines()]
    assert all(list(e) == ["time", "level", "job", "run_id", "step", "message"] for e in entries)
    assert [e["level"] for e in entries] == ["warning", "info", "info"]
    assert {(e["job"], e["run_id"], e["step"]) for e in entries} == {("train", "als-1", "train")}
    assert entries[0]["message"] == 'note: "quoted", two\nlines, \x1b[31mred\x1b[0m, ü'
    assert entries[1]["message"] == "train als: half" and re.match(
        r"train als: all \([0-9.]+ s\)", entries[2]["message"]
    )
    assert dt.datetime.fromisoformat(entries[0]["time"]).tzinfo == dt.UTC
    assert "\x1b" not in err


def test_messages_as_text_are_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    with step("train", what="als") as progress:
        progress.note = "all"
    assert re.match(r"train als: all \([0-9.]+ s\)\n", capsys.readouterr().err)
