"""Real processes that are killed, ended or run at once: spark-submit as a scheduler starts it."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from sparkcf import Lake
from sparkcf.config.load import load_config
from sparkcf.errors import LakeError
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.train import train_model
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from tests.faults.processes import (
    BIN,
    PATIENCE,
    Row,
    Submits,
    Submitted,
    log_rows,
    settings,
    stored,
    table,
    version,
    write_log,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def submit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submits]:
    """Start a job on a lake; nothing of it outlives the tests."""
    jobs = Submits(tmp_path_factory.mktemp("output"))
    try:
        yield jobs
    finally:
        jobs.close()


@dataclass(frozen=True)
class Base:
    lake: Path
    log: Path
    rows: list[Row]
    both: tuple[Submitted, Submitted]


@pytest.fixture(scope="module")
def base(submit: Submits, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A lake that two nights of the same day made at once. Tests that write get a copy."""
    folder = tmp_path_factory.mktemp("base")
    rows = log_rows(20, 15, 1)
    log = write_log(folder / "log.csv", rows)
    both = (submit("nightly", folder / "lake", log), submit("nightly", folder / "lake", log))
    for night in both:
        night.wait()
    return Base(folder / "lake", log, sorted(rows), both)


def test_two_nights_of_one_day_at_once_make_one_result(base: Base) -> None:
    codes = sorted(night.code for night in base.both)
    assert codes in ([0, 0], [0, 4], [0, 5]), [night.said() for night in base.both]
    assert stored(base.lake) == base.rows
    for name in ("user", "item"):
        known = table(base.lake, f"{name}s")
        assert Counter(row[f"{name}_id"] for row in known).most_common(1)[0][1] == 1
        assert sorted(row[f"{name}_idx"] for row in known) == list(range(len(known)))
    runs = {run["run_id"]: run for run in table(base.lake, "runs")}
    published = table(base.lake, "published")
    assert sorted(row["sequence"] for row in published) == list(range(1, len(published) + 1))
    assert len(published) == codes.count(0)
    assert all(runs[row["run_id"]]["state"] == "published" for row in published)
    for night in base.both:
        assert night.told["exit_code"] == night.code
        assert "Exception" not in night.said()  # what is tried again is not worth a stack
        if night.code == 4:
            assert "run again" in night.told["error"] and night.told["status"] == "ConflictError"


def test_jobs_that_begin_a_lake_at_once_all_get_its_tables(spark, tmp_path: Path) -> None:
    ready = Barrier(3)

    def begin(number: int) -> None:
        tables = LakeTables(spark, str(tmp_path / "lake"))
        row = (f"run{number}", "model", "q2", "ndcg_at_k", 5, 0.5, *[None] * 6)
        ready.wait()
        tables.create("interactions")
        tables.append("metrics", spark.createDataFrame([row], TABLES["metrics"].schema))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(begin, range(3)))
    assert {row["run_id"] for row in table(tmp_path / "lake", "metrics")} == {"run0", "run1", "run2"}
    with pytest.raises(LakeError, match="ids_present"):
        nameless = spark.createDataFrame(
            [("", "i1", "view", 1.0, dt.datetime(2024, 1, 31), None, "file", dt.date(2024, 1, 31), None)],
            TABLES["interactions"].schema,
        )
        LakeTables(spark, str(tmp_path / "lake")).append("interactions", nameless)


def test_a_table_whose_creation_was_killed_is_created_again(spark, tmp_path: Path) -> None:
    tables = LakeTables(spark, str(tmp_path / "lake"))
    log = tmp_path / "lake" / "metrics" / "_delta_log"
    (log / "_commits").mkdir(parents=True)
    (log / ".00000000000000000000.json.c0ffee.tmp").write_text("{}")
    assert not tables.exists("metrics") and tables.version("metrics") == -1 and tables.read("metrics").count() == 0

    def first_committed() -> None:
        """Another writer that takes a second for its first commit."""
        time.sleep(1)
        other = LakeTables(spark, str(tmp_path / "other"))
        other.create("metrics")
        commit = "00000000000000000000.json"
        shutil.copy(tmp_path / "other" / "metrics" / "_delta_log" / commit, log / commit)

    with ThreadPoolExecutor(1) as pool:  # young: it is waited for
        writer = pool.submit(first_committed)
        tables.create("metrics")
        writer.result()
    assert tables.version("metrics") == 0
    shutil.rmtree(log)
    (log / "_commits").mkdir(parents=True)
    for path in (log / "_commits", log):  # old: it is cleared
        os.utime(path, (1_600_000_000, 1_600_000_000))
    tables.create("metrics")
    assert tables.version("metrics") == 0 and tables.read("metrics").count() == 0


