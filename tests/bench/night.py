"""A whole night from a raw log: cleaning beside a plain Spark job, all of it beside a script of DuckDB and implicit.

    python -m tests.bench.night [--size S|M|L] [--only clean,night,incremental,several,sample] [--formats csv]
                                [--rounds 3]

clean: the clean job and a plain Spark job (a schema, bounds, one row a key, Delta) in one warm session, in turns.
night: jobs/nightly.py by spark-submit, and night_script.py, in turns, with the largest process of each kind.
incremental: the same size in the lake, then a night with a day of 50,000 new rows that starts from the factors of the
first. Both stop at a sweep in which the objective falls by less than TOLERANCE of it.
several: a night of three models, one after another and at the same time, beside a night of each.
sample: `make nightly` in a lake of its own, and again: the second ends as nothing new. `--quick`: 50,000 rows, once,
cleaning alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.mllib import session
from tests.bench.peers import SCRIPT
from tests.bench.report import Goal, finish, print_table
from tests.bench.synthetic import CACHE, QUICK, SIZES, Interactions, interactions
from tests.bench.timing import Times, clock, interleaved

ROOT = Path(__file__).resolve().parents[2]
RANK, ITERATIONS, K, DAY, NEXT = 64, 8, 20, "2024-01-01", "2024-01-02"
NEW_ROWS, TOLERANCE = 50_000, 0.001
SEVERAL = ("als", "ease", "popularity")
SETTINGS = [
    *("input.columns={value: value}", "input.ts_formats=[epoch_s]", "input.value_range=[0.5, 5]"),
    *("clean.max_events_per_user=10000000", f"als.rank={RANK}", f"als.iterations={ITERATIONS}"),
    *(f"topk.k={K}", f"topk.similar_items={K}", "evaluation.protocol=q2", f"evaluation.ks=[{K}]", f"gate.at={K}"),
    "gate.allow_below_popularity=true",
]
STEP = re.compile(r"^(?P<name>\w[^:\d]*\w)\b.* \((?P<seconds>[\d.]+) s\)$")  # such as "write factors: 60 users (2.6 s)"
SCHEMA = "user_id string, item_id string, value double, ts long"


def write_events(folder: Path, data: Interactions, kind: str, first_ts: int, files: int = 8) -> int:
    """A raw log of the pairs with values and times, 1 % of it broken and 1 % doubled; returns the number of rows."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    rng, total = np.random.default_rng(len(data)), 0
    for number, at in enumerate(np.array_split(np.arange(len(data)), files)):
        value = rng.integers(1, 11, len(at)) / 2
        value[rng.random(len(at)) < 0.01] = 99.0
        ts = first_ts + rng.integers(0, 30_000_000, len(at))
        frame = pd.DataFrame({"user_id": data.users[at], "item_id": data.items[at], "value": value, "ts": ts})
        frame = pd.concat([frame, frame[rng.random(len(at)) < 0.01]])
        path = folder / f"events-{number}.{kind}"
        if kind == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.astype({"user_id": str, "item_id": str}).to_json(path, orient="records", lines=True)
        total += len(frame)
    return total


def log_of(size: str, kind: str) -> tuple[Path, int]:
    """The raw log of a size, kept in .bench-data/, and its number of rows."""
    data = interactions(size)
    folder = CACHE / f"log-{len(data)}-{kind}"
    stamp = folder / "rows.txt"
    if not stamp.is_file():
        stamp.write_text(str(write_events(folder, data, kind, 1_500_000_000)))
    return folder, int(stamp.read_text())


def plain_spark(spark: Any, log: Path, kind: str, out: Path) -> None:
    """What a data engineer writes in ten lines: no row is accounted for, and nothing is ready for a second day."""
    from pyspark.sql import functions as F

    reader = spark.read.schema(SCHEMA).option("mode", "DROPMALFORMED")
    rows = reader.csv(f"{log}/*.csv", header=True) if kind == "csv" else reader.json(f"{log}/*.jsonl")
    valid = rows.where("user_id <> '' AND item_id <> '' AND value BETWEEN 0.5 AND 5 AND ts > 0")
    once = valid.dropDuplicates(["user_id", "item_id", "ts"]).withColumn("ds", F.lit(DAY).cast("date"))
    once.write.format("delta").mode("overwrite").save(str(out))


