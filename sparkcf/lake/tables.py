"""The lake's tables: the only module that creates, reads and writes them with Spark."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from delta.tables import DeltaTable, DeltaTableBuilder
from py4j.java_gateway import JavaObject
from pyspark.sql import Column, DataFrame, SparkSession

from sparkcf.activity import activity
from sparkcf.errors import ConflictError, LakeError, first_line
from sparkcf.lake.format import FORMAT, PROPERTY
from sparkcf.lake.frames import one_row
from sparkcf.lake.log import DOCTOR, entry_problem
from sparkcf.lake.roots import resolve_root
from sparkcf.lake.schemas import TABLES, Table

ATTEMPTS = 6
PROPERTIES = {  # readable by every Delta client
    "delta.enableDeletionVectors": "false",
    "delta.columnMapping.mode": "none",
    "delta.deletedFileRetentionDuration": "interval 30 days",
    "delta.logRetentionDuration": "interval 90 days",
    PROPERTY: str(FORMAT),
}
CONFLICTS = ("Concurrent", "ProtocolChanged", "MetadataChanged")
UNFINISHED = "DELTA_TABLE_NOT_FOUND"  # Delta's error for a log folder without a commit
LONGEST_CHECKED = 1 << 20  # bytes; Delta itself refuses a longer entry that is cut within a line
ABANDONED_AFTER = 60  # seconds; creating a table takes about one
T = TypeVar("T")


class LakeTables:
    """Delta tables under one root, by name.

    Parameters
    ----------
    root : folder or address; see `resolve_root`.
    """

    def __init__(self, spark: SparkSession, root: str) -> None:
        self.spark = spark
        self.root = resolve_root(root)
        self._checked: dict[str, int] = {}  # by table, the newest version whose log entry is sound

    def path(self, name: str) -> str:
        return f"{self.root}/{TABLES[name].name}"

    def exists(self, name: str) -> bool:
        """Whether the table's log has a commit. A log folder without one is left by an unfinished creation."""
        return _committed(*self.log(name))

    def create(self, name: str) -> DeltaTable:
        """The table, created empty if it does not exist: with comments and constraints, in one commit."""

        def execute() -> None:
            _clear_abandoned(*self.log(name))
            self._builder(name).execute()

        if not self.exists(name):
            retry_conflicts(f"create table {name} in {self.root}", execute)
        self._newest(name)
        return self.table(name)

    def properties(self, name: str) -> dict[str, str]:
        """Properties of an existing table. Raises LakeError as `version`."""
        self._newest(name)
        none = self.no_option()
        found = self.delta_log(name).update(False, none, none).metadata().configuration()
        jvm: Any = self.spark._jvm
        return dict(jvm.scala.collection.JavaConverters.mapAsJavaMap(found))

    def log(self, name: str) -> tuple[JavaObject, JavaObject]:
        """Hadoop's file system of the table, and the path of the table's log."""
        jvm: Any = self.spark._jvm
        folder = jvm.org.apache.hadoop.fs.Path(self.path(name), "_delta_log")
        return folder.getFileSystem(self.spark._jsparkSession.sessionState().newHadoopConf()), folder

    def _builder(self, name: str) -> DeltaTableBuilder:
        table = TABLES[name]
        builder = DeltaTable.createIfNotExists(self.spark).location(self.path(name)).comment(table.comment)
        builder = builder.addColumns(table.schema)
        if table.partition_by:
            builder = builder.partitionedBy(*table.partition_by)
        constraints = {f"delta.constraints.{key}": condition for key, condition in table.constraints.items()}
        for key, value in (PROPERTIES | constraints).items():
            builder = builder.property(key, value)
        return builder

    def read(self, name: str, version: int | None = None) -> DataFrame:
        """Read the table at a version; an empty frame of its schema if the table does not exist yet.

        Raises LakeError as `version`.
        """
        if not self.exists(name):
            return self.spark.createDataFrame([], TABLES[name].schema)
        activity.note_read(self.path(name), version)
        reader = self.spark.read.format("delta")
        if version is None:
            self._newest(name)
        else:
            reader = reader.option("versionAsOf", version)
        return _explained(f"read table {name} version {version}", lambda: reader.load(self.path(name)))

    def live_files(self, name: str, partition: dict[str, str], version: int) -> list[str]:
        """Percent-encoded addresses of the files that hold a partition's rows in a version.

        Deleted or uncommitted files, which the folder may also hold, are not listed.
        """
        wanted = "/" + "/".join(f"{column}={value}" for column, value in partition.items()) + "/"
        files = _explained(f"list the files of {name}", lambda: self.read(name, version).inputFiles())
        # Delta returns Hadoop's paths, which are not encoded.
        return sorted(quote(file, safe=":/=") for file in files if wanted in file)

    def version(self, name: str) -> int:
        """The table's newest version; -1 if the table does not exist.

        Raises LakeError if the newest log entry is empty or cut: Delta takes an empty one for a version that changes
        nothing, so that its readers would silently see the version before.
        """
        return self._newest(name) if self.exists(name) else -1

    def _newest(self, name: str) -> int:
        """The newest version of a table that exists, whose log entry has been checked."""
        try:
            version = self._version(name)
        except Exception as error:
            version = _last_entry(*self.log(name))
            problem = self._problem(name, version) or first_line(error)
        else:
            problem = "" if self._checked.get(name) == version else self._problem(name, version)
        if problem:
            raise LakeError(
                f"cannot read table {name} of lake {self.root}: version {version} is corrupt, {problem}: {DOCTOR}"
            )
        self._checked[name] = version
        return version

    def _version(self, name: str) -> int:
        # Read from the log: the table's history would need a Spark job.
        none = self.no_option()
        return int(self.delta_log(name).update(False, none, none).version())

    def _problem(self, name: str, version: int) -> str:
        """What is wrong with a version's log entry; empty if nothing is, or if a checkpoint stands for it."""
        jvm: Any = self.spark._jvm
        files, folder = self.log(name)
        path = jvm.org.apache.hadoop.fs.Path(folder, f"{version:020}.json")
        if not files.exists(path) or files.getFileStatus(path).getLen() > LONGEST_CHECKED:
            return ""
        stream = files.open(path)
        try:
            content = jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8").encode()
        except Exception as error:  # such as a checksum of Hadoop's that does not agree
            return f"its log entry cannot be read: {first_line(error)}"
        finally:
            stream.close()
        return entry_problem(content)

    def delta_log(self, name: str) -> Any:
        """Delta's own object of the table's log."""
        jvm: Any = self.spark._jvm
        return jvm.org.apache.spark.sql.delta.DeltaLog.forTable(self.spark._jsparkSession, self.path(name))

    def no_option(self) -> Any:
        """Scala's None, for optional arguments of Delta's methods."""
        jvm: Any = self.spark._jvm
        return jvm.scala.Option.empty()

    def append(self, name: str, rows: DataFrame) -> None:
        self.create(name)
        selected = _select(TABLES[name], rows)
        _explained(f"append to {name}", lambda: selected.write.format("delta").mode("append").save(self.path(name)))
        activity.tables_written.add(self.path(name))

    def replace(self, name: str, rows: DataFrame, where: str) -> None:
        """Replace the rows that match `where` (literal partition predicates), in one commit."""
        self.create(name)
        writer = _select(TABLES[name], rows).write.format("delta").mode("overwrite").option("replaceWhere", where)
        retry_conflicts(f"replace {where} in {name}", lambda: writer.save(self.path(name)))
        activity.tables_written.add(self.path(name))

    def update(self, name: str, where: str, values: Mapping[str, Column]) -> None:
        """Change columns of the rows that match `where`, in one commit."""
        dtypes = {field.name: field.dataType for field in TABLES[name].schema.fields}
        cast: dict[str, str | Column] = {column: value.cast(dtypes[column]) for column, value in values.items()}
        retry_conflicts(f"update {name}", lambda: self.table(name).update(where, cast))
        activity.tables_written.add(self.path(name))

    def merge(self, name: str, source: DataFrame, same: str, *clauses: str) -> dict[str, int]:
        """MERGE `source` (s) into a table (t); returns the rows that this merge inserted, updated and deleted.

        Not repeated by itself: what `source` holds may depend on the table.
        """
        view = f"changes_{uuid.uuid4().hex}"
        source.createOrReplaceTempView(view)
        path = self.path(name).replace("`", "``")
        try:
            row = one_row(self.spark.sql(f"MERGE INTO delta.`{path}` t USING {view} s ON {same} {' '.join(clauses)}"))
        finally:
            self.spark.catalog.dropTempView(view)
        activity.tables_written.add(self.path(name))
        return {op: int(row[f"num_{op}_rows"]) for op in ("inserted", "updated", "deleted")}

    def table(self, name: str) -> DeltaTable:
        return DeltaTable.forPath(self.spark, self.path(name))


