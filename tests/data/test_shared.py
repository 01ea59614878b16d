"""What the executors' processes do to themselves."""

from __future__ import annotations

import sys

import pytest

from sparkcf.data.shared import leave_out_jars


def test_jars_leave_the_path_of_modules_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/a", "/spark/jars/spark-core.jar", "/b.zip"])
    monkeypatch.setattr(sys, "path_importer_cache", {"/a": None, "/spark/jars/spark-core.jar": None})
    leave_out_jars()
    assert sys.path == ["/a", "/b.zip"]
    assert sys.path_importer_cache == {"/a": None}
