"""The file of gauges is valid, keeps what other jobs wrote, and is replaced in one step."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from sparkcf.jobs.observe.prometheus import SUCCESS, exposed, parsed, write_gauges
from tests.jobs.observe.reports import BEGIN, CLEAN, END, report

NAME, LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r"[a-zA-Z_][a-zA-Z0-9_]*"
NUMBER = r"[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|Inf)|NaN"


def strict(text: str) -> dict[str, dict[frozenset, float]]:
    """Values by name and labels, read by the rules of the text format 0.0.4, written without the library's code.

    Every family has one HELP, one TYPE and then its samples, together; no sample is there twice.
    """
    assert text.endswith("\n")
    families: dict[str, dict[frozenset, float]] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if found := re.fullmatch(rf"# HELP ({NAME}) (.*)", line):
            name = found[1]
            assert name not in families and re.fullmatch(rf"# TYPE {name} gauge", next(lines))
            families[name] = {}
            continue
        found = re.fullmatch(rf"({NAME})\{{(.*)\}} ({NUMBER})", line)
        assert found and found[1] == name, line
        labels, rest = [], found[2]
        while rest:
            pair = re.match(rf'({LABEL})="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)', rest)
            assert pair, rest
            labels.append((pair[1], re.sub(r"\\(.)", lambda c: "\n" if c[1] == "n" else c[1], pair[2])))
            rest = rest[pair.end() :]
        assert len(dict(labels)) == len(labels)
        key = frozenset(labels)
        assert key not in families[name], line
        families[name][key] = float(found[3])
    return families


def of(**labels: str) -> frozenset:
    return frozenset(labels.items())


def test_the_gauges_of_a_night(tmp_path: Path) -> None:
    file = tmp_path / "sparkcf.prom"
    write_gauges(str(file), report())
    found, night = strict(file.read_text()), of(job="nightly", model="als")
    assert found["sparkcf_last_run_timestamp_seconds"] == found[SUCCESS] == {night: END.timestamp()}
    assert found["sparkcf_last_run_duration_seconds"] == {night: (END - BEGIN).total_seconds()}
    assert found["sparkcf_last_run_exit_code"] == {night: 0}
    steps = found["sparkcf_step_duration_seconds"]
    assert steps[of(job="nightly", model="", step="clean")] == 2
    assert steps[of(job="nightly", model="als", step="evaluate")] == 1.5 and len(steps) == 3
    assert found["sparkcf_rows"][of(job="nightly", model="", kind="read")] == 10
    assert found["sparkcf_peak_memory_bytes"] == {night: 7}
    figures = found["sparkcf_gate_figure"]
    assert figures[of(job="nightly", model="als", measure="ndcg@100", system="published")] == 0.29
    assert len(figures) == 3
    assert file.stat().st_mode & 0o777 == 0o644
    assert {path.name for path in tmp_path.iterdir()} == {"sparkcf.prom", ".sparkcf.prom.lock"}


def test_the_last_success_moves_on_success_only(tmp_path: Path) -> None:
    file, night = tmp_path / "sparkcf.prom", of(job="nightly", model="als")
    write_gauges(str(file), report(code=3))
    assert SUCCESS not in strict(file.read_text())
    write_gauges(str(file), report())
    later = END.replace(day=2)
    for code in (3, 5, 143):
        write_gauges(str(file), report(code=code, ended=later))
        found = strict(file.read_text())
        assert found[SUCCESS] == {night: END.timestamp()}
        assert found["sparkcf_last_run_timestamp_seconds"] == {night: later.timestamp()}
        assert found["sparkcf_last_run_exit_code"] == {night: code}
    write_gauges(str(file), report(ended=later))
    assert strict(file.read_text())[SUCCESS] == {night: later.timestamp()}


def test_jobs_and_models_keep_each_others_lines_and_a_step_that_is_gone_goes(tmp_path: Path) -> None:
    file = tmp_path / "sparkcf.prom"
    for model in ("als", "ease"):
        write_gauges(str(file), report(f"model={model}", job="train", runs={}))
    write_gauges(str(file), report("models=[als, ease]"))
    write_gauges(str(file), report(job="clean", steps=()))
    write_gauges(str(file), report(job="train", steps=(), gate={}, runs={}))
    found = strict(file.read_text())
    ends = {(dict(key)["job"], dict(key)["model"]) for key in found["sparkcf_last_run_timestamp_seconds"]}
    assert ends == {("train", "als"), ("train", "ease"), ("nightly", ""), ("clean", "")}
    steps = {dict(key)["job"] for key in found["sparkcf_step_duration_seconds"]}
    assert steps == {"nightly"}  # those of the other jobs are gone, as their last runs had none


def test_strange_texts_are_escaped_and_read_back(tmp_path: Path) -> None:
    odd = 'say "hi"\\n\\\n{},='
    runs = {CLEAN: {"job": "clean", "model": None, "counts": {odd: 1}}}
    write_gauges(str(tmp_path / "a.prom"), report(runs=runs))
    text = (tmp_path / "a.prom").read_text()
    assert of(job="nightly", model="", kind=odd) in strict(text)["sparkcf_rows"]
    assert exposed(parsed(text)) == text


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "node.prom"
    file.write_text('node_load1{host="a"} 3\n')
    with pytest.raises(ValueError, match="line 1 of the file was not written by sparkcf"):
        write_gauges(str(file), report())
    assert file.read_text() == 'node_load1{host="a"} 3\n'


def test_jobs_that_end_at_once_lose_no_lines(tmp_path: Path) -> None:
    file, models = tmp_path / "sparkcf.prom", ("als", "ease", "hals", "fm", "popularity")
    reports = [report(f"model={model}", job="train", runs={}, steps=(), gate={}) for model in models]
    threads = [threading.Thread(target=write_gauges, args=(str(file), one)) for one in reports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {dict(key)["model"] for key in strict(file.read_text())[SUCCESS]} == set(models)


@pytest.mark.parametrize(
    "text",
    [
        "# HELP a b\n# TYPE a gauge\na{} 1\na{} 1\n",
        "# HELP a b\n# TYPE a gauge\nb{} 1\n",
        "# HELP a b\na{} 1\n",
        '# HELP a b\n# TYPE a gauge\na{x="1\\q"} 1\n',
        "# HELP a b\n# TYPE a gauge\na{} one\n",
        "# HELP a b\n# TYPE a gauge\na{} 1",
    ],
)
def test_the_parser_of_this_test_is_strict(text: str) -> None:
    with pytest.raises(AssertionError):
        strict(text)
