"""`sparkcf compare`: every format from a lake that delta-rs wrote, texts of strangers, and errors in one line."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from tests.lake.test_query import COUNTS, MAY_2, TIME, build_lake, write

ODD = "</text><script>alert(1)</script> \x1b[31m|`x` *b*"
COSTS = {
    "slots": pa.int32(),
    "pairs": pa.int64(),
    "train_seconds": pa.float64(),
    "peak_bytes": pa.int64(),
    "stored_bytes": pa.int64(),
    "list_users": pa.int64(),
    "list_k": pa.int32(),
    "list_seconds": pa.float64(),
}
MEASURED = (2, 90_000, 4.5, 1_250_000_000, 2_048_000, 610, 20, 1.25)


def write_comparison(root: Path, hour: int, models: list[tuple], comparison_id: str = "20240502-abc") -> None:
    """Models are (name, model, state, reason, costs or None); a measured one has the run `run-NAME`."""
    n, at = len(models), dt.datetime(2024, 5, 2, hour, tzinfo=dt.UTC)
    costs = [costs or (None,) * len(COSTS) for *_, costs in models]
    columns = {
        "comparison_id": [comparison_id] * n,
        "position": pa.array(range(1, n + 1), pa.int32()),
        "name": [name for name, *_ in models],
        "model": [model for _, model, *_ in models],
        "ds": [MAY_2] * n,
        "compared_at": pa.array([at] * n, TIME),
        "state": [state for _, _, state, *_ in models],
        "reason": pa.array([reason for _, _, _, reason, _ in models], pa.string()),
        "run_id": pa.array([f"run-{name}" if done else None for name, *_, done in models], pa.string()),
        "snapshot": ["s"] * n,
        "settings": ["{}"] * n,
        "inputs": pa.array([[("interactions", 3)]] * n, COUNTS),
        "code_version": ["0.1.0"] * n,
        "protocol": ["q2"] * n,
        "metric": ["ndcg_at_k"] * n,
        "at": pa.array([100] * n, pa.int32()),
        "heldout": pa.array(["9 pairs, 00" if done else None for *_, done in models], pa.string()),
        "measured_at": pa.array([at if done else None for *_, done in models], TIME),
    }
    columns |= {
        name: pa.array(values, COSTS[name]) for name, values in zip(COSTS, zip(*costs, strict=True), strict=True)
    }
    write(root, "comparisons", columns)


def write_figures(
    root: Path, name: str, *values: tuple[str, str, int | None, float, list[float]], protocol: str = "q2"
) -> None:
    """`values` are (system, metric, k, value, replicates)."""
    n = len(values)
    columns = {
        "run_id": [f"run-{name}"] * n,
        "system": [v[0] for v in values],
        "protocol": [protocol] * n,
        "metric": [v[1] for v in values],
        "k": pa.array([v[2] for v in values], pa.int32()),
        "value": [v[3] for v in values],
        "lower": [v[3] - 0.01 for v in values],
        "upper": [v[3] + 0.01 for v in values],
        "users": [610] * n,
        "segment": pa.nulls(n, pa.string()),
        "settings": ["{}"] * n,
        "replicates": pa.array([v[4] for v in values], pa.list_(pa.float64())),
    }
    write(root, "metrics", columns)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two comparisons; of the newer one two models are measured, one has failed and one waits."""
    root = tmp_path_factory.mktemp("lake")
    write_comparison(root, 5, [("old", "als", "measured", None, MEASURED)], "20240502-old")
    slow = (2, 90_000, 300.0, None, None, 610, 20, 0.5)
    models = [("als", "als", "measured", None, MEASURED), ("small-ease", "ease", "measured", None, slow)]
    models += [("odd", "hals", "failed", ODD, None), ("late", "fm", "waiting", None, None)]
    write_comparison(root, 6, models)
    base = [0.30, 0.31, 0.32]
    others = (("popularity", "ndcg_at_k", 100, 0.2, base), ("model", "recall_at_k", 20, 0.4, base))
    write_figures(root, "als", ("model", "ndcg_at_k", 100, 0.31, base), *others)
    write_figures(root, "small-ease", ("model", "ndcg_at_k", 100, 0.33, [value + 0.02 for value in base]), *others)
    return root


