"""jobs/airflow/sparkcf_nightly.py in a real Airflow: its structure, its runs, a back-fill, and a whole night.

The whole night runs on a standalone cluster. The other runs call a stub of spark-submit, since they ask what Airflow
makes of the jobs' exit codes and not what the jobs do. That the jobs may be repeated is tested in tests/jobs and
tests/faults.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sparkcf import Lake
from tests.airflow.environment import OutOfReach, airflow_bin
from tests.bench.cluster import standalone
from tests.quick import JAVA, JOB_OPTIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
DAG_FILE = ROOT / "jobs" / "airflow" / "sparkcf_nightly.py"
MARK = "SPARKCF_TEST_MARK"
PATIENCE = 1500  # seconds, on a machine that does other things too
DAY = "2024-05-31"
GIVEN = {"conf": {"day": DAY}}
OF_MODEL = ("prepare", "train", "evaluate", "recommend", "publish")
SETTINGS = """ds: 2018-09-25
als: {rank: 8, iterations: 3, workers: 1}
topk: {k: 10, similar_items: 5}
evaluation: {protocol: q2, ks: [10], bootstrap: 10}
gate: {at: 10, allow_below_popularity: true}
"""


@dataclass(frozen=True)
class Airflow:
    """An Airflow with its database, logs and DAGs in a folder."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of its commands, or its Python if the first word is a file."""
        command = ["python" if words[0].endswith(".py") else "airflow", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)

    def rows(self, query: str) -> list[tuple]:
        with closing(sqlite3.connect(f"file:{self.folder}/airflow.db?mode=ro", uri=True, timeout=60)) as database:
            return database.execute(query).fetchall()

    def tasks(self, dag: str) -> dict[str, str]:
        """States of the tasks of the DAG's only run."""
        return dict(self.rows(f"SELECT task_id, state FROM task_instance WHERE dag_id = '{dag}'"))

    def events(self, run_id: str) -> list[str]:
        """The tasks of a run that have told of an asset."""
        return [row[0] for row in self.rows(f"SELECT source_task_id FROM asset_event WHERE source_run_id = '{run_id}'")]

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "bin" / "calls.jsonl").read_text().splitlines()]


def script(path: Path, *words: str | Path) -> Path:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    try:
        commands = airflow_bin()
    except OutOfReach as error:
        pytest.skip(str(error))
    folder, mark = tmp_path_factory.mktemp("airflow"), secrets.token_hex(8)
    for name in ("bin", "dags", "home"):
        (folder / name).mkdir()
    shutil.copy(HERE / "stub.py", folder / "bin")
    stub = str(script(folder / "bin" / "spark-submit", sys.executable, folder / "bin" / "stub.py"))
    two = {"config": ["a.yaml", "b c.yaml"], "models": ["als", "popularity"], "home": str(folder / "home")}
    one = two | {"models": ["als"]}
    nights = {
        "sparkcf_nightly": real_night(folder),
        "stubbed": two | {"command": [stub, "--master", "local[2]"]},
        "backfilled": one | {"command": [stub]},
        "yarn": one | {"connection": "yarn", "options": {"yarn_track_via_rm_api": True, "py_files": "s.whl"}},
        "client": one | {"connection": "client", "options": {"deploy_mode": "client"}},
    }
    shutil.copy(HERE / "nights.py", folder / "dags" / "airflow_dags.py")  # a DAG file says Airflow and DAG
    (folder / "dags" / "nights.json").write_text(json.dumps(nights))
    foreign = ("PYTHONPATH", "PYSPARK_", "SPARK_", "AIRFLOW")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {
        MARK: mark,
        "PATH": os.pathsep.join([str(folder / "bin"), str(commands), os.environ["PATH"]]),
        "PYTHONPATH": str(DAG_FILE.parent),
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW_CONN_CLIENT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
    }
    airflow = Airflow(folder, environment)
    try:
        for command in ("db migrate", "dags reserialize"):
            done = airflow(*command.split())
            assert done.returncode == 0, done.stderr[-3000:]
        yield airflow
    finally:
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone, or not ours
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


# The whole night.


