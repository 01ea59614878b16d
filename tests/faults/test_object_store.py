"""A real server of S3's protocol: a night's tables are those of a local one, progress is saved, commits are kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import Adam

from sparkcf import Lake
from sparkcf.cli.doctor import check_root
from sparkcf.config.load import load_config
from sparkcf.jobs.nightly import nightly
from sparkcf.lake.folder import Folder
from sparkcf.training.checkpoint import Checkpoints, Progress
from sparkcf.training.gang import Alone
from sparkcf.training.group import Group
from sparkcf.training.saved_sweeps import SavedSweep, SavedSweeps
from tests.faults.test_cluster import free_port
from tests.quick import JOB_OPTIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 900
CONNECTOR = "org.apache.hadoop:hadoop-aws:3.3.4"  # of the Hadoop that Spark brings
NIGHT = [
    *("ds=2024-05-31", "input.ts_formats=[epoch_s]", "topk.k=5", "als.rank=4", "als.iterations=3", "als.save_every=1"),
    *("evaluation.protocol=q2", "evaluation.ks=[5]", "evaluation.bootstrap=10", "evaluation.min_user_items=2"),
    *("gate.at=5", "gate.allow_below_popularity=true", "topk.similar_items=3"),
]
TABLES = {  # what must be equal in the lakes: columns that are the same, and one of floats
    "interactions": ("user_id", "item_id", "event", "ts", "value"),
    "quarantine": ("source", "raw", "reason", None),
    "users": ("user_id", "user_idx", None),
    "items": ("item_id", "item_idx", None),
    "recommendations": ("user_id", "position", "item_id", "reason", "score"),
    "similar_items": ("item_id", "position", "similar_item_id", "score"),
}
WRITERS = """
from concurrent.futures import ThreadPoolExecutor

from sparkcf.jobs.frame import main
from sparkcf.lake.frames import frame_of
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables

def writers(spark, config):
    tables = LakeTables(spark, config.lake.root)
    tables.create("metrics")

    def append(number):
        row = {"run_id": f"run{number}", "system": "model", "protocol": "q2", "metric": "ndcg_at_k", "value": 0.5}
        tables.append("metrics", frame_of(spark, [row], TABLES["metrics"].schema))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(12)))
    return {"version": tables.version("metrics")}

