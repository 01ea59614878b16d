"""Nets on Spark: trained by processes on the executors, and from there on like every other model."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf import Lake
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.packing import Packing
from sparkcf.errors import ConfigError, LakeError, TrainingError
from sparkcf.jobs.evaluate import evaluate_run
from sparkcf.jobs.nightly import nightly
from sparkcf.jobs.train import train_model
from sparkcf.lake.tables import LakeTables
from sparkcf.training.launch import TrainingSpec, check_launch, class_name, launch
from tests.jobs.test_fold_in import BEFORE, DAY, write

pytestmark = pytest.mark.slow

N, M = 60, 16
LIKED = {(f"u{u}", f"i{i}"): 5.0 for u in range(N) for i in range(M) if i % 2 == u % 2 and (u // 2 + i) % 8 < 6}


def arguments(root: Path, *overrides: str) -> list[str]:
    given = f"""ds={DAY} lake.root={root} input.path=none model=multdae topk.k=3 topk.similar_items=2 gate.at=5
        evaluation.protocol=q1 evaluation.ks=[5] evaluation.bootstrap=5 evaluation.min_user_items=2
        gate.min_user_coverage=0.1 evaluation.holdout_share=0.3"""
    for model in ("multdae", "multvae", "bivae"):
        given += (
            f" {model}.latent_dim=4 {model}.epochs=6 {model}.batch_size=16 {model}.learning_rate=0.02 {model}.workers=1"
        )
    return [*given.split(), *overrides]


def config(root: Path, *overrides: str) -> Config:
    return load_config((), arguments(root, *overrides))


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nets") / "lake"
    write(LakeTables(spark, str(root)), {BEFORE: LIKED})
    return root


def factors(tables: LakeTables, run_id: str, side: str = "user") -> dict[str, Any]:
    rows = tables.read(f"{side}_factors").where(F.col("run_id") == run_id).collect()
    return {row[f"{side}_id"]: row for row in rows}


def test_two_processes_train_what_one_trains(spark: SparkSession, root: Path) -> None:
    """One step an epoch over all rows, nothing drawn: then the processes are all that differs."""
    tables = LakeTables(spark, str(root))
    whole = ("multdae.batch_size=500", "multdae.dropout=0")
    runs = [train_model(spark, config(root, *whole, f"multdae.workers={n}"))["run_id"] for n in (1, 2)]
    for side, n in (("user", N), ("item", M)):
        one, two = (factors(tables, run_id, side) for run_id in runs)
        assert one.keys() == two.keys() and len(one) == n
        for key, row in one.items():
            np.testing.assert_allclose(two[key]["factor"], row["factor"], atol=1e-5)
    assert all(row["latent"] is not None for row in factors(tables, runs[0]).values())
    logged = tables.read("metrics").where(F.col("run_id") == runs[1]).where("protocol = 'fit'").collect()
    assert {row["k"] for row in logged if row["metric"] == "loss"} == set(range(1, 7))
    assert {row["metric"] for row in logged} >= {"loss", "ndcg_at_100", "seconds"}
    assert not list(root.glob("_progress/*"))  # what a run that ended well leaves


def test_a_night_of_two_models_at_once_whose_gangs_want_the_same_slots_publishes_both(
    spark: SparkSession, root: Path, monkeypatch
) -> None:
    monkeypatch.setattr("sparkcf.jobs.nightly.clean_day", lambda *_: {"counts": dict.fromkeys(COUNTED, 0)})
    settings = ("models=[als, multvae]", "models_at_once=2", "multvae.hidden=[6]", "multvae.workers=2", "als.rank=4")
    told = nightly(spark, config(root, *settings))
    assert list(told["models"]) == ["als", "multvae"]
    lake = Lake(root)
    listed = lake.recommendations("u3", 3, model="multvae")
    assert listed["position"].tolist() == [1, 2, 3] and set(listed["reason"]) == {"model"}
    assert not set(listed["item_id"]) & {item for user, item in LIKED if user == "u3"}
    assert len(lake.similar_items("i2", 2, model="multvae")) == 2
    assert 0 <= told["models"]["multvae"]["figures"]["model:ndcg_at_k@5"] <= 1
    tables = LakeTables(spark, str(root))
    snapshots = [row[0] for row in tables.read("user_rows").select("snapshot").distinct().collect()]
    assert not [name for name in snapshots if name.startswith(str(DAY)) and name.count("-") > 4]  # of no evaluation


COUNTED = ("read", "clean", "exact_duplicates", "superseded", "quarantined")


def test_one_model_that_fails_does_not_keep_the_other_from_its_readers(spark, root: Path, monkeypatch) -> None:
    monkeypatch.setattr("sparkcf.jobs.nightly.clean_day", lambda *_: {"counts": dict.fromkeys(COUNTED, 0)})
    with pytest.raises(TrainingError, match="models multdae failed, published: popularity; the first error: the loss"):
        nightly(spark, config(root, "models=[multdae, popularity]", "multdae.learning_rate=1e30"))
    assert Lake(root).published("popularity").ds == DAY


def test_a_loss_that_is_not_finite_is_named_and_nothing_is_written(spark: SparkSession, root: Path) -> None:
    tables = LakeTables(spark, str(root))
    before = tables.version("user_factors")
    with pytest.raises(TrainingError, match=r"the loss is .* in epoch \d+, step \d+, .*user_idx \d+"):
        train_model(spark, config(root, "multdae.learning_rate=1e30"))
    assert tables.version("user_factors") == before
    failed = tables.read("runs").orderBy(F.desc("started_at")).first()
    assert failed["state"] == "failed" and "the loss is" in failed["reason"]


@pytest.mark.parametrize("name", ["multdae", "bivae"])
def test_a_killed_process_costs_time_and_not_the_result(
    spark: SparkSession, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Spark starts the stage again, and the training, of rows of both sides too, goes on after the last saved epoch."""
    packing = Packing(LakeTables(spark, str(root)), "kill", 42)
    snapshot = packing.rows(spark_pairs(spark), "user", 0.1)
    section = getattr(config(root, f"{name}.epochs=300", f"{name}.patience=0"), name)
    spec = spec_of(section, snapshot.train, tmp_path / "disturbed")
    if name == "bivae":
        spec = replace(spec, item_train=packing.rows(spark_pairs(spark), "item").train)
    heard: list[dict[str, Any]] = []
    processes = str(tmp_path)

    def run_and_tell(spec_json: str, tasks: int) -> dict[str, Any]:
        from pyspark import BarrierTaskContext

        from sparkcf.training.launch import run_spec

        Path(processes, f"rank-{BarrierTaskContext.get().partitionId()}").write_text(f"{os.getpid()}")
        return run_spec(spec_json, tasks)

    def kill_when_it_runs() -> None:
        while len(heard) < 5:
            time.sleep(0.01)
        os.kill(int((tmp_path / "rank-1").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_when_it_runs, daemon=True)
    killer.start()
    with monkeypatch.context() as patched:
        patched.setattr("sparkcf.training.launch.run_spec", run_and_tell)
        log = launch(spark, spec, 2, heard.append)
    assert any("resuming after epoch" in entry.get("note", "") for entry in heard)
    whole = launch(spark, replace(spec, checkpoint_dir=str(tmp_path / "whole")), 2, print)
    assert [entry["epoch"] for entry in log] == [entry["epoch"] for entry in whole] == list(range(1, 301))
    assert [entry["loss"] for entry in log] == pytest.approx([entry["loss"] for entry in whole], rel=1e-4)


def spec_of(section: Any, files: tuple[str, ...], folder: Path) -> TrainingSpec:
    params = (class_name(section), section.model_dump_json(), 1, {"n_items": M, "n_users": N})
    return TrainingSpec(
        section.section, "sparkcf.models.nets.registry:net_of", *params, "user_idx", files, (), f"{folder}/p"
    )


def spark_pairs(spark: SparkSession) -> Any:
    rows = [(int(u[1:]), int(i[1:]), v) for (u, i), v in LIKED.items()]
    return spark.createDataFrame(rows, "user_idx int, item_idx int, value double")


def test_a_snapshot_whose_files_are_gone_ends_in_a_line(spark: SparkSession, root: Path, tmp_path: Path) -> None:
    section = config(root).multdae
    gone = (f"{tmp_path.as_uri()}/gone.parquet",)
    spec = spec_of(section, gone, tmp_path)
    with pytest.raises(TrainingError, match=r"gone\.parquet cannot be read: .*train again"):
        launch(spark, spec, 1, print)


@pytest.fixture(scope="module")
def trained(spark: SparkSession, root: Path) -> str:
    return str(train_model(spark, config(root, "multdae.workers=1"))["run_id"])


def test_an_evaluation_takes_up_nothing_of_another_split(spark: SparkSession, root: Path, trained, monkeypatch) -> None:
    """What a killed evaluation leaves may have been trained on the users that the next one tests."""
    seen: list[tuple[str | None, str]] = []

    def killed(events, model, data, config, run, items):
        seen.append((run.checkpoint_dir, data.packing.name))
        raise TrainingError("killed")

    monkeypatch.setattr("sparkcf.jobs.evaluate.evaluate", killed)
    for share in (0.3, 0.5, 0.3):
        with pytest.raises(TrainingError, match="killed"):
            evaluate_run(spark, config(root, f"run_id={trained}", f"evaluation.holdout_share={share}"))
    first, other, again = seen
    assert first == again and first[0] is not None
    assert first[0] != other[0] and first[1] != other[1]


def test_a_model_file_that_was_changed_is_refused(spark: SparkSession, root: Path, trained: str) -> None:
    from sparkcf.jobs.fold_in import fold_in_users

    file = root / "_models" / trained / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(LakeError, match=r"weights\.safetensors cannot be used: its sha256"):
        fold_in_users(spark, config(root, f"run_id={trained}"))


class Settings:
    """A session of which nothing but its settings is asked."""

    def __init__(self, **settings: str) -> None:
        self._settings = {name.replace("__", "."): value for name, value in settings.items()}

    @property
    def sparkContext(self) -> Settings:
        return self

    def getConf(self) -> Settings:
        return self

    def get(self, key: str, default: str) -> str:
        return self._settings.get(key, default)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"spark__dynamicAllocation__enabled": "true"}, r"spark\.dynamicAllocation\.enabled=true"),
        ({"spark__task__resource__gpu__amount": "0.5"}, r"spark\.task\.resource\.gpu\.amount=0\.5.*set it to 1"),
        ({"spark__task__resource__gpu__amount": "2"}, r"spark\.task\.resource\.gpu\.amount=2"),
        ({"spark__task__resource__gpu__amount": "one"}, r"spark\.task\.resource\.gpu\.amount=one"),
        ({"spark__ssl__enabled": "true"}, r"spark\.ssl\.enabled=true.*ignoreSsl=true"),
    ],
)
def test_settings_that_torch_distributor_breaks_on_are_refused_before_it(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_launch(Settings(**settings), 1, "multvae")  # type: ignore[arg-type]


def test_too_few_slots_are_refused_at_once(spark: SparkSession) -> None:
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"multdae\.workers=3 but Spark has 2 task slots"):
        check_launch(spark, 3, "multdae")
    assert time.monotonic() - begin < 5  # Spark itself would try for minutes
    assert check_launch(spark, None, "multdae") == 2
