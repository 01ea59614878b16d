"""The command `sparkcf report` writes one page and says where; errors are one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparkcf.cli.main import main
from tests.report.lakes import TODAY, write_night, write_study


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


def test_a_study_is_shown_with_its_trials_and_the_chosen_settings(lake: Path, tmp_path: Path) -> None:
    file = write_study(tmp_path / "als-0123.json", study="<b>als</b>")
    assert run("--lake", lake, "--output", tmp_path / "a.html", "--users", 0, "--study", file) == 0
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    section = text[text.index('<h2 id="study"') :].partition("</section>")[0]
    assert "&lt;b&gt;als&lt;/b&gt;: 6 trials of als (4 complete, 1 failed, 1 pruned)" in section and "<svg" in section
    assert "The best is trial 3: 0.3100, and 0.2900 on the test part" in section
    cells = [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", section)]
    assert cells == [
        *("als.rank", "64", "16 to 96"),
        *("als.regularization", "0.03", "0 to 0.05"),
        *("als.solver", "cg", "cg"),
    ]
    assert run("--lake", lake, "--output", tmp_path / "b.html", "--users", 0) == 0
    assert 'id="study"' not in (tmp_path / "b.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\x00", "is no JSON file of jobs/tune.py: "),
        (b"[" * 100_000, "is no JSON file of jobs/tune.py: "),
        (b"{}", "is no JSON file of jobs/tune.py: study: Field required"),
        ({"trials": "many"}, "is no JSON file of jobs/tune.py: trials: "),
        ({"trials": []}, "has no result of its best trial, 3: run jobs/tune.py again"),
        ({"best": 5}, "has no result of its best trial, 5: run jobs/tune.py again"),
    ],
    ids=["missing", "binary", "deep", "empty", "type", "no trials", "no result"],
)
def test_a_broken_study_is_one_line_and_nothing_is_written(
    lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes | dict | None, why: str
) -> None:
    file = tmp_path / "study.json"
    if isinstance(content, dict):
        write_study(file, **content)
    elif content is not None:
        file.write_bytes(content)
    assert run("--lake", lake, "--output", tmp_path / "a.html", "--study", file) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and f"--study {file} {why}" in err
    assert not (tmp_path / "a.html").exists()


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
