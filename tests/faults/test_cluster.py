"""A real standalone cluster, a Master and two Workers, and the night on it from a wheel given by --py-files."""

from __future__ import annotations

import csv
import gzip
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sparkcf import Lake
from sparkcf.config.load import load_config
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.nightly import nightly
from sparkcf.jobs.session import spark_home
from sparkcf.jobs.train import train_model
from sparkcf.lake.tables import LakeTables
from tests.quick import JAVA, JOB_OPTIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 1500  # seconds, on a machine that does other things too
MARK = "SPARKCF_TEST_MARK"
NIGHT = """als.rank=8 als.iterations=3 als.workers=2 topk.k=10 topk.similar_items=5 evaluation.protocol=q2
    evaluation.ks=[10] evaluation.bootstrap=10 gate.at=10
    gate.allow_below_popularity=true""".split()
WHERE = """
import sys

import sparkcf
from sparkcf.jobs.frame import main

def where(spark, config):
    def imported(_):
        import sparkcf.kernels.als
        return [(sparkcf.kernels.als.__file__, sys.executable)]
    executors = spark.sparkContext.parallelize(range(4), 4).mapPartitions(imported).collect()
    return {"driver": [sparkcf.__file__, sys.executable], "executors": executors}

main("where", where)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outside the checkout: the jobs and the configuration, a small log, and all that the tests write."""
    folder = tmp_path_factory.mktemp("cluster")
    for name in ("jobs", "conf"):
        shutil.copytree(ROOT / name, folder / name)
    with gzip.open(ROOT / "sparkcf" / "sample" / "ratings.csv.gz", "rt") as file:
        rows = [row for row in csv.reader(file) if row[0] == "userId" or int(row[0]) < 80]
    with open(folder / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def python(folder: Path) -> Path:
    """An environment with everything that the project needs, and without the project."""
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    python = folder / "environment" / "bin" / "python"
    packages = next((folder / "environment" / "lib").glob("python3.*/site-packages"))
    # The folder alone: what its own .pth files would add, as an editable install, stays away.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    importing = [python, "-c", "import pyspark, numba, sparkcf"]
    without = subprocess.run(importing, cwd=folder, env=clean, capture_output=True, text=True)
    assert "No module named 'sparkcf'" in without.stderr
    return python


@pytest.fixture(scope="module")
def environment(folder: Path, python: Path) -> Iterator[dict[str, str]]:
    """What the processes see. Each of them carries a mark in it, by which the last of them is ended."""
    foreign = ("PYTHONPATH", "PYSPARK_", "SPARK_")
    mine = {MARK: secrets.token_hex(8), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": str(python)}
    mine |= {"SPARK_DAEMON_MEMORY": "256m", "SPARK_DAEMON_JAVA_OPTS": JAVA, "SPARK_HOME": str(spark_home())}
    yield {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | mine
    for pid in processes("environ", f"{MARK}={mine[MARK]}"):
        with suppress(OSError):  # gone by now
            os.kill(pid, signal.SIGKILL)


def processes(file: str, wanted: str) -> list[int]:
    """Processes that have an entry in their `cmdline` or `environ`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone, or not ours
            if wanted.encode() in (entry / file).read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    """The project's wheel, built from a copy so that the checkout stays as it is."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "sparkcf", source / "sparkcf", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("sparkcf-*.whl"))


def test_the_wheel_tells_type_checkers_that_it_has_types_and_holds_what_is_read_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sparkcf/py.typed", "sparkcf/report/page.html", "sparkcf/sample/ratings.csv.gz"} <= names


@pytest.fixture(scope="module")
def master(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a Master with two Workers of one core each; all of them are stopped again."""
    address = f"spark://127.0.0.1:{(port := free_port())}"
    spark_class = str(spark_home() / "bin" / "spark-class")
    package = "org.apache.spark.deploy"
    worker = ("--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "1500m")
    commands = [
        [f"{package}.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", str(free_port())],
        *([f"{package}.worker.Worker", *worker, "--work-dir", str(folder / f"worker{n}"), address] for n in (1, 2)),
    ]
    started = []
    try:
        for number, command in enumerate(commands):
            log = (folder / f"daemon{number}.log").open("w")
            process = subprocess.Popen(
                [spark_class, *command], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            started.append(process)
            if number == 0:
                wait_for_port(port)
        yield address
    finally:
        for process in started:
            process.kill()
            process.wait(timeout=30)


def wait_for_port(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the Master does not listen")


Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def begin(folder: Path, environment: dict[str, str], python: Path, master: str, wheel: Path) -> Begin:
    """Start a job on the cluster from a folder outside the checkout."""

    def run(job: str, *arguments: str) -> subprocess.Popen[str]:
        command = [str(BIN / "spark-submit"), "--master", master, "--py-files", str(wheel)]
        command += ["--driver-memory", "1g", *JOB_OPTIONS]
        for setting in (
            f"pyspark.python={python}",
            "executor.memory=1000m",
            f"executor.extraJavaOptions={JAVA}",
            "cores.max=2",
            "scheduler.minRegisteredResourcesRatio=1",  # a gang of two must not begin before there are two
            "locality.wait=0",  # what an executor of one core has cached, the other may compute: tiny data
            "scheduler.barrier.maxConcurrentTasksCheck.interval=1s",
        ):
            command += ["--conf", f"spark.{setting}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, job, *arguments], cwd=folder, env=environment, **pipes)

    return run


@pytest.fixture(scope="module")
def submit(begin: Begin) -> Callable[..., dict[str, Any]]:
    """Run a job on the cluster; gives its last line."""

    def run(job: str, *arguments: str) -> dict[str, Any]:
        return ended(begin(job, *arguments))

    return run


def ended(job: subprocess.Popen[str]) -> dict[str, Any]:
    """The last line of a job that ends well."""
    try:
        out, err = job.communicate(timeout=PATIENCE)
    finally:
        job.kill()
    assert job.returncode == 0, err[-3000:] + out[-3000:]
    return json.loads(out.splitlines()[-1])


def test_driver_and_executors_import_from_the_wheel(folder, submit, wheel, python) -> None:
    (folder / "where.py").write_text(WHERE)
    result = submit("where.py", "ds=2024-01-31", "input.path=none.csv", f"lake.root={folder}/none")
    assert len(result["executors"]) == 4
    for file, executable in (result["driver"], *result["executors"]):
        assert wheel.name in file and executable == str(python)


MODELS = {
    "macridvae": ("concepts=2", "hidden=[8]"),
    "bivae": ("item_prior=[{of: categories}]", "hidden=[8]"),
    "ncf": ("item_features=[{of: categories}]", "hidden=[8, 4]"),
    "disengcn": ("channels=2",),
    "mpma": ("rank=4", "base_iterations=2", "iterations=1", "refit_iterations=1", "user_groups=2", "item_groups=2"),
}
GANG, SMALL = ("workers=2", "timeout_s=300"), ("latent_dim=4", "epochs=2", "batch_size=40")  # of all; of the nets


@pytest.fixture(scope="module")
def distributed(folder: Path, submit: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """From the raw log to lists that readers see: ALS and five more models, by two processes on two workers."""
    given = [*NIGHT, "ds=2018-09-25", f"input.path={folder}/log.csv", f"lake.root={folder}/lake-cluster"]
    given += [f"models=[als, {', '.join(MODELS)}]", "topk.concepts=true"]
    for model, own in MODELS.items():
        given += [f"{model}.{setting}" for setting in (*GANG, *(SMALL if model != "mpma" else ()), *own)]
    return submit("jobs/nightly.py", "--config", str(folder / "conf" / "sample.yaml"), *given)


def test_night_on_a_cluster_gives_the_tables_of_a_single_machine(spark, folder, distributed) -> None:
    there, here = folder / "lake-cluster", folder / "lake-local"
    given = [*NIGHT, "ds=2018-09-25", f"input.path={folder}/log.csv", f"lake.root={here}"]
    single, als = (
        nightly(spark, load_config((str(folder / "conf" / "sample.yaml"),), given)),
        distributed["models"]["als"],
    )
    assert als["counts"] == single["counts"]
    assert als["counts"]["users_model"] == 79 and als["counts"]["recommendations"] == 790
    assert als["figures"] == pytest.approx(single["figures"], abs=1e-5)
    for name, keys in (
        ("recommendations", ["user_id", "position", "item_id", "reason"]),
        ("similar_items", ["item_id", "position", "similar_item_id"]),
        ("items", ["item_id", "item_idx", "title"]),
    ):
        rows = [_rows(spark, lake, name, run).orderBy(keys).collect() for lake, run in ((there, als), (here, single))]
        assert rows[0] and len(rows[0]) == len(rows[1])
        scores = [[row["score"] for row in lake] if "score" in lake[0] else [] for lake in rows]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        # Items of the same users have the same vector but for rounding: of neighbours tied to 1e-5 either may be first.
        last = {row[keys[0]]: row["score"] for row in rows[0]} if scores[0] else {}
        tied = {number for number in range(len(rows[0])) if scores[0] and _is_tied(rows[0], number, keys[0], last)}
        for number, pair in enumerate(zip(*rows, strict=True)):
            one, other = ([row[k] for k in keys] for row in pair)
            assert one == other or (number in tied and one[:2] == other[:2])


def _rows(spark: Any, lake: Path, name: str, night: dict[str, Any]) -> Any:
    """A table's rows, of the night's run where they are of runs."""
    rows = LakeTables(spark, str(lake)).read(name)
    return rows.where(f"run_id = '{night['run_id']}'") if "run_id" in rows.columns else rows


def _is_tied(rows: list[Any], number: int, key: str, last: dict[str, float]) -> bool:
    """Whether a row's score is within 1e-5 of another's in its list, or of the list's last."""
    own = rows[number]
    near = [row for row in rows[max(number - 1, 0) : number + 2] if row is not own and row[key] == own[key]]
    return any(abs(row["score"] - own["score"]) < 1e-5 for row in near) or abs(last[own[key]] - own["score"]) < 1e-5


def test_a_net_trains_on_the_cluster_from_the_wheel_as_on_a_single_machine(spark, folder, submit) -> None:
    """Of one step an epoch and nothing drawn, so that where the processes run is all that differs."""
    given = (*NIGHT, "ds=2018-09-25", f"input.path={folder}/log.csv", "model=multdae", "multdae.epochs=4")
    given += ("multdae.batch_size=500", "multdae.dropout=0", "multdae.latent_dim=8", "multdae.workers=2")
    conf, there = str(folder / "conf" / "sample.yaml"), f"lake.root={folder}/lake-net"
    clean_day(spark, load_config((conf,), [*given, there]))
    run_id = submit("jobs/train.py", "--config", conf, *given, there)["run_id"]
    single = train_model(spark, load_config((conf,), [*given, there, "multdae.workers=1"]))["run_id"]
    factors = LakeTables(spark, str(folder / "lake-net")).read("user_factors").orderBy("user_idx")
    mine, theirs = (factors.where(f"run_id = '{name}'").collect() for name in (run_id, single))
    assert len(mine) == len(theirs) == 79
    pairs = zip(mine, theirs, strict=True)
    assert max(abs(a - b) for m, t in pairs for a, b in zip(m["factor"], t["factor"], strict=True)) < 1e-4


def test_readers_see_the_lists_of_every_model_of_a_night_on_the_cluster(folder, distributed) -> None:
    lake = Lake(folder / "lake-cluster")
    for model in MODELS:
        done = distributed["models"][model]
        assert done["counts"]["users_model"] == 79
        assert lake.published(model).run_id == done["run_id"]
        listed = lake.recommendations("1", 5, model=model)
        assert listed["reason"].str.startswith("concept ").all() == (model == "macridvae")


def test_an_executor_killed_in_mid_sweep_costs_time_and_not_the_result(
    spark, folder, submit, begin, environment
) -> None:
    there = folder / "lake-killed"
    given = (*NIGHT, "ds=2018-09-25", f"input.path={folder}/log.csv", f"lake.root={there}")
    given += ("als.solver=cg", "als.iterations=400", "als.save_every=2")
    conf = str(folder / "conf" / "sample.yaml")
    clean_day(spark, load_config((conf,), given))
    job = begin("jobs/train.py", "--config", conf, *given)
    deadline = time.monotonic() + PATIENCE
    while not list(there.glob("_progress/*/sweep-*.json")):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.005)
    executors = processes("cmdline", "org.apache.spark.executor.CoarseGrainedExecutorBackend")
    ours = set(processes("environ", f"{MARK}={environment[MARK]}"))
    os.kill(next(pid for pid in executors if pid in ours), signal.SIGKILL)
    run_id = ended(job)["run_id"]
    assert not list(there.glob("_progress/*/*"))
    metrics = LakeTables(spark, str(there)).read("metrics").where(f"run_id = '{run_id}' AND metric = 'objective'")
    assert sorted(row["k"] for row in metrics.collect()) == list(range(1, 401))
    undisturbed = train_model(spark, load_config((conf,), [*given, "als.workers=1"]))["run_id"]
    for side in ("user", "item"):
        factors = LakeTables(spark, str(there)).read(f"{side}_factors").orderBy(f"{side}_idx")
        mine, theirs = (factors.where(f"run_id = '{name}'").collect() for name in (run_id, undisturbed))
        assert mine and [row[f"{side}_idx"] for row in mine] == [row[f"{side}_idx"] for row in theirs]
        pairs = zip(mine, theirs, strict=True)
        assert max(abs(a - b) for m, t in pairs for a, b in zip(m["factor"], t["factor"], strict=True)) < 1e-4
