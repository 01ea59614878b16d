"""The tables of a lake, as their logs tell."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from sparkcf.cli.show import Record
from sparkcf.errors import NotFoundError
from sparkcf.lake.query import Lake
from sparkcf.lake.reader import TABLE_NAMES

TABLE_COLUMNS = ["table", "version", "rows", "files", "mb"]


def about_tables(lake: Lake) -> list[Record]:
    """Version, rows, files, megabytes and columns of every table that there is. Raises as `Lake.open`."""
    records: list[Record] = []
    for name in TABLE_NAMES:
        try:
            table = lake.open(name)
        except NotFoundError:  # it is written later, or by other models
            continue
        files = pa.table(table.get_add_actions(flatten=True))
        records.append(
            {
                "table": name,
                "version": table.version(),
                "rows": pc.sum(files["num_records"]).as_py() or 0,
                "files": files.num_rows,
                "mb": round((pc.sum(files["size_bytes"]).as_py() or 0) / 1e6, 3),
                "columns": pa.schema(table.schema().to_arrow()).names,
            }
        )
    return records
