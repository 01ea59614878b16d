"""Entries of a table's Delta log, checked as text: Delta's readers take an empty one for a version without changes."""

from __future__ import annotations

import json
import re
from typing import Any

from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSelector, FileType, PyFileSystem

DOCTOR = "run `sparkcf doctor` to see its last good version"  # the cure of every damage to a log
LOG_FILE = re.compile(r"(?:^|/)(\d{20})\.(json|checkpoint\..*parquet)$")
# By the writer (a new table's files, UPDATE and OPTIMIZE, MERGE, delta-rs): how many files an entry says that it adds.
FILES_ADDED = ("numFiles", "numAddedFiles", "numTargetFilesAdded", "num_added_files")


class TableLog:
    """The log of one table.

    Parameters
    ----------
    address : of the table, for delta-rs.
    storage_options : credentials and settings of an object store.
    """

    def __init__(self, address: str, storage_options: dict[str, str] | None = None) -> None:
        self._files = PyFileSystem(DeltaStorageHandler(address, storage_options))

    def versions(self) -> list[int]:
        """The versions that have an entry or a checkpoint, newest first."""
        listed = self._files.get_file_info(FileSelector("_delta_log", allow_not_found=True))
        return sorted({int(m[1]) for file in listed if (m := LOG_FILE.search(file.path))}, reverse=True)

    def problem(self, version: int) -> str:
        """What is wrong with a version's entry; empty if nothing is, or if a checkpoint stands for it."""
        path = f"_delta_log/{version:020}.json"
        if self._files.get_file_info(path).type == FileType.NotFound:  # removed after a checkpoint
            return ""
        with self._files.open_input_stream(path) as stream:
            return entry_problem(stream.read())


def entry_problem(content: bytes) -> str:
    """What is wrong with the content of a log entry: it is empty or cut; empty text if nothing is."""
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        return "its log entry is empty"
    actions: list[Any] = []
    for number, line in enumerate(lines, 1):
        try:
            actions.append(json.loads(line))
        except ValueError:
            return f"line {number} of its log entry is not JSON"
    return _cut_between_lines([action for action in actions if isinstance(action, dict)])


def _cut_between_lines(actions: list[dict[str, Any]]) -> str:
    """An entry that is cut at the end of a line lacks the files that its first line counts."""
    if any("add" in action or "remove" in action for action in actions):
        return ""
    for action in actions:
        metrics = (action.get("commitInfo") or {}).get("operationMetrics") or {}
        for name in FILES_ADDED:
            if str(metrics.get(name, "0")) not in ("0", ""):
                return f"its log entry is cut: it names none of {metrics[name]} added files"
    return ""
