"""The command `sparkcf report` writes one page and says where; errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.cli.main import main
from tests.report.lakes import TODAY, write_night


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_night(tmp_path_factory.mktemp("cli") / "lake", models=2)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, words)])
    return int(ended.value.code)


def test_the_page_of_the_newest_night(lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("--lake", lake, "--output", tmp_path / "night.html") == 0
    assert capsys.readouterr().out.startswith(f"als published; model2 refused\n{tmp_path}/night.html: ")
    assert f"<h1>{TODAY}: " in (tmp_path / "night.html").read_text(encoding="utf-8")


def test_runs_and_models_can_be_named(lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("als-1", "--lake", lake, "--output", tmp_path / "a.html", "--users", 0) == 0
    assert run("--model", "model2", "--ds", TODAY, "--lake", lake, "--output", tmp_path / "b.html") == 0
    assert "model2 refused" in capsys.readouterr().out
    assert "als" not in (tmp_path / "b.html").read_text(encoding="utf-8").partition("</h1>")[0].partition("<h1>")[2]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nope"], 1, "no run 'nope' in lake"),
        (["--model", "nope"], 1, "no run of model nope in lake"),
        (["--ds", "monday"], 2, "ds='monday': a day is written YYYY-MM-DD"),
        (["--users", "-1"], 2, "--users"),
        (["--lake", "nowhere"], 2, "no lake at nowhere: run `make nightly` or jobs/nightly.py first"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    lake: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = words if "--lake" in words else [*words, "--lake", str(lake)]
    assert run(*given) == code
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message in err
    assert not list(tmp_path.iterdir())
