"""Cleaning a raw log of 1, 5 or 20 million rows by spark-submit with a 4 GB driver: time, rows/s, peak memory.

python -m tests.bench.clean [--size S|M|L] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report import Goal, finish, print_table
from tests.bench.synthetic import SIZES, write_log

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="L")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rows, n_users, n_items = (100_000, 2_000, 1_000) if arguments.quick else SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as folder:
        written = write_log(Path(folder, "log"), rows, n_users, n_items)
        command = [
            str(Path(sys.executable).parent / "spark-submit"),
            *("--master", "local[2]", "--driver-memory", "4g"),
            str(ROOT / "jobs/clean.py"),
            *("ds=2024-01-01", f"input.path={folder}/log/*.csv", f"lake.root={folder}/lake"),
            *("input.columns={value: value}", "input.ts_formats=[epoch_s]", "input.value_range=[0.5, 5]"),
            *("clean.max_events_per_user=10000000",),
        ]
        begin = time.perf_counter()
        done = subprocess.run(
            command, env=os.environ | {"PYSPARK_PYTHON": sys.executable}, stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    result = json.loads(done.stdout.splitlines()[-1])
    counts = result.get("counts", {})
    print_table(
        ("rows", "seconds", "rows/s", "peak GB of one process", "exit code"),
        [(f"{written:,}", f"{seconds:.1f}", f"{written / seconds:,.0f}", f"{peak:.1f}", done.returncode)],
    )
    accounted = sum(counts.get(name, 0) for name in ("clean", "exact_duplicates", "superseded", "quarantined"))
    goals = [Goal("exit code", done.returncode, 0, at_least=False), Goal("rows accounted for", accounted, written)]
    if arguments.size == "L" and not arguments.quick:
        goals += [Goal("rows/s", written / seconds, 200_000), Goal("largest process, GB", peak, 3.0, at_least=False)]
    finish("clean", "quick" if arguments.quick else arguments.size, goals)


if __name__ == "__main__":
    main()
