"""A model of a package that somebody else installed is trained, measured, gated and served like ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparkcf import Lake
from tests.quick import JOB_OPTIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tests" / "models" / "plugin"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package was installed into."""
    site, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for file in ("pyproject.toml", "sparkcf_knn.py"):
        (source / file).write_text((PACKAGE / file).read_text())
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(source)], check=True)
    return site


def job(name: str, site: Path | None, *overrides: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*([str(site)] if site else []), str(ROOT)])
    command = [str(BIN / "spark-submit"), "--master", "local[2]", "--driver-memory", "2g", *JOB_OPTIONS]
    command += [f"jobs/{name}.py", "--config", "conf/nightly.yaml", *overrides]
    environment = os.environ | {"PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable}
    environment.pop("PYSPARK_SUBMIT_ARGS", None)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def test_a_night_of_an_installed_model_and_what_is_said_once_it_is_gone(site: Path, tmp_path: Path) -> None:
    lines = (tmp_path / "log.csv").open("w")
    lines.write("user_id,item_id,rating,ts\n")
    for user in range(60):
        for item in range(24):
            if item % 3 == user % 3 and (user + item) % 4:
                lines.write(f"u{user},i{item},5,2024-01-{1 + (user * 7 + item) % 28:02}T00:00:00\n")
    lines.close()
    given = ("ds=2024-02-01", f"lake.root={tmp_path}/lake", f"input.path={tmp_path}/log.csv")
    given += (
        "input.columns.value=rating",
        "model=knn",
        "evaluation.protocol=q2",
        "evaluation.bootstrap=10",
        "topk.k=2",
        "topk.similar_items=2",
    )
    done = job("nightly", site, *given, "knn.neighbours=8")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["figures"]["model:ndcg_at_k@100"] > 1.5 * told["figures"]["popularity:ndcg_at_k@100"]
    lake = Lake(tmp_path / "lake")
    listed = lake.recommendations("u1", 2, model="knn")
    assert set(listed["reason"]) == {"model"} and all(int(item[1:]) % 3 == 1 for item in listed["item_id"])
    alike = lake.similar_items("i4", 2, model="knn")
    assert all(int(item[1:]) % 3 == 1 for item in alike["item_id"])

    gone = job("recommend", None, *given)
    assert gone.returncode == 2
    said = gone.stdout.splitlines()[-1]
    assert f"run {told['run_id']} of lake {tmp_path}/lake is of model knn, which is not installed here" in said
    assert "install the package that registers it (entry points sparkcf.models); known are als, " in said
    assert len(Lake(tmp_path / "lake").recommendations("u1", 2, model="knn")) == 2  # readers need no model
