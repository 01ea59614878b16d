"""How large a cluster a night needs: core-hours, memory and disk from measured costs, and what breaks first.

The costs are those of docs/measured.md, on the cores of one machine: a guide to the order of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Core-seconds.
CLEAN_ROW = 19e-6  # a raw CSV row to the committed tables
BLOCK_PAIR = 2.2e-6  # a pair, from Delta into its two blocks
SWEEP_PAIR, SWEEP_PAIR_RANK = 90e-9, 2.6e-9  # a pair in a sweep of both sides by CG of 3 steps, and by rank
SCORE_RANK, SCORE = 40e-12, 1.4e-9  # a user's score of an item, by rank, and its selection and writing
# Bytes on disk, compressed.
EVENT_BYTES, LIST_BYTES = 20, 9  # a clean event; an entry of a list
PYTHON_BYTES = 0.7e9  # of a worker's process without data
MOST_INDICES = 2**31 - 1  # of 32-bit dense indices
ROW = ["part", "name", "core_hours", "hours", "needs", "has", "unit", "cure"]
LOG_FILES = 1e6  # live files of a Delta table whose log a driver still lists in minutes
FILE_BYTES = 128e6


@dataclass(frozen=True)
class Load:
    """What a night has to do. A day's events are cleaned; all events train."""

    interactions: float
    day: float
    users: float
    items: float
    rank: int = 64
    sweeps: int = 15
    k: int = 100
    models: int = 1


@dataclass(frozen=True)
class Cluster:
    """Executors of equal size, one worker each, and the driver."""

    cores: int
    executor_cores: int
    executor_bytes: float
    driver_bytes: float

    @property
    def workers(self) -> int:
        return max(1, self.cores // self.executor_cores)


@dataclass(frozen=True)
class Step:
    """A step of the night. `hours`: on the whole cluster."""

    step: str
    core_hours: float
    hours: float


@dataclass(frozen=True)
class Limit:
    """Something that the night needs, and how much of it there is. `cure`: what to change where it is too little."""

    what: str
    needs: float
    has: float
    unit: str
    cure: str

    @property
    def share(self) -> float:
        return self.needs / self.has


def steps(load: Load, cluster: Cluster) -> list[Step]:
    """Time of every step. The evaluation fits the train part once more and ranks for a tenth of the users."""
    sweep = load.interactions * (SWEEP_PAIR + SWEEP_PAIR_RANK * load.rank)
    fit = load.interactions * BLOCK_PAIR + load.sweeps * sweep
    lists = load.users * load.items * (SCORE + SCORE_RANK * load.rank)
    similar = load.items * load.items * (SCORE + SCORE_RANK * load.rank)
    of_models = {"train": fit, "evaluate": fit + lists / 10, "recommend": lists, "similar items": similar}
    seconds = {"clean": load.day * CLEAN_ROW} | {name: load.models * each for name, each in of_models.items()}
    return [Step(name, each / 3600, each / 3600 / cluster.cores) for name, each in seconds.items()]


def limits(load: Load, cluster: Cluster, worker_bytes: Callable[[int, int, int, int, int], int]) -> list[Limit]:
    """What the night needs of memory, disk and numbers, the scarcest first: that breaks first.

    Parameters
    ----------
    worker_bytes : `training.blocks.worker_bytes`.
    """
    found = list(_limits(load, cluster, worker_bytes))
    return sorted(found, key=lambda limit: -limit.share)


def _limits(load: Load, cluster: Cluster, worker_bytes: Callable[..., int]) -> Iterator[Limit]:
    gb, workers = 1e9, cluster.workers
    sizes = (int(load.interactions), int(load.users), int(load.items), load.rank)
    worker = PYTHON_BYTES + worker_bytes(*sizes, workers)
    received = PYTHON_BYTES + 8 * load.rank * max(load.users, load.items)
    if received > cluster.executor_bytes:
        cure = "no number of workers helps: each receives the vectors of the larger side; lower rank, or train a window"
    else:
        cure = "more executors (als.workers), or larger ones"
    yield Limit("memory of a worker", worker / gb, cluster.executor_bytes / gb, "GB", cure)
    item_side = 4 * (load.rank + 1) * load.items
    yield Limit(
        "memory of the driver: item vectors",
        item_side / gb,
        cluster.driver_bytes / gb,
        "GB",
        "a larger --driver-memory; lists themselves need one slice of the items in memory at a time",
    )
    largest = max(load.users, load.items)
    yield Limit("dense indices", largest, MOST_INDICES, "ids", "none: 2,147,483,647 users or items at most")
    files = load.interactions * EVENT_BYTES / FILE_BYTES
    yield Limit(
        "files in interactions' log",
        files,
        LOG_FILES,
        "files",
        "train.window_days, and drop or archive old days of interactions",
    )
    shuffle = 2 * 25 * load.interactions / workers
    yield Limit(
        "scratch disk of an executor",
        shuffle / gb,
        1000,
        "GB",
        "more executors, or spark.local.dir on disks above 1 TB",
    )


def as_rows(steps: list[Step], limits: list[Limit], lake_gb: float) -> list[dict[str, float | str | None]]:
    """ROW for every step, every limit and the lake, unrounded."""
    none = dict.fromkeys(ROW)
    found = [{**none, "part": "step", "name": s.step, "core_hours": s.core_hours, "hours": s.hours} for s in steps]
    found += [
        {**none, "part": "limit", "name": x.what, "needs": x.needs, "has": x.has, "unit": x.unit, "cure": x.cure}
        for x in limits
    ]
    return [*found, {**none, "part": "lake", "name": "growth", "needs": lake_gb, "unit": "GB"}]


def lake_bytes(load: Load) -> float:
    """Bytes that the lake grows by the events, and by one night's runs: factors, lists and similar items."""
    a_run = 4 * load.rank * (load.users + load.items) + LIST_BYTES * (load.k * load.users + 20 * load.items)
    return load.interactions * EVENT_BYTES + load.models * a_run