def test_a_driver_killed_before_its_commit_leaves_the_table_and_the_rerun_repairs(
    spark: Any, base: Base, submit: Submits, tmp_path: Path
) -> None:
    # The day's log is corrected: rows change, go and come, so there is much to write.
    rows = log_rows(20, 12, 2) + [(f"v{u}", f"i{i}", 3.0, 1_600_000_000 + i) for u in range(400) for i in range(100)]
    log = write_log(tmp_path / "corrected.csv", rows)
    for attempt in range(4):
        lake = shutil.copytree(base.lake, tmp_path / f"lake{attempt}")
        before, files = version(lake, "interactions"), parquet_files(lake)
        job = submit("clean", lake, log)
        while job.process.poll() is None and parquet_files(lake) == files:
            time.sleep(0.001)
        job.kill()
        assert job.process.returncode == -signal.SIGKILL
        if version(lake, "interactions") == before:
            break
    else:
        pytest.fail("four kills in a row came after the commit")
    assert parquet_files(lake) > files  # orphans: no version names them
    assert stored(lake) == base.rows
    assert Lake(lake).recommendations("u1").equals(Lake(base.lake).recommendations("u1"))
    counts = clean_day(spark, load_config((), settings(lake, log)))["counts"]
    assert stored(lake) == sorted(rows)
    assert counts["clean"] == len(rows) == counts["inserted"] + counts["updated"] + counts["unchanged"]
    assert counts["deleted"] == len(set(r[:2] for r in base.rows) - set(r[:2] for r in rows))
    states = Counter(run["state"] for run in table(lake, "runs") if run["job"] == "clean")
    assert states == {"cleaned": states["cleaned"], "failed": 1}  # the killed one could say nothing: it was closed
    (killed,) = [run for run in table(lake, "runs") if run["state"] == "failed"]
    assert killed["reason"].startswith("stopped: its process ")


