"""Inject faults into nights on a part of the sample, and count what is wrong afterwards.

    python -m tests.faults --tries 10 --seed 7

Each try takes a copy of a lake with one published night, breaks the next night or the lake, follows the cure (run the
night again; where a file is broken, what `sparkcf doctor` says), and compares the tables with those of a night that
nothing broke. A try survives if the break was noticed or repaired, readers saw whole runs only, and no row is wrong. A
try in which nothing was broken, since the night had ended before or had not begun, is printed and drawn again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable

import sparkcf
from sparkcf import Lake
from sparkcf.cli.doctor import diagnose
from sparkcf.errors import LakeError
from tests.faults.processes import Row, Submits, Submitted, table, version, write_log

SAMPLE = Path(sparkcf.__file__).parent / "sample"
USERS = 40
KEYS = {  # what is compared, by table; scores as they are printed, factors not at all
    "interactions": ("user_id", "item_id", "event", "value", "ts"),
    "users": ("user_id", "user_idx"),
    "items": ("item_id", "item_idx"),
    "quarantine": ("raw", "reason"),
}
LOCAL_CLUSTER = ("--master", "local-cluster[2,1,1024]", "--conf", "spark.executor.memory=1g")


AT_ITS_END_S = 5.0  # a job that has printed its result ends sooner
DRAWS = 10  # of a try, until its fault meets a job at work


class Wrong(Exception):
    """A fault was not survived."""


class Missed(Exception):
    """Nothing was broken: the try does not count."""


@dataclass
class Tally:
    tries: int = 0
    survived: int = 0
    wrong: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass
class Setting:
    """A lake after its first night, the second night's log, and what the second night makes of it undisturbed."""

    folder: Path
    submit: Submits
    random: random.Random
    lake: Path
    log: Path
    expected: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def copy(self) -> Path:
        return Path(shutil.copytree(self.lake, Path(tempfile.mkdtemp(dir=self.folder)) / "lake"))

    def night(self, lake: Path, *options: str) -> Submitted:
        return self.submit("nightly", lake, self.log, "ds=2024-02-01", "seed=1", options=options)

    def finished(self, lake: Path) -> None:
        """Run the night, again if another one was first."""
        for _ in range(3):
            job = self.night(lake)
            if job.wait() in (0, 5):
                return
        raise Wrong(f"the night again ended with {job.code}: {job.told.get('error')}")


def part_of_sample() -> list[Row]:
    with gzip.open(SAMPLE / "ratings.csv.gz", "rt") as file:
        rows = list(csv.reader(file))[1:]
    return [(u, i, float(v), int(t)) for u, i, v, t in rows if int(u) <= USERS and int(i) < 400]


def prepared(folder: Path, submit: Submits, seed: int) -> Setting:
    rows = part_of_sample()
    logs = [write_log(folder / f"{n}.csv", part) for n, part in enumerate((rows[::2], rows))]
    setting = Setting(folder, submit, random.Random(seed), folder / "first", logs[1])
    first = submit("nightly", setting.lake, logs[0])
    if first.wait():
        raise SystemExit(first.said())
    whole, begin = setting.copy(), time.monotonic()
    setting.finished(whole)
    setting.seconds = time.monotonic() - begin
    setting.expected = contents(whole)
    return setting


def contents(lake: Path) -> dict[str, Counter[str]]:
    """The rows that must be the same whatever broke: cleaned data, indices, and the published lists."""
    found = {
        name: Counter(json.dumps([row[key] for key in keys], default=str) for row in table(lake, name))
        for name, keys in KEYS.items()
        if (lake / name).exists()
    }
    return found | {"published lists": Counter(lists(lake))}


def lists(lake: Path) -> list[str]:
    """Every user's list by the published run, scores to 4 digits."""
    reader = Lake(lake)
    run = reader.published("als")
    rows = reader.read("recommendations", None, run.partition).to_pylist()
    return sorted(json.dumps([row["user_id"], row["position"], row["item_id"], f"{row['score']:.4f}"]) for row in rows)


def wrong_rows(setting: Setting, lake: Path) -> int:
    found = contents(lake)
    differing = [(found[name] - rows) + (rows - found[name]) for name, rows in setting.expected.items()]
    return sum(sum(each.values()) for each in differing)


def driver_killed(setting: Setting, lake: Path) -> None:
    job = setting.night(lake)
    time.sleep(setting.random.uniform(0, setting.seconds))
    job.kill()
    if job.process.returncode != -signal.SIGKILL:
        raise Missed(f"the night had ended with {job.process.returncode}")
    setting.finished(lake)