def real_night(folder: Path) -> dict[str, Any]:
    """A part of the sample, and a copy of the jobs."""
    home = folder / "home"
    for name in ("jobs", "conf"):
        shutil.copytree(ROOT / name, home / name)
    with gzip.open(ROOT / "sparkcf" / "sample" / "ratings.csv.gz", "rt") as file:
        rows = [row for row in csv.reader(file) if row[0] == "userId" or int(row[0]) < 80]
    with open(home / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    (home / "mine.yaml").write_text(f"{SETTINGS}input: {{path: {home}/log.csv}}\nlake: {{root: {home}/lake}}\n")
    files = ["conf/sample.yaml", "mine.yaml"]
    return {"config": files, "models": ["als"], "home": str(home), "command": [str(home / "submit")]}


@pytest.fixture(scope="module")
def cluster(airflow: Airflow) -> Iterator[None]:
    """A Master and two Workers, and the command that submits a job to them and notes its time."""
    home = airflow.folder / "home"
    with standalone(airflow.folder, memory="1500m") as master:
        given = [Path(sys.executable).with_name("spark-submit"), "--master", master, "--driver-memory", "1g"]
        confs = ("executor.memory=1000m", f"executor.extraJavaOptions={JAVA}", "cores.max=1", "locality.wait=0")
        spark = [*given, *JOB_OPTIONS, *(word for conf in confs for word in ("--conf", f"spark.{conf}"))]
        env = ["env", f"PYSPARK_PYTHON={sys.executable}", "SPARK_LOCAL_IP=127.0.0.1", f"PYTHONPATH={ROOT}"]
        script(home / "submit", sys.executable, HERE / "timed.py", home / "times.jsonl", *env, *spark)
        yield


def test_a_whole_night_runs_on_a_cluster(airflow: Airflow, cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    home, began = airflow.folder / "home", time.monotonic()
    done = airflow("dags", "test", "sparkcf_nightly", "2024-06-01T02:00:00", "--conf", '{"day": "2018-09-25"}')
    whole = time.monotonic() - began
    states = airflow.tasks("sparkcf_nightly")
    assert done.returncode == 0, (states, done.stdout[-6000:])
    skipped = {"als.prepare"}  # als reads no packed rows
    assert states == {task: "skipped" if task in skipped else "success" for task in states} and len(states) == 8
    times = [json.loads(line) for line in (home / "times.jsonl").read_text().splitlines()]
    assert [entry["code"] for entry in times].count(5) == 1 and len(times) == 7
    lake = Lake(home / "lake")
    assert str(lake.published("als").ds) == "2018-09-25"
    assert len(lake.recommendations("1", 10, model="als")) == 10
    jobs = sum(entry["seconds"] for entry in times)
    with capsys.disabled():
        print(f"\nA night of 7 jobs by Airflow: {whole:.0f} s, {whole - jobs:.1f} s of them beside the jobs' own time")


# The structure.


def test_the_dag_needs_airflow_alone_and_has_stable_tasks_from_the_list_of_models(airflow: Airflow) -> None:
    done = airflow(str(HERE / "described.py"), str(DAG_FILE))
    assert done.returncode == 0 and "deprecated" not in done.stderr, done.stderr[-3000:]
    dag = json.loads(done.stdout.splitlines()[-1])
    tasks = dag.pop("tasks")
    assert dag == {
        "dag_id": "sparkcf_nightly",
        "timetable": "CronDataIntervalTimetable",
        "expression": "0 2 * * *",
        "catchup": True,
        "max_active_runs": 1,
        "params": ["day", "overrides"],
        "foreign": [],
    }
    upstream = {"clean": []}
    for model in ("als", "popularity"):
        before = ["clean"]
        for name in OF_MODEL:
            upstream[f"{model}.{name}"] = before
            before = [f"{model}.{name}"]
    published = ["als.publish", "popularity.publish"]
    upstream |= {"maintain": published, "night": ["als.publish", "maintain", "popularity.publish"]}
    assert {name: task["upstream"] for name, task in tasks.items()} == upstream
    rules = {"maintain": "all_done", "night": "none_failed"}
    rules |= {f"{model}.{name}": "none_failed" for model in ("als", "popularity") for name in ("prepare", "train")}
    assert {n: task["trigger_rule"] for n, task in tasks.items()} == dict.fromkeys(tasks, "all_success") | rules
    assert {(task["retries"], task["at_once"]) for task in tasks.values()} == {(2, 1)}
    outlets = {name: task["outlets"] for name, task in tasks.items() if task["outlets"]}
    assert outlets == {f"{model}.publish": [f"sparkcf_published_{model}"] for model in ("als", "popularity")}


# What Airflow makes of exit codes and days.


Tried = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def tried(airflow: Airflow) -> Tried:
    """Runs of the stubbed DAGs, one after the other: how each ended."""

    def run(*runs: dict[str, Any]) -> list[dict[str, Any]]:
        files = [airflow.folder / "dags" / "airflow_dags.py", airflow.folder / "runs.json"]
        files += [airflow.folder / "bin" / "plan.json", airflow.folder / "bin" / "calls.jsonl"]
        output = airflow.folder / "tried.json"
        files[1].write_text(json.dumps(runs))
        done = airflow(str(HERE / "tried.py"), *map(str, files), str(output))
        assert done.returncode == 0, done.stderr[-3000:]
        (airflow.folder / "bin" / "plan.json").unlink()
        return json.loads(output.read_text())

    return run


def states(run: dict[str, Any]) -> dict[str, str]:
    return {name: state for name, (state, _) in run["tasks"].items()}


def test_days_and_exit_codes_of_the_portable_form(airflow: Airflow, tried: Tried) -> None:
    overrides = ["input.path=a b; touch $(x) {{ ds }}", "als.rank=3"]
    night = {"dag": "stubbed"}
    whole, twice, nameless, refused, late, broken, again, trained = tried(
        night | {"date": "2024-06-01T02:00:00+00:00", "conf": {"overrides": overrides}},
        night | GIVEN | {"plan": {"als.prepare": [5], "als.train": [5], "popularity.train": [5]}},
        night,
        night | GIVEN | {"plan": {"als.publish": [3]}},
        night | GIVEN | {"plan": {"als.publish": [4, 4]}},
        night | GIVEN | {"plan": {"popularity.train": [1, 1, 1]}},
        night | GIVEN | {"plan": {"als.train": [2]}},
        night | GIVEN | {"plan": {"als.publish": [5]}},
    )
    # The day is the start of the data interval; what a person types reaches the job as it is.
    assert whole["state"] == "success" and set(states(whole).values()) == {"success"}
    files = ["--config", "a.yaml", "--config", "b c.yaml"]
    for name, more in {"clean": [], "train": ["model=als"], "prepare": ["model=als", "models=[]"]}.items():
        application = ["--master", "local[2]", f"{airflow.folder}/home/jobs/{name}.py"]
        assert [*application, *files, *overrides, f"ds={DAY}", *more] in whole["calls"]
    assert len(whole["calls"]) == 12
    assert sorted(airflow.events(whole["run_id"])) == ["als.publish", "popularity.publish"]
    # Where train has nothing new, the model's later jobs are skipped, and no asset has an event.
    assert twice["state"] == "success" and len(twice["calls"]) == 6
    done = {name for name, state in states(twice).items() if state == "success"}
    assert done == {"clean", "popularity.prepare", "maintain", "night"}
    assert airflow.events(twice["run_id"]) == []
    # Without a day and a data interval: nothing is started, nothing is retried.
    assert nameless["state"] == "failed" and nameless["calls"] == [] and nameless["tasks"]["clean"] == ["failed", 1]
    # A refusal by the gate fails at once and holds nothing back.
    assert refused["state"] == "failed" and refused["tasks"]["als.publish"] == ["failed", 1]
    assert states(refused)["popularity.publish"] == states(refused)["maintain"] == "success"
    assert airflow.events(refused["run_id"]) == ["popularity.publish"]
    # A conflict is retried.
    assert late["state"] == "success" and late["tasks"]["als.publish"] == ["success", 3]
    # A model that fails to the end fails the run, after the other is published.
    assert broken["state"] == "failed" and broken["tasks"]["popularity.train"] == ["failed", 3]
    assert states(broken)["als.publish"] == states(broken)["maintain"] == "success"
    assert states(broken)["popularity.publish"] == states(broken)["night"] == "upstream_failed"
    # Bad configuration is not retried.
    assert again["state"] == "failed" and again["tasks"]["als.train"] == ["failed", 1]
    # Published already: a skip.
    assert trained["state"] == "success" and states(trained)["als.publish"] == "skipped"
    assert airflow.events(trained["run_id"]) == ["popularity.publish"]


def test_exit_codes_of_drivers_on_a_cluster(airflow: Airflow, tried: Tried, resource_manager: list[str]) -> None:
    """spark-submit's own in client mode; in cluster mode on YARN what its ResourceManager says of the application."""
    submitted = "INFO Client: Submitted application application_1_0001"
    resource_manager += ["SUCCEEDED", 5, "SUCCEEDED", "SUCCEEDED", "SUCCEEDED", 3, "SUCCEEDED"]
    jobs = ("clean", *(f"als.{name}" for name in OF_MODEL), "maintain")
    yarn, client = tried(
        {"dag": "yarn"} | GIVEN | {"plan": {job: [[submitted, 0]] for job in jobs}},
        {"dag": "client"} | GIVEN | {"plan": {"als.prepare": [5], "als.evaluate": [4, 0], "als.publish": [3]}},
    )
    for run in (yarn, client):
        assert run["state"] == "failed"
        assert states(run)["als.prepare"] == "skipped" and states(run)["als.recommend"] == "success"
        assert run["tasks"]["als.publish"] == ["failed", 1] and states(run)["maintain"] == "success"
    assert client["tasks"]["als.evaluate"] == ["success", 2]
    train = next(call for call in yarn["calls"] if any("train.py" in word for word in call))
    assert train[:2] == ["--master", "yarn"] and train[train.index("--deploy-mode") + 1] == "cluster"
    assert train[train.index("--py-files") + 1] == "s.whl"
    files = ["--config", "a.yaml", "--config", "b c.yaml"]
    assert train[-7:] == [f"{airflow.folder}/home/jobs/train.py", *files, f"ds={DAY}", "model=als"]


@pytest.fixture
def resource_manager(airflow: Airflow) -> Iterator[list[str]]:
    """YARN's ResourceManager: answers with the final states in this list, one a question; a number: an exit code."""
    answers: list[Any] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state = answers.pop(0)
            app = {"state": "FINISHED", "finalStatus": state, "diagnostics": ""}
            if isinstance(state, int):
                app |= {"finalStatus": "FAILED", "diagnostics": f"User application exited with status {state}"}
            body = json.dumps({"app": app}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    extra = {"yarn_resourcemanager_webapp_address": f"127.0.0.1:{server.server_port}"}
    connection = json.dumps({"conn_type": "spark", "host": "yarn", "extra": extra})
    airflow.environment["AIRFLOW_CONN_YARN"] = connection
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_exit_code_is_found_in_what_the_provider_says(airflow: Airflow) -> None:
    """Of Kubernetes too, whose client is not in the tests' environment."""
    said = {
        "Cannot execute: spark-submit … Error code is: 1. Kubernetes spark exit code is: 5\nexit code: 137": 5,
        "Spark application spark-1 failed (phase=Failed exit_code=3 reason=Error)": 3,
        "Error code is: 1.\nExit code is 143\ndiagnostics message: User application exited with status 4": 4,
        "Cannot execute: spark-submit. Error code is: 2.\nLast spark-submit output:\nexit code: 9": 2,
        "No driver id is known": None,
    }
    code = f"import runpy, json; exit_code = runpy.run_path({str(DAG_FILE)!r})['exit_code']"
    code += f"; print(json.dumps([exit_code(text) for text in {list(said)!r}]))"
    (airflow.folder / "found.py").write_text(code)
    found = airflow(str(airflow.folder / "found.py"))
    assert json.loads(found.stdout.splitlines()[-1]) == list(said.values()), found.stderr[-3000:]


# A back-fill, by the commands of the documents.


def documented(command: str) -> list[str]:
    """The words of a command of Airflow in docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return shlex.split(next(line for line in text.splitlines() if line.startswith(f"airflow {command}")))[1:]


def test_a_backfill_of_three_days_runs_them_in_order(airflow: Airflow, scheduler: None) -> None:
    (airflow.folder / "bin" / "calls.jsonl").unlink(missing_ok=True)
    done = airflow(*(word.replace("sparkcf_nightly", "backfilled") for word in documented("backfill create")))
    assert done.returncode == 0, done.stderr[-3000:]
    until, found = time.monotonic() + PATIENCE, [("", "queued")]
    while {state for _, state in found} & {"queued", "running"}:
        assert time.monotonic() < until, found
        time.sleep(0.5)
        found = airflow.rows("SELECT run_type, state FROM dag_run WHERE dag_id = 'backfilled'")
    assert found == [("backfill", "success")] * 3
    days = [next(word for word in call if word.startswith("ds=")) for call in airflow.calls()]
    assert days == [f"ds=2024-05-{day}" for day in (29, 30, 31) for _ in range(7)]


@pytest.fixture
def scheduler(airflow: Airflow) -> Iterator[None]:
    """A running scheduler, and the server that its tasks report to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = {"AIRFLOW__API__PORT": port, "AIRFLOW__API__HOST": "127.0.0.1", "AIRFLOW__API__WORKERS": "1"}
    given["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = f"http://127.0.0.1:{port}/execution/"
    given["AIRFLOW__API_AUTH__JWT_SECRET"] = secrets.token_hex(32)
    started = []
    try:
        for command in (["api-server", "--apps", "execution"], ["scheduler"]):
            with (airflow.folder / f"{command[0]}.log").open("w") as log:
                streams = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
                environment = airflow.environment | given
                started.append(subprocess.Popen(["airflow", *command], env=environment, **streams))
        assert airflow("dags", "unpause", "backfilled").returncode == 0
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):  # what is left is ended with its mark
                process.wait(30)


@pytest.mark.parametrize("command", ["pools set", "dags trigger"])
def test_commands_of_the_documents_are_commands_of_airflow(airflow: Airflow, command: str) -> None:
    done = airflow(*documented(command))
    assert done.returncode == 0, done.stderr[-3000:]
