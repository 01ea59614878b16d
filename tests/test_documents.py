"""What the documents show works: commands, Python, SQL and settings are run as they stand there.

Fences marked sh, python, sql, yaml and toml are run or parsed; a fence without a language is only shown. Commands run
in a folder that looks like a checkout with a small lake, the README's `mine.yaml` and a `ratings.csv`.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import pytest
from deltalake import DeltaTable
from typer.exceptions import TyperException
from typer.main import get_command

import sparkcf
from docs import generate
from sparkcf.cli.app import app
from sparkcf.cli.main import main as cli
from sparkcf.config.load import load_config
from sparkcf.export.export import export_run
from sparkcf.jobs.frame import run_job
from tests.export.test_encoder import NAMES, lake_of
from tests.report.lakes import write_study

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "tests" / "models" / "plugin"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LANGUAGES = {"sh", "python", "sql", "yaml", "toml", ""}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
COMMENT = re.compile(r"(?<!\S)#.*")  # a # within a word begins none: --archives file#name
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
SUBMIT_OPTIONS = {
    "--master",
    "--driver-memory",
    "--conf",
    "--properties-file",
    "--packages",
    "--py-files",
    "--archives",
    "--deploy-mode",
    "--num-executors",
    "--executor-cores",
    "--executor-memory",
    "--files",
}
IMAGE = ("local:///opt/sparkcf/", "/opt/sparkcf/")  # the checkout's files in the image of conf/kubernetes/Dockerfile
LACKING = {"redis://localhost:6379/0", "multvae", "concepts", "--concept"}  # words of what the small lake does not have
NOT_STARTED = {"pip", ".", "airflow"}  # commands of other environments (tests/airflow runs these); paths are checked
NEEDED = ["ds=2024-05-31", "input.path=log.csv"]


@dataclass(frozen=True)
class Block:
    """A fence of a document."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks_of(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def lines_of(text: str) -> Iterator[list[str]]:
    """The commands of a fence as words, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(COMMENT.sub("", line)):
            yield words


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
# The commands in the comments and docstrings of files that people copy them from.
COPIED = [*(ROOT / "jobs").glob("*.py"), *(ROOT / "conf").rglob("*.yaml")]
COMMENTED = [
    Block(path, number, "sh", line[line.index("spark-submit") :] + "\n")
    for path in sorted(COPIED)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    if "spark-submit " in line
]


def marked(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two published runs of one model, the second a day later, and an unpublished third."""
    from sparkcf.lake.schemas import TABLES
    from sparkcf.lake.tables import LakeTables

    root = tmp_path_factory.mktemp("documents") / "lake"
    tables = LakeTables(spark, str(root))

    def fill(name: str, columns: str, *rows: tuple, **more: str) -> None:
        """Append rows; `more` columns are SQL, and nullable ones that nobody names are null."""
        frame = spark.createDataFrame(list(rows), columns.split())
        rest = {f.name: f"CAST(NULL AS {f.dataType.simpleString()})" for f in TABLES[name].schema if f.nullable}
        rest = {column: value for column, value in (rest | more).items() if column not in frame.columns}
        tables.append(name, frame.selectExpr("*", *(f"{value} AS {column}" for column, value in rest.items())))

    ids = [("1", 0), ("2", 1)]
    fill("users", "user_id user_idx", *ids, first_seen="current_timestamp()")
    titles = [(item, place, f"Star Wars {place}") for place, item in enumerate(("260", "1196", "1210", "2571"))]
    fill("items", "item_id item_idx title", *titles, first_seen="current_timestamp()")
    events = [("1", "260", "rating", 5.0, "log.csv"), ("2", "1196", "rating", 4.0, "log.csv")]
    days = {"ts": "TIMESTAMP'2024-01-01 12:00:00'", "ds": "DATE'2024-01-01'"}
    fill("interactions", "user_id item_id event value source", *events, **days)
    rejected = [("missing_user_id", ",260,5", "log.csv"), ("unknown_event", "1,260,peek", "log.csv")]
    fill("quarantine", "reason raw source", *rejected, ds="DATE'2024-01-01'")
    lists = [("r1", "260", 1), ("r1", "1196", 2), ("r2", "1210", 1), ("r2", "1196", 2), ("r3", "2571", 1)]
    names = "ds user_id position item_id score reason model run_id"
    place = {item: at for at, item in enumerate(("260", "1196", "1210", "2571"))}
    score = {item: 1.0 + 0.5 * (0.5 + at) for item, at in place.items()}  # of the vectors below
    rows = [("2024-01-01", "1", position, item, score[item], "model", "als", run) for run, item, position in lists]
    fill("recommendations", names, *rows)
    near = ("2024-01-02", "260", 1, "1196", 0.9, "als", "r2")
    fill("similar_items", "ds item_id position similar_item_id score model run_id", near)
    rows = [("als", "2024-01-01", 1, "r1"), ("als", "2024-01-02", 1, "r3"), ("als", "2024-01-02", 2, "r2")]
    by = {"action": "'publish'", "published_by": "'me'", "published_at": "current_timestamp()", "versions": "map()"}
    fill("published", "model ds sequence run_id", *rows, **by)
    fill("metrics", "run_id system protocol metric k value users", ("r2", "model", "q4", "ndcg_at_k", 10, 0.5, 2))
    names = "comparison_id position name model ds state run_id snapshot settings code_version protocol metric at"
    compared = ("c1", 1, "als", "als", "2024-01-02", "measured", "r2", "s", "{}", "0", "q4", "ndcg_at_k", 10)
    costs = {"pairs": "100", "train_seconds": "2.0", "compared_at": "current_timestamp()", "inputs": "map()"}
    fill("comparisons", names, compared, **costs)
    of_run = {"model": "'als'", "run_id": "'r2'", "bias": "CAST(0 AS float)"}
    for side, known in (("user", dict(ids)), ("item", place)):
        vector = f"CAST(array(0.5 + {side}_idx, 1.0) AS array<float>)"
        fill(f"{side}_factors", f"{side}_id {side}_idx", *known.items(), factor=vector, **of_run)
    made = {
        "started_at": "current_timestamp()",
        "updated_at": "current_timestamp()",
        "inputs": "map()",
        "counts": "map()",
    }
    stored = load_config((), [*NEEDED, "als.rank=2"]).to_json()
    names = "run_id job model ds state config code_version seed"
    fill(
        "runs",
        names,
        *[(run, "train", "als", "2024-01-02", "published", stored, "0", 1) for run in ("r1", "r2")],
        **made,
    )
    return root