def test_csv_has_a_row_a_model_with_the_measure_and_the_costs(run, root: Path) -> None:
    code, out, err = run("compare", "--lake", str(root), "--format", "csv")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(out, newline=""))}
    assert (code, err) == (0, "") and list(rows) == ["als", "small-ease", "odd", "late"]
    ease = rows["small-ease"]
    assert (ease["model"], ease["metric"], ease["k"], ease["users"]) == ("ease", "ndcg_at_k", "100", "610")
    assert float(ease["value"]) == 0.33 and float(ease["difference"]) == pytest.approx(0.02)
    assert (float(ease["train_seconds"]), float(ease["pairs_per_second"]), ease["peak_bytes"]) == (300.0, 300.0, "")
    assert rows["als"]["difference"] == "" and rows["odd"]["reason"] == ODD and rows["late"]["value"] == ""
    _, out, _ = run("compare", "--lake", str(root), "--format", "csv", "--measure", "recall@20")
    assert {row["metric"] for row in csv.DictReader(io.StringIO(out, newline=""))} == {"recall_at_k"}


def test_the_table_shows_the_newest_comparison(run, root: Path) -> None:
    code, out, err = run("compare", "--lake", str(root))
    assert (code, err) == (0, "")
    lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines() if line.strip()]
    assert lines[:3] == [
        ["Compared for 2024-05-02 by q2, 20240502-abc"],
        ["ndcg@100 over 610 users; differences to als; 95 % bounds"],
        ["Popularity on the same users: 0.2000 [0.1900, 0.2100]"],
    ]
    assert lines[3] == ["model", "ndcg@100", "difference", "training", "pairs/s", "memory", "stored", "lists", "note"]
    assert lines[5] == ["als", "0.3100 [0.3000, 0.3200]", "4.5 s", "20,000", "1.2 GB", "2.0 MB", "1.2 s"]
    paired = "+0.0200 [+0.0200, +0.0200]"  # the replicates differ by the same: no doubt remains
    assert lines[6] == ["small-ease (ease)", "0.3300 [0.3200, 0.3400]", paired, "300 s", "300", "0.5 s"]
    assert lines[7][0] == "odd (hals)" and lines[7][1].startswith("failed: </text>") and "\x1b" not in out
    assert lines[8] == ["late (fm)", "not measured yet"]


def test_another_measure_can_be_shown(run, root: Path) -> None:
    for name in ("recall@20", "recall_at_k@20"):
        _, out, _ = run("compare", "--lake", str(root), "--measure", name)
        assert "recall@20 over 610 users" in out and "0.4000 [0.3900, 0.4100]" in out


def test_markdown_escapes_what_would_be_markup(run, root: Path) -> None:
    code, out, err = run("compare", "--lake", str(root), "--format", "markdown")
    assert (code, err) == (0, "")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 and table[1].startswith("|---|---:|")
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert columns == {10}
    assert r"failed: \</text\>\<script\>" in table[4] and "\x1b" not in out


def test_json_has_every_measure_and_cost(run, root: Path) -> None:
    code, out, err = run("compare", "--lake", str(root), "--format", "json")
    told = json.loads(out)
    assert (code, err) == (0, "") and told["measure"] == {"metric": "ndcg_at_k", "k": 100}
    assert told["reference"] == "als" and told["inputs"] == {"interactions": 3} and told["ds"] == "2024-05-02"
    als, ease, odd, late = told["models"]
    assert [one["state"] for one in told["models"]] == ["measured", "measured", "failed", "waiting"]
    assert (als["pairs_per_second"], als["peak_bytes"], ease["peak_bytes"]) == (20_000, 1_250_000_000, None)
    assert {tuple(sorted(one)) for one in told["models"]} == {tuple(sorted(als))}
    ndcg = next(one for one in ease["measures"] if one["metric"] == "ndcg_at_k")
    assert set(ndcg) == {"metric", "k", "value", "lower", "upper", "users", "difference"}
    assert ndcg["difference"] == pytest.approx({"value": 0.02, "lower": 0.02, "upper": 0.02})
    assert all(one["difference"] is None for one in als["measures"])
    assert odd["reason"] == ODD and odd["measures"] == late["measures"] == [] and late["run_id"] is None
    assert told["popularity"][0]["value"] == 0.2


