"""A night on a real server of S3's protocol: the tables of a local night, saved progress, and queries without Spark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkcf import Lake
from sparkcf.cli.doctor import check_root
from sparkcf.config.load import load_config
from sparkcf.jobs.nightly import nightly
from sparkcf.lake.folder import Folder
from tests.faults.test_cluster import free_port
from tests.quick import JOB_OPTIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 900
CONNECTOR = "org.apache.hadoop:hadoop-aws:3.3.4"  # of the Hadoop that Spark brings
NIGHT = [
    *("ds=2024-05-31", "input.ts_formats=[epoch_s]", "als.rank=4", "als.iterations=3", "topk.k=5"),
    *("evaluation.protocol=q2", "evaluation.ks=[5]", "evaluation.bootstrap=10", "evaluation.min_user_items=2"),
    *("gate.at=5", "gate.allow_below_popularity=true", "topk.similar_items=3"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the bucket `lake`."""
    port = free_port()
    log = (tmp_path_factory.mktemp("server") / "log").open("w")
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
                assert time.monotonic() < until, Path(log.name).read_text()
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


def submit(job: str, server: str, environment: dict[str, str], *arguments: str) -> dict:
    store = {"endpoint": server, "path.style.access": "true", "connection.ssl.enabled": "false"}
    options = [part for key, value in store.items() for part in ("--conf", f"spark.hadoop.fs.s3a.{key}={value}")]
    command = [str(BIN / "spark-submit"), "--master", "local[2]", "--packages", CONNECTOR, *options, *JOB_OPTIONS]
    done = subprocess.run(
        [*command, str(ROOT / "jobs" / job), "lake.root=s3a://lake/night", *arguments],
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
    spark, server: str, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log.csv"
    rows = (f"u{n % 40},i{(n * 7 + n // 40) % 23},{1_700_000_000 + n}\n" for n in range(600))
    log.write_text("user_id,item_id,ts\n" + "".join(rows))
    given = [f"input.path={log}", *NIGHT]
    told = submit("nightly.py", server, environment, *given)
    assert told["status"] == "ok" and told["counts"]["clean"] == 600
    nightly(spark, load_config((), [f"lake.root={tmp_path / 'lake'}", *given]))
    stored, local = Lake("s3a://lake/night"), Lake(tmp_path / "lake")
    for user in ("u0", "u17", "u39"):
        ours, theirs = (lake.recommendations(user, 5) for lake in (stored, local))
        assert ours["item_id"].tolist() == theirs["item_id"].tolist()
        assert ours["score"].to_numpy() == pytest.approx(theirs["score"].to_numpy(), rel=1e-4)
        assert stored.history(user).equals(local.history(user))
    assert stored.published("als").ds == local.published("als").ds
    # Saved sweeps were kept there while they were of use, and are removed.
    assert not [name for name in Folder("s3a://lake/night/_progress").files() if name]

    before = Folder("s3a://lake/night").files()
    assert check_root(stored).found == "s3a://lake/night is writable"
    assert Folder("s3a://lake/night").files() == before

    folded = submit("fold_in.py", server, environment, f"run_id={told['run_id']}", "ds=2024-05-31", "input.path=none")
    assert folded["status"] == "ok"
