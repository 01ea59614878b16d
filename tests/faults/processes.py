"""spark-submit as a scheduler starts it, in processes of its own that can be killed; and what its lake then holds."""

from __future__ import annotations

import csv
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq
from deltalake import DeltaTable

from tests.quick import JOB_OPTIONS

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MARK = "SPARKCF_TEST_MARK"
PATIENCE = 900  # seconds, on a machine that does other things too
Row = tuple[str, str, float, int]


@dataclass
class Submitted:
    """A spark-submit under way. Every process that descends from it carries its mark in the environment."""

    folder: Path
    process: subprocess.Popen
    mark: str
    code: int | None = field(default=None)

    def said(self) -> str:
        """All output; spark-submit sends the driver's standard error to its own standard output."""
        return "".join((self.folder / f"{self.mark}.{kind}").read_text(errors="replace") for kind in ("err", "out"))

    @property
    def told(self) -> dict[str, Any]:
        """The last line of standard output."""
        return json.loads((self.folder / f"{self.mark}.out").read_text().splitlines()[-1])

    def wait(self, seconds: float = PATIENCE) -> int:
        self.code = self.process.wait(seconds)
        return self.code

    def alive(self) -> list[int]:
        """The processes of the application that live, zombies left out."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # gone, or not ours
                continue
        return found

    def kill(self) -> None:
        """What no process can prepare for: driver, JVM and workers, all at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


class Submits:
    """Starts jobs on lakes; `close` ends what is left of them. `folder`: of their output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Submitted] = []

    def __call__(
        self, job: str, lake: Path, log: Path, *arguments: str, prefix: Sequence[str] = (), options: Sequence[str] = ()
    ) -> Submitted:
        mark = secrets.token_hex(8)
        own = ("PYSPARK_", "SPARK_", "PYTHONPATH")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        clean |= {MARK: mark, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        spark = ["--master", "local[2]", "--driver-memory", "1g", *JOB_OPTIONS]
        command = [
            *prefix,
            str(BIN / "spark-submit"),
            *spark,
            *options,
            str(ROOT / "jobs" / f"{job}.py"),
            *settings(lake, log),
            *arguments,
        ]
        with open(self.folder / f"{mark}.out", "w") as out, open(self.folder / f"{mark}.err", "w") as err:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                env=clean,
                cwd=self.folder,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
        self.started.append(Submitted(self.folder, process, mark))
        return self.started[-1]

    def close(self) -> None:
        for job in self.started:
            job.kill()


def settings(lake: Path, log: Path) -> list[str]:
    """The arguments of every job here."""
    return f"""ds=2024-01-31 lake.root={lake} input.path={log} input.ts_formats=[epoch_s] als.rank=4
        als.iterations=2 als.workers=1 gate.allow_below_popularity=true evaluation.protocol=q2 evaluation.ks=[5]
        evaluation.bootstrap=0 gate.at=5 topk.k=5 topk.similar_items=0 input.columns.value=value""".split()


def write_log(path: Path, rows: list[Row]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "value", "ts"), *rows])
    return path


def log_rows(users: int, items: int, value: int) -> list[Row]:
    return [
        (f"u{u}", f"i{i}", float(value), 1_600_000_000 + 100 * u + i)
        for u in range(users)
        for i in range(items)
        if (7 * u + 3 * i) % 5 < 3
    ]


def table(lake: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a table's newest version, without its partition columns."""
    files = [unquote(uri.removeprefix("file://")) for uri in DeltaTable(str(lake / name)).file_uris()]
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def stored(lake: Path) -> list[Row]:
    """The interactions of a lake, as rows of a log."""
    rows = table(lake, "interactions")
    return sorted((r["user_id"], r["item_id"], r["value"], int(r["ts"].timestamp())) for r in rows)


def version(lake: Path, name: str) -> int:
    return DeltaTable(str(lake / name)).version()