@pytest.fixture
def place(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a checkout's files, lakes, own data, a study, and the package of the plugin, installed."""
    for name in ("jobs", "conf", "docs", "tests", "Makefile", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("lake", "sparkcf-lake"):  # the second is that of the file that `sparkcf init` writes
        (tmp_path / name).symlink_to(lake)
    (tmp_path / "mine.yaml").write_text(mine())
    write_study(tmp_path / "studies" / "als-0123456789ab.json")
    rows = ("userId,movieId,rating,timestamp", "1,260,5.0,1700000000", "2,1196,4.0,1700000001")
    (tmp_path / "ratings.csv").write_text("\n".join(rows) + "\n")
    installed = tmp_path / "site" / "sparkcf_knn-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sparkcf-knn\nVersion: 0.1.0\n")
    points = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["entry-points"]["sparkcf.models"]
    entries = "".join(f"{name} = {value}\n" for name, value in points.items())
    (installed / "entry_points.txt").write_text(f"[sparkcf.models]\n{entries}")
    monkeypatch.syspath_prepend(str(installed.parent))
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def readme(heading: str) -> dict[str, str]:
    """The fences under a heading of the README, by their languages."""
    section = re.search(rf"^## {heading}\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    assert section, heading
    return {found[1]: found[2] for found in FENCE.finditer(section[1])}


def mine() -> str:
    return readme("Run it on your data")["yaml"]


# Commands.


def run_words(words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command, or check as much of it as can be checked without a cluster or a download."""
    program = words[0].rpartition("/")[2]
    if program == "sparkcf" and LACKING & set(words):
        try:
            get_command(app).commands[words[1]].make_context(words[1], words[2:])
        except TyperException as error:
            raise AssertionError(error.format_message()) from None
    elif program == "sparkcf":
        with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
            if "--watch" in words:
                patch.setattr("time.sleep", interrupt)
            cli(words[1:])
        out, err = capsys.readouterr()
        wanted = {0, 1} if "doctor" in words else {0}  # what this machine lacks is no fault of the document
        assert ended.value.code in wanted and out, err
    elif program == "spark-submit":
        check_submit(words[1:], place, capsys)
    elif program == "make":
        rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        assert {word for word in words[1:] if "=" not in word} <= set(rules) and set(given) <= {"CONFIG", "ARGS"}
        if given:
            job = ["jobs/nightly.py", "--config", given.get("CONFIG", "conf/sample.yaml")]
            check_submit([*job, *shlex.split(given.get("ARGS", ""))], place, capsys)
        if "CONFIG" in given:
            config = load_config([given["CONFIG"]], shlex.split(given.get("ARGS", "")))
            assert (place / config.lake.root).is_dir(), "the next commands name the lake of the file"
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), words
        if words[2].startswith("tests.bench"):
            source = Path(find_spec(words[2]).origin).read_text()
            if "report import" in source:  # may have its command line from there
                source += Path(find_spec("tests.bench.report").origin).read_text()
            assert all(f'"{word}"' in source for word in words[3:] if word.startswith("--")), words
    else:
        assert program in NOT_STARTED, f"no test knows how to check {shlex.join(words)}"
        assert all((ROOT / word).exists() for word in words if "/" in word and not word.startswith(".venv"))


def interrupt(_: float) -> None:
    raise KeyboardInterrupt


def check_submit(words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What spark-submit is given, and the job's own arguments by `--dry-run`, in this process."""
    for prefix in IMAGE:
        words = [word.replace(prefix, "") if word.startswith(prefix) else word for word in words]
    at = next(i for i, word in enumerate(words) if word.startswith("jobs/"))
    options, values = words[:at:2], words[1:at:2]
    assert set(options) <= SUBMIT_OPTIONS and len(options) == len(values), words
    for option, value in zip(options, values, strict=True):
        assert option != "--properties-file" or Path(value).is_file(), value
        for file in value.split(",") if option == "--files" else ():  # they lie in the driver's folder then
            if not Path(place, Path(file).name).is_file():
                shutil.copy(file, place)
    assert Path(words[at]).is_file(), words[at]
    given = [*words[at + 1 :], f"lake.root={place}/written", *([] if "--dry-run" in words else ["--dry-run"])]
    assert run_job(Path(words[at]).stem, refuse_to_run, given) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "dry-run"


def refuse_to_run(spark, config) -> dict:
    raise AssertionError("a dry run does nothing")


@pytest.mark.parametrize("block", [*marked("sh"), *COMMENTED], ids=str)
def test_commands_run(block: Block, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = list(lines_of(block.text))
    assert commands
    for words in commands:
        run_words(words, place, capsys)


@pytest.mark.parametrize(
    "line",
    [
        "sparkcf recommend --user nobody",
        "sparkcf recomend --user 1",
        "sparkcf concepts --varry 2:17",
        "spark-submit jobs/nightly.py --config conf/sample.yaml als.rnk=3",
        "spark-submit jobs/nigthly.py --config conf/sample.yaml",
        "spark-submit --memory 4g jobs/nightly.py --config conf/sample.yaml",
        "make nigthly",
        "make nightly CONFGI=conf/sample.yaml",
        "make nightly ARGS=als.rnk=3",
        "python -m tests.bench.alz",
        "python -m tests.bench.als --onyl fit",
        "curl example.org",
    ],
)
def test_a_wrong_command_is_noticed(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        run_words(shlex.split(line), place, capsys)


def test_the_line_for_cron_is_a_night_of_yesterday(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^0 2 \* \* \* .*(spark-submit .*) >> ", text, re.M)
    echo = "printf '%s\\n' " + command.replace("\\%", "%")
    words = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True).stdout.splitlines()
    yesterday = np.datetime64("now").astype("datetime64[D]") - 1
    assert f"ds={yesterday}" in words
    run_words(words, place, capsys)


# Python and SQL.


@pytest.mark.parametrize("block", marked("python"), ids=str)
def test_python_runs(block: Block, place: Path) -> None:
    if "encoder.pt" in block.text:
        export_run(*lake_of(place / "nets", "multvae", ("260", "1196", *NAMES[2:])), "encoder", str(place / "out"))
    (place / "shown.py").write_text(block.text)
    found = runpy.run_path(str(place / "shown.py"), run_name="shown")
    assert block.document.name != "README.md" or len(found["lake"].recommendations("1", k=10)) == 2


def test_the_page_about_own_models_shows_the_package_that_the_tests_install() -> None:
    shown = [block.text for block in marked("python") if block.document.name == "your-own.md"]
    assert shown == [(PLUGIN / "sparkcf_knn.py").read_text()]


@pytest.mark.parametrize("block", marked("toml"), ids=str)
def test_entry_points_are_those_of_the_package(block: Block) -> None:
    points = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["entry-points"]
    assert tomllib.loads(block.text)["project"]["entry-points"] == points


def statements(block: Block) -> list[str]:
    return [statement.strip() for statement in block.text.split(";") if statement.strip()]


def published_lists(rows: list) -> bool:
    return [tuple(row)[:2] for row in rows] == [(1, "1210"), (2, "1196")]


@pytest.mark.parametrize("block", [b for b in marked("sql") if "delta_scan" not in b.text], ids=str)
def test_spark_sql_runs(block: Block, spark, lake: Path) -> None:
    for statement in statements(block):
        result = spark.sql(statement.replace("./lake", str(lake)))
    rows = result.collect()
    assert rows and ("recommendations" not in block.text or published_lists(rows))


@pytest.mark.parametrize("block", [b for b in marked("sql") if "delta_scan" in b.text], ids=str)
def test_duckdb_sql_runs(block: Block, lake: Path) -> None:
    database = duckdb.connect()

    def live_files(match: re.Match) -> str:
        """DuckDB downloads the extension that reads Delta's log; here delta-rs lists the live files."""
        files = DeltaTable(str(lake / Path(match.group(1)).name)).file_uris()
        return f"read_parquet({files}, hive_partitioning = true)"

    for statement in statements(block):
        result = database.sql(re.sub(r"delta_scan\('([^']*)'\)", live_files, statement))
    assert published_lists(result.fetchall())


def test_every_engine_has_its_sql() -> None:
    assert len(marked("sql")) >= 3 and len(marked("sh")) > 15 and len(marked("yaml")) > 8 and len(COMMENTED) > 10


# Settings, links, generated parts.


@pytest.mark.parametrize("block", marked("yaml"), ids=str)
def test_settings_are_valid(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    file.write_text(block.text)
    load_config([ROOT / "conf" / "nightly.yaml", file], NEEDED)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_and_fences_have_known_languages(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert {block.language for block in blocks_of(document)} <= LANGUAGES and text.count("\n```") % 2 == 0
    for link in LINK.findall(FENCE.sub("", text)):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", list(generate.documents()), ids=lambda path: path.name)
def test_generated_documents_are_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generate.documents()[path], "run python -m docs.generate"


def test_the_reference_has_every_public_name_and_method() -> None:
    heads = re.findall(r"^##+ `(.*)`$", generate.documents()[generate.REFERENCE], re.M)
    assert {f"sparkcf.{name}" for name in sparkcf.__all__ if name != "__version__"} <= set(heads)
    assert {"Lake.recommendations", "Lake.published", "Recommender.recommend", "Recommender.save"} <= set(heads)


def test_the_reference_shows_signatures_and_lists_what_a_docstring_describes() -> None:
    def told(k: int, by: str = "x", *, on_end: Callable = lambda: None) -> str | None:
        """Tell.

        Parameters
        ----------
        k : how
            often.

        Raises
        ------
        ConfigError
            It is not told.
        """

    text = generate.described("##", "told", told)
    assert "told(k: int, by: str = 'x', *, on_end: Callable = …) -> str | None\n" in text
    assert text.endswith(
        "Tell.\n\n**Parameters**\n\n- `k`: how\n  often.\n\n**Raises**\n\n- `ConfigError`:\n  It is not told.\n"
    )


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


# The night on one's own data.


@pytest.mark.slow
def test_the_night_on_own_data_runs_as_the_readme_says(tmp_path: Path) -> None:
    """Sixty users of three tastes over five weeks, as JSON lines; the lists keep to the user's taste."""
    draw = np.random.default_rng(1)
    folder = tmp_path / "events" / "2024-05-31"
    folder.mkdir(parents=True)
    with open(folder / "log.json", "w") as file:
        for user in range(60):
            for day in range(36):
                item = 3 * int(draw.integers(20)) + user % 3
                kind = "buy" if draw.random() < 0.2 else "click"
                at = np.datetime64("2024-04-26") + day
                file.write(
                    json.dumps({"uid": f"u{user}", "sku": f"i{item}", "kind": kind, "at": f"{at}T12:00:00Z"}) + "\n"
                )
    subprocess.run(["gzip", str(folder / "log.json")], check=True)
    shown = readme("Run it on your data")
    (tmp_path / "mine.yaml").write_text(shown["yaml"].replace("/data/events", f"{tmp_path}/events"))
    (words,) = lines_of(shown["sh"])
    replaced = {"mine.yaml": f"{tmp_path}/mine.yaml", "lake.root=/data/lake": f"lake.root={tmp_path}/lake"}
    words = [replaced.pop(word, word) for word in words]
    assert not replaced
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}
    environment.pop("PYSPARK_SUBMIT_ARGS", None)
    words[0] = str(Path(sys.executable).parent / words[0])
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["counts"]["clean"] == told["counts"]["read"] == 60 * 36
    listed = sparkcf.Lake(tmp_path / "lake").recommendations("u1", 3)
    assert [int(item[1:]) % 3 for item in listed.item_id] == [1, 1, 1]


def test_commands_on_an_object_store_have_its_connector_and_region() -> None:
    connector = "org.apache.hadoop:hadoop-aws:3.3.4"  # of the Hadoop that Spark brings
    found = 0
    for block in BLOCKS:
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.startswith("spark-submit ") and "=s3a://" in line:
                found += 1
                image = (ROOT / "conf/kubernetes/Dockerfile").read_text()
                assert connector in (image if "--master k8s:" in line else line), block
                before = "\n".join(block.document.read_text().splitlines()[: block.line])
                assert "AWS_REGION=" in block.text + before.rpartition("\n## ")[2], block
    assert found >= 3