main("writers", writers)
"""


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's log of its requests."""
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def server(requests: Path) -> Iterator[str]:
    """The address of a server with the bucket `lake`."""
    port = free_port()
    log = requests.open("w")
    process = subprocess.Popen([BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                request = urllib.request.Request(f"{address}/lake", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until, requests.read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def environment(server: str) -> Iterator[dict[str, str]]:
    """Where the processes of the tests find the server; this process too."""
    names = {"AWS_ENDPOINT_URL": server, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (names | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}).items():
            patch.setenv(name, value)
        yield dict(os.environ)


def submit(job: str | Path, server: str, environment: dict[str, str], *arguments: str, lake: str = "night") -> dict:
    store = {"endpoint": server, "path.style.access": "true", "connection.ssl.enabled": "false"}
    options = [part for key, value in store.items() for part in ("--conf", f"spark.hadoop.fs.s3a.{key}={value}")]
    command = [str(BIN / "spark-submit"), "--master", "local[2]", "--packages", CONNECTOR, *options, *JOB_OPTIONS]
    done = subprocess.run(
        [*command, str(ROOT / "jobs" / job), f"lake.root=s3a://lake/{lake}", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "progress cannot be saved" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_night_on_an_object_store_writes_what_a_local_one_does(
    spark, server: str, requests: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log.csv"
    rows = (f"u{n % 40},i{(n * 7 + n // 40) % 23},{1_700_000_000 + n}\n" for n in range(600))
    log.write_text("user_id,item_id,ts\n" + "".join(rows) + "u1,i1,never\n,i2,1700000000\n")
    given = [f"input.path={log}", *NIGHT]
    told = submit("nightly.py", server, environment, *given)
    assert told["status"] == "ok" and (told["counts"]["clean"], told["counts"]["quarantined"]) == (600, 2)
    single = nightly(spark, load_config((), [f"lake.root={tmp_path / 'lake'}", *given]))
    assert told["counts"] == single["counts"]
    assert told["figures"] == pytest.approx(single["figures"], abs=1e-5)
    stored, local = Lake("s3a://lake/night"), Lake(tmp_path / "lake")
    for name, columns in TABLES.items():
        ours, theirs = (rows_of(lake, name, *columns) for lake in (stored, local))
        assert ours and [row[:-1] for row in ours] == [row[:-1] for row in theirs], name
        assert [row[-1] for row in ours] == pytest.approx([row[-1] for row in theirs], abs=1e-5), name
    for user in ("u0", "u17", "u39"):
        ours, theirs = (lake.recommendations(user, 5) for lake in (stored, local))
        assert ours["item_id"].tolist() == theirs["item_id"].tolist()
        assert stored.history(user).equals(local.history(user))
    assert stored.published("als").ds == local.published("als").ds
    # Saved sweeps were kept there while they were of use, and are removed.
    for sweep in (1, 2):
        assert re.search(rf'"PUT /lake/night/_progress/als-\w+/sweep-{sweep:06}\.json', requests.read_text())
    assert Folder("s3a://lake/night/_progress").files() == []

    before = Folder("s3a://lake/night").files()
    assert check_root(stored).found == "s3a://lake/night is writable"
    assert Folder("s3a://lake/night").files() == before

    folded = submit("fold_in.py", server, environment, f"run_id={told['run_id']}", "ds=2024-05-31", "input.path=none")
    assert folded["status"] == "ok"


def rows_of(lake: Lake, name: str, *columns: str | None) -> list[tuple]:
    """The rows of a table, sorted; of lists those of the published run. Column None: zeros."""
    partition = lake.published("als").partition if name in ("recommendations", "similar_items") else None
    rows = lake.read(name, None, partition, [column for column in columns if column])
    values = (rows[column].to_pylist() if column else [0.0] * len(rows) for column in columns)
    return sorted(zip(*values, strict=True))


def test_progress_saved_on_an_object_store_is_read_again_and_removed(environment: dict[str, str]) -> None:
    """Of ALS and of nets, without Spark and as workers do it."""
    sweeps, epochs = SavedSweeps("s3a://lake/sweeps"), Checkpoints("s3a://lake/epochs")
    factors = [np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((2, 2), np.float32)]
    assert sweeps.save(Alone(), SavedSweep(factors, [{"sweep": 1}])) is None
    found = sweeps.load(Alone(), (3, 2), 2)
    assert found is not None and found.log == [{"sweep": 1}]
    np.testing.assert_array_equal(np.vstack(found.factors), np.vstack(factors))

    group, notes = Group(0, 1, torch.device("cpu")), []
    net, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    progress = Progress()
    progress.add({"epoch": 1, "loss": 0.5})
    epochs.save(progress, net, Adam(net.parameters()), group, True, notes.append)
    assert notes == []
    resumed = epochs.resume(other, Adam(other.parameters()), group, notes.append)
    assert resumed is not None and resumed.log == progress.log
    assert torch.equal(other.weight, net.weight) and torch.equal(other.bias, net.bias)

    assert sweeps.clear() is None
    epochs.clear()
    assert Folder("s3a://lake/sweeps").files() == Folder("s3a://lake/epochs").files() == []


def test_commits_of_one_driver_at_the_same_moment_are_all_kept(
    server: str, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "writers.py").write_text(WRITERS)
    given = ("ds=2024-05-31", "input.path=none")
    told = submit(tmp_path / "writers.py", server, environment, *given, lake="writers")
    assert told["version"] == 12
    rows = Lake("s3a://lake/writers").read("metrics", None, None, ["run_id"])
    assert sorted(rows["run_id"].to_pylist()) == sorted(f"run{number}" for number in range(12))