def cleaning(given: argparse.Namespace, goals: list[Goal]) -> None:
    from sparkcf.config.load import load_config
    from sparkcf.jobs.clean import clean_day

    table = []
    with session(memory="4g") as spark, tempfile.TemporaryDirectory() as folder:
        for kind in given.formats:
            log, rows = log_of(given.size, kind)
            number = 0

            def ours(log: Path = log, kind: str = kind) -> list[float]:
                nonlocal number
                number += 1
                lake = f"lake.root={folder}/lake-{kind}-{number}"
                arguments = [f"ds={DAY}", f"input.path={log}/*.{kind}", f"input.format={kind}", lake, *SETTINGS]
                return [clock(lambda: clean_day(spark, load_config((), arguments)))]

            def plain(log: Path = log, kind: str = kind) -> list[float]:
                return [clock(lambda: plain_spark(spark, log, kind, Path(folder, f"plain-{kind}")))]

            systems: dict[str, Callable[[], list[float]]] = {"plain Spark": plain, "sparkcf": ours}
            for warm in systems.values():
                warm()
            times = interleaved(systems, given.rounds)
            for name, time_ in times.items():
                table.append((kind, name, time_, f"{rows / time_.median:,.0f}"))
            ratio = times["sparkcf"].median / times["plain Spark"].median
            goals.append(Goal(f"{kind}: clean ÷ plain Spark", ratio, {"csv": 2.0, "jsonl": 2.5}[kind], at_least=False))
    print(f"\ncleaning {rows:,} raw rows, warm session, two cores, 4 GB driver")
    print_table(("log", "system", "seconds: median (least–greatest)", "rows/s"), table)


def watched(command: list[str], **options: Any) -> tuple[float, str, dict[str, float]]:
    """Run a command; seconds, its standard output and error, and the peak GB of one process by kind."""
    peaks: dict[str, float] = {}
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for pid, name, size in family(process.pid):
                kind = "java" if name == "java" else "python" if pid != process.pid else "script"
                peaks[kind] = max(peaks.get(kind, 0.0), size)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - begin
    ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"night: {' '.join(command[:4])} … exited with {process.returncode}:\n{output[-3000:]}")
    return seconds, output, peaks


def family(root: int) -> list[tuple[int, str, float]]:
    """pid, name and resident GB of a process and of all that it started."""
    parents, found = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text()
        except OSError:  # it has ended
            continue
        name, rest = fields[fields.index("(") + 1 : fields.rindex(")")], fields[fields.rindex(")") + 2 :].split()
        parents[int(entry.name)] = (int(rest[1]), name, int(rest[21]) * os.sysconf("SC_PAGE_SIZE") / 2**30)
    for pid, (_, name, size) in parents.items():
        at = pid
        while at not in (root, 0, 1) and at in parents:
            at = parents[at][0]
        if at == root:
            found.append((pid, name, size))
    return found


def submit(log: str, kind: str, lake: Path, ds: str, *more: str) -> tuple[float, dict[str, float], dict[str, float]]:
    """A night by spark-submit: seconds, seconds by step, peak GB by kind of process."""
    command = [str(Path(sys.executable).parent / "spark-submit"), "--master", "local[2]", "--driver-memory", "4g"]
    command += [str(ROOT / "jobs/nightly.py"), f"ds={ds}", f"input.path={log}", f"input.format={kind}"]
    command += [f"lake.root={lake}", *SETTINGS, *more]
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    seconds, output, peaks = watched(command, env=environment, cwd=ROOT)
    steps = {found["name"]: float(found["seconds"]) for line in output.splitlines() if (found := STEP.match(line))}
    return seconds, steps, peaks


def seconds_of(steps: dict[str, float], name: str) -> float:
    """Seconds of a step, whose printed name also says what it works on, such as "train als"."""
    return next(seconds for shown, seconds in steps.items() if shown.split()[0] == name)


def nights(given: argparse.Namespace, goals: list[Goal]) -> None:
    """Ours and the script's, in turns, each on a folder of its own."""
    SCRIPT.install()
    table, kind = [], "csv"
    log, rows = log_of(given.size, kind)
    ours, theirs = [], []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours.append(submit(f"{log}/*.{kind}", kind, Path(folder, "lake"), DAY))
            script = [SCRIPT.python, str(Path(__file__).with_name(SCRIPT.script)), f"{log}/*.{kind}", folder, kind]
            seconds, output, peaks = watched(
                [*script, str(RANK), str(ITERATIONS)], env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}
            )
            theirs.append((seconds, json.loads(output.splitlines()[-1])["seconds"], peaks))
    for system, turns in (("sparkcf", ours), ("script", theirs)):
        print(f"\n{system}: a night over {rows:,} raw rows, {len(turns)} turns, medians")
        steps = [(name, f"{np.median([turn[1].get(name, 0.0) for turn in turns]):.1f}") for name in turns[0][1]]
        whole = float(np.median([turn[0] for turn in turns]))
        print_table(("step", "seconds"), [*steps, ("whole", f"{whole:.1f}")])
        peaks = {name: max(turn[2].get(name, 0.0) for turn in turns) for name in turns[0][2]}
        print(f"largest process, GB: {', '.join(f'{name} {size:.2f}' for name, size in peaks.items())}")
        table.append(whole)
    ratio = float(np.median([seconds_of(steps, "evaluate") / seconds_of(steps, "train") for _, steps, _ in ours]))
    goals.append(Goal("evaluation ÷ the fit it repeats", ratio, {"M": 1.3}.get(given.size, 1e9), at_least=False))
    goals.append(Goal("a whole night, seconds", table[0], {"M": 90.0}.get(given.size, 1e9), at_least=False))
    goals.append(Goal("a whole night ÷ the script's", table[0] / table[1], 3.0 if given.size == "L" else 4.0, False))


