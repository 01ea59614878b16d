"""The way from a Delta table to blocks in memory: seconds, rows/s, and a worker's peak memory beside the formula.

    python -m tests.bench.blocks [--size S|M|L] [--rank 64] [--rounds 3] [--quick]

A fit of one sweep; its first log entry comes with the sweep's own seconds, and what passed before them is the build:
reading Delta, the shuffle, the blocks, the joining of the gang. The table and the session are warm. Peak memory is the
Python worker's, less what it holds after a fit of next to nothing (interpreter, libraries, compiled kernels).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from sparkcf.config.factorization import ALSConfig
from sparkcf.models.als.fit import fit
from sparkcf.training.blocks import worker_bytes
from tests.bench import mllib
from tests.bench.report import Goal, finish, print_table
from tests.bench.setting import SEED, configured
from tests.bench.synthetic import QUICK, SIZES, Interactions, interactions
from tests.bench.timing import Times

WORKERS = 2
MiB = 1 << 20


def build_seconds(spark: Any, table: str, data: Interactions, config: ALSConfig) -> float:
    """From the call of `fit` to the begin of its first sweep."""
    heard: list[float] = []
    begin = time.perf_counter()

    def listen(entry: dict[str, Any]) -> None:
        heard.append(time.perf_counter() - begin - entry["seconds"])

    frame = spark.read.format("delta").load(table)
    fit(frame, data.n_users, data.n_items, config, SEED, on_progress=listen).release()
    return heard[0]


def peak_bytes() -> int:
    """The most resident memory that any of this process's Python workers ever had (Linux)."""
    status = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            lines = (entry / "status").read_text().splitlines()
            is_worker = b"pyspark.daemon" in (entry / "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        peak = int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
        status[int(entry.name)] = (int(fields["PPid"]), peak if is_worker else 0)

    def is_ours(pid: int) -> bool:
        while pid in status:
            if pid == os.getpid():
                return True
            pid = status[pid][0]
        return False

    return max(peak for pid, (_, peak) in status.items() if is_ours(pid))


def write_delta(spark: Any, folder: Path, data: Interactions) -> str:
    mllib.pairs_frame(spark, folder / "parquet", data).write.format("delta").save(str(folder / "delta"))
    return str(folder / "delta")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="M")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    size, rounds = (QUICK, 1) if arguments.quick else (arguments.size, arguments.rounds)
    data, config = interactions(size), configured(arguments.rank, "cg", 1, workers=WORKERS)
    with tempfile.TemporaryDirectory() as folder, mllib.session() as spark:
        tiny = interactions(QUICK)
        build_seconds(spark, write_delta(spark, Path(folder, "tiny"), tiny), tiny, config)
        idle = peak_bytes()
        table = write_delta(spark, Path(folder, "all"), data)
        times = Times(tuple(build_seconds(spark, table, data, config) for _ in range(rounds)))
        peak = peak_bytes() - idle
    stated = worker_bytes(len(data), data.n_users, data.n_items, config.rank, WORKERS)
    print_table(
        ("rows", "build, seconds: median (least–greatest)", "rows/s", "peak MiB of a worker", "stated MiB", "idle MiB"),
        [
            (
                f"{len(data):,}",
                times,
                f"{len(data) / times.median:,.0f}",
                f"{peak / MiB:,.0f}",
                f"{stated / MiB:,.0f}",
                f"{idle / MiB:,.0f}",
            )
        ],
    )
    finish("blocks", size, [Goal("peak memory of a worker ÷ stated", peak / stated, 1.1, at_least=False)])


if __name__ == "__main__":
    main()
