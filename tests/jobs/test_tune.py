"""Tuning on a small lake: arrays and Spark give the same figures, resumption, the winner's file, one test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.data.packing import Packing
from sparkcf.data.split import split, training_events
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.jobs import tune as module
from sparkcf.jobs.base import training_data
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.frame import run_job
from sparkcf.jobs.tune import check_tune, rungs, tune
from sparkcf.lake.tables import LakeTables
from sparkcf.models.registry import model_of

pytest.importorskip("optuna")
SPACE = "als.regularization: {log: [0.001, 1]}\nals.rank: {int: [2, 8], step: 2}\n"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 users of two tastes, who have 8 to 12 of the 15 items of their taste."""
    draw, path = np.random.default_rng(3), tmp_path_factory.mktemp("log") / "log.csv"
    lines = ["user_id,item_id,ts"]
    for user in range(80):
        items = draw.choice(15, size=int(draw.integers(8, 13)), replace=False)
        lines += [f"u{user},i{2 * item + user % 2},2024-01-{1 + item % 28:02}T00:00:00Z" for item in items]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def cleaned(spark, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = tmp_path_factory.mktemp("cleaned") / "lake"
    columns = ["input.columns.event=null", "input.columns.value=null"]
    clean_day(spark, load_config((), ["ds=2024-01-31", f"input.path={log}", f"lake.root={lake}", *columns]))
    return lake


@pytest.fixture
def settings(cleaned: Path, tmp_path: Path) -> Callable[..., Config]:
    (tmp_path / "space.yaml").write_text(SPACE)

    def build(*overrides: str) -> Config:
        base = ["ds=2024-01-31", "input.path=none", f"lake.root={cleaned}", "evaluation.bootstrap=20"]
        base += ["evaluation.protocol=q2", "evaluation.holdout_share=0.25", "evaluation.ks=[5,10]", "gate.at=5"]
        base += [f"tune.space={tmp_path}/space.yaml", f"tune.folder={tmp_path}/studies", "als.iterations=4"]
        base += ["als.workers=1", "tune.trials=5", "tune.parallel=2", f"tune.winner={tmp_path}/best.yaml"]
        return load_config((), [*base, *overrides])

    return build


def trials(result: dict) -> list[dict]:
    return json.loads(Path(result["study"]).with_suffix(".json").read_text())["trials"]


def test_a_study_from_an_interruption_to_the_winner_and_its_one_test(
    spark, settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run_parts, calls = settings(), module.run_parts, []

    def dies(*given):
        calls.append(given)
        if len(calls) == 5:  # in the second batch
            raise TrainingError("stop")
        return run_parts(*given)

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_parts", dies)
        with pytest.raises(TrainingError, match="stop"):
            tune(spark, config)
    assert not (tmp_path / "best.yaml").exists()
    result = tune(spark, config)
    told = capsys.readouterr().err
    assert "2 of 5 trials are done" in told and "trial  ndcg@5  seconds" in told
    found = trials(result)
    assert [row["number"] for row in found] == [0, 1, 2, 3, 4] and result["trials"] == 5
    best = max((row for row in found if row["state"] == "complete"), key=lambda row: row["value"])
    assert result["best"] == best
    won = load_config([tmp_path / "best.yaml"], ["ds=2024-01-31", "input.path=none"])
    tuned = {"als.rank": won.als.rank, "als.regularization": won.als.regularization}
    assert tuned == best["params"] and won.als.iterations == 4

    tables = LakeTables(spark, config.lake.root)
    runs = {row["run_id"]: row for row in tables.read("runs").where("job = 'tune'").collect()}
    assert runs[result["run_id"]]["state"] == "tuned" and runs[result["run_id"]]["counts"]["trials"] == 5
    where = f"run_id = '{result['run_id']}' AND system = 'model' AND metric = 'ndcg_at_k' AND k = 5"
    stored = tables.read("metrics").where(where).where("segment IS NULL").collect()
    assert [row["value"] for row in stored] == [result["test"]["value"]]

    def touched(*given):
        raise AssertionError("the test split is touched once")

    monkeypatch.setattr(module, "evaluate", touched)
    again = tune(spark, settings("tune.overwrite=true"))
    assert again["test"] == result["test"] and again["best"] == best


def test_a_trial_on_arrays_has_the_figure_of_the_ordinary_fit(
    spark, settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_tested", lambda *given: {"value": 0.5, "number": 0})
    for protocol in ("q1", "q2"):
        one = ("tune.trials=1", "tune.pruner=none", f"evaluation.protocol={protocol}", "tune.overwrite=true")
        on_arrays = trials(tune(spark, settings(*one)))
        monkeypatch.setattr(module, "run_parts", lambda *given: pytest.fail("arrays"))
        on_spark = trials(tune(spark, settings(*one, "tune.max_pairs=1")))
        monkeypatch.undo()
        monkeypatch.setattr(module, "_tested", lambda *given: {"value": 0.5, "number": 0})
        assert [row["params"] for row in on_arrays] == [row["params"] for row in on_spark]
        values = [[row["value"] for row in rows] for rows in (on_arrays, on_spark)]
        np.testing.assert_allclose(values[0], values[1], atol=2e-3)
        assert min(values[0]) > 0.2


def test_the_trials_of_a_net_read_rows_that_are_packed_once(
    spark, settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_tested", lambda *given: {"value": 0.5, "number": 0})
    net = ["model=multvae", "multvae.epochs=1", "multvae.latent_dim=4", "multvae.hidden=[8]", "multvae.workers=1"]
    config, write, packed = settings(*net, "tune.trials=2"), Packing._write, []
    (tmp_path / "space.yaml").write_text("multvae.dropout: {float: [0.1, 0.6]}\n")

    def counted(packing: Packing, side: str, rows) -> None:
        packed.append(side)
        write(packing, side, rows)

    monkeypatch.setattr(Packing, "_write", counted)
    found = trials(tune(spark, config))
    assert [row["state"] for row in found] == ["complete"] * 2 and found[0]["params"] != found[1]["params"]
    assert packed == ["user"]
    tables = LakeTables(spark, config.lake.root)
    assert tables.read("user_rows").isEmpty()
    assert not list((Path(config.lake.root) / "_progress").iterdir())


def test_rows_that_trials_pack_apart_are_dropped_when_a_study_is_interrupted(
    spark, settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, names = settings("model=multvae", "tune.trials=6", "tune.sampler=random"), []
    (tmp_path / "space.yaml").write_text("multvae.validation_share: {choice: [0.1, 0.2]}\n")

    def value(inputs, events, parts, own, packing, fit_run) -> float:
        if len(names) == 5:
            raise KeyboardInterrupt
        names.append(packing.name)
        model_of(own).pack(replace(training_data(model_of(own), inputs, events, own, packing), pairs=parts.train))
        return 0.5

    monkeypatch.setattr(module, "_fitted_value", value)
    with pytest.raises(KeyboardInterrupt):
        tune(spark, config)
    assert len(names) == 5 and len(set(names)) == 2
    assert LakeTables(spark, config.lake.root).read("user_rows").isEmpty()


def test_no_pair_of_the_test_is_in_what_trials_see(spark, settings: Callable) -> None:
    config = settings()
    tables = LakeTables(spark, config.lake.root)
    events = Inputs(tables, newest_versions(tables)).events(config.ds)
    for protocol in ("q1", "q2", "q3", "q4"):
        config = settings(f"evaluation.protocol={protocol}", *(["als.mode=explicit"] if protocol == "q3" else []))
        reads = model_of(config).reads
        test, rest = split(events, reads, config), training_events(events, config)
        assert rest.join(test.heldout, on=["user_idx", "item_idx"], how="left_semi").isEmpty()
        if protocol == "q1":
            assert rest.join(test.heldout, on="user_idx", how="left_semi").isEmpty()
        trained = {tuple(row)[:2] for row in test.train.select("user_idx", "item_idx").collect()}
        assert {tuple(row) for row in rest.select("user_idx", "item_idx").collect()} == trained
        inner = split(rest, reads, config.model_copy(update={"seed": config.seed + 1}))
        assert not inner.heldout.isEmpty() and not inner.train.isEmpty()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=popularity",), "key als.regularization is no parameter of model=popularity: set model=als"),
        (("tune.folder=s3://bucket/x",), "tune.folder=s3://bucket/x: SQLite needs a local folder"),
        (("tune.winner=/nowhere/x.yaml",), "there is no folder /nowhere"),
        (("tune.space=none.yaml",), "configuration file none.yaml: No such file"),
        (("evaluation.protocol=q3",), "evaluation.protocol=q3 measures predicted ratings"),
    ],
)
def test_what_cannot_work_is_one_line_before_spark(settings: Callable, overrides: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        check_tune(settings(*overrides))
    assert "\n" not in str(raised.value)


def test_a_file_of_the_winners_name_is_not_replaced_unless_told(
    settings: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.yaml").write_text("mine")
    given = ["ds=2024-01-31", "input.path=none", f"tune.space={tmp_path}/space.yaml", f"lake.root={tmp_path}/lake"]
    given += [f"tune.winner={tmp_path}/best.yaml"]
    assert run_job("tune", tune, given, check=check_tune) == 2
    assert "best.yaml exists: name another file, or set tune.overwrite=true" in capsys.readouterr().out
    check_tune(settings("tune.overwrite=true"))
    assert (tmp_path / "best.yaml").read_text() == "mine"


def test_the_winners_file_has_values_that_are_the_default(settings: Callable, tmp_path: Path) -> None:
    default = settings().als
    values = {"als.rank": default.rank, "als.solver": default.solver, "als.regularization": 0.5}
    study = SimpleNamespace(values=lambda number: values, rows=lambda: [{"number": 0, "value": 0.1}], name="s")
    module._write_winner(study, 0, settings("als.rank=3"), {"value": 0.1})
    other = next(name for name in ("cg", "cholesky") if name != default.solver)
    (tmp_path / "base.yaml").write_text(f"als: {{rank: 5, solver: {other}}}")
    won = load_config([tmp_path / "base.yaml", tmp_path / "best.yaml"], ["ds=2024-01-31", "input.path=none"]).als
    assert (won.rank, won.solver, won.regularization, won.iterations) == (default.rank, default.solver, 0.5, 4)


def test_a_key_that_changes_what_is_read_is_refused(settings: Callable, tmp_path: Path) -> None:
    config = settings()
    (tmp_path / "space.yaml").write_text("als.mode: {choice: [implicit, explicit]}")
    with pytest.raises(ConfigError, match=r"als\.mode=explicit reads other data than the rest"):
        check_tune(config)


def test_rungs_are_a_quarter_a_half_and_all_of_the_sweeps() -> None:
    assert rungs(16) == [4, 8, 16] and rungs(1) == [1] and rungs(2) == [1, 2] and rungs(3) == [1, 2, 3]