def test_the_plot_is_written_beside_the_answer(run, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "compared.svg"
    code, out, _ = run("compare", "--lake", str(root), "--plot", str(file), "--format", "json")
    assert code == 0 and json.loads(out)
    texts = [element.text for element in ElementTree.parse(file).iter() if element.tag.endswith("text")]
    assert {"als", "small-ease", "ndcg@100", "training time in seconds (log scale)"} <= set(texts)
    assert "odd" not in texts  # it has no measure


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "yaml"], 2, "yaml"),
        (["--measure", "ndcg@7"], 1, "the comparison has no measure 'ndcg@7': it has ndcg@100, recall@20"),
        (["--plot", "compared.png"], 2, "such as compared.svg"),
        (["--plot", "/nowhere/compared.svg"], 2, "No such file"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(
    run, root, tmp_path, monkeypatch, arguments, code, message
) -> None:
    monkeypatch.chdir(tmp_path)
    ended, out, err = run("compare", "--lake", str(root), *arguments)
    assert (ended, out, err.count("\n")) == (code, "", 1) and message in err
    assert list(tmp_path.iterdir()) == []


def test_lakes_without_a_comparison_are_told_in_one_line(run, tmp_path: Path) -> None:
    build_lake(tmp_path / "lake")
    for lake, code, message in (
        (tmp_path / "lake", 1, "run jobs/compare.py first"),
        (tmp_path / "none", 2, "no lake at"),
    ):
        ended, out, err = run("compare", "--lake", str(lake))
        assert (ended, out, err.count("\n")) == (code, "", 1) and message in err


def test_a_comparison_of_which_nothing_is_measured(run, tmp_path: Path) -> None:
    write_comparison(tmp_path, 1, [("als", "als", "failed", "no", None), ("ease", "ease", "waiting", None, None)])
    code, out, _ = run("compare", "--lake", str(tmp_path))
    assert code == 0 and "No model is measured yet" in out and "failed: no" in out
    for form in ("markdown", "json"):
        assert run("compare", "--lake", str(tmp_path), "--format", form)[0] == 0
    plot = tmp_path / "compared.svg"
    code, out, err = run("compare", "--lake", str(tmp_path), "--plot", str(plot))
    assert (code, out) == (1, "") and "nothing to plot" in err and not plot.exists()


def test_times_of_different_clusters_are_not_compared(run, tmp_path: Path) -> None:
    write_comparison(
        tmp_path, 1, [("a", "als", "measured", None, MEASURED), ("b", "als", "measured", None, (8, *MEASURED[1:]))]
    )
    write_figures(tmp_path, "a", ("model", "ndcg_at_k", 100, 0.3, []))
    write_figures(tmp_path, "b", ("model", "ndcg_at_k", 100, 0.3, []))
    assert "were measured with 2 and 8 slots" in run("compare", "--lake", str(tmp_path))[1]


def test_the_command_imports_neither_spark_nor_torch(root: Path) -> None:
    program = (
        "import sys, sparkcf.cli.main\n"
        "try: sparkcf.cli.main.main(['compare', '--lake', sys.argv[1]])\n"
        "except SystemExit: print(sorted({'pyspark', 'torch', 'numba', 'pandas'} & set(sys.modules)), file=sys.stderr)"
    )
    out = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=True)
    assert "small-ease" in out.stdout and out.stderr.strip() == "[]"