def terminated(setting: Setting, lake: Path) -> None:
    job, before = setting.night(lake), version(lake, "runs")
    time.sleep(setting.random.uniform(0.3, 1) * setting.seconds)
    if version(lake, "runs") == before:  # until then Java ends without a word, as any program does
        raise Missed("the night had not begun its first run")
    if job.process.poll() is not None:
        raise Missed(f"the night had ended with {job.process.returncode}")
    sent = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    if job.wait(120) == 0 and time.monotonic() - sent < AT_ITS_END_S:
        raise Missed("the night was at its end")
    if job.code != 143:
        raise Wrong(f"ended with {job.code} after SIGTERM")
    try:
        last = job.told
    except (IndexError, ValueError):
        raise Wrong("it has printed no last line") from None
    if (last["status"], last["exit_code"], last["error"]) != ("terminated", 143, "stopped by SIGTERM"):
        raise Wrong(f"its last line is {last}")
    setting.finished(lake)


def executor_killed(setting: Setting, lake: Path) -> None:
    job = setting.night(lake, *LOCAL_CLUSTER)
    time.sleep(setting.random.uniform(0.2, 0.9) * setting.seconds)
    executors = [pid for pid in job.alive() if b"CoarseGrainedExecutorBackend" in command_of(pid)]
    if not executors:
        raise Missed("the night had no executors")
    try:
        os.kill(setting.random.choice(executors), signal.SIGKILL)
    except ProcessLookupError:
        raise Missed("the executor had ended") from None
    if job.wait() not in (0, 1):
        raise Wrong(f"ended with {job.code} after an executor was lost: {job.told.get('error')}")
    if job.code:
        setting.finished(lake)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def two_nights(setting: Setting, lake: Path) -> None:
    both = [setting.night(lake), setting.night(lake)]
    codes = sorted(job.wait() for job in both)
    if codes not in ([0, 0], [0, 4]):
        raise Wrong(f"two nights ended with {codes}")


def truncated_file(setting: Setting, lake: Path) -> None:
    """Of a table that jobs can write again. The load of its day is repeated, as the doctor advises."""
    setting.finished(lake)
    name = setting.random.choice(["interactions", "quarantine", "recommendations"])
    file = setting.random.choice(live_files(lake, name) or live_files(lake, "interactions"))
    file.write_bytes(file.read_bytes()[: setting.random.randrange(file.stat().st_size)])
    failed = [check for check in diagnose(str(lake)) if check.status == "fail"]
    if not failed:
        raise Wrong(f"the doctor does not see that {file} is cut")
    diagnose(str(lake), repair=True)
    for check in failed:
        for day in [word.strip(",").removeprefix("ds=") for word in check.cure.split() if word.startswith("ds=")]:
            log = setting.folder / ("0.csv" if day == "2024-01-31" else "1.csv")
            if setting.submit("clean", lake, log, f"ds={day}").wait():
                raise Wrong(f"the load of {day} again failed")
    setting.finished(lake)


def live_files(lake: Path, name: str) -> list[Path]:
    """The files of a table's newest version; none if there is no such table."""
    if not (lake / name).exists():
        return []
    return sorted(Path(unquote(uri.removeprefix("file://"))) for uri in DeltaTable(str(lake / name)).file_uris())


def corrupt_log(setting: Setting, lake: Path) -> None:
    name = setting.random.choice(["published", "interactions", "recommendations", "runs"])
    newest = max((lake / name / "_delta_log").glob("*.json"))
    bad = newest.with_name(f"{int(newest.stem) + 1:020}.json")
    text = newest.read_text()
    bad.write_text(text[: setting.random.randrange(len(text) - 1)] if setting.random.random() < 0.5 else "")
    try:
        Lake(lake).read(name)
        raise Wrong(f"a reader takes the damaged entry of {name}")
    except LakeError as error:
        if str(int(bad.stem)) not in str(error):
            raise Wrong(f"the version is not named: {error}") from None
    job = setting.night(lake)
    if job.wait() == 0:
        raise Wrong(f"a night passes over the damaged entry of {name}")
    (check,) = [check for check in diagnose(str(lake)) if check.check == f"table {name}" and check.status == "fail"]
    if f"last good version {int(newest.stem)}" not in check.found:
        raise Wrong(f"the doctor names another version: {check.found}")
    bad.unlink()
    setting.finished(lake)