def test_the_training_of_a_net_goes_on_after_the_last_saved_epoch(
    spark: Any, base: Base, submit: Submits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = shutil.copytree(base.lake, tmp_path / "lake")
    net = ("model=multdae", "multdae.hidden=[8]", "multdae.latent_dim=4", "multdae.batch_size=10")
    net += ("multdae.epochs=200", "multdae.patience=0", "multdae.workers=2")
    job = submit("train", lake, base.log, *net)
    wait_for(job, "epoch 2:")
    job.kill()
    saved = max(int(path.stem.removeprefix("epoch-")) for path in lake.glob("_progress/*/epoch-*.json"))
    assert 2 <= saved < 200
    capsys.readouterr()
    run_id = train_model(spark, load_config((), [*settings(lake, base.log), *net]))["run_id"]
    printed = re.findall(r"^  train multdae: epoch (\d+):", capsys.readouterr().err, re.MULTILINE)
    assert [int(epoch) for epoch in printed] == list(range(saved + 1, 201))
    figures = [row for row in table(lake, "metrics") if row["run_id"] == run_id and row["metric"] == "loss"]
    assert sorted(row["k"] for row in figures) == list(range(1, 201))
    states = {run["run_id"]: run["state"] for run in table(lake, "runs") if run["model"] == "multdae"}
    assert states.pop(run_id) == "trained" and list(states.values()) == ["failed"]


def wait_for(job: Submitted, words: str) -> None:
    """Wait until a job has said something."""
    deadline = time.monotonic() + PATIENCE
    while words not in job.said():
        assert job.process.poll() is None and time.monotonic() < deadline, job.said()
        time.sleep(0.02)


def parquet_files(lake: Path) -> set[str]:
    return {str(path) for path in (lake / "interactions").glob("ds=*/*.parquet")}


@pytest.mark.parametrize(
    ("name", "everyone"), [("nightly", False), ("train", True)], ids=["spark-submit", "its process group"]
)
def test_a_terminated_job_ends_soon_and_leaves_nothing_behind(
    spark: Any, base: Base, submit: Submits, tmp_path: Path, name: str, everyone: bool
) -> None:
    lake = shutil.copytree(base.lake, tmp_path / "lake")
    published = Lake(lake).published().run_id
    job = submit(name, lake, base.log, "als.iterations=1000000")
    wait_for(job, "sweep ")
    assert len(job.alive()) >= 4  # the JVM, the driver's Python, the workers and their parent
    if everyone:
        os.killpg(job.process.pid, signal.SIGTERM)
    else:
        job.process.send_signal(signal.SIGTERM)
    check_terminated(job, lake)
    assert version(lake, "published") == version(base.lake, "published")
    assert Lake(lake).published().run_id == published and stored(lake) == base.rows
    if not everyone:
        after = train_model(spark, load_config((), [*settings(lake, base.log), "train.again=true"]))
        states = {run["run_id"]: run["state"] for run in table(lake, "runs")}
        assert states[after["run_id"]] == "trained"


def check_terminated(job: Submitted, lake: Path) -> dict[str, Any]:
    """Wait for the end of a job after SIGTERM: what it says, and the row of its run, which is returned."""
    begin = time.monotonic()
    assert job.wait(60) == 143, job.said()
    while job.alive() and time.monotonic() < begin + 60:
        time.sleep(0.1)
    assert not job.alive(), [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in job.alive()]
    assert "Traceback" not in job.said() and "\tat " not in job.said()
    assert (job.told["status"], job.told["exit_code"], job.told["error"]) == ("terminated", 143, "stopped by SIGTERM")
    assert "stopped by SIGTERM; nothing more was published" in job.said()
    newest = max(table(lake, "runs"), key=lambda run: run["started_at"])
    assert newest["reason"] == "Terminated: stopped by SIGTERM"
    return newest


@pytest.mark.parametrize(
    ("name", "begun", "state"),
    [
        ("clean", lambda job, lake: any(run["state"] == "running" for run in table(lake, "runs")), "failed"),
        ("nightly", lambda job, lake: "write factors" in job.said(), "failed"),
        ("evaluate", lambda job, lake: "evaluation of als by" in job.said(), "trained"),
    ],
    ids=["clean", "a night's evaluate", "evaluate"],
)
def test_each_step_ends_with_its_reason(
    spark: Any, base: Base, submit: Submits, tmp_path: Path, name: str, begun: Callable, state: str
) -> None:
    lake = shutil.copytree(base.lake, tmp_path / "lake")
    if name == "evaluate":
        train_model(spark, load_config((), [*settings(lake, base.log), "train.again=true"]))
    job = submit(name, lake, base.log, "evaluation.protocol=auto", "evaluation.bootstrap=10000")
    deadline = time.monotonic() + PATIENCE
    while not begun(job, lake):
        assert job.process.poll() is None and time.monotonic() < deadline, job.said()
        time.sleep(0.05)
    job.process.send_signal(signal.SIGTERM)
    assert check_terminated(job, lake)["state"] == state
    assert not list((lake / "_leases").iterdir())


@pytest.mark.parametrize("full", ["lake", "scratch"])
def test_a_full_disk_is_named(submit: Submits, tmp_path: Path, full: str) -> None:
    """The disk is a small one in memory, which only the job's processes see."""
    small, result = tmp_path / "small", tmp_path / "result"
    small.mkdir()
    script = 'mount -t tmpfs -o size=$0 tmpfs "$1" && "${@:3}"; code=$?; cp -r "$1" "$2"; exit $code'
    prefix = ["unshare", "--map-root-user", "--mount", "bash", "-c", script]
    if subprocess.run([*prefix, "64k", str(small), str(result), "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    rows = [(f"u{u}", f"i{(u * i) % 1000}", 3.0, 1_600_000_000 + 1000 * u + i) for u in range(200) for i in range(100)]
    log = write_log(tmp_path / "log.csv", rows)
    lake = small / "lake" if full == "lake" else tmp_path / "lake"
    options = ["--conf", f"spark.local.dir={small / 'scratch'}"] if full == "scratch" else []
    size = {"lake": "250k", "scratch": "100k"}[full]
    job = submit("clean", lake, log, prefix=[*prefix, size, str(small), str(tmp_path / "copy")], options=options)
    assert job.wait() in (1, 2), job.said()
    assert job.told["exit_code"] == job.code and "No space left on device" in job.told["error"]
    assert f"MiB free at {lake if full == 'lake' else small / 'scratch'}" in job.told["error"]
    if full == "scratch":
        (run,) = table(lake, "runs")
        assert run["state"] == "failed" and "No space left on device" in run["reason"]


def test_a_folder_for_temporary_files_that_cannot_be_made_is_named(submit: Submits, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", log_rows(3, 3, 1))
    job = submit("clean", tmp_path / "lake", log, options=["--conf", "spark.local.dir=/proc/none"])
    assert job.wait() == 2, job.said()
    assert "temporary files cannot be written to /proc/none" in job.told["error"]


def test_exit_codes_and_the_last_line(base: Base, submit: Submits, tmp_path: Path) -> None:
    none = write_log(tmp_path / "none.csv", [("u1", "i1", float("nan"), 1), ("", "i2", 1.0, 2)])
    expected = {
        2: submit("nightly", tmp_path / "a", base.log, "als.rnak=3"),
        0: submit("nightly", tmp_path / "b", base.log, "--dry-run"),
        3: submit("clean", tmp_path / "c", none),
    }
    for code, job in expected.items():
        assert job.wait() == code, job.said()
        assert job.told["exit_code"] == code
        assert "Traceback" not in job.said()
    assert "did you mean als.rank?" in expected[2].told["error"]
    assert expected[0].told["status"] == "dry-run" and "would run with" in expected[0].said()
    assert "all 2 rows were rejected" in expected[3].told["error"]
    # A refused input leaves the row of its run, which says why, and nothing else.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "none.csv"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["_leases", "runs"]
    assert not list((tmp_path / "c" / "_leases").iterdir())  # the run's lease has ended
    command = [str(BIN / "sparkcf"), "recommend", "--user", "nobody", "--lake", str(base.lake)]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 1 and asked.stdout == ""
    assert asked.stderr.startswith("sparkcf: user 'nobody' ") and len(asked.stderr.splitlines()) == 1
