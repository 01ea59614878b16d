"""Reading a large table piece by piece without Spark, in bounded memory; of a very large one evenly spread pieces."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import pyarrow as pa

from sparkcf.lake.query import Lake
from sparkcf.lake.reader import Partition

DAY = re.compile(r"(?:^|/)ds=(\d{4}-\d{2}-\d{2})/")


class Scan:
    """The rows of a partition, a row group at a time, in the same order for the same version of the table.

    Parameters
    ----------
    up_to : only rows of days up to this one, in a table that is partitioned by `ds`.
    most : about how many rows are read at most: if there are more, every n-th file, then every n-th row group.

    Attributes
    ----------
    total : rows of the partition.
    counted : rows that were read so far.
    """

    def __init__(
        self,
        lake: Lake,
        name: str,
        columns: Sequence[str],
        partition: Partition | None = None,
        up_to: dt.date | None = None,
        most: int | None = None,
    ) -> None:
        self._lake, self._name = lake, name
        table = lake.open(name)
        self._schema = lake.schema_of(name, table, columns)
        files = sorted(lake.files(table, None, partition))
        if up_to is not None:
            files = [path for path in files if _day(path) <= up_to]
        actions = table.get_add_actions(flatten=True)
        rows = zip(actions["path"].to_pylist(), actions["num_records"].to_pylist(), strict=True)
        records = {unquote(path): int(n or 0) for path, n in rows}
        counts = [records.get(unquote(path.lstrip("/")), 0) for path in files]
        self.total, self.counted = sum(counts), 0
        step = _step(self.total, most)
        self._files = files[::step]
        self._every = _step(sum(counts[::step]), most)

    def __iter__(self) -> Iterator[pa.Table]:
        for path in self._files:
            with self._lake.parquet(self._name, path) as file:
                present = [name for name in self._schema.names if name in file.schema_arrow.names]
                for number in range(0, file.metadata.num_row_groups, self._every):
                    rows = file.read_row_group(number, columns=present)
                    nulls = pa.nulls(rows.num_rows)  # for a column that an older file lacks
                    arrays = [(rows[f.name] if f.name in present else nulls).cast(f.type) for f in self._schema]
                    self.counted += rows.num_rows
                    yield pa.table(arrays, schema=self._schema)

    @property
    def share(self) -> float:
        """Share of the rows that were read; 1 for an empty partition."""
        return min(self.counted / self.total, 1.0) if self.total else 1.0


def _step(rows: int, most: int | None) -> int:
    return 1 if most is None else max(1, math.ceil(rows / most))


def _day(path: str) -> dt.date:
    found = DAY.search(path)
    return dt.date.fromisoformat(found[1]) if found else dt.date.min
