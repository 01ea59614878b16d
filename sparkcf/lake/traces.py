"""Search all files of a lake for the ids of users: the proof that forgotten users are in none."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from sparkcf.lake.folder import Folder
from sparkcf.lake.tables import LakeTables

WORD = r"[A-Za-z0-9_]"
# Columns and keys that name items, whose ids may be equal to users', or that hold numbers and names of Delta's own.
WITHOUT_USERS = frozenset(
    {
        *("item_id", "similar_item_id", "title", "categories", "feature", "event", "metric", "system"),
        *("operationMetrics", "partitionValues", "path", "metaData", "protocol", "txnId", "engineInfo"),
    }
)
ITEM_TABLES = frozenset({"items", "item_factors", "similar_items", "item_concepts", "item_groups", "features"})
LINES = frozenset({"raw", "raw_bytes"})  # of the input: any id may be a word of them
FREE_TEXTS = LINES | {"config", "reason", "predicate", "matchedPredicates", ""}
FILES_A_TASK = 16
ROWS_A_BATCH = 65_536


def spellings(ids: Iterable[str]) -> list[str]:
    """The ids as texts may write them: as they are, escaped in JSON or by Python, and with quotes doubled."""
    return sorted({way for i in ids for way in (i, json.dumps(i)[1:-1], repr(i)[1:-1], i.replace('"', '""'))})


def spelled(text: str, word: str, fold_case: bool) -> str:
    r"""SQL that finds a column's word in another column's text, as a whole word: no letter or digit beside it."""
    if fold_case:
        text, word = f"lower({text})", f"lower({word})"
    quoted = rf"replace({word}, '\\E', '\\E\\\\E\\Q')"  # an id may hold what ends the quote
    pattern = rf"concat('(?<!{WORD})\\Q', {quoted}, '\\E(?!{WORD})')"
    return f"instr({text}, {word}) > 0 AND {text} RLIKE {pattern}"


@dataclass
class Traces:
    """A search for ids: as whole values, in free texts also as words.

    A number of few digits is a word of many texts that mean something else: it counts only within the lines of the
    input.

    ids : normalized as a load does.
    fold_case : upper and lower case are the same id in a line of the input.
    by_table : number of files that name one of them, by table or folder.
    searched : False if the files cannot be searched.
    """

    ids: Iterable[str]
    fold_case: bool = False
    by_table: dict[str, int] = field(default_factory=dict)
    files: int = 0
    searched: bool = True

    def __post_init__(self) -> None:
        self._ids = frozenset(self.ids)
        self._values = pa.array(sorted(self._ids), pa.string())
        words = spellings(self._ids)
        self._words = _pattern(words, self.fold_case)
        self._rare_words = _pattern((i for i in words if not re.fullmatch(r"[0-9]{1,8}", i)), self.fold_case)

    def in_text(self, text: str, name: str = "") -> bool:
        """Whether a column's text names one of them. `name` : of the column or key; empty: any text."""
        if text in self._ids:
            return True
        pattern = self._words if name in LINES else self._rare_words
        return name in FREE_TEXTS and pattern.search(text) is not None

    def in_value(self, value: Any, name: str = "") -> bool:
        """Whether a value of JSON names one of them."""
        if isinstance(value, dict):
            return any(key not in WITHOUT_USERS and self.in_value(inner, key) for key, inner in value.items())
        if isinstance(value, list):
            return any(self.in_value(inner, name) for inner in value)
        if not isinstance(value, str):
            return False
        if value[:1] in ("{", "["):  # JSON within JSON, such as Delta's statistics
            try:
                return self.in_value(json.loads(value), name)
            except ValueError:
                return self.in_text(value, name)
        return self.in_text(value, name)

    def in_array(self, array: pa.Array, name: str) -> bool:
        """Whether an Arrow array of any type names one of them."""
        kind = array.type
        if pa.types.is_struct(kind):
            parts = zip((kind.field(i).name for i in range(kind.num_fields)), array.flatten(), strict=True)
            return any(inner not in WITHOUT_USERS and self.in_array(part, inner) for inner, part in parts)
        if pa.types.is_map(kind):
            return self.in_array(array.keys, name) or self.in_array(array.items, name)
        if pa.types.is_list(kind):
            return self.in_array(array.flatten(), name)
        if pa.types.is_binary(kind):
            texts = (value.decode("utf-8", "replace") for value in pc.unique(array).to_pylist() if value is not None)
            return any(self.in_text(text, name) for text in texts)
        if not pa.types.is_string(kind):
            return False
        if pc.any(pc.is_in(array, self._values)).as_py():
            return True
        if name not in FREE_TEXTS | {"stats"}:
            return False
        return any(self.in_value(text, name) for text in pc.unique(array).to_pylist() if text is not None)

    def in_words(self) -> str:
        if not self.searched:
            return "the files were not searched"
        if not self.by_table:
            return f"none of {self.files:,} files names one of them"
        named = ", ".join(f"{table} {n:,}" for table, n in sorted(self.by_table.items()))
        return f"{sum(self.by_table.values()):,} of {self.files:,} files still name one of them ({named})"


def _pattern(ids: Iterable[str], fold_case: bool) -> re.Pattern[str]:
    words = "|".join(re.escape(i) for i in sorted(ids, key=len, reverse=True))
    return re.compile(f"(?<!{WORD})(?:{words})(?!{WORD})" if words else r"(?!)", re.IGNORECASE if fold_case else 0)


def find_traces(tables: LakeTables, ids: list[str], fold_case: bool = False) -> Traces:
    """Search every file below the lake's root, dead ones and logs included.

    Packed rows and arrays hold indices of users, no ids.
    """
    files = Folder(tables.root).files()
    found = Traces(ids, fold_case, files=len(files))
    if not files or not ids:
        return found
    spark: SparkSession = tables.spark
    root = tables.root
    parts = spark.sparkContext.parallelize(files, max(1, -(-len(files) // FILES_A_TASK)))
    named = parts.mapPartitions(lambda names: _naming(root, Traces(ids, fold_case), names)).collect()
    found.by_table = dict(Counter(_table(name) for name in named))
    return found


def _naming(root: str, traces: Traces, names: Iterable[str]) -> Iterator[str]:
    """The files that name one of the ids."""
    folder = Folder(root)
    for name in names:
        try:
            if _names(folder, traces, name):
                yield name
        except FileNotFoundError:
            continue  # removed since it was listed


def _names(folder: Folder, traces: Traces, name: str) -> bool:
    if name.endswith(".parquet"):
        with folder.open(name) as file:
            return _in_parquet(pq.ParquetFile(file), traces, _table(name))
    if name.endswith((".safetensors", ".npy", ".crc")) and "_delta_log/0" not in name:
        return False
    text = folder.read(name).decode("utf-8", "replace")
    return any(_in_line(line, traces) for line in text.splitlines())


def _in_line(line: str, traces: Traces) -> bool:
    try:
        return traces.in_value(json.loads(line))
    except ValueError:
        return traces.in_text(line)


def _in_parquet(file: pq.ParquetFile, traces: Traces, table: str) -> bool:
    names = file.schema_arrow.names
    if table in ITEM_TABLES and "add" not in names:  # a checkpoint of the log has `add`
        return False
    packed = {"items", "values"} if table.endswith("_rows") else set()
    columns = [name for name in names if name not in WITHOUT_USERS | packed]
    batches = file.iter_batches(ROWS_A_BATCH, columns=columns)
    return any(traces.in_array(column, name) for b in batches for name, column in zip(columns, b.columns, strict=True))


def _table(name: str) -> str:
    return name.split("/")[0]
