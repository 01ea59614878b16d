"""The tables of a lake, read without Spark: delta-rs reads Delta's log, pyarrow the parquet files.

Of a partitioned table only the files of the wanted partition are opened, and only the row groups whose statistics allow
the wanted key are read.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from sparkcf.errors import ConfigError, LakeError, NotFoundError, first_line
from sparkcf.lake.format import check_readable
from sparkcf.lake.log import DOCTOR, TableLog, entry_problem
from sparkcf.lake.roots import check_name, local_folder

TABLE_NAMES = tuple(
    "interactions quarantine users items features user_rows item_rows example_rows user_factors item_factors"
    " feature_factors item_concepts user_groups item_groups recommendations predictions similar_items runs metrics"
    " comparisons published forgotten".split()
)
# The columns that queries read; of a table that is not listed here, all columns.
COLUMNS = {
    "interactions": ("user_id", "item_id", "event", "value", "ts"),
    "users": ("user_id",),
    "items": ("item_id", "title"),
    "recommendations": ("user_id", "position", "item_id", "score", "reason"),
    "similar_items": ("item_id", "position", "similar_item_id", "score"),
    "published": ("model", "ds", "sequence", "run_id", "action", "published_by", "published_at"),
}
CURE = "run `make nightly` or jobs/nightly.py first"
PLAIN_FEATURES = {"timestampNtz"}  # reader features that do not change the meaning of the parquet files
Partition = Mapping[str, str]  # values of partition columns
Wanted = tuple[str, list[str]]  # a column and its wanted values


class LakeReader:
    """Read-only access to a lake's tables. Every call sees their newest state.

    Parameters
    ----------
    root : folder, `file:` address or address of an object store (`s3://…`, `abfss://…`).
    storage_options : credentials and settings of the object store for delta-rs.
    """

    def __init__(self, root: str | Path = "./lake", storage_options: dict[str, str] | None = None) -> None:
        if not str(root).strip():
            raise ConfigError("lake='': a folder or an address is needed")
        self.root = str(root)
        self.folder = local_folder(self.root)
        self.storage_options = storage_options
        check_name(self.root)

    def columns(self, name: str) -> list[str]:
        """The columns of a table."""
        return list(pa.schema(self.open(name).schema().to_arrow()).names)

    def has(self, name: str) -> bool:
        """Whether a table is there."""
        return bool(DeltaTable.is_deltatable(self.address(name), self.storage_options))

    def address(self, name: str) -> str:
        """Address of a table, in the form that delta-rs takes."""
        return os.path.join(self.folder, name) if self.folder else f"{self.root.rstrip('/')}/{name}"

    def open(self, name: str) -> DeltaTable:
        """Open the newest version of a table. Raises LakeError, or NotFoundError if the table does not exist yet."""
        what = f"table {name} of lake {self.root}"
        try:
            table = DeltaTable(self.address(name), storage_options=self.storage_options)
        except TableNotFoundError as error:
            raise self._absent(name, error) from None
        except Exception as error:
            raise LakeError(f"{what} cannot be read: {self._corrupt(name) or first_line(error)}: {DOCTOR}") from None
        if problem := self._corrupt(name, table.version()):
            raise LakeError(f"{what} cannot be read: {problem}: {DOCTOR}")
        check_readable(self.root, table.metadata().configuration)
        if features := foreign_features(table):
            raise LakeError(f"{what} uses {features}: only Spark reads that; drop the feature")
        return table

    def _corrupt(self, name: str, version: int | None = None) -> str:
        """What is wrong with the log entry of a version, by default the newest; empty if nothing is found.

        Without this check, an empty last entry of `published` would silently show the run before.
        """
        if self.folder is not None and version is not None:  # the usual query, which needs no listing
            path = os.path.join(self.folder, name, "_delta_log", f"{version:020}.json")
            content = Path(path).read_bytes() if os.path.exists(path) else None
            problem = entry_problem(content) if content is not None else ""
        else:
            log = TableLog(self.address(name), self.storage_options)
            version = max(log.versions(), default=None) if version is None else version
            problem = "" if version is None else log.problem(version)
        return problem and f"version {version} is corrupt, {problem}"

    def read(
        self,
        name: str,
        wanted: Wanted | None = None,
        partition: Partition | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """The rows of one partition whose column has one of the wanted values."""
        table = self.open(name)
        schema = self.schema_of(name, table, columns)
        pieces = [pa.table([pa.nulls(0, f.type) for f in schema], schema=schema)]
        for path in self.files(table, wanted, partition):
            with self.parquet(name, path) as file:
                pieces += _matching_rows(file, schema, wanted)
        return pa.concat_tables(pieces)

    def read_by_day(self, name: str, wanted: Wanted, columns: Sequence[str]) -> list[tuple[dt.date, pa.Table]]:
        """The wanted rows of a table partitioned by `ds`, file by file with the file's day."""
        table = self.open(name)
        schema = self.schema_of(name, table, columns)
        found = []
        for path in self.files(table, wanted):
            day = next(part.partition("=")[2] for part in path.split("/") if part.startswith("ds="))
            with self.parquet(name, path) as file:
                found += [(dt.date.fromisoformat(day), rows) for rows in _matching_rows(file, schema, wanted)]
        return found

    def stream(
        self, name: str, partition: Partition, rows: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The rows of one partition, at most `rows` of them at a time, file by file; by default all columns."""
        table = self.open(name)
        partitions = table.metadata().partition_columns
        columns = columns or [c for c in pa.schema(table.schema().to_arrow()).names if c not in partitions]
        schema = self.schema_of(name, table, columns)
        for path in sorted(self.files(table, None, partition)):
            with self.parquet(name, path) as file:
                present = [c for c in schema.names if c in file.schema_arrow.names]
                for batch in file.iter_batches(rows, columns=present):
                    yield _as_declared(pa.Table.from_batches([batch]), schema)

    def count(self, name: str, partition: Partition) -> int:
        """How many rows a partition has, from the files' own footers."""
        found = 0
        for path in self.files(self.open(name), None, partition):
            with self.parquet(name, path) as file:
                found += file.metadata.num_rows
        return found

    def schema_of(self, name: str, table: DeltaTable, columns: Sequence[str] | None) -> pa.Schema:
        """The wanted columns as Delta declares them. Partition columns are in the paths, not in the files."""
        declared, partitions = pa.schema(table.schema().to_arrow()), table.metadata().partition_columns
        wanted = columns or COLUMNS.get(name) or [c for c in declared.names if c not in partitions]
        if missing := [c for c in wanted if c not in declared.names]:
            raise LakeError(f"table {name} of lake {self.root} lacks {missing}: it has {declared.names}")
        return pa.schema([(c, declared.field(c).type) for c in wanted])

    def files(self, table: DeltaTable, wanted: Wanted | None = None, partition: Partition | None = None) -> list[str]:
        """Files that may hold the wanted rows, relative to the table. Values are passed typed, never as SQL text."""
        filters: list = [(column, "=", value) for column, value in (partition or {}).items()]
        filters += [(wanted[0], "in", wanted[1])] if wanted else []
        # delta-rs returns the table's root percent-encoded, and the rest as the file's plain name.
        root = table.table_uri.removeprefix("file://")
        return [uri.removeprefix(root) for uri in table.file_uris(file_pruning_predicate=filters or None)]

    @contextmanager
    def parquet(self, name: str, path: str) -> Iterator[pq.ParquetFile]:
        """Open a file of a table. Raises LakeError if it, or what the block reads of it, cannot be read."""
        try:
            if self.folder:
                source = os.path.join(self.folder, name, path)
            else:
                from deltalake.fs import DeltaStorageHandler
                from pyarrow.fs import PyFileSystem

                handler = DeltaStorageHandler(self.address(name), self.storage_options)
                source = PyFileSystem(handler).open_input_file(path)
            # Spark writes INT96 timestamps, which would overflow as nanoseconds beyond the year 2262.
            with pq.ParquetFile(source, coerce_int96_timestamp_unit="us") as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            problem = f"cannot read {path}: {first_line(error)}"
            raise LakeError(f"table {name} of lake {self.root}: {problem}: {DOCTOR}") from None

    def _absent(self, name: str, error: Exception) -> LakeError | NotFoundError:
        if self.folder is None:
            return LakeError(f"no table {name} in lake {self.root}: {first_line(error)}: {CURE}")
        if not os.path.exists(self.folder):
            return LakeError(f"no lake at {self.root}: {CURE}, or name another lake")
        if not any(os.path.isdir(os.path.join(self.folder, t, "_delta_log")) for t in TABLE_NAMES):
            return LakeError(f"{self.root} is not a lake (no table in it): {CURE}, or name another lake")
        if os.path.exists(os.path.join(self.folder, name)):
            return LakeError(f"table {name} of lake {self.root} has lost its log: {DOCTOR}")
        if name == "comparisons":
            return NotFoundError(f"no models are compared in lake {self.root} yet: run jobs/compare.py first")
        if name == "published":
            return NotFoundError(f"nothing is published in lake {self.root} yet: {CURE}")
        return NotFoundError(f"lake {self.root} has no table {name} yet: {CURE}")


def foreign_features(table: DeltaTable) -> str:
    """Names of a table's Delta features that change the meaning of its parquet files; empty if there are none."""
    protocol = table.protocol()
    if protocol.min_reader_version >= 3:
        return ", ".join(sorted(set(protocol.reader_features or ()) - PLAIN_FEATURES))
    return "column mapping" if protocol.min_reader_version == 2 else ""


def _matching_rows(file: pq.ParquetFile, schema: pa.Schema, wanted: Wanted | None) -> list[pa.Table]:
    """The wanted rows, a table per row group that has any. The key column is read first, the others on a hit."""
    present = [name for name in schema.names if name in file.schema_arrow.names]
    pieces = []
    for number in range(file.metadata.num_row_groups):
        mask = None
        if wanted is not None:
            column, values = wanted
            if not _may_hold(file.metadata.row_group(number), column, values):
                continue
            keys = file.read_row_group(number, columns=[column])[column]
            mask = pc.is_in(keys, value_set=arrow_strings(values))
            if not pc.any(mask).as_py():
                continue
        rows = file.read_row_group(number, columns=present)
        pieces.append(_as_declared(rows if mask is None else rows.filter(mask), schema))
    return pieces


def _as_declared(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """A file's rows in the table's types; a column that the file lacks is null."""
    nulls = pa.nulls(rows.num_rows)
    columns = [(rows[f.name] if f.name in rows.column_names else nulls).cast(f.type) for f in schema]
    return pa.table(columns, schema=schema)


def _may_hold(group: pq.RowGroupMetaData, column: str, values: list[str]) -> bool:
    """Whether a row group's statistics allow one of the values; without statistics every value is allowed."""
    chunks = (group.column(i) for i in range(group.num_columns))
    stats = next((c.statistics for c in chunks if c.path_in_schema == column), None)
    if stats is None or not stats.has_min_max:
        return True
    try:
        return any(stats.min <= value <= stats.max for value in values)
    except UnicodeDecodeError:  # a bound cut within a character
        return True


def arrow_strings(values: list[str]) -> pa.Array:
    """An arrow array of text. `pa.array` would import pandas, which takes a quarter of a query's time."""
    data = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, data)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(data), pa.py_buffer(offsets), pa.py_buffer(b"".join(data)))