def reader_in_a_loop(setting: Setting, lake: Path) -> None:
    """Reads while the night publishes, and while the run is rolled back and published again."""
    seen: set[str] = set()
    errors: list[str] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                seen.add("\n".join(lists(lake)))
            except Exception as error:
                errors.append(repr(error))

    thread = threading.Thread(target=read)
    before = "\n".join(lists(lake))
    thread.start()
    try:
        setting.finished(lake)
        after = "\n".join(lists(lake))
        for _ in range(2):
            if setting.submit("rollback", lake, setting.log, "ds=2024-02-01").wait():
                raise Wrong("the rollback failed")
            if "\n".join(lists(lake)) == after:
                run_id = max(table(lake, "published"), key=lambda row: row["sequence"])["run_id"]
                raise Wrong(f"run {run_id} is served still")
            back = [
                row for row in table(lake, "published") if row["action"] == "publish" and str(row["ds"]) > "2024-02"
            ]
            if setting.submit("rollback", lake, setting.log, f"run_id={back[-1]['run_id']}").wait():
                raise Wrong("the way forward failed")
    finally:
        over.set()
        thread.join()
    if not seen and not errors:
        raise Missed("nothing was read meanwhile")
    if errors or seen - {before, after}:
        raise Wrong(f"{len(errors)} errors, {len(seen - {before, after})} mixed lists: {errors[:1]}")


FAULTS: dict[str, Callable[[Setting, Path], None]] = {
    "driver killed": driver_killed,
    "SIGTERM": terminated,
    "executor killed": executor_killed,
    "two nights at once": two_nights,
    "Parquet file cut": truncated_file,
    "last log entry corrupt": corrupt_log,
    "reader in a loop": reader_in_a_loop,
}


def tried(setting: Setting, fault: Callable[[Setting, Path], None], tally: Tally) -> None:
    begin = time.monotonic()
    tally.tries += 1
    for _ in range(DRAWS):
        lake = setting.copy()
        try:
            fault(setting, lake)
            wrong = wrong_rows(setting, lake)
            tally.wrong += wrong
            tally.survived += not wrong
            if wrong:
                tally.problems.append(f"{wrong} rows wrong in {lake}")
            else:
                shutil.rmtree(lake.parent)
            break
        except Missed as missed:
            print(f"drawn again: {missed}", flush=True)
            setting.submit.close()  # what is left of the night
            shutil.rmtree(lake.parent)
        except (Wrong, LakeError, subprocess.TimeoutExpired) as error:
            tally.problems.append(str(error))
            break
    else:
        tally.problems.append(f"nothing was broken in {DRAWS} draws")
    tally.seconds += time.monotonic() - begin


def shown(tallies: dict[str, Tally]) -> str:
    lines = [f"{'fault':24} {'tries':>5} {'survived':>8} {'rows wrong':>10} {'s/try':>6}"]
    lines += [
        f"{name:24} {t.tries:5} {t.survived:8} {t.wrong:10} {t.seconds / max(t.tries, 1):6.0f}"
        for name, t in tallies.items()
    ]
    total = [sum(getattr(t, name) for t in tallies.values()) for name in ("tries", "survived", "wrong")]
    lines.append(f"{'all':24} {total[0]:5} {total[1]:8} {total[2]:10}")
    return "\n".join(lines + [f"{name}: {problem}" for name, t in tallies.items() for problem in t.problems])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--tries", type=int, default=1, help="of each fault")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", choices=FAULTS, action="append", help="this fault; repeatable; default: all")
    given: Any = parser.parse_args(arguments)
    print(f"seed {given.seed}: repeat with --seed {given.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="sparkcf-faults-"))
    submit = Submits(folder)
    tallies = {name: Tally() for name in given.only or FAULTS}
    try:
        setting = prepared(folder, submit, given.seed)
        print(f"an undisturbed night takes {setting.seconds:.0f} s", flush=True)
        for number in range(given.tries):
            for name, tally in tallies.items():
                tried(setting, FAULTS[name], tally)
                state = f"{tally.survived} of {tally.tries} survived, {tally.wrong} rows wrong"
                print(f"try {number + 1}, {name}: {state}", flush=True)
    finally:
        submit.close()
        print(shown(tallies))
        if not any(tally.problems for tally in tallies.values()):
            shutil.rmtree(folder, ignore_errors=True)
    return int(any(tally.problems for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
