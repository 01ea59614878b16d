"""Dense indices: a new id gets the next free index and keeps it for ever.

New ids are counted by hash bucket. A bucket's offset is the sum of the counts before it, and ids are ordered within a
bucket. So no id map is collected, and a repeated task gives the same indices.
"""

from __future__ import annotations

from itertools import accumulate

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import MapType

from sparkcf.errors import LakeError
from sparkcf.lake.frames import one_row
from sparkcf.lake.schemas import TABLES, Table
from sparkcf.lake.tables import LakeTables, retry_conflicts

BUCKETS = 256
MOST = 2**31 - 1


def register(tables: LakeTables, name: str, rows: DataFrame) -> None:
    """Merge ids, their first events and attributes into a table with dense indices; known ids keep their index.

    Parameters
    ----------
    rows : the table's columns without its index, one row per id. `first_seen` only gets earlier; a null attribute
        keeps the attribute in the table.
    """
    table = TABLES[name]
    (id_column,), idx_column = table.key, table.index

    def merge() -> None:
        target = tables.create(name).toDF()
        last_idx = F.coalesce(F.max(idx_column), F.lit(-1)).alias("last_idx")
        version = tables.version(name)
        known = tables.read(name, version)
        changed = _changed(table, rows, known).withColumn("bucket", _bucket(id_column))
        changed = changed.persist(StorageLevel.MEMORY_AND_DISK)  # counted, numbered, merged
        try:
            new, all_changed = _sizes(changed, idx_column)
            if not all_changed:
                return
            last = one_row(known.agg(last_idx))[0] if version else -1  # its first commit creates the table empty
            free = max(last, _last_forgotten(tables, idx_column)) + 1  # read after `known`: a forget writes it first
            numbered = _numbered(changed, id_column, idx_column, free, new)
            # The merge's transaction reads `target`: if another writer has numbered ids since `last` was read,
            # nothing is merged and everything is repeated.
            numbered = numbered.crossJoin(target.agg(last_idx)).where(f"last_idx = {last}").drop("last_idx")
            names = ", ".join(table.schema.names)
            clauses = [
                f"WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({', '.join(f's.{c}' for c in table.schema.names)})"
            ]
            if all_changed > sum(new.values()):  # without it Delta only appends files
                clauses.insert(0, f"WHEN MATCHED THEN UPDATE SET {_updates(table)}")
            merged = tables.merge(name, numbered, f"t.{id_column} = s.{id_column}", *clauses)
            if not any(merged.values()):
                raise ConcurrentChangeError(f"{name} has ids after index {last}")
        finally:
            changed.unpersist()

    retry_conflicts(f"merge into {name}", merge)


def _last_forgotten(tables: LakeTables, idx_column: str) -> int:
    """The largest dense index of a forgotten user, who is in no other table; -1 if there is none."""
    forgotten = TABLES["forgotten"]
    if idx_column not in forgotten.schema.names or not tables.exists("forgotten"):
        return -1
    return int(one_row(tables.read("forgotten").agg(F.coalesce(F.max(idx_column), F.lit(-1))))[0])


def _updates(table: Table) -> str:
    """SQL assignments for a known id: its attributes and first event, never its index."""
    changes = [f"{c} = coalesce(s.{c}, t.{c})" for c in table.mutable]
    if table.earliest:
        changes.append(f"{table.earliest} = least(s.{table.earliest}, t.{table.earliest})")
    return ", ".join(changes)


class ConcurrentChangeError(Exception):
    """Another writer committed between our read and our write; `retry_conflicts` repeats both."""


def _changed(table: Table, rows: DataFrame, known: DataFrame) -> DataFrame:
    """Ids that are new (index null), or have an earlier first event or a different attribute than in the table."""
    (id_column,), idx_column = table.key, table.index
    old = known.select(F.col(id_column), *(F.col(c).alias(f"old_{c}") for c in known.columns if c != id_column))
    both = rows.join(old, on=id_column, how="left")
    values = {c: F.coalesce(c, f"old_{c}") for c in table.mutable}
    if table.earliest:
        values[table.earliest] = F.least(table.earliest, f"old_{table.earliest}")
    is_map = {f.name: isinstance(f.dataType, MapType) for f in table.schema.fields}
    differs = F.col(f"old_{idx_column}").isNull()
    for c, value in values.items():
        differs |= ~_comparable(value, is_map[c]).eqNullSafe(_comparable(F.col(f"old_{c}"), is_map[c]))
    return both.where(differs).select(
        id_column, F.col(f"old_{idx_column}").alias(idx_column), *(v.alias(c) for c, v in values.items())
    )


def _comparable(value: Column, is_map: bool) -> Column:
    return F.array_sort(F.map_entries(value)) if is_map else value


def _bucket(id_column: str) -> Column:
    return F.pmod(F.xxhash64(id_column), F.lit(BUCKETS)).cast("int")


def _sizes(changed: DataFrame, idx_column: str) -> tuple[dict[int, int], int]:
    """The number of new ids by bucket, and the number of all changed ids."""
    counts = changed.groupBy("bucket").agg(
        F.count(F.when(F.col(idx_column).isNull(), 1)).alias("new"), F.count(F.lit(1)).alias("all")
    )
    rows = counts.collect()
    return {r["bucket"]: r["new"] for r in rows}, sum(r["all"] for r in rows)


def _numbered(changed: DataFrame, id_column: str, idx_column: str, next_idx: int, sizes: dict[int, int]) -> DataFrame:
    """Give the new ids, `sizes` by bucket, the indices from `next_idx` on."""
    is_new = F.col(idx_column).isNull()
    if next_idx + sum(sizes.values()) > MOST:
        raise LakeError(f"more than {MOST:,} different values of {id_column}: a 32-bit index cannot number them")
    ordered = [sizes.get(bucket, 0) for bucket in range(BUCKETS)]
    offsets = [next_idx + before for before in accumulate(ordered, initial=0)][:BUCKETS]
    offset = F.array(*map(F.lit, offsets))[F.col("bucket")]
    place = F.row_number().over(Window.partitionBy("bucket", is_new).orderBy(id_column))
    idx = F.when(is_new, offset + place - 1).otherwise(F.col(idx_column)).cast("int")
    return changed.withColumn(idx_column, idx).drop("bucket")
