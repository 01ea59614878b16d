"""The prepare job: interactions packed into a row a user and a row an item, in files that training deals out evenly.

pairs ──dealt to files by index──▶ one row a user: indices and values as bytes ──▶ user_rows, a snapshot
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.root import Config
from sparkcf.data.pairs import pairs
from sparkcf.data.split import uniform
from sparkcf.errors import LakeError
from sparkcf.lake.runs import Run, start_run
from sparkcf.lake.tables import LakeTables
from sparkcf.progress import step
from sparkcf.training.shuffle import partition_keys

SIDES = {"user": "item", "item": "user"}
LEAST_ROWS = 500  # in a file: fewer cost more to open than to read
MOST_ROWS = 16_384
MOST_EXAMPLES = 131_072
EVEN_FILES = 64  # as many where there are rows enough, so that they can be dealt to many ranks evenly
KEPT = 3  # snapshots beside the newest
PACKED = "{side}_idx int, items binary, values binary, count int, split string"


@dataclass(frozen=True)
class Snapshot:
    """The packed rows of one side: the files of one table version, by split."""

    side: str
    name: str
    version: int
    train: list[str]
    validation: list[str]


def prepare(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Write `user_rows` and `item_rows` of the interactions up to `config.ds`. A second time nothing is written.

    Returns the snapshot's name and its rows by side.
    """
    from sparkcf.jobs.train import INPUTS, read_events

    tables = LakeTables(spark, config.lake.root)
    run = start_run(tables, "prepare", config, {name: tables.version(name) for name in INPUTS})
    try:
        name = snapshot_name(config, run)
        packed = pairs(read_events(tables, config, run), config)
        counts = {}
        for side in SIDES:
            write_rows(tables, packed, side, name, config)
            counts[f"{side}_rows"] = rows_of(tables, side, name).count()
    except BaseException as error:
        run.update("failed", reason=f"{type(error).__name__}: {error}"[:500])
        raise
    run.update("prepared", counts=counts)
    return {"run_id": run.run_id, "snapshot": name, "counts": counts}


def snapshot_name(config: Config, run: Run) -> str:
    """The same for the same interactions and the same parameters that shape rows: logical date, version, digest."""
    inputs = {name: run.row["inputs"][name] for name in ("interactions", "users", "items")}
    shaping = [inputs, config.seed, config.preference.model_dump(mode="json"), config.input.events, config.explicit]
    shaping.append(config.net.validation_share if config.net else 0.0)
    if config.model == "fm":
        shaping += [
            config.fm.model_dump(mode="json", include={"fields", "task"}),
            run.row["inputs"].get("features", -1),
        ]
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]
    return f"{config.ds}-v{inputs['interactions']:06}-{digest}"


def write_rows(tables: LakeTables, packed: DataFrame, side: str, name: str, config: Config) -> Snapshot:
    """The snapshot of one side, written unless it is there: a snapshot is one commit, so it is whole or not at all."""
    if not tables.exists(f"{side}_rows") or rows_of(tables, side, name).isEmpty():
        with step(f"pack {side} rows", tables.spark):
            share = config.net.validation_share if config.net and side == "user" else 0.0
            rows = pack_rows(packed, side, share, config.seed).withColumn("snapshot", F.lit(name))
            tables.replace(f"{side}_rows", rows, f"snapshot = '{name}'")
        _drop_oldest(tables, side, name)
    return find_snapshot(tables, side, name)


def write_examples(tables: LakeTables, examples: DataFrame, n: int, name: str) -> Snapshot:
    """The snapshot of `example_rows`, written unless it is there.

    Parameters
    ----------
    examples : user_idx, key, features, values; `key` says in which file and where in it a row stands. n : rows.
    """
    if not tables.exists("example_rows") or rows_of(tables, "example", name).isEmpty():
        with step("pack examples", tables.spark):
            files = max(-(-n // MOST_EXAMPLES), min(-(-n // LEAST_ROWS), EVEN_FILES), 1)
            place = F.array(*map(F.lit, partition_keys(files)))[F.pmod("key", F.lit(files)).cast("int")]
            dealt = examples.repartition(files, place).sortWithinPartitions("key")
            packed = dealt.select("user_idx", "features", "values", F.lit("train").alias("split"))
            rows = packed.mapInArrow(_pack, PACKED.format(side="user")).withColumn("snapshot", F.lit(name))
            tables.replace("example_rows", rows, f"snapshot = '{name}'")
        _drop_oldest(tables, "example", name)
    return find_snapshot(tables, "example", name)


def _drop_oldest(tables: LakeTables, side: str, newest: str) -> None:
    """Keep some snapshots beside the newest. Who reads one that goes has pinned a version, and so its files."""
    rows = tables.read(f"{side}_rows")
    names = sorted((row[0] for row in rows.select("snapshot").distinct().collect()), reverse=True)
    if old := [name for name in names if name != newest][KEPT:]:
        listed = ", ".join(f"'{name}'" for name in old)
        tables.replace(f"{side}_rows", rows.limit(0), f"snapshot IN ({listed})")


def find_snapshot(tables: LakeTables, side: str, name: str) -> Snapshot:
    """The live files of a snapshot. Raises LakeError where it has no row to train on."""
    version = tables.version(f"{side}_rows")
    files = tables.live_files(f"{side}_rows", {"snapshot": name}, version)
    split = {which: sorted(f for f in files if f"/split={which}/" in f) for which in ("train", "validation")}
    if not split["train"]:
        raise LakeError(
            f"snapshot {name} of {side}_rows has no row to train on: run jobs/prepare.py, or look at counts"
        )
    return Snapshot(side, name, version, split["train"], split["validation"])


def drop_rows(tables: LakeTables, side: str, name: str) -> None:
    """Remove a snapshot that nobody will train on again."""
    if tables.exists(f"{side}_rows"):
        rows = rows_of(tables, side, name)
        if not rows.isEmpty():
            tables.replace(f"{side}_rows", rows.limit(0), f"snapshot = '{name}'")


def rows_of(tables: LakeTables, side: str, name: str, version: int | None = None) -> DataFrame:
    return tables.read(f"{side}_rows", version).where(F.col("snapshot") == name)


def pack_rows(packed: DataFrame, side: str, validation_share: float, seed: int) -> DataFrame:
    """One row a user (or item): idx, items, values, count, split; each partition is to become a file a split.

    Parameters
    ----------
    packed : user_idx, item_idx, value, a row a pair. validation_share : of rows, by hash; only rows of two entries
        and more, since one cannot be both folded in and looked for.
    """
    idx, other = f"{side}_idx", f"{SIDES[side]}_idx"
    n = packed.select(idx).distinct().count()
    files = max(-(-n // MOST_ROWS), min(-(-n // LEAST_ROWS), EVEN_FILES), 1)
    place = F.array(*map(F.lit, partition_keys(files)))[F.col(idx) % files]
    entry = F.struct(F.col(other).cast("int").alias("other"), F.col("value").cast("float").alias("value"))
    # Grouped by file and row, so that Spark needs no second shuffle; files by index, so that they are of even length.
    grouped = packed.withColumn("place", place).repartition(files, "place").groupBy("place", idx)
    listed = grouped.agg(F.sort_array(F.collect_list(entry)).alias("row"))
    held = (uniform(seed, f"{side}-validation", F.col(idx)) < validation_share) & (F.size("row") > 1)
    split = F.when(held, "validation").otherwise("train").alias("split")
    return listed.select(idx, "row.other", "row.value", split).mapInArrow(_pack, PACKED.format(side=side))


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
