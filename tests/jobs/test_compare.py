"""Models compared on one snapshot: the same test for all, paired differences, resumption, and models that fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparkcf
from sparkcf.cli.compare import difference
from sparkcf.config.compare import compared
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.inputs import Inputs
from sparkcf.errors import ConfigError, SparkcfError
from sparkcf.jobs import compare as module
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.compare import compare_models
from sparkcf.jobs.frame import run_job
from sparkcf.lake.compared import Comparison, newest_comparison
from sparkcf.lake.tables import LakeTables

MODELS = {
    "plain": "model: popularity",
    "twin": "model: popularity",
    "ease": "model: ease\nease: {regularization: 20}",
    "broken": "model: als\nals: {rank: 4, workers: 64}",  # more than the session has slots
}
NDCG = ("ndcg_at_k", 5)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 users of two tastes, who have 8 to 12 of the 15 items of their taste."""
    draw, path = np.random.default_rng(3), tmp_path_factory.mktemp("log") / "log.csv"
    lines = ["user_id,item_id,ts"]
    for user in range(40):
        items = draw.choice(15, size=int(draw.integers(8, 13)), replace=False)
        lines += [f"u{user},i{2 * item + user % 2},2024-01-{1 + item % 28:02}T00:00:00Z" for item in items]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, text in MODELS.items():
        (folder / f"{name}.yaml").write_text(text + "\n")
    return folder


