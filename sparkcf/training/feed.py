"""Batches of rows for one rank: every row once an epoch, and the same number of steps at every rank.

    files ──assigned to ranks──▶ petastorm (one thread, ahead of the training) ──pool──shuffled──▶ batches

A rank's rows are cut into as many batches as the rank with most rows needs; their sizes differ by at most one row. So
every rank takes part in every step, and no row is dropped or repeated where numbers do not divide. Row counts are read
from the files' footers, so every rank knows them for all ranks without communication.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlparse

import numpy as np
from numpy.typing import NDArray

from sparkcf.data.packed import NO_ROWS, PackedRows, join, unpack
from sparkcf.errors import LakeError, first_line
from sparkcf.lake.folder import Folder

POOL_BATCHES = 8  # batches' worth of rows held for shuffling, besides the row groups being read
AHEAD = 2  # row groups read ahead
COLUMNS = ("items", "values")


@dataclass(frozen=True)
class Batch:
    """One step.

    rows : this rank's rows.
    total : number of rows of all ranks.
    """

    rows: PackedRows
    total: int


class Feed(Protocol):
    """A source of batches. `steps`: batches in an epoch, the same at every rank."""

    steps: int

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, in an order that depends only on the seed and the epoch's number."""


def step_counts(sizes: Sequence[int], batch: int) -> NDArray[np.int64]:
    """How many rows each rank takes in each step, (ranks, steps).

    Parameters
    ----------
    sizes : rows of each rank.
    batch : most rows a rank takes in a step.

    Three ranks of 5, 4 and 0 rows with batch 2: [[1, 2, 2], [1, 1, 2], [0, 0, 0]].
    """
    steps = -(-max(sizes, default=0) // batch)
    if not steps:
        return np.zeros((len(sizes), 0), np.int64)
    ends = np.arange(steps + 1)[None, :] * np.asarray(sizes, np.int64)[:, None] // steps
    return np.diff(ends, axis=1)


class MemoryFeed:
    """A feed over rows in this process."""

    def __init__(self, rows: PackedRows, batch: int, seed: int, rank: int = 0, size: int = 1) -> None:
        self._rows = rows.take(np.arange(rank, len(rows), size))
        self._counts = step_counts([len(range(r, len(rows), size)) for r in range(size)], batch)
        self._rank, self._seed = rank, seed
        self.steps = self._counts.shape[1]

    def epoch(self, number: int) -> Iterator[Batch]:
        order = generator(self._seed, number, self._rank).permutation(len(self._rows))
        ends = np.cumsum(self._counts[self._rank])
        for end, count, total in zip(ends, self._counts[self._rank], self._counts.sum(axis=0), strict=True):
            yield Batch(self._rows.take(order[end - count : end]), int(total))


class PetastormFeed:
    """A feed over the files of a snapshot of packed rows, a row group at a time.

    Parameters
    ----------
    files : addresses of the live files, the same list in the same order at every rank. Never a folder: it may hold
        dead files, and petastorm unpickles a `_common_metadata` that it finds there.
    id_column : name of the column of row ids.
    batch : most rows a rank takes in a step.
    repeats : the same epoch is read every time, as for validation; else the next epoch is read ahead.

    Raises
    ------
    LakeError
        A file is missing or not Parquet.
    """

    def __init__(
        self,
        files: Sequence[str],
        id_column: str,
        batch: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        repeats: bool = False,
    ) -> None:
        self._repeats = repeats
        self._ahead: tuple[int, _Reading] | None = None
        self._id, self._seed, self._rank = id_column, seed, rank
        assigned: list[list[tuple[str, int]]] = [[] for _ in range(size)]
        for address, n in sorted(_row_counts(files), key=lambda counted: -counted[1]):
            # Greedy: the largest file goes to the rank with the fewest rows.
            smallest = min(assigned, key=lambda of_rank: (sum(m for _, m in of_rank), len(of_rank)))
            smallest.append((address, n))
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._files = [self._local_copy(address) for address, _ in assigned[rank]]
        self._counts = step_counts([sum(n for _, n in of_rank) for of_rank in assigned], batch)
        self.steps = self._counts.shape[1]

    def _local_copy(self, address: str) -> str:
        """A local path of the file with a plain name: petastorm's own access to object stores is broken."""
        path = local_path(address)
        if path is not None and not set("#?;") & set(path):
            return path
        self._local = self._local or tempfile.TemporaryDirectory(prefix="sparkcf-feed-")
        folder, name = _place(address)
        copy = str(Path(self._local.name, f"{len(os.listdir(self._local.name))}.parquet"))
        folder.copy_to(name, copy)
        return copy

    def close(self) -> None:
        """Stop reading and remove local copies."""
        if self._ahead:
            self._ahead[1].close()
            self._ahead = None
        if self._local:
            self._local.cleanup()

    def epoch(self, number: int) -> Iterator[Batch]:
        counts, totals = self._counts[self._rank], self._counts.sum(axis=0)
        random = generator(self._seed, number, self._rank, 1)
        reading, pool, left = self._begin(number), NO_ROWS, int(counts.sum())
        try:
            for step, (count, total) in enumerate(zip(counts, totals, strict=True)):
                wanted = int(counts[step:][:POOL_BATCHES].sum())
                if len(pool) < max(int(count), wanted // 2):
                    before = len(pool)
                    pool = _filled(pool, reading, wanted)
                    left -= len(pool) - before
                    pool = pool.take(random.permutation(len(pool)))
                if len(pool) < count:
                    raise LakeError("a snapshot's files have fewer rows than their footers say: prepare it again")
                if not left and self._ahead is None:  # opening files takes longer than reading them
                    following = number if self._repeats else number + 1
                    self._ahead = following, self._begin(following)
                yield Batch(pool.take(slice(0, int(count))), int(total))
                pool = pool.take(slice(int(count), len(pool)))
        finally:
            reading.close()

    def _begin(self, number: int) -> _Reading:
        """The row groups of an epoch, in an order that does not depend on threads."""
        if self._ahead:
            ahead, reading = self._ahead
            self._ahead = None
            if ahead == number:
                return reading
            reading.close()
        order = generator(self._seed, number, self._rank, 0).permutation(len(self._files))
        return _Reading([self._files[i] for i in order], self._id)


def _filled(pool: PackedRows, reading: _Reading, wanted: int) -> PackedRows:
    """The pool with row groups added until it has `wanted` rows or none are left."""
    parts = [pool]
    while sum(map(len, parts)) < wanted and (group := reading.next()) is not None:
        parts.append(group)
    return join(parts)


class _Reading:
    """Reads row groups in a thread, a few ahead of the consumer."""

    def __init__(self, files: Sequence[str], id_column: str) -> None:
        self._over = not files
        self._ready: queue.Queue[PackedRows | BaseException | None] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(files, id_column), daemon=True)
        if files:
            self._thread.start()

    def next(self) -> PackedRows | None:
        """The next row group; None after the last. Raises the thread's error."""
        group = None if self._over else self._ready.get()
        self._over = not isinstance(group, PackedRows)
        if isinstance(group, BaseException):
            raise group
        return group

    def close(self) -> None:
        """End the thread; it must not be alive when the process ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _read(self, files: Sequence[str], id_column: str) -> None:
        last: BaseException | None = None
        try:
            for group in read_groups(files, id_column):
                if not self._put(group):
                    return
        except BaseException as error:  # raised again by `next`
            last = error
        self._put(last)

    def _put(self, group: PackedRows | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(group, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


def read_groups(files: Sequence[str], id_column: str) -> Iterator[PackedRows]:
    """The row groups of local files, in order, read by petastorm."""
    # Warnings about petastorm's old calls. Not restored: resetting filters is not safe in a thread.
    for module in ("petastorm", "pyarrow"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    from petastorm import make_batch_reader

    reader = make_batch_reader(
        [f"file://{path}" for path in files],  # petastorm does not decode it
        schema_fields=[f"^{name}$" for name in (id_column, *COLUMNS)],
        reader_pool_type="thread",
        workers_count=1,  # more would deliver in no fixed order
        results_queue_size=1,
        shuffle_row_groups=False,
        num_epochs=1,
        cache_type="null",
    )
    with reader:
        for group in reader:
            yield unpack(getattr(group, id_column), *(getattr(group, name) for name in COLUMNS))


def _row_counts(files: Sequence[str]) -> list[tuple[str, int]]:
    """The files that have rows, with the row counts of their footers."""
    import pyarrow.parquet as pq

    counts = []
    for address in files:
        try:
            folder, name = _place(address)
            with folder.open(name) as file:
                counts.append((address, pq.read_metadata(file).num_rows))
        except (OSError, ValueError) as error:
            first = first_line(error)
            raise LakeError(f"{address} cannot be read: {first}; if a VACUUM removed it, train again") from None
    return [(address, n) for address, n in counts if n]


def _place(address: str) -> tuple[Folder, str]:
    folder, _, name = (local_path(address) or unquote(address)).rpartition("/")
    return Folder(folder or "/"), name


def local_path(address: str) -> str | None:
    """The path of a percent-encoded file: address; None for any other."""
    parsed = urlparse(address)
    return unquote(parsed.path) if parsed.scheme == "file" else None


def generator(seed: int, *more: int) -> np.random.Generator:
    """Random generator seeded by these numbers."""
    return np.random.default_rng([seed, *more])
