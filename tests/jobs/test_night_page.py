"""The page at the end of a night: written for the night's models, also after a refusal; it never fails a night."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.errors import ConfigError, GateRefused
from sparkcf.jobs.nightly import reported
from sparkcf.jobs.signals import Terminated
from tests.report.lakes import TODAY, write_night


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_night(tmp_path_factory.mktemp("night") / "lake", models=2)


def night(lake: Path, *overrides: str) -> Config:
    return load_config([], [f"ds={TODAY}", "input.path=log.csv", f"lake.root={lake}", "models=[als]", *overrides])


def test_without_a_path_a_line_says_how_to_write_the_page(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    line = f"A page about the night: .venv/bin/sparkcf report --lake {lake}\n"
    with reported(night(lake)):
        pass
    assert capsys.readouterr().err == line
    with pytest.raises(GateRefused), reported(night(lake)):
        raise GateRefused("ndcg is worse")
    assert capsys.readouterr().err == line
    with pytest.raises(ConfigError), reported(night(lake)):
        raise ConfigError("no such file")
    assert capsys.readouterr().err == ""
    with reported(night(lake, f"report.path={tmp_path}/pages/page.html")):
        pass
    assert "A page about" not in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_the_page_is_of_the_nights_day_and_models(lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with reported(night(lake, f"report.path={tmp_path}/pages/{{ds}}.html", "report.users=0")):
        pass
    text = (tmp_path / "pages" / f"{TODAY}.html").read_text(encoding="utf-8")
    assert f"<h1>{TODAY}: als published</h1>" in text and "model2" not in text and "No users to show." in text
    assert f"Report: {tmp_path}/pages/{TODAY}.html (" in capsys.readouterr().err


def test_a_refused_night_has_a_page_and_stays_refused(lake: Path, tmp_path: Path) -> None:
    config = night(lake, f"report.path={tmp_path}/page.html").model_copy(update={"models": ("model2",)})
    with pytest.raises(GateRefused, match="worse"), reported(config):
        raise GateRefused("ndcg is worse")
    assert "model2 refused" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_stopped_night_writes_no_page(lake: Path, tmp_path: Path) -> None:
    with pytest.raises(Terminated), reported(night(lake, f"report.path={tmp_path}/page.html")):
        raise Terminated(15)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["path", "lake", "code"])
def test_a_report_that_fails_is_a_line_and_no_error(
    lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / ("file/page.html" if broken == "path" else "page.html")
    if broken == "code":
        monkeypatch.setattr("sparkcf.report.page.render", lambda *_: 1 / 0)
    with reported(night(tmp_path / "none" if broken == "lake" else lake, f"report.path={path}")):
        pass
    said = " ".join(capsys.readouterr().err.split())
    assert f"note: report.path={path}: no report was written: " in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_empty_path_is_an_error_that_names_the_key(lake: Path) -> None:
    with pytest.raises(ConfigError, match=r"report\.path"):
        night(lake, "report.path=''")
