"""What shaped a fit is read back from the run that stored it, whatever a later job is given."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparkcf.activity import activity
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.inputs import Inputs
from sparkcf.errors import GateRefused, LakeError, NotFoundError, NothingNew, TrainingError
from sparkcf.jobs.train import progress_folder
from sparkcf.lake.runs import Run, find_run, reason_recorded, recorded_run, start_run
from sparkcf.lake.tables import LakeTables


def configured(*overrides: str) -> Config:
    return load_config((), ["ds=2024-01-31", "input.path=none", *overrides])


def run_of(config: Config, **changes: Any) -> Run:
    stored = json.loads(config.to_json()) | changes
    return Run(None, {"run_id": "r", "config": json.dumps(stored)})  # type: ignore[arg-type]


def test_a_run_is_read_back_with_the_event_weights_preference_and_parameters_of_its_fit() -> None:
    then = configured("input.events={buy: 5}", "preference.weight=event", "als.rank=7", "seed=3")
    now = configured("input.events={buy: 1, click: 2}", "als.rank=9", "topk.k=4", "hals.rank=5")
    found = run_of(then).fitted_with(now)
    assert found.input.events == {"buy": 5.0} and found.preference.weight == "event"
    assert (found.als.rank, found.seed, found.topk.k, found.hals.rank) == (7, 3, 4, 5)
    assert found.shaping() == then.shaping()


def test_parameters_that_this_version_does_not_take_are_told() -> None:
    with pytest.raises(LakeError, match=r"parameters that this version does not accept: .*solver"):
        run_of(configured(), als={"solver": "magic"}).fitted_with(configured())


def folder(*overrides: str, base: str | None = None, **versions: int) -> str | None:
    inputs = {"interactions": 3, "users": 1, "items": 1, "published": 5} | versions
    lake = object.__new__(LakeTables)
    lake.root = "file:/lake"
    return progress_folder(Inputs(lake, inputs), configured(*overrides), base)


def test_saved_progress_is_found_again_by_what_shapes_the_fit_and_nothing_else() -> None:
    first = folder()
    assert first == folder(published=6)  # another model was published since
    assert first == folder("topk.k=7", "gate.max_fall=0.5", "hals.rank=9")
    others = [
        folder("als.rank=9"),
        folder("input.events={buy: 2}"),
        folder("preference.positive_from=3"),
        folder("preference.half_life_days=30"),
        folder("train.window_days=90"),
        folder("seed=9"),
        folder("ds=2024-02-01"),
        folder(interactions=4),
        folder(base="another-run"),
    ]
    assert len({first, *others}) == len(others) + 1


def test_a_folder_for_progress_is_the_same_for_processes_in_other_folders(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder("train.progress=saved/here").startswith(f"file:{tmp_path}/saved/here/als-")


def stored(tables: LakeTables) -> dict[str, Any]:
    (row,) = tables.read("runs").collect()
    return row.asDict(recursive=True)


def test_a_run_has_what_every_job_that_works_on_it_measures(spark, tmp_path) -> None:
    tables, config = LakeTables(spark, str(tmp_path / "lake")), configured()
    activity.begin_job("train")
    run = start_run(tables, "train", config, {"interactions": 1})
    assert stored(tables)["ended_at"] is None
    with activity.timed("train"):
        activity.note_memory(9)
    run.update("trained", counts={"users": 3})
    one = stored(tables)
    assert list(one["seconds"]) == ["train"] and one["started_at"] <= one["ended_at"] == one["updated_at"]
    assert (one["peak_bytes"], one["application_id"]) == (9, spark.sparkContext.applicationId)

    activity.begin_job("predict")
    found = find_run(tables, config, ("trained",))
    with activity.timed("predict"):
        activity.note_memory(5)
    run.update("published", counts={"lists": 4})  # by another job meanwhile
    before = tables.version("runs")
    found.record({"predictions": 7})
    two = stored(tables)
    assert tables.version("runs") == before + 1
    assert two["seconds"].keys() == {"train", "predict"} and two["seconds"]["train"] == one["seconds"]["train"]
    assert two["counts"] == {"users": 3, "lists": 4, "predictions": 7}
    assert (two["state"], two["peak_bytes"]) == ("published", 9)
    assert activity.runs.keys() == {run.run_id}


def test_a_failed_run_has_the_time_up_to_its_failure(spark, tmp_path) -> None:
    tables = LakeTables(spark, str(tmp_path / "lake"))
    with pytest.raises(ZeroDivisionError), recorded_run(tables, "train", configured(), {}):
        with activity.timed("train"), activity.timed("pack user rows"):
            raise ZeroDivisionError
    assert stored(tables)["seconds"].keys() == {"train", "train/pack user rows"}


def test_a_step_that_fails_leaves_its_reason_and_the_state(spark, tmp_path) -> None:
    tables = LakeTables(spark, str(tmp_path / "lake"))
    run = start_run(tables, "train", configured(), {})
    run.update("trained")
    with pytest.raises(TrainingError), reason_recorded(run):
        raise TrainingError("the loss is not finite: lower als.alpha")
    one = stored(tables)
    assert (one["state"], one["reason"]) == ("trained", "TrainingError: the loss is not finite: lower als.alpha")
    run.record({"predictions": 1})  # of another job
    assert stored(tables)["reason"] == one["reason"]
    run.record(done=True)
    assert stored(tables)["reason"] is None

    with pytest.raises(TrainingError), reason_recorded(run):
        Run(tables, dict(run.row)).update("recommended")  # another try of the step was faster
        raise TrainingError("no row to train on")
    assert (stored(tables)["state"], stored(tables)["reason"]) == ("recommended", "TrainingError: no row to train on")

    with pytest.raises(NothingNew), reason_recorded(run):
        raise NothingNew("published already")
    with pytest.raises(GateRefused), reason_recorded(run):
        run.update("refused", reason="worse than popularity")
        raise GateRefused("worse than popularity")
    run.record(done=True)
    assert (stored(tables)["state"], stored(tables)["reason"]) == ("refused", "worse than popularity")
    with pytest.raises(NotFoundError), reason_recorded(run):
        raise NotFoundError("topk.categories: there is no category Comdey")
    assert (stored(tables)["state"], stored(tables)["reason"]) == ("refused", "worse than popularity")
