"""Forgetting users beside a plain rewrite of the files that name them, and the proof that no byte of them is left.

    python -m tests.bench.forget [--users 100] [--rounds 3] [--quick]

A night over 1,000,000 pairs fills a lake: events, factors, lists. Then in every round other users go: Spark reads the
files that name them and writes all other rows again, which is the least that any way must do; then the forget job runs,
which also looks for them in every line and file, keeps them out of later loads and seals Delta's logs. At the end
maintain removes the old files at once, and every file of the lake is searched here in another way than the job's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkcf.lake.schemas import PER_USER
from tests.bench.mllib import session
from tests.bench.night import DAY, SETTINGS, write_events
from tests.bench.report import Goal, finish, print_table
from tests.bench.synthetic import QUICK, Interactions, interactions
from tests.bench.timing import Times, clock

FIRST_TS = 1_500_000_000


def filled(spark: Any, folder: Path, size: str) -> tuple[str, np.ndarray]:
    """A lake after one night; its address, and the ids of its users, which are no part of any other text."""
    from sparkcf.config.load import load_config
    from sparkcf.jobs.nightly import nightly

    data = interactions(size)
    ids = np.array([f"user-{number:06}" for number in range(data.n_users)])
    write_events(folder / "log", Interactions(ids[data.users], data.items, data.n_users, data.n_items), "csv", FIRST_TS)
    lake = str(folder / "lake")
    nightly(spark, load_config((), [f"ds={DAY}", f"input.path={folder}/log/*.csv", f"lake.root={lake}", *SETTINGS]))
    return lake, ids


def base(lake: str) -> list[str]:
    return [f"ds={DAY}", "input.path=none", f"lake.root={lake}"]


def rewritten(spark: Any, lake: str, users: list[str], out: Path) -> float:
    """Seconds of reading the files that name the users and writing their other rows as Delta."""
    from pyspark.sql import functions as F

    from sparkcf.lake.tables import LakeTables

    tables, touched = LakeTables(spark, lake), {}
    for name in PER_USER:
        if tables.exists(name):
            naming = tables.read(name).where(F.col("user_id").isin(users)).select(F.input_file_name()).distinct()
            touched[name] = [row[0] for row in naming.collect()]

    def write() -> None:
        for name, files in touched.items():
            if files:
                rows = spark.read.parquet(*files).where(~F.col("user_id").isin(users))
                rows.write.format("delta").save(str(out / name))

    return clock(write)


def files_naming(lake: Path, users: list[str]) -> int:
    """Number of files with one of the ids: as a value of Parquet, or as bytes of any file."""
    words = [user.encode() for user in users]
    found = 0
    for path in (path for path in lake.rglob("*") if path.is_file()):
        data = path.read_bytes()
        named = any(word in data for word in words)
        if path.suffix == ".parquet" and not named:
            table = pq.read_table(path, partitioning=None)
            texts = [table[name].combine_chunks() for name in table.column_names if str(table[name].type) == "string"]
            named = any(pc.any(pc.is_in(text, value_set=pc.cast(users, text.type))).as_py() for text in texts)
        found += named
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rows, once: only whether it runs")
    given = parser.parse_args()
    size, rounds = (QUICK, 1) if given.quick else ("S", given.rounds)

    from sparkcf.config.load import load_config
    from sparkcf.jobs.forget import forget_users
    from sparkcf.jobs.maintain import maintain

    with session(memory="4g") as spark, tempfile.TemporaryDirectory() as folder:
        lake, ids = filled(spark, Path(folder), size)
        chosen = np.random.default_rng(1).permutation(ids)[: rounds * given.users].reshape(rounds, -1)
        plain, ours = [], []
        for turn, users in enumerate(chosen.tolist()):
            plain.append(rewritten(spark, lake, users, Path(folder, f"rewritten-{turn}")))
            config = load_config(
                (), [f"ds={DAY}", "input.path=none", f"lake.root={lake}", f"forget.users=[{','.join(users)}]"]
            )
            ours.append(clock(lambda config=config: forget_users(spark, config)))
        before = files_naming(Path(lake), chosen.ravel().tolist())
        purge = load_config((), [*base(lake), "maintain.purge_hours=0"])
        purged = clock(lambda: maintain(spark, purge))
        left = files_naming(Path(lake), chosen.ravel().tolist())
    print(f"\n{len(ids):,} users; {given.users} of them go in each of {rounds} rounds")
    rows = [("rewriting the files that name them", Times(tuple(plain))), ("the forget job", Times(tuple(ours)))]
    print_table(("", "seconds: median (least–greatest)"), [*rows, ("maintain, at the end", f"{purged:.3g}")])
    print(f"{before} files name them before maintain, {left} after")
    ratio = Times(tuple(ours)).median / Times(tuple(plain)).median
    goals = [
        Goal("files that name a forgotten user after maintain", left, 0, at_least=False),
        Goal("forget ÷ rewriting the files that name them", ratio, 3.0, at_least=False),
    ]
    finish("forget", size, goals)


if __name__ == "__main__":
    main()
