"""A real standalone cluster, a Master and two Workers, and the night on it from a wheel given by --py-files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkcf import Lake
from sparkcf.session import spark_home

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 500  # seconds, on a machine that does other things too
NIGHT = ("als.rank=8", "als.iterations=3", "als.workers=2", "topk.similar_items=5", "evaluation.bootstrap=20")
WHERE = """
import sparkcf
from sparkcf.job import main

def where(spark, config):
    def imported(_):
        import sparkcf.kernels.als
        return [sparkcf.kernels.als.__file__]
    executors = spark.sparkContext.parallelize(range(4), 4).mapPartitions(imported).collect()
    return {"driver": sparkcf.__file__, "executors": executors}

main("where", where)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYSPARK_SUBMIT_ARGS")}
    return kept | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOG_DIR": str(folder)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


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


@pytest.fixture(scope="module")
def master(folder: Path) -> Iterator[str]:
    """The address of a Master with two Workers of one core each; all of them are stopped again."""
    address, environment = f"spark://127.0.0.1:{(port := free_port())}", clean_environment(folder)
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


def submit(folder: Path, master: str, wheel: Path | None, job: Path, *arguments: str) -> dict[str, Any]:
    """Run a job from a folder outside the checkout; returns its last line."""
    by_wheel = ["--py-files", str(wheel)] if wheel else []
    memory = ["--driver-memory", "1g", "--conf", "spark.executor.memory=1000m"]
    ports = ["--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=2"]
    command = [str(BIN / "spark-submit"), "--master", master, *memory, *ports, *by_wheel, str(job), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=clean_environment(folder), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_driver_and_executors_import_from_the_wheel(folder, master, wheel):
    job = folder / "where.py"
    job.write_text(WHERE)
    result = submit(folder, master, wheel, job, "ds=2024-01-31", "input.path=none.csv", f"lake.root={folder}/none")
    assert wheel.name in result["driver"]
    assert result["executors"] and all(wheel.name in file for file in result["executors"])


def test_night_on_a_cluster_gives_the_lists_of_a_single_machine(folder, master, wheel):
    job, config = ROOT / "jobs" / "nightly.py", ("--config", str(ROOT / "conf" / "nightly.yaml"))
    there, here = folder / "lake-cluster", folder / "lake-local"
    distributed = submit(folder, master, wheel, job, *config, *NIGHT, f"lake.root={there}")
    single = submit(folder, "local[2]", None, job, *config, *NIGHT, f"lake.root={here}")
    assert distributed["counts"] == single["counts"]
    assert distributed["counts"]["clean"] == 100_836
    assert distributed["figures"] == pytest.approx(single["figures"], abs=1e-6)
    for user in ("1", "42", "610"):
        lists = [Lake(lake).recommendations(user, k=20) for lake in (there, here)]
        assert list(lists[0]["item_id"]) == list(lists[1]["item_id"])
        assert list(lists[0]["score"]) == pytest.approx(list(lists[1]["score"]), abs=1e-5)
