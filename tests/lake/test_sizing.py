"""Small inputs are interpreted in few partitions, large ones compiled in many; what the user has set stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sparkcf.lake import sizing
from sparkcf.lake.sizing import query_settings, size_queries

SHUFFLE, CODE = "spark.sql.shuffle.partitions", "spark.sql.codegen.wholeStage"


class Session:
    """What is set on a session of 4 slots, whose user has set `own`."""

    def __init__(self, **own: str) -> None:
        given = {name.replace("__", "."): value for name, value in own.items()}
        self.set: dict[str, Any] = {}
        self.sparkContext = SimpleNamespace(defaultParallelism=4, getConf=lambda: given)
        self.conf = SimpleNamespace(set=self.set.__setitem__)


@pytest.mark.parametrize(
    ("sizes", "partitions", "compiled"),
    [
        ((), 12, "true"),  # a library call may read anything next
        ((1 << 20, 2 << 20), 12, "false"),
        ((1 << 20, 100 << 20), 12, "true"),
        ((1 << 30,), 64, "true"),
        ((1 << 40,), 4000, "true"),
    ],
)
def test_settings_follow_the_size(monkeypatch: pytest.MonkeyPatch, sizes, partitions, compiled) -> None:
    monkeypatch.setattr(sizing, "_input_bytes", lambda frame: frame)
    session = Session()
    size_queries(session, *sizes)
    assert (session.set[SHUFFLE], session.set[CODE]) == (partitions, compiled)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_input_bytes", lambda frame: frame)
    session = Session(spark__sql__shuffle__partitions="7", spark__sql__codegen__wholeStage="true")
    size_queries(session, 1 << 20)
    assert SHUFFLE not in session.set and CODE not in session.set


def test_the_size_is_that_of_the_files(spark, tmp_path) -> None:
    spark.range(1000).write.parquet(str(tmp_path / "numbers"))
    files = sum(file.stat().st_size for file in (tmp_path / "numbers").glob("*.parquet"))
    assert sizing._input_bytes(spark.read.parquet(str(tmp_path / "numbers"))) == files


def test_query_settings_are_as_before_after_the_block(spark) -> None:
    key, unknown = "spark.sql.adaptive.enabled", "spark.sparkcf.test"
    before = spark.conf.get(key)
    with pytest.raises(ValueError), query_settings(spark, {key: "false", unknown: "1"}):
        assert (spark.conf.get(key), spark.conf.get(unknown)) == ("false", "1")
        raise ValueError
    assert spark.conf.get(key) == before and spark.conf.get(unknown, None) is None
