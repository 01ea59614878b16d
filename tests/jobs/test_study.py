"""Studies: the same trials after an interruption, prunes, the best, and a file that cannot be used. No Spark."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.config.root import TuneConfig
from sparkcf.config.tune import Range
from sparkcf.errors import ConfigError
from sparkcf.jobs.study import COMPLETE, FAILED, PRUNED, Study

pytest.importorskip("optuna")
SPACE = (Range("als.rank", "int", (8, 64), 8), Range("als.alpha", "log", (0.1, 10.0)), Range("a.b", "choice", (1, "x")))


def opened(folder: Path, **settings: object) -> Study:
    config = TuneConfig(**{"trials": 14, "parallel": 3, "pruner": "none"} | settings)
    return Study(folder / "deep" / "study.db", "s", SPACE, config, seed=7)


def measure(values: dict) -> float:
    return -abs(values["als.rank"] - 40) - abs(values["als.alpha"] - 2)


def run(study: Study, most: int = 100) -> None:
    """Run trials in the order of their numbers, at most so many."""
    while batch := study.batch():
        for number in batch:
            if most == 0:
                return
            study.finish(number, COMPLETE, measure(study.values(number)), 0.1)
            most -= 1


def drawn(study: Study) -> list[tuple]:
    return [tuple(row["params"].values()) for row in study.rows()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path, sampler: str) -> None:
    whole = opened(tmp_path / "whole", sampler=sampler)
    run(whole)
    for most in (4, 1, 6):  # in the middle of batches too
        run(opened(tmp_path / "parts", sampler=sampler), most)
    resumed = opened(tmp_path / "parts", sampler=sampler)
    run(resumed)
    assert len(whole.rows()) == 14 and drawn(resumed) == drawn(whole)
    assert len(set(drawn(whole))) > 10 and resumed.best() == whole.best()
    assert resumed.batch() == []


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_trial_whose_values_were_half_drawn_gets_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, kept: int
) -> None:
    whole = opened(tmp_path / "whole", sampler=sampler)
    run(whole)
    parts = opened(tmp_path / "parts", sampler=sampler)
    for _ in range(4):  # of five batches
        for number in parts.batch():
            parts.finish(number, COMPLETE, measure(parts.values(number)), 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "_space", SPACE[:kept])
        parts.batch()
    resumed = opened(tmp_path / "parts", sampler=sampler)
    run(resumed)
    assert drawn(resumed) == drawn(whole)


def test_the_file_is_in_its_folder_whatever_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "a ?b%20c#{d}"
    run(opened(folder, trials=1))
    assert (folder / "deep" / "study.db").is_file() and len(list(tmp_path.iterdir())) == 1
    assert len(opened(folder, trials=1).rows()) == 1


def test_tpe_searches_near_what_was_good(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=40)
    run(study)
    ranks = [row["params"]["als.rank"] for row in study.rows()]
    late = ranks[25:]
    assert sum(abs(r - 40) for r in late) / len(late) < sum(abs(r - 40) for r in ranks[:10]) / 10


def test_more_trials_are_added_to_a_study(tmp_path: Path) -> None:
    run(opened(tmp_path, trials=6))
    more = opened(tmp_path, trials=8)
    assert more.batch() == [6, 7]


def test_a_pruner_stops_a_trial_below_the_median_and_its_report_may_be_repeated(tmp_path: Path) -> None:
    study = opened(tmp_path, pruner="median", parallel=6)
    for number in study.batch():
        if number < 5:
            assert not study.report(number, 4, 0.1 * number)
            study.finish(number, COMPLETE, 0.1 * number, 1.0)
    assert study.report(5, 4, 0.05) and study.report(5, 4, 0.05)
    study.finish(5, PRUNED, None, 0.2, "stopped after 4 sweeps")
    study.record_test({"number": 4, "value": 0.5})
    again = opened(tmp_path, pruner="median", parallel=6)
    row = again.rows()[5]
    assert (row["state"], row["steps"], row["reason"]) == (PRUNED, {"4": 0.05}, "stopped after 4 sweeps")
    assert again.best() == 4 and again.test == {"number": 4, "value": 0.5}


def test_failed_trials_are_never_the_best(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=2)
    assert study.batch() == [0, 1]
    study.finish(0, FAILED, None, 0.1, "not finite")
    assert study.best() is None and study.batch() == [1]
    study.finish(1, COMPLETE, 0.2, 0.1)
    assert study.best() == 1 and study.rows()[0]["reason"] == "not finite"


def test_the_best_of_an_error_is_the_least(tmp_path: Path) -> None:
    config = TuneConfig(trials=2, parallel=2)
    study = Study(tmp_path / "s.db", "s", SPACE, config, 1, higher_is_better=False)
    for number, value in zip(study.batch(), (0.9, 0.8), strict=True):
        study.finish(number, COMPLETE, value, 0.1)
    assert study.best() == 1


def test_a_file_that_is_no_study_ends_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database " * 100)
    with pytest.raises(ConfigError, match=r"tune\.folder: .*study\.db cannot be used: .*; name another folder"):
        Study(tmp_path / "study.db", "s", SPACE, TuneConfig(), 1)
