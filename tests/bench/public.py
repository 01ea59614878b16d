"""Public data sets as they come: at most six lines of YAML each, and a whole night.

    python -m tests.bench.public [--only NAME]

Four are read from ../shared/data. The others are made up in the formats of well-known sets: play counts without
timestamps (Last.fm), ratings separated by spaces (FilmTrust), purchases without header (Steam), check-ins (Gowalla).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.report import Goal, finish

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
LINES = 6


@dataclass(frozen=True)
class DataSet:
    """A day, what a user writes for the data set, and where the file is: a path, or what writes it."""

    ds: str
    yaml: str
    file: str | Callable[[Path], Path]


def tastes(users: int = 600, items: int = 400) -> Iterator[tuple[int, int, int]]:
    """(user, item, strength): users of four tastes, items of which some are popular with all."""
    rng = np.random.default_rng(5)
    popular = rng.zipf(1.8, items).clip(1, 20)
    for user in range(users):
        weights = popular * np.where(np.arange(items) % 4 == user % 4, 40.0, 1.0)
        for item in rng.choice(items, rng.integers(8, 30), replace=False, p=weights / weights.sum()).tolist():
            yield user, item, int(1 + rng.integers(0, 3) + 2 * (item % 4 == user % 4))


def written(name: str, head: str, line: Callable[[int, int, int], str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_text(head + "".join(line(*row) + "\n" for row in tastes()))
        return path

    return write


DATASETS = {
    "ml-100k": DataSet(
        "1998-04-23",
        """
input: {path: PATH, delimiter: "\\t", header: false, names: [user, item, rating, time], ts_formats: [epoch_s],
  columns: {user_id: user, item_id: item, value: rating, ts: time}}
preference: {positive_from: 4}
""",
        "ml-100k/u.data",
    ),
    "ml-1m": DataSet(
        "2003-03-01",
        """
input: {path: PATH, delimiter: "::", header: false, names: [user, item, rating, time], ts_formats: [epoch_s],
  columns: {user_id: user, item_id: item, value: rating, ts: time}}
preference: {positive_from: 4}
""",
        "ml-1m/ratings.dat.gz",
    ),
    "ml-latest-small": DataSet(
        "2018-09-25",
        """
input: {path: PATH, ts_formats: [epoch_s],
  columns: {user_id: userId, item_id: movieId, value: rating, ts: timestamp}}
preference: {positive_from: 4}
""",
        "ml-latest-small/ratings.csv",
    ),
    "ml-latest-small-dirty": DataSet(
        "2018-09-25",
        """
input: {path: PATH, format: jsonl, ts_formats: [iso8601, epoch_s, epoch_ms],
  columns: {event: event, value: value}}
preference: {positive_from: 4}
clean: {max_quarantined_share: 0.7}
""",
        "ml-latest-small-dirty/events.jsonl.gz",
    ),
    "like Last.fm": DataSet(
        "2024-01-31",
        """
input: {path: PATH, delimiter: "\\t",
  columns: {user_id: userID, item_id: artistID, value: weight, ts: null}}
preference: {weight: log}
""",
        written("user_artists.dat", "userID\tartistID\tweight\n", lambda u, i, s: f"{u}\t{i}\t{7**s}"),
    ),
    "like FilmTrust": DataSet(
        "2024-01-31",
        """
input: {path: PATH, delimiter: " ", header: false, names: [user_id, item_id, rating],
  columns: {value: rating, ts: null}}
preference: {positive_from: 3}
""",
        written("ratings.txt", "", lambda u, i, s: f"{u} {i} {s * 0.8:.1f}"),
    ),
    "like Steam": DataSet(
        "2024-01-31",
        """
input: {path: PATH, header: false, names: [user_id, item_id, event, hours, zero], events: {purchase: 1, play: 2},
  columns: {event: event, value: hours, ts: null}}
preference: {weight: event}
""",
        written(
            "steam-200k.csv",
            "",
            lambda u, i, s: f'{u},"Game {i}, the",purchase,1.0,0\n{u},"Game {i}, the",play,{s * 3.5},0',
        ),
    ),
    "like Gowalla": DataSet(
        "2010-10-24",
        """
input: {path: PATH, delimiter: "\\t", header: false, names: [user_id, ts, latitude, longitude, item_id]}
""",
        written(
            "totalCheckins.txt",
            "",
            lambda u, i, s: (
                f"{u}\t2010-{1 + (u * 7 + i) % 9:02}-{1 + (u + i * 5) % 28:02}T{i % 24:02}:00:00Z\t1\t2\t{i}"
            ),
        ),
    ),
}


def settings(data: DataSet, path: Path, folder: Path) -> Path:
    """The user's file."""
    text = data.yaml.strip().replace("PATH", f"'{path}'")
    assert len(text.splitlines()) <= LINES
    file = folder / "mine.yaml"
    file.write_text(text + "\n")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=DATASETS, action="append")
    only = parser.parse_args().only

    from sparkcf.config.load import load_config
    from sparkcf.jobs.nightly import nightly
    from sparkcf.jobs.session import open_session, stop_session

    spark, _ = open_session()
    results = []
    for name in only or DATASETS:
        data = DATASETS[name]
        with tempfile.TemporaryDirectory() as given:
            folder = Path(given)
            path = data.file(folder) if callable(data.file) else SHARED / data.file
            file = settings(data, path, folder)
            began = time.perf_counter()
            config = load_config(("conf/nightly.yaml", str(file)), [f"ds={data.ds}", f"lake.root={folder}/lake"])
            told = nightly(spark, config)
            seconds = time.perf_counter() - began
            lines = len(file.read_text().splitlines())
        figures, counts = told["figures"], told["counts"]
        row = {"data": name, "lines": lines, "seconds": round(seconds, 1)}
        row |= {key: counts[key] for key in ("read", "clean", "quarantined")}
        row |= {system: figures[f"{system}:ndcg_at_k@100"] for system in ("model", "popularity")}
        results.append(row)
        print(" · ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    stop_session(spark)
    losing = [row["data"] for row in results if row["model"] <= row["popularity"]]
    finish("public", "as they come", [Goal("data sets on which popularity wins", float(len(losing)), 0.0, False)])


if __name__ == "__main__":
    main()
