"""The command line: data stays data in every format, errors are one line, exit codes are as promised."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import sparkcf
from tests.cli.test_compare import write_figures
from tests.lake.test_query import (
    MAY_2,
    STRANGE,
    build_lake,
    publish,
    write,
    write_interactions,
    write_items,
    write_lists,
    write_metrics,
    write_users,
)

ASK_USERS = ("recommend", "history")
CONTROLS = "\x1b[31mred\x1b[0m \x07 \x9b2J \x7f \u202e"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_lake(tmp_path_factory.mktemp("lake")))


def one_line(text: str) -> bool:
    return text.startswith("sparkcf: ") and text.count("\n") == 1 and text.endswith("\n")


def test_recommend_shows_the_run_and_the_list(run, root: str) -> None:
    code, out, err = run("recommend", "--user", "1", "--lake", root)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[0] == "als, published for 2024-05-02, run als-2".split()
    assert lines[1] == ["position", "item_id", "title", "score", "reason"]
    assert lines[3] == ["1", "b", "Brazil", "0.9000", "model"]
    assert lines[4] == ["2", "c", "0.8000", "model"]


def test_json_is_one_array_with_the_shortest_decimals(run, root: str) -> None:
    code, out, _ = run("recommend", "--user", "1", "--lake", root, "--format", "json", "--k", "1")
    assert code == 0
    assert json.loads(out) == [{"position": 1, "item_id": "b", "title": "Brazil", "score": 0.9, "reason": "model"}]


def test_the_lake_may_stand_before_or_after_the_command_and_the_later_wins(run, root: str) -> None:
    ask = ("recommend", "--user", "1", "--format", "csv")
    after = run(*ask, "--lake", root)
    assert after[0] == 0
    assert run("--lake", root, *ask) == after
    assert run("--lake", "/nowhere", *ask, "--lake", root) == after


def test_the_default_lake_is_in_the_working_folder(
    run, tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lake").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    assert run("recommend", "--user", "1")[0] == 0


@pytest.mark.parametrize("user", STRANGE)
def test_json_and_csv_give_strange_data_back_as_it_is(run, root: str, user: str) -> None:
    ask = ("recommend", "--user", user, "--lake", root, "--format")
    code, out, _ = run(*ask, "json")
    assert code == 0
    assert [(r["item_id"], r["title"]) for r in json.loads(out)] == [(user, f"title {user}"), ("a", "Alien")]
    code, out, _ = run(*ask, "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert [(r["item_id"], r["title"]) for r in rows] == [(user, f"title {user}"), ("a", "Alien")]


def test_csv_keeps_every_line_break_and_quote(run, tmp_path: Path) -> None:
    titles = {"1": "a\rb", "2": "a\nb", "3": 'say "x", y', "4": "=SUM(A1)", "5": None}
    write_lists(tmp_path, "als", "r", MAY_2, {"u": list(titles)})
    publish(tmp_path, "als", MAY_2, 1, "r")
    write_items(tmp_path, titles)
    _, out, _ = run("recommend", "--user", "u", "--lake", str(tmp_path), "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert [r["title"] for r in rows] == ["a\rb", "a\nb", 'say "x", y', "=SUM(A1)", ""]


def test_csv_guards_formulas_where_it_is_asked_for(run, tmp_path: Path) -> None:
    titles = {"=1": "+1", "-1": "@a", "\tx": "\rx", "x=1": "'=1", "5": None}
    write_lists(tmp_path, "als", "r", MAY_2, {"u": list(titles)})
    publish(tmp_path, "als", MAY_2, 1, "r")
    write_items(tmp_path, titles)
    write_interactions(tmp_path, MAY_2, [("u", item, -1.5, dt.datetime(2024, 5, 1)) for item in titles])
    ask = ("--user", "u", "--lake", str(tmp_path), "--format", "csv", "--guard-formulas")
    code, out, _ = run("recommend", *ask)
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert code == 0
    assert [r["item_id"] for r in rows] == ["'=1", "'-1", "'\tx", "x=1", "5"]
    assert [r["title"] for r in rows] == ["'+1", "'@a", "'\rx", "'=1", ""]
    _, out, _ = run("history", *ask)
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert {r["value"] for r in rows} == {"-1.5"}  # a number is none
    write(tmp_path, "similar_items", {
        "ds": [MAY_2], "item_id": ["5"], "position": pa.array([1], pa.int32()), "similar_item_id": ["=1"],
        "score": pa.array([0.5], pa.float32()), "model": ["als"], "run_id": ["r"],
    }, ["model", "run_id"])  # fmt: skip
    _, out, _ = run("similar", "--item", "5", *ask[2:])
    assert [r["item_id"] for r in csv.DictReader(io.StringIO(out, newline=""))] == ["'=1"]
    code, _, err = run("recommend", *ask[:4], "--guard-formulas")
    assert code == 2 and "--guard-formulas needs --format csv" in err


def test_the_table_shows_controls_and_markup_instead_of_obeying_them(run, tmp_path: Path) -> None:
    user = f"[red]x[/red] :smile: {CONTROLS}\n\t\r"
    write_lists(tmp_path, "als", "r", MAY_2, {user: ["i"]})
    publish(tmp_path, "als", MAY_2, 1, "r")
    write_items(tmp_path, {"i": user})
    ask = ("recommend", "--user", user, "--lake", str(tmp_path))
    code, out, _ = run(*ask)
    assert code == 0
    assert r"[red]x[/red] :smile: \x1b[31mred\x1b[0m \x07 \x9b2J \x7f \x202e\n\t\x0d" in out
    assert not set(out) & set("\x1b\x07\x9b\x7f\u202e\t\r")
    code, out, _ = run(*ask, "--format", "json")
    assert not set(out) & set("\x1b\x07\x9b\x7f\t\r")
    assert json.loads(out)[0]["title"] == user


def test_errors_show_controls_instead_of_obeying_them(run, root: str) -> None:
    for arguments in (["recommend", "--user", CONTROLS + "\n"], ["metrics", "--model", CONTROLS], [CONTROLS]):
        code, _, err = run("--lake", root, *arguments)
        assert code in (1, 2) and one_line(err)
        assert not set(err) & set("\x1b\x07\x9b\x7f\u202e")


def test_a_table_in_a_pipe_keeps_long_ids_on_one_line(run, tmp_path: Path) -> None:
    ids = ["i" * 300 + str(n) for n in range(3)]
    write_lists(tmp_path, "als", "r" * 100, MAY_2, {"u": ids})
    publish(tmp_path, "als", MAY_2, 1, "r" * 100)
    write_items(tmp_path, {i: "t" * 400 for i in ids})
    _, out, _ = run("recommend", "--user", "u", "--lake", str(tmp_path))
    for i in ids:
        assert sum(i in line and "t" * 400 in line for line in out.splitlines()) == 1


def test_a_narrow_terminal_folds_long_ids_and_loses_nothing(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = "".join(chr(ord("A") + n % 26) for n in range(150))  # the only capitals on the screen
    write_lists(tmp_path, "als", "r", MAY_2, {"u": [wide]})
    publish(tmp_path, "als", MAY_2, 1, "r")
    write_items(tmp_path, {wide: None})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for name, value in {"COLUMNS": "60", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    _, out, _ = run("recommend", "--user", "u", "--lake", str(tmp_path))
    out = re.sub("\x1b\\[[0-9;]*m", "", out)  # the bold heads
    assert max(map(len, out.splitlines())) <= 60
    assert "".join(letter for letter in out if letter.isupper()) == wide


def test_the_other_questions_are_answered_in_every_format(run, root: str) -> None:
    asks = {
        ("similar", "--item", "a"): ["position", "item_id", "title", "score"],
        ("history", "--user", "1"): ["ts", "item_id", "title", "event", "value"],
        ("metrics",): ["run_id", "system", "protocol", "metric", "k", "value", "lower", "upper", "users", "segment"],
        ("metrics", "--run-id", "als-1"): None,
        ("runs", "--model", "als", "--limit", "2"): None,
    }
    for ask, columns in asks.items():
        code, table, err = run(*ask, "--lake", root)
        assert (code, err) == (0, "") and table
        _, out, _ = run(*ask, "--lake", root, "--format", "json")
        records = json.loads(out)
        _, out, _ = run(*ask, "--lake", root, "--format", "csv")
        rows = list(csv.DictReader(io.StringIO(out, newline="")))
        assert len(rows) == len(records) > 0
        assert list(rows[0]) == list(records[0]) == (columns or list(records[0]))


def test_times_and_maps_have_one_form_in_json_and_csv(run, root: str) -> None:
    _, out, _ = run("runs", "--lake", root, "--format", "json", "--limit", "1")
    (record,) = json.loads(out)
    assert (record["started_at"], record["ds"]) == ("2024-05-02T04:00:00+00:00", "2024-05-02")
    assert record["counts"] == {"read": 9}
    _, out, _ = run("runs", "--lake", root, "--format", "csv", "--limit", "1")
    (row,) = csv.DictReader(io.StringIO(out, newline=""))
    assert (row["started_at"], row["counts"]) == ("2024-05-02T04:00:00+00:00", '{"read": 9}')


def test_a_value_that_is_no_number_is_null_in_json(run, tmp_path: Path) -> None:
    build_lake(tmp_path)
    write_metrics(tmp_path, "als-9", {"objective": float("nan"), "loss": float("inf")})
    _, out, _ = run("metrics", "--run-id", "als-9", "--lake", str(tmp_path), "--format", "json")
    assert [r["value"] for r in json.loads(out, parse_constant=lambda c: pytest.fail(c))] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "expected", "text"),
    [
        (["recommend", "--user", "99999"], 1, "known users look like '1', '2'"),
        (["similar", "--item", "zz"], 1, "item 'zz' has no similar items"),
        (["history", "--user", "99999"], 1, "user '99999' is not in lake"),
        (["recommend", "--user", "1", "--model", "nmf"], 1, "published are 'als', 'pop'"),
        (["recommend", "--user", "1", "--ds", "1999-01-01"], 1, "not published for 1999-01-01"),
        (["metrics", "--run-id", "nope"], 1, "no run 'nope'"),
        (["recommend", "--user", "1", "--ds", "soon"], 2, "YYYY-MM-DD"),
        (["recommend"], 2, "--user"),
        (["recommend", "--user", "1", "--k", "0"], 2, "--k"),
        (["recommend", "--user", "1", "--format", "xml"], 2, "xml"),
        (["metrics", "--run-id", "a", "--model", "b"], 2, "not both"),
        (["frobnicate"], 2, "frobnicate"),
        (["recommend", "--user", "\udcff"], 2, "UTF-8"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(run, root: str, arguments, expected: int, text: str) -> None:
    code, out, err = run("--lake", root, *arguments)
    assert (code, out) == (expected, "")
    assert one_line(err) and text in err


def test_items_are_found_by_a_part_of_their_title(run, root: str) -> None:
    code, out, _ = run("find", "ALI", "--lake", root, "--format", "json")
    assert code == 0 and json.loads(out) == [{"item_id": "a", "title": "Alien"}]
    code, out, _ = run("find", "title", "--limit", "2", "--lake", root, "--format", "csv")
    assert code == 0 and len(list(csv.DictReader(io.StringIO(out, newline="")))) == 2
    code, out, err = run("find", "zz(", "--lake", root)
    assert (code, out) == (1, "") and one_line(err) and "no item" in err
    code, _, err = run("similar", "--item", "brazil", "--lake", root)
    assert code == 1 and one_line(err) and "titles with it: 'b' (Brazil)" in err


def test_a_list_shorter_than_wanted_says_so(run, root: str) -> None:
    _, out, _ = run("recommend", "--user", "1", "--k", "100", "--lake", root)
    assert "2 of 100 rows: jobs/recommend.py writes topk.k items a user" in out
    _, out, _ = run("similar", "--item", "a", "--k", "9", "--lake", root)
    assert "of 9 rows: " in out
    for more in (("--k", "2"), ()):
        assert "rows:" not in run("recommend", "--user", "1", *more, "--lake", root)[1]


def test_every_query_suggests_the_same_users(run, root: str, tmp_path: Path) -> None:
    known = {run(name, "--user", "99999", "--lake", root)[2].partition("known users")[2] for name in ASK_USERS}
    assert len(known) == 1 and "look like '1', '2'" in known.pop()
    write_users(tmp_path, ["7"])  # nothing is published
    write_items(tmp_path, {"a": None})
    write_interactions(tmp_path, MAY_2, [("7", "a", 1.0, dt.datetime(2024, 5, 1))])
    assert "known users look like '7'" in run("history", "--user", "8", "--lake", str(tmp_path))[2]


def test_measures_stand_beside_those_of_popularity_without_the_log_of_the_fit(run, tmp_path: Path) -> None:
    both = (("popularity", "ndcg_at_k", 10, 0.2, [0.2]), ("model", "ndcg_at_k", 10, 0.25, [0.25]))
    write_figures(tmp_path, "als", *both)
    write_figures(tmp_path, "als", ("model", "objective", 3, 9.0, [9.0]), protocol="fit")
    ask = ("metrics", "--run-id", "run-als", "--lake", str(tmp_path))
    code, out, _ = run(*ask)
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert code == 0 and ["measure", "model", "popularity"] in lines
    assert ["q2", "ndcg@10", "0.2500", "[0.2400,", "0.2600]", "0.2000", "[0.1900,", "0.2100]"] in lines
    assert "objective" not in out and "has 1 rows: --fit" in out
    _, out, _ = run(*ask, "--fit")
    assert "objective" in out and "--fit" not in out
    assert len(json.loads(run(*ask, "--format", "json")[1])) == 3


def test_the_version_is_printed_without_a_command(run) -> None:
    code, out, err = run("--version")
    assert (code, out, err) == (0, f"sparkcf {sparkcf.__version__}\n", "")
    assert {"Lake", "fit", "load"} <= set(dir(sparkcf))


def test_a_missing_lake_ends_with_2(run, tmp_path: Path) -> None:
    code, out, err = run("runs", "--lake", str(tmp_path / "none"))
    assert (code, out) == (2, "") and one_line(err) and "make nightly" in err


def test_without_arguments_the_help_is_shown(run) -> None:
    code, out, _ = run()
    assert code == 0
    assert all(command in out for command in ("recommend", "similar", "history", "runs", "metrics", "doctor"))


def test_a_reader_that_stops_early_and_a_full_disk_leave_no_traceback(root: str) -> None:
    ask = f"{sys.executable} -m sparkcf.cli.main runs --lake '{root}' --format json"
    early = subprocess.run(["bash", "-c", f"{ask} | true"], capture_output=True, text=True)
    assert early.stderr == ""
    full = subprocess.run(["bash", "-c", f"{ask} > /dev/full"], capture_output=True, text=True)
    assert full.returncode == 2 and one_line(full.stderr) and "No space left" in full.stderr


def test_the_command_imports_neither_spark_nor_torch_nor_pandas(root: str) -> None:
    program = (
        "import sys, sparkcf.cli.main\n"
        "heavy = {'pyspark', 'py4j', 'torch', 'numba', 'petastorm', 'pandas', 'pyarrow', 'deltalake'}\n"
        "loaded = sorted(heavy & set(sys.modules))\n"
        "try: sparkcf.cli.main.main(['recommend', '--user', '1', '--lake', sys.argv[1]])\n"
        "except SystemExit: print(loaded, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    out = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True)
    assert "Brazil" in out.stdout
    assert out.stderr.strip() == "[] ['deltalake', 'pyarrow']"


def test_concepts_of_a_model_without_any_are_refused_in_a_line(run, root: str) -> None:
    for arguments in (("concepts",), ("recommend", "--user", "1", "--concept", "0")):
        code, out, err = run(*arguments, "--model", "als", "--lake", root)
        assert (code, out) == (2, "") and one_line(err)
        assert "als-2" in err and "has no concepts: name a model with concepts" in err
