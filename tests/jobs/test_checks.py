"""What a night would find out late is refused before its first step, and nothing is written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparkcf.errors import ConfigError
from sparkcf.jobs import space
from sparkcf.jobs.nightly import nightly
from sparkcf.jobs.space import check_scratch, explain_full_disk
from sparkcf.lake.roots import FREE
from sparkcf.models.registry import model_of

WEIGHTS = ("preference.weight=event", "input.events={buy: 2}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["als.workers=9"], "als.workers=9 but Spark has 2 task slots"),
        (["models=[popularity, hals]", "hals.workers=9"], "hals.workers=9 but Spark has 2"),
        (["model=multvae", "multvae.workers=9"], "multvae.workers=9 but Spark has 2"),
        (["model=mpma", "mpma.workers=9"], "mpma.workers=9 but Spark has 2"),
        (["model=fm", "fm.workers=9"], "fm.workers=9 but Spark has 2"),
        (["model=fm", "fm.learner=sgd", "fm.sgd.workers=9"], r"fm\.sgd.*workers=9 but Spark has 2"),
        (["model=fm", *WEIGHTS], "model=fm weighs every rating 1"),
        (["model=mpma", *WEIGHTS], "model=mpma weighs every rating 1"),
        (["model=ncf", "ncf.objective=rating", *WEIGHTS], "ncf.objective=rating weighs every rating 1"),
        (["model=ease", "rerank.diversity=0.5"], "model=ease has no item vectors: set rerank.similarity=categories"),
        (["train.progress=/proc/none"], "train.progress=/proc/none cannot be written"),
    ],
)
def test_a_night_is_refused_before_its_first_step(
    spark, config: Callable, tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,ts\nu1,i1,1600000000\n")
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        nightly(spark, config("evaluation.protocol=auto", *overrides, path=tmp_path / "log.csv"))
    assert time.monotonic() - begin < 60  # seconds on a busy machine, and no part of Spark's own minutes of waiting
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("model", ["als", "hals", "fm", "mpma", "multvae", "multdae", "ncf", "bivae", "macridvae"])
def test_every_model_that_trains_in_a_group_refuses_dynamic_allocation(config: Callable, model: str) -> None:
    conf = SimpleNamespace(get=lambda key, default: {"spark.dynamicAllocation.enabled": "true"}.get(key, default))
    session = SimpleNamespace(sparkContext=SimpleNamespace(getConf=lambda: conf))
    pairs = SimpleNamespace(columns=["user_idx", "item_idx", "value"], sparkSession=session)
    with pytest.raises(ConfigError, match=r"spark\.dynamicAllocation\.enabled=true"):
        model_of(config(f"model={model}")).check_settings(pairs)


def test_little_space_is_only_warned_of(
    spark, config: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=FREE - 2**30))
    with pytest.raises(Exception, match=r"none\.csv"):  # it comes as far as its first step
        nightly(spark, config())
    assert f"warning: 4.0 GiB free at {tmp_path / 'lake'}" in capsys.readouterr().err


def test_folders_for_temporary_files_are_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    check_scratch({"spark.local.dir": f"/proc/none,{tmp_path / 'made'}"})
    assert list((tmp_path / "made").iterdir()) == []
    with pytest.raises(ConfigError, match=r"/proc/none \(.*\), /proc/other \(.*\): change the rights"):
        check_scratch({"spark.local.dir": "/proc/none, /proc/other"})
    monkeypatch.setenv("SPARK_LOCAL_DIRS", "/proc/first")  # it wins, as in Spark
    with pytest.raises(ConfigError, match=r"/proc/first \("):
        check_scratch({"spark.local.dir": str(tmp_path)})


def test_a_full_disk_is_told_with_the_folders_and_their_space(
    config: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conf = SimpleNamespace(getAll=lambda: [("spark.local.dir", "/scratch")])
    session = SimpleNamespace(sparkContext=SimpleNamespace(getConf=lambda: conf))
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    monkeypatch.setattr(space, "free_space", lambda places: zip(places, (2**20 * 7000, 2**20), strict=True))
    explain_full_disk(ValueError("another error"), config(), session)
    for kind, expected in ((OSError, "SparkcfError"), (ConfigError, "ConfigError")):
        with pytest.raises(Exception) as raised:
            explain_full_disk(kind("spill: No space left on device"), config(), session)
        assert type(raised.value).__name__ == expected
        found = "spill: No space left on device: on this machine 1 MiB free at /scratch, 7,000 MiB free at "
        assert str(raised.value).startswith(f"{found}{tmp_path / 'lake'}: free space")