@pytest.fixture(scope="module")
def cleaned(spark, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the log; a test that writes takes a copy."""
    lake = tmp_path_factory.mktemp("cleaned") / "lake"
    columns = ["input.columns.event=null", "input.columns.value=null"]
    clean_day(spark, load_config((), ["ds=2024-01-31", f"input.path={log}", f"lake.root={lake}", *columns]))
    return lake


@pytest.fixture
def copied(cleaned: Path, tmp_path: Path) -> None:
    shutil.copytree(cleaned, tmp_path / "lake")


@pytest.fixture
def settings(config: Callable, log: Path, files: Path) -> Callable[..., Config]:
    """Build the configuration of a comparison, in this test's own lake, of models by their names in MODELS."""

    def build(*names: str, overrides: tuple[str, ...] = ()) -> Config:
        listed = json.dumps([str(files / f"{name}.yaml") for name in names])
        test = ["evaluation.protocol=q2", "evaluation.holdout_share=0.25", "evaluation.ks=[5,10]", "gate.at=5"]
        columns = ["input.columns.event=null", "input.columns.value=null", "topk.k=4"]
        return config(*columns, *test, f"compare.files={listed}", *overrides, path=log)

    return build


def newest(config: Config) -> Comparison:
    return newest_comparison(sparkcf.Lake(config.lake.root))


@pytest.mark.slow
def test_a_comparison_from_the_first_run_to_another_list_of_models(
    spark, copied: None, settings: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("plain", "twin", "broken", "ease")
    with pytest.raises(SparkcfError, match="models broken failed, measured: plain, twin, ease; the first error: "):
        compare_models(spark, config)
    first = newest(config)
    plain, twin, broken, ease = first.models
    assert [one.state for one in first.models] == ["measured", "measured", "failed", "measured"]
    assert "slots" in broken.reason and "\n" not in broken.reason and not broken.figures
    check_costs(first)
    figures = [one.figures["model", *NDCG] for one in (plain, twin, ease)]
    assert len({figure.users for figure in figures}) == len({one.heldout for one in (plain, twin, ease)}) == 1
    assert len({one.figures["popularity", *NDCG].value for one in (plain, twin, ease)}) == 1
    assert vars(difference(first, twin, NDCG)) == {"value": 0.0, "lower": 0.0, "upper": 0.0}
    apart = difference(first, ease, NDCG)
    assert apart.value == pytest.approx(figures[2].value - figures[0].value) and 0 < apart.lower < apart.upper
    assert not any((Path(config.lake.root) / "_progress").glob("*"))  # what was stored for measuring is removed
    runs = {row["run_id"]: row for row in LakeTables(spark, config.lake.root).read("runs").collect()}
    assert {(r["job"], r["state"]) for r in runs.values()} == {
        *[("clean", "cleaned"), ("compare", "compared"), ("compare", "failed")]
    }

    def never(*_: Any) -> None:
        raise AssertionError("was measured again")

    tried = settings("ease", "plain")
    with monkeypatch.context() as patched:
        patched.setattr(module, "_measure", never)
        told = compare_models(spark, tried)
    assert told["kept"] == ["ease", "plain"] and told["models"] == {"ease": ease.run_id, "plain": plain.run_id}
    again = newest(config)
    assert again.comparison_id != first.comparison_id and again.reference.name == "ease"
    assert again.models[0].costs == ease.costs and again.models[0].figures == ease.figures

    def interrupted(*_: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise KeyError("p")  # as the next call of the JVM does, whose answer is out of step

    monkeypatch.setattr(module, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_models(spark, config)
    states = {one.name: one.state for one in newest(config).models}
    assert states == {"plain": "measured", "twin": "measured", "broken": "waiting", "ease": "measured"}


@pytest.mark.parametrize("changed", ["seed=7", "evaluation.bootstrap=30", "topk.k=5", "preference.positive_from=2"])
def test_another_test_or_other_lists_are_another_snapshot(settings: Callable, changed: str) -> None:
    inputs, before = Inputs(None, {"interactions": 3}), settings("plain")  # type: ignore[arg-type]
    same = settings("ease", overrides=("gate.max_fall=0.5", "train.warm_start=true"))
    assert module._snapshot(inputs, same) == module._snapshot(inputs, before)
    assert module._snapshot(inputs, settings("plain", overrides=(changed,))) != module._snapshot(inputs, before)
    later = Inputs(None, {"interactions": 4})  # type: ignore[arg-type]
    assert module._snapshot(later, before) != module._snapshot(inputs, before)


def check_costs(comparison: Comparison) -> None:
    for one in comparison.models:
        if one.measured:
            costs = one.costs
            assert costs["pairs"] > 250 and costs["list_users"] == 40 and costs["list_k"] == 4
            assert costs["train_seconds"] > 0 and costs["list_seconds"] > 0 and costs["slots"] == 2
            assert 20e6 < costs["peak_bytes"] < 20e9 and 1_000 < costs["stored_bytes"] < 1e6
        else:
            assert set(one.costs.values()) == {None}


def test_models_with_other_heldout_pairs_are_not_compared(spark, copied: None, settings: Callable) -> None:
    config = settings("plain", "twin")
    configs = compared(config)
    inputs = module._pinned(LakeTables(spark, config.lake.root), configs)
    with pytest.raises(SparkcfError, match="tested on other pairs than the models before it"):
        module._measure(inputs, inputs.events(config.ds), configs["plain"], "plain", "1 pairs, 00")


def test_a_lake_without_interactions_is_left_as_it_was(spark, settings: Callable) -> None:
    config = settings("plain")
    with pytest.raises(SparkcfError, match=r"run jobs/clean\.py first"):
        compare_models(spark, config)
    assert not (Path(config.lake.root) / "comparisons").exists()


def test_files_that_cannot_be_used_end_the_job_before_spark_starts(tmp_path: Path, capsys) -> None:
    def never(*_: Any) -> dict:
        raise AssertionError("the job must not begin")

    given = ["ds=2024-01-31", "input.path=none.csv", f"lake.root={tmp_path}/lake", "compare.files=[nowhere.yaml]"]
    assert run_job("compare", never, [*given, "--dry-run"], check=compared) == 2
    assert "nowhere.yaml" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "lake").exists()


def test_a_protocol_that_cannot_measure_a_model_is_refused_before_anything_is_written(spark, settings) -> None:
    config = settings("plain", overrides=("evaluation.protocol=q3", "gate.at=5"))
    with pytest.raises(ConfigError, match="predicts none"):
        compare_models(spark, config)
    assert not Path(config.lake.root).exists()