def sql_date(day: dt.date) -> str:
    return f"DATE'{day.isoformat()}'"


def retry_conflicts(what: str, write: Callable[[], T]) -> T:
    """Run a write, and repeat it if another writer's commit interferes. Raises ConflictError after ATTEMPTS."""
    for attempt in range(ATTEMPTS):
        try:
            return write()
        except Exception as error:
            if not is_conflict(error):
                raise LakeError(f"cannot {what}: {first_line(error)}") from error
            if attempt == ATTEMPTS - 1:
                raise ConflictError(
                    f"cannot {what}: other writers were first {ATTEMPTS} times; run again when they are done"
                ) from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def is_conflict(error: BaseException) -> bool:
    name = type(error).__name__
    java = getattr(error, "java_exception", None)
    return UNFINISHED in str(error) or any(
        c in name or (java is not None and c in java.getClass().getName()) for c in CONFLICTS
    )


def _committed(files: JavaObject, log: JavaObject) -> bool:
    # A listing, not a glob: a glob would interpret brackets in the lake's path.
    return files.exists(log) and any(part.getPath().getName()[:1].isdigit() for part in files.listStatus(log))


def _last_entry(files: JavaObject, log: JavaObject) -> int:
    names = (part.getPath().getName() for part in files.listStatus(log))
    return max(int(name[:20]) for name in names if name.endswith(".json") and name[:20].isdigit())


def _clear_abandoned(files: JavaObject, log: JavaObject) -> None:
    """Remove a log folder whose writer was killed before the table's first commit.

    With that folder Delta would refuse to create the table. Only the listed files are removed, and the folder only if
    it is empty then, so that a commit in between survives.
    """
    if not files.exists(log):
        return
    parts = list(files.listStatus(log))
    newest = max(part.getModificationTime() for part in (*parts, files.getFileStatus(log))) / 1000
    if _committed(files, log) or time.time() - newest < ABANDONED_AFTER:
        return
    for part in parts:
        files.delete(part.getPath(), False)
    files.delete(log, False)


def _select(table: Table, rows: DataFrame) -> DataFrame:
    missing = [c for c in table.schema.names if c not in rows.columns]
    if missing:
        raise LakeError(
            f"table {table.name} needs columns {table.schema.names}, found {rows.columns}: missing are {missing}"
        )
    return rows.select(*(rows[f.name].cast(f.dataType).alias(f.name) for f in table.schema.fields))


def _explained(what: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except LakeError:
        raise
    except Exception as error:
        raise LakeError(f"cannot {what}: {first_line(error)}") from error
