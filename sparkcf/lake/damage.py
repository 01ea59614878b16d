"""Data files of a table that are lost or damaged: find them, and take them out of the table. Needs no Spark."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSelector, FileType, PyFileSystem

from sparkcf.errors import LakeError, first_line
from sparkcf.lake.query import Lake

ASIDE = "_damaged"  # folder of a table for files that were taken out; Delta ignores its name
# Tables whose rows cannot be written again: the dense indices of ids and texts are given once.
NUMBERED = ("users", "items", "features")


@dataclass(frozen=True)
class DataFile:
    """A file of a table's newest version: its path in the table, and what the log says of it."""

    path: str
    size: int
    rows: int | None

    @property
    def partition(self) -> str:
        return self.path.rpartition("/")[0]


def damaged_files(lake: Lake, name: str, table: DeltaTable, deep: bool = False) -> dict[DataFile, str]:
    """The lost and damaged files of a table, with what is wrong with each.

    Parameters
    ----------
    deep : also read every file; otherwise sizes are compared with the log's.
    """
    problems = {}
    sizes = _sizes(lake, name)
    for file in data_files(table):
        size = sizes(file.path)
        if size is None:
            problems[file] = "is missing"
        elif size != file.size:
            problems[file] = f"has {size:,} bytes instead of {file.size:,}"
        elif deep and (problem := _unreadable(lake, name, file)):
            problems[file] = problem
    return problems


def data_files(table: DeltaTable) -> Iterator[DataFile]:
    actions: Any = table.get_add_actions(flatten=True)
    for action in pa.table(actions).to_pylist():
        yield DataFile(unquote(action["path"]), action["size_bytes"], action.get("num_records"))


def take_out(lake: Lake, name: str, files: list[DataFile]) -> None:
    """Take lost and damaged files out of a table of a local lake, in one commit; damaged ones are kept under ASIDE.

    The rows in them are lost until the jobs that wrote them run again. Raises LakeError if the rows could not be
    written again, or if the lake is no local folder.
    """
    if name in NUMBERED:
        raise LakeError(f"table {name} of lake {lake.root} has the numbers of all ids: restore its files from a backup")
    if lake.folder is None:
        raise LakeError(f"lake {lake.root} is not a local folder: restore the files of {name} from a backup")
    for file in files:
        path = Path(lake.folder, name, file.path)
        if path.exists():
            aside = Path(lake.folder, name, ASIDE, file.path)
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
    lake.open(name).repair()


def _sizes(lake: Lake, name: str) -> Any:
    """A function from a file's path to its size; None for a file that is missing."""
    if lake.folder is not None:
        folder = Path(lake.folder, name)

        def size(path: str) -> int | None:
            try:
                return os.stat(folder / path).st_size
            except FileNotFoundError:
                return None

        return size
    store = PyFileSystem(DeltaStorageHandler(lake.address(name), lake.storage_options))
    listed = store.get_file_info(FileSelector("", recursive=True))  # one listing instead of a request for each file
    return {info.path.lstrip("/"): info.size for info in listed if info.type == FileType.File}.get


def _unreadable(lake: Lake, name: str, file: DataFile) -> str:
    """Read a file whole; what is wrong with it, or empty text."""
    if lake.folder is not None:
        source: Any = Path(lake.folder, name, file.path)
        if not _checksums_agree(source):
            return "differs from its checksums"
    else:
        source = PyFileSystem(DeltaStorageHandler(lake.address(name), lake.storage_options)).open_input_file(file.path)
    try:
        with pq.ParquetFile(source, coerce_int96_timestamp_unit="us") as parquet:
            rows = sum(parquet.read_row_group(g).num_rows for g in range(parquet.metadata.num_row_groups))
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read: {first_line(error)}"
    return f"has {rows:,} rows instead of {file.rows:,}" if file.rows is not None and rows != file.rows else ""


def _checksums_agree(path: Path) -> bool:
    """Whether a file agrees with the checksums that Hadoop wrote beside it; true if there are none."""
    try:
        sums = path.with_name(f".{path.name}.crc").read_bytes()
    except OSError:
        return True
    if len(sums) < 8 or sums[:4] != b"crc\0":
        return False
    (chunk,) = struct.unpack(">i", sums[4:8])
    with open(path, "rb") as file:
        found = b"".join(struct.pack(">I", zlib.crc32(part)) for part in iter(lambda: file.read(chunk), b""))
    return found == sums[8:]
