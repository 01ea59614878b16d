"""Files of lists: SQLite, Parquet, JSON lines. Each is written batch by batch and read back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkcf.errors import LakeError
from sparkcf.export.lists import Items, Lists, as_items, plain_items


class ListFile(Protocol):
    """A file of lists that is being written.

    titled : whether its lists hold the items' titles; if not, `close` writes them once an item.
    """

    titled: bool

    def add(self, lists: Lists) -> None:
        """Write some users' lists."""

    def close(self, titles: pa.Table) -> None:
        """End the writing; `titles` has item_id and title."""

    def read_back(self, users: list[str]) -> tuple[int, int, dict[str, Items]]:
        """Read the closed file: the number of users, of rows, and the lists of some users."""


class SQLiteFile:
    """Tables lists (user_id, items: a JSON array) and titles (item_id, title); a user's list is one look-up."""

    titled = False

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lists.sqlite"
        with self._in_one_line():
            self._base = sqlite3.connect(self.path, isolation_level=None)
            # No journal: an interrupted export leaves a file that nobody reads.
            for setting in ("page_size=16384", "journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE"):
                self._base.execute(f"PRAGMA {setting}")
            self._base.execute("CREATE TABLE lists (user_id TEXT NOT NULL, items TEXT NOT NULL)")
            self._base.execute("CREATE TABLE titles (item_id TEXT PRIMARY KEY, title TEXT NOT NULL) WITHOUT ROWID")
            self._base.execute("BEGIN")

    def add(self, lists: Lists) -> None:
        rows = zip(lists.users.to_pylist(), lists.as_json().to_pylist(), strict=True)
        with self._in_one_line():
            self._base.executemany("INSERT INTO lists VALUES (?, ?)", rows)

    def close(self, titles: pa.Table) -> None:
        rows = zip(titles["item_id"].to_pylist(), titles["title"].to_pylist(), strict=True)
        with self._in_one_line():
            self._base.executemany("INSERT INTO titles VALUES (?, ?)", rows)
            try:
                self._base.execute("CREATE UNIQUE INDEX lists_by_user ON lists (user_id)")
            except sqlite3.IntegrityError:
                raise LakeError("a user has two lists in the run: run its recommend step again") from None
            self._base.execute("COMMIT")
            self._base.close()

    def read_back(self, users: list[str]) -> tuple[int, int, dict[str, Items]]:
        with (
            self._in_one_line(),
            closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as base,
        ):
            count, rows = base.execute("SELECT count(*), total(json_array_length(items)) FROM lists").fetchone()
            ask = "SELECT items FROM lists WHERE user_id = ?"
            found = {user: row for user in users if (row := base.execute(ask, (user,)).fetchone())}
        return count, int(rows), {user: as_items(row[0]) for user, row in found.items()}

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Raise errors of SQLite, such as those of a full disk, as LakeError."""
        try:
            yield
        except sqlite3.Error as error:
            raise LakeError(
                f"{self.path}: {error}: check the space and the disk of the folder, then export again"
            ) from None


class ParquetLists:
    """A row a user: user_id, items: list<struct<item_id, score, reason, title>>."""

    titled = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lists.parquet"
        self._writer: pq.ParquetWriter | None = None

    def add(self, lists: Lists) -> None:
        table = pa.table({"user_id": lists.users, "items": lists.as_structs()})
        self._writer = self._writer or pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self, titles: pa.Table) -> None:
        assert self._writer is not None  # a run without lists is refused before
        self._writer.close()

    def read_back(self, users: list[str]) -> tuple[int, int, dict[str, Items]]:
        count = rows = 0
        found: dict[str, Items] = {}
        wanted = pa.array(users, pa.string())
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches():
                count += batch.num_rows
                rows += pc.sum(pc.list_value_length(batch["items"])).as_py()
                for row in batch.filter(pc.is_in(batch["user_id"], wanted)).to_pylist():
                    found[row["user_id"]] = plain_items(row["items"])
        return count, rows, found


class JSONLines:
    """A line a user: {"user_id": …, "items": [{"item_id": …, "score": …, "reason": …, "title": …}, …]}."""

    titled = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lists.jsonl"
        self._file = self.path.open("wb")

    def add(self, lists: Lists) -> None:
        ids = Lists(lists.users, pa.array(range(len(lists) + 1), pa.int32()), {"user_id": lists.users}).as_json()
        ids = pc.utf8_slice_codeunits(ids, 1, -2)  # [{"user_id":"u"}] becomes {"user_id":"u"
        lines = pc.binary_join_element_wise(ids, ',"items":', lists.as_json(), "}\n", "")
        whole = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(lines)], pa.int32()), lines), "")
        self._file.write(memoryview(whole[0].as_buffer()))

    def close(self, titles: pa.Table) -> None:
        self._file.close()

    def read_back(self, users: list[str]) -> tuple[int, int, dict[str, Items]]:
        count = rows = 0
        found: dict[str, Items] = {}
        wanted = {
            json.dumps({"user_id": user}, ensure_ascii=False, separators=(",", ":"))[:-1].encode() for user in users
        }
        with self.path.open("rb") as file:
            for line in file:  # in texts a quote is escaped, so neither mark stands in one
                count, rows = count + 1, rows + line.count(b'{"item_id":')
                if line.partition(b',"items":')[0] in wanted:
                    whole = json.loads(line)
                    found[whole["user_id"]] = plain_items(whole["items"])
        return count, rows, found


FILES: dict[str, Callable[[Path], ListFile]] = {"parquet": ParquetLists, "sqlite": SQLiteFile, "jsonl": JSONLines}
