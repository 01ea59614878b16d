"""What keeps Delta tables small: compaction, VACUUM, and logs that begin at a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparkcf.lake.damage import ASIDE
from sparkcf.lake.frames import one_row
from sparkcf.lake.sizing import query_settings
from sparkcf.lake.tables import LakeTables, retry_conflicts

# Tables that grow by small commits. The others' files are made to measure: sorted, or one row group each.
COMPACTED = ("interactions", "quarantine", "users", "items", "features", "runs", "metrics", "published", "comparisons")


def compact(tables: LakeTables, name: str) -> int:
    """Join a table's small files into larger ones; returns how many fewer there are. The rows stay the same."""

    def optimize() -> int:
        metrics = tables.table(name).optimize().executeCompaction()
        row = one_row(metrics.select("metrics.numFilesRemoved", "metrics.numFilesAdded"))
        return int(row[0]) - int(row[1])

    return retry_conflicts(f"compact {name}", optimize)


def vacuum(tables: LakeTables, name: str, hours: float) -> None:
    """Remove the files that no version of the last hours needs, and those that no commit names."""
    path = tables.path(name).replace("`", "``")
    with query_settings(tables.spark, _vacuum_settings(tables.spark)), _quiet_console(tables.spark):
        retry_conflicts(
            f"vacuum {name}", lambda: tables.spark.sql(f"VACUUM delta.`{path}` RETAIN {hours:.3f} HOURS").collect()
        )


def seal(tables: LakeTables, name: str) -> int:
    """Commit nothing and write a checkpoint of it; returns its version.

    The log before it can then be removed: the checkpoint holds the whole table, and its own commit changed nothing.
    """
    tables.append(name, tables.read(name).limit(0))
    log, none = tables.delta_log(name), tables.no_option()
    snapshot = log.update(False, none, none)
    log.checkpoint(snapshot, none)
    return int(snapshot.version())


def drop_log_before(tables: LakeTables, name: str, version: int) -> None:
    """Remove the log's files of versions before a sealed one: such versions can no longer be read.

    Oldest first, so that what a killed job leaves is a log that can be read.
    """
    files, folder = tables.log(name)
    old = []
    for part in files.listStatus(folder):
        number = re.match(r"\d{20}", part.getPath().getName())
        if number and int(number[0]) < version:
            old.append(part.getPath())
    for path in sorted(old, key=lambda path: str(path.getName())):
        files.delete(path, False)


def drop_damaged(tables: LakeTables, name: str) -> None:
    """Remove the damaged files that `sparkcf doctor --repair` has set aside."""
    files, folder = tables.log(name)
    jvm: Any = tables.spark._jvm
    files.delete(jvm.org.apache.hadoop.fs.Path(folder.getParent(), ASIDE), True)


def stored_bytes(tables: LakeTables, name: str) -> int:
    """Bytes of all files below the table's folder."""
    files, folder = tables.log(name)
    return int(files.getContentSummary(folder.getParent()).getLength()) if files.exists(folder) else 0


def _vacuum_settings(spark: Any) -> dict[str, str]:
    """Settings of Spark for a VACUUM.

    Delta refuses retentions below the table's own, which guards against hours in the wrong unit. It lists a table's
    folders by 10,000 tasks unless it is told otherwise.
    """
    return {
        "spark.databricks.delta.retentionDurationCheck.enabled": "false",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(4 * spark.sparkContext.defaultParallelism),
    }


@contextmanager
def _quiet_console(spark: Any) -> Iterator[None]:
    """Keep what Delta prints during a VACUUM out of the job's output, whose last line is for machines."""
    jvm = spark.sparkContext._jvm
    console, before = jvm.scala.Console, jvm.scala.Console.out()
    console.setOut(jvm.java.io.PrintStream(jvm.java.io.OutputStream.nullOutputStream()))
    try:
        yield
    finally:
        console.setOut(before)
