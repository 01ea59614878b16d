"""The table `published`: the run that readers see, by model and day. The newest row of a day wins."""

from __future__ import annotations

import datetime as dt

from pyspark.sql import Row
from pyspark.sql import functions as F

from sparkcf.errors import ConflictError
from sparkcf.lake.frames import frame_of, one_row
from sparkcf.lake.runs import user_name
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables, retry_conflicts, sql_date

SERVED = ("recommendations", "similar_items", "user_factors", "item_factors", "metrics")


def published_run(tables: LakeTables, model: str) -> Row | None:
    """The row of `published` that readers follow: the newest row of the latest day."""
    rows = tables.read("published").where(F.col("model") == model)
    return rows.orderBy(F.desc("ds"), F.desc("sequence")).first()


def append_published(tables: LakeTables, model: str, ds: dt.date, run_id: str, action: str, sequence: int) -> None:
    """Append a row to `published`, the only commit of publishing.

    Raises ConflictError if another run took the same sequence number.
    """
    versions = {name: tables.version(name) for name in SERVED}
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    schema = TABLES["published"].schema
    values = (model, ds, sequence, run_id, action, user_name(), now, versions)
    row = frame_of(tables.spark, [dict(zip(schema.names, values, strict=True))], schema)
    same = f"t.model = '{model}' AND t.ds = {sql_date(ds)} AND t.sequence = s.sequence"

    def merge() -> int:
        tables.create("published")
        return tables.merge("published", row, same, "WHEN NOT MATCHED THEN INSERT *")["inserted"]

    if retry_conflicts("publish", merge):
        return
    kept = [r["run_id"] for r in history(tables, model) if (r["ds"], r["sequence"]) == (ds, sequence)]
    if kept != [run_id]:
        raise ConflictError(f"run {kept[0]} of {model} was published for {ds} at the same moment: run again")


def history(tables: LakeTables, model: str) -> list[Row]:
    """All rows of a model, about one a night, in the order in which readers followed them: the last is in force."""
    return tables.read("published").where(F.col("model") == model).orderBy("ds", "sequence").collect()


def sequence_at(tables: LakeTables, model: str, ds: dt.date, version: int) -> int:
    """The newest sequence number of a model and day at a version of the table; 0 if there is none."""
    if version < 0:
        return 0
    rows = tables.read("published", version).where((F.col("model") == model) & (F.col("ds") == F.lit(ds)))
    return int(one_row(rows.agg(F.max("sequence")))[0] or 0)
