"""Packs interactions into one row per user or per item, in files that training distributes evenly over its processes.

pairs ──to files, by index──▶ one row per user: indices and values as bytes ──▶ user_rows, a snapshot
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.data.partitions import partition_keys
from sparkcf.data.split import uniform
from sparkcf.errors import LakeError
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import step

SIDES = {"user": "item", "item": "user"}
LEAST_ROWS = 500  # in a file: opening a smaller one takes longer than reading it
MOST_ROWS = 16_384
MOST_EXAMPLES = 131_072
EVEN_FILES = 64  # at least, where there are enough rows: then many ranks get even shares
KEPT = 3  # snapshots beside the newest
PACKED = "{side}_idx int, items binary, values binary, count int, split string"


@dataclass(frozen=True)
class Snapshot:
    """The packed rows of one side: the files of one table version, by split."""

    side: str
    name: str
    version: int
    train: tuple[str, ...]
    validation: tuple[str, ...]


def snapshot_name(ds: dt.date, versions: Mapping[str, int], shaping: Mapping[str, Any]) -> str:
    """Name of a snapshot: logical date, version, and a digest of the inputs and of the parameters that shape rows."""
    digest = hashlib.sha256(json.dumps([versions, shaping], sort_keys=True).encode()).hexdigest()[:12]
    return f"{ds}-v{versions['interactions']:06}-{digest}"


@dataclass(frozen=True)
class Packing:
    """Packs the training data of a fit into the lake under one snapshot name, and lists the snapshot's files.

    A snapshot is one commit: it exists in whole or not at all. An existing snapshot is not written again.
    """

    tables: LakeTables
    name: str
    seed: int

    def rows(self, pairs: DataFrame, side: str, validation_share: float = 0.0) -> Snapshot:
        """Pack pairs (user_idx, item_idx, value) into `user_rows` or `item_rows`, a share of them for validation."""
        if not self._exists(side):
            with step(f"pack {side} rows", self.tables.spark):
                self._write(side, pack_rows(pairs, side, validation_share, self.seed))
        return self.find(side)

    def examples(self, examples: DataFrame, n: int) -> Snapshot:
        """Pack n examples (user_idx, key, features, values) into `example_rows`.

        `key` decides a row's file and its place in the file.
        """
        if not self._exists("example"):
            with step("pack examples", self.tables.spark):
                files = max(-(-n // MOST_EXAMPLES), min(-(-n // LEAST_ROWS), EVEN_FILES), 1)
                place = F.array(*map(F.lit, partition_keys(files)))[F.pmod("key", F.lit(files)).cast("int")]
                in_files = examples.repartition(files, place).sortWithinPartitions("key")
                packed = in_files.select("user_idx", "features", "values", F.lit("train").alias("split"))
                self._write("example", packed.mapInArrow(_pack, PACKED.format(side="user")))
        return self.find("example")

    def find(self, side: str) -> Snapshot:
        """The live files of the snapshot. Raises LakeError if it has no row to train on."""
        version = self.tables.version(f"{side}_rows")
        files = self.tables.live_files(f"{side}_rows", {"snapshot": self.name}, version)
        train, validation = (tuple(sorted(f for f in files if f"/split={s}/" in f)) for s in ("train", "validation"))
        if not train:
            raise LakeError(
                f"snapshot {self.name} of {side}_rows has no row to train on: run jobs/prepare.py, or look at counts"
            )
        return Snapshot(side, self.name, version, train, validation)

    def read(self, snapshot: Snapshot) -> DataFrame:
        """All rows of a snapshot, at the snapshot's version of the table."""
        return self._read(snapshot.side, snapshot.version)

    def count(self, side: str) -> int:
        return self._read(side).count()

    def drop(self) -> None:
        """Remove the snapshot."""
        for side in (*SIDES, "example"):
            if self._exists(side):
                self.tables.replace(f"{side}_rows", self._read(side).limit(0), f"snapshot = '{self.name}'")

    def _read(self, side: str, version: int | None = None) -> DataFrame:
        return self.tables.read(f"{side}_rows", version).where(F.col("snapshot") == self.name)

    def _exists(self, side: str) -> bool:
        return self.tables.exists(f"{side}_rows") and not self._read(side).isEmpty()

    def _write(self, side: str, rows: DataFrame) -> None:
        """Write the snapshot and remove all but KEPT others. Readers are safe: they pinned a table version."""
        table = f"{side}_rows"
        self.tables.replace(table, rows.withColumn("snapshot", F.lit(self.name)), f"snapshot = '{self.name}'")
        written = self.tables.read(table)
        names = sorted((row[0] for row in written.select("snapshot").distinct().collect()), reverse=True)
        if old := [name for name in names if name != self.name][KEPT:]:
            listed = ", ".join(f"'{name}'" for name in old)
            self.tables.replace(table, written.limit(0), f"snapshot IN ({listed})")


def pack_rows(pairs: DataFrame, side: str, validation_share: float, seed: int) -> DataFrame:
    """One row per user (or item): idx, items, values, count, split; each partition becomes a file per split.

    Parameters
    ----------
    pairs : user_idx, item_idx, value, one row per pair.
    validation_share : share of the rows, by hash; only rows of two or more entries, since validation folds some in and
        ranks the rest.
    """
    idx, other = f"{side}_idx", f"{SIDES[side]}_idx"
    n = pairs.select(idx).distinct().count()
    files = max(-(-n // MOST_ROWS), min(-(-n // LEAST_ROWS), EVEN_FILES), 1)
    place = F.array(*map(F.lit, partition_keys(files)))[F.col(idx) % files]
    entry = F.struct(F.col(other).cast("int").alias("other"), F.col("value").cast("float").alias("value"))
    # Grouping by file and row avoids a second shuffle; files by index have even lengths.
    grouped = pairs.withColumn("place", place).repartition(files, "place").groupBy("place", idx)
    listed = grouped.agg(F.sort_array(F.collect_list(entry)).alias("row"))
    held = held_out(side, validation_share, seed) & (F.size("row") > 1)
    split = F.when(held, "validation").otherwise("train").alias("split")
    return listed.select(idx, "row.other", "row.value", split).mapInArrow(_pack, PACKED.format(side=side))


def held_out(side: str, validation_share: float, seed: int) -> Column:
    """Whether a side's row of two entries and more is kept for validation, by a hash of its index."""
    return uniform(seed, f"{side}-validation", F.col(f"{side}_idx")) < validation_share


def _pack(batches: Iterable[Any]) -> Iterator[Any]:
    """Lists of numbers as bytes."""
    import pyarrow as pa

    for batch in batches:
        other, value = batch.column(1), batch.column(2)
        offsets = np.concatenate([[0], np.cumsum(other.value_lengths().to_numpy())])
        if offsets[-1] * 4 >= 2**31:
            raise ValueError("a batch of rows is larger than 2 GiB: lower spark.sql.execution.arrow.maxRecordsPerBatch")
        data = [
            pa.Array.from_buffers(
                pa.binary(),
                len(batch),
                [None, pa.py_buffer((offsets * 4).astype(np.int32)), pa.py_buffer(np.ascontiguousarray(flat, dtype))],
            )
            for flat, dtype in (
                (other.flatten().to_numpy(zero_copy_only=False), np.int32),
                (value.flatten().to_numpy(zero_copy_only=False), np.float32),
            )
        ]
        counts = pa.array(np.diff(offsets).astype(np.int32))
        names = [batch.schema.names[0], "items", "values", "count", "split"]
        yield pa.RecordBatch.from_arrays([batch.column(0), *data, counts, batch.column(3)], names=names)