def incremental(given: argparse.Namespace, goals: list[Goal]) -> None:
    """A first night, then one with a day of new rows: pairs of known users and items, and some new ones."""
    log, rows = log_of(given.size, "csv")
    data = interactions(given.size)
    rng = np.random.default_rng(7)
    n = min(NEW_ROWS, len(data))
    users = rng.integers(0, int(data.n_users * 1.01), n).astype(np.int32)
    items = data.items[rng.integers(0, len(data), n)]
    with tempfile.TemporaryDirectory() as folder:
        write_events(
            Path(folder, "day"), Interactions(users, items, data.n_users, data.n_items), "csv", 1_540_000_000, 1
        )
        lake = Path(folder, "lake")
        stop = f"als.tolerance={TOLERANCE}"
        first = submit(f"{log}/*.csv", "csv", lake, DAY, stop)
        second = submit(f"{folder}/day/*.csv", "csv", lake, NEXT, stop, "train.warm_start=true")
    names = dict.fromkeys([*first[1], *second[1]])
    print(f"\na first night over {rows:,} raw rows, and one with {n:,} new ones")
    shown = [(name, *(f"{turn[1].get(name, 0.0):.1f}" for turn in (first, second))) for name in names]
    print_table(("step", "first", "second"), [*shown, ("whole", f"{first[0]:.1f}", f"{second[0]:.1f}")])
    goals.append(Goal("clean of the day, seconds", seconds_of(second[1], "clean"), 15.0, at_least=False))
    goals.append(Goal("the second night ÷ the first", second[0] / first[0], 0.35, at_least=False))


def several(given: argparse.Namespace, goals: list[Goal]) -> None:
    """Each model in a night of its own, and all of them in one, in turns."""
    log, rows = log_of(given.size, "csv")
    systems = {name: [f"model={name}"] for name in SEVERAL}
    listed = f"models=[{','.join(SEVERAL)}]"
    systems |= {"one after another": [listed], "at the same time": [listed, f"models_at_once={len(SEVERAL)}"]}

    def night(settings: list[str]) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            return [submit(f"{log}/*.csv", "csv", Path(folder, "lake"), DAY, *settings)[0]]

    turns: dict[str, Callable[[], list[float]]] = {name: partial(night, settings) for name, settings in systems.items()}
    times = interleaved(turns, given.rounds)
    print(f"\nnights over {rows:,} raw rows: of each model alone, and of all three")
    print_table(("night", "seconds: median (least–greatest)"), list(times.items()))
    apart = sum(times[name].median for name in SEVERAL)
    for name in ("one after another", "at the same time"):
        goals.append(Goal(f"three models, {name} ÷ three nights", times[name].median / apart, 0.6, at_least=False))


def sample(given: argparse.Namespace, goals: list[Goal]) -> None:
    """`make nightly` as a newcomer runs it, after set-up, then the same command again."""

    def night(lake: Path) -> tuple[float, int]:
        """Seconds, and the exit code of the job: make has its own."""
        begin = time.perf_counter()
        command = ["make", "nightly", f"ARGS=lake.root={lake}"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        told = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
        return time.perf_counter() - begin, told["exit_code"]

    turns = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            turns.append([night(Path(folder, "lake")) for _ in range(2)])
    print("\nmake nightly, the sample")
    seconds = {name: Times(tuple(turn[place][0] for turn in turns)) for place, name in enumerate(("first", "again"))}
    print_table(("night", "seconds: median (least–greatest)"), list(seconds.items()))
    as_wanted = sum([code for _, code in turn] == [0, 5] for turn in turns)
    goals.append(Goal("make nightly, seconds", seconds["first"].median, 45.0, at_least=False))
    goals.append(Goal("nights that are done, and nothing new again", as_wanted, given.rounds))


PARTS = {"clean": cleaning, "night": nights, "incremental": incremental, "several": several, "sample": sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="M")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--formats", default="csv,jsonl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    given.formats = given.formats.split(",")
    if unknown := set(given.only.split(",")) - set(PARTS):
        sys.exit(f"night: --only {','.join(sorted(unknown))}: known are {', '.join(PARTS)}")
    if given.quick:
        given.size, given.rounds, given.only = QUICK, 1, "clean"
    goals: list[Goal] = []
    for part in given.only.split(","):
        PARTS[part](given, goals)
    finish("night", given.size, goals)


if __name__ == "__main__":
    main()
