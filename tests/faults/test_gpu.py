"""Spark deals out GPUs by a discovery script; here by one that makes them up, so that dealing is what is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.test_feed import files_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TRAIN = """
import json, sys
from sparkcf.config.nets import MultDAEConfig
from sparkcf.training.gang import task_slots
from sparkcf.jobs.session import open_session, stop_session
from sparkcf.training.launch import TrainingSpec, check_launch, class_name, gpus_a_task, launch

spark, _ = open_session()
spark.range(1).count()  # as reading tables does: then the executors are there
workers = check_launch(spark, None, "multdae")
config = MultDAEConfig(latent_dim=4, epochs=2, batch_size=8)
params = (class_name(config), config.model_dump_json(), 1, {"n_items": 40})
factory = "sparkcf.models.nets.registry:net_of"
spec = TrainingSpec("multdae", factory, *params, "user_idx", tuple(sys.argv[2:]), (), sys.argv[1])
log = launch(spark, spec, workers, lambda entry: None)
owned = spark.sparkContext.parallelize(range(2), 2).mapPartitions(addresses).collect()
print(json.dumps({"workers": workers, "gpus": gpus_a_task(spark), "epochs": len(log), "owned": owned}))
stop_session(spark)
"""
ADDRESSES = """
def addresses(_):
    from pyspark import TaskContext
    return [TaskContext.get().resources()["gpu"].addresses]
"""


def test_a_process_a_gpu_trains_where_spark_deals_them_out(tmp_path: Path) -> None:
    script = tmp_path / "discover.sh"
    script.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["0", "1"]}\'\n')
    script.chmod(0o755)
    (tmp_path / "train.py").write_text(ADDRESSES + TRAIN)
    settings = {
        "worker.resource.gpu.amount": 2,
        "worker.resource.gpu.discoveryScript": script,
        "executor.resource.gpu.amount": 2,
        "executor.resource.gpu.discoveryScript": script,
        "task.resource.gpu.amount": 1,
        "executor.memory": "600m",
        "ui.enabled": "false",
        "scheduler.minRegisteredResourcesRatio": 1,
    }
    command = [str(BIN / "spark-submit"), "--master", "local-cluster[1,4,1024]", "--driver-memory", "1g"]
    command += [part for name, value in settings.items() for part in ("--conf", f"spark.{name}={value}")]
    files = files_of(tmp_path / "rows", 12, 12)
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    environment.pop("PYSPARK_SUBMIT_ARGS", None)
    done = subprocess.run(
        [*command, str(tmp_path / "train.py"), str(tmp_path / "saved"), *files],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["workers"] == 2  # of four cores: a process a GPU
    assert told["gpus"] == 1 and told["epochs"] == 2
    assert sorted(map(tuple, told["owned"])) == [("0",), ("1",)]


def test_the_discovery_script_speaks_as_spark_listens(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0\\n1\\n3\\n'\n")
    fake.chmod(0o755)
    script = str(ROOT / "conf" / "gpu" / "discover.sh")
    path = f"{tmp_path}:/usr/bin:/bin"
    told = subprocess.run([script], env={"PATH": path}, capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == {"name": "gpu", "addresses": ["0", "1", "3"]}
    none = subprocess.run([script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert none.returncode == 1 and "nvidia-smi is not on the PATH" in none.stderr
