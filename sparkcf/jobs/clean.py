"""The clean job: read a day's input, clean it, and merge it into the lake without duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, MapType, StringType

from sparkcf.config.root import Config
from sparkcf.data.attributes import read_items, read_users
from sparkcf.data.clean import Cleaned, clean
from sparkcf.data.duplicates import KEY
from sparkcf.data.fields import normalized_id
from sparkcf.data.ingest import decoded, explained, read_raw
from sparkcf.data.lines import not_utf8, readable
from sparkcf.errors import LakeError
from sparkcf.lake.at_once import at_once
from sparkcf.lake.forgotten import Forgotten, forgotten_users
from sparkcf.lake.frames import one_row
from sparkcf.lake.ids import ConcurrentChangeError, register
from sparkcf.lake.runs import Run, recorded_run
from sparkcf.lake.schemas import CLAIM, TABLES
from sparkcf.lake.sizing import query_settings, size_queries
from sparkcf.lake.tables import LakeTables, retry_conflicts, sql_date
from sparkcf.progress import say, step

ROWS_A_FILE = 500_000  # of a first load
STATE = ("value", "context", "source", "ds", "replaced")  # columns of interactions that a later load may change


def clean_day(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Load the input of `config.ds` into `users`, `items`, `quarantine` and `interactions`.

    Returns
    -------
    dict
        `counts` (as `data.clean.Cleaned`, and rows changed), `reasons`, `run_id`.

    Raises
    ------
    InputError, GateRefused
        See `read_raw` and `clean`; only the failed run's row is written then.
    """
    tables = LakeTables(spark, config.lake.root)
    with recorded_run(tables, "clean", config, {"interactions": tables.version("interactions")}) as run:
        return {"run_id": run.run_id} | _load(spark, config, tables, run)


def _load(spark: SparkSession, config: Config, tables: LakeTables, run: Run) -> dict[str, Any]:
    raw, columns = read_raw(spark, config.input, config.input_path)
    table = [tables.read("interactions")] if tables.exists("interactions") else []  # which the day is merged into
    size_queries(spark, raw, *table)
    forgotten = forgotten_users(tables)
    users = read_users(spark, config.input.users) if config.input.users else None
    items = read_items(spark, config.input.items) if config.input.items else None
    with step("clean", spark, str(config.ds)) as progress:
        with explained(config.input_path):
            cleaned = clean(raw, config.input, config.clean, config.ds, forgotten)
        progress.note = summary(cleaned)
    for note in cleaned.notes:
        say(f"  note: {note}")
    note_unused(columns, config)
    try:
        with step("write dense indices and quarantine", spark):
            at_once(
                lambda: register(tables, "users", _seen("user", cleaned.seen["user"], users, config, forgotten)),
                lambda: register(tables, "items", _seen("item", cleaned.seen["item"], items, config)),
                lambda: write_quarantine(tables, cleaned, config),
            )
        with step("write interactions", spark) as progress:
            changes = write_interactions(tables, cleaned.interactions, config, (cleaned.counts["clean"], *cleaned.span))
            progress.note = ", ".join(f"{n:,} {name}" for name, n in changes.items())
    finally:
        cleaned.release()
    reasons = {f"reason:{name}": n for name, n in cleaned.reasons.items()}
    run.update("cleaned", counts=cleaned.counts | cleaned.figures | changes | reasons)
    return {"counts": cleaned.counts | changes, "reasons": cleaned.reasons}


def summary(cleaned: Cleaned) -> str:
    """One line that reconciles the rows read with the clean, duplicate and quarantined rows."""
    c = cleaned.counts
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in cleaned.reasons.items())
    return (
        f"{c['read']:,} rows read = {c['clean']:,} clean + {c['exact_duplicates']:,} exact duplicates"
        f" + {c['superseded']:,} superseded + {c['quarantined']:,} quarantined"
        + (f" ({reasons})" if reasons else "")
        + (f" + {c['forgotten']:,} of forgotten users" if "forgotten" in c else "")
    )


def note_unused(columns: list[str], config: Config) -> None:
    columns_used = config.input.columns
    mapped = {*columns_used.context, *columns_used.model_dump(exclude={"context"}).values()} - {None}
    mapped |= {name.partition(".")[0] for name in mapped}
    unused = [name for name in columns if name not in mapped]
    if unused:
        say(f"  note: input columns not used: {', '.join(unused)}")


def _seen(
    side: str, seen: DataFrame, listed: DataFrame | None, config: Config, forgotten: Forgotten | None = None
) -> DataFrame:
    """The ids of the interactions with their first event, and those of the table `listed` with their attributes.

    `seen` : id, first_seen. `forgotten` : users of `listed` who are left out.
    """
    idc = f"{side}_id"
    table = TABLES[f"{side}s"]
    attributes = {name: table.schema[name].dataType for name in table.mutable}
    if listed is None:
        return seen.select("*", *(F.lit(None).cast(dtype).alias(name) for name, dtype in attributes.items()))
    known = listed.withColumn(idc, normalized_id(F.col(idc), config.clean)).where(
        F.col(idc).isNotNull() & (F.length(idc) <= config.clean.max_id_length)
    )
    if forgotten:
        known = forgotten.without(known)
    # One row per id, the same in every run: of a repeated id the row with the largest texts is kept.
    maps = [name for name, dtype in attributes.items() if isinstance(dtype, MapType)]
    texts = [F.coalesce(name, F.lit("")) for name, dtype in attributes.items() if isinstance(dtype, StringType)]
    lists = [F.concat_ws("\u0000", name) for name, dtype in attributes.items() if isinstance(dtype, ArrayType)]
    order = F.struct(*texts, *lists, *(F.array_sort(F.map_entries(name)).alias(name) for name in maps))
    one = known.groupBy(idc).agg(F.max_by(F.struct(*attributes), order).alias("a")).select(idc, "a.*")
    return seen.join(one, on=idc, how="full").select(idc, "first_seen", *attributes)


def write_quarantine(tables: LakeTables, cleaned: Cleaned, config: Config) -> None:
    """Replace the day's rejected rows in the table `quarantine` and check their number."""
    day = F.lit(config.ds)
    raw = F.col("raw")
    rows = cleaned.quarantine.select(
        day.alias("ds"),
        "reason",
        readable(raw).alias("raw"),
        F.when(not_utf8(raw), raw.cast("binary")).alias("raw_bytes"),
        decoded(F.col("source"), config.input_path).alias("source"),
    )
    of_day = f"ds = {sql_date(config.ds)}"
    tables.create("quarantine")
    if cleaned.counts["quarantined"] or not tables.read("quarantine").where(of_day).isEmpty():
        tables.replace("quarantine", rows, of_day)
    written = tables.read("quarantine").where(of_day).count()
    if written != cleaned.counts["quarantined"]:
        raise LakeError(
            f"quarantine of {config.ds}: {written:,} rows written, {cleaned.counts['quarantined']:,} expected"
        )


def write_interactions(
    tables: LakeTables, clean_rows: DataFrame, config: Config, size: tuple[int, str, str] | None = None
) -> dict[str, int]:
    """Merge the day's clean rows into `interactions`; only rows that change are written.

    A row has the state of its event in the latest day's load; `replaced` has the states of earlier days.

    - The event is in an earlier day's row with the same value: nothing changes. With another value: the row moves to
      this day, and the earlier state is added to `replaced`.
    - The event is in a later day's row: only `replaced` changes.
    - This day's row is no longer in the input: the row gets the last state in `replaced` and that state's day; without
      one the row is deleted.

    If two days have the same value, the row belongs to only one of them; when that day's load drops the event, the row
    is deleted until the other day is loaded again. A run that changes nothing makes no commit.

    Parameters
    ----------
    size : the number of rows, and their first and last times as texts in UTC; None: they are counted here.

    Returns
    -------
    dict
        Rows `inserted`, `updated`, `deleted` and `unchanged`.
    """
    day = sql_date(config.ds)
    new = clean_rows.withColumn("source", decoded(F.col("source"), config.input_path))
    # As text: a Python datetime would be converted to the host's time zone, where one hour a year is ambiguous.
    count, *span = size or one_row(new.agg(F.count(F.lit(1)), F.min("ts").cast("string"), F.max("ts").cast("string")))

    def merge() -> dict[str, int]:
        tables.create("interactions")
        old = _near(tables.read("interactions", tables.version("interactions")), span, day)
        if old.isEmpty():  # as in a first load, or for a day that begins after all before it
            counts = {"inserted": count}
            with _as_an_append(tables.spark):
                _merge(tables, _as_inserted(new, day).coalesce(-(-count // ROWS_A_FILE)), counts, span)
        else:
            counts = merge_changes(_changes(new, old, day))
        return {name: counts.get(name, 0) for name in ("inserted", "updated", "deleted", "unchanged")}

    def merge_changes(changes: DataFrame) -> dict[str, int]:
        changes = changes.persist(StorageLevel.MEMORY_AND_DISK)  # counted, then merged; released below
        try:
            of_op = (F.count(F.lit(1)), F.min("ts").cast("string"), F.max("ts").cast("string"))
            found = {op: (count, *span) for op, count, *span in changes.groupBy("op").agg(*of_op).collect()}
            counts = {op: count for op, (count, *_) in found.items()}
            spans = [span for op, (_, *span) in found.items() if op != "unchanged"]
            if spans:
                changed = [min(low for low, _ in spans), max(high for _, high in spans)]
                _merge(tables, changes.where("op <> 'unchanged'"), counts, changed)
        finally:
            changes.unpersist()
        return counts

    return retry_conflicts("merge into interactions", merge)


@contextmanager
def _as_an_append(spark: SparkSession) -> Iterator[None]:
    """A MERGE in the block costs little more than an append, and still conflicts with other writers.

    By itself Delta moves what a MERGE writes by the table's partitions, all rows of a day to one task, and copies the
    source before it reads it. Here it is read once, and its rows are persisted.
    """
    settings = {"repartitionBeforeWrite.enabled": "false", "materializeSource": "none"}
    with query_settings(spark, {f"spark.databricks.delta.merge.{key}": value for key, value in settings.items()}):
        yield


def _merge(tables: LakeTables, changes: DataFrame, counts: dict[str, int], span: Sequence[str]) -> None:
    """Merge rows of the form of `_changes` and check their number. `span` : the first and the last of their times."""
    # Literal bounds let Delta skip the files of other times.
    within = " AND ".join(f"t.ts {op} TIMESTAMP'{at} UTC'" for op, at in zip((">=", "<="), span, strict=True))
    same = " AND ".join(f"t.{c} = s.{c}" for c in KEY)
    clauses = []
    if counts.get("deleted") or counts.get("updated"):
        changed = ", ".join(f"{c} = s.{c}" for c in STATE)
        clauses.append("WHEN MATCHED AND s.op = 'deleted' THEN DELETE")
        clauses.append(f"WHEN MATCHED AND s.op = 'updated' THEN UPDATE SET {changed}")
    names = (*KEY, *STATE)
    clauses.append(
        f"WHEN NOT MATCHED AND s.op = 'inserted' THEN INSERT ({', '.join(names)})"
        f" VALUES ({', '.join(f's.{c}' for c in names)})"
    )
    _check_merged(tables.merge("interactions", changes, f"{same} AND {within}", *clauses), counts)


def _near(table: DataFrame, span: Sequence[str], day: str) -> DataFrame:
    """Rows of the table that a day's load may change: of its times, of its partition, or with the day in `replaced`."""
    within = "ts BETWEEN TIMESTAMP'{} UTC' AND TIMESTAMP'{} UTC'".format(*span)
    return table.where(f"{within} OR ds = {day} OR (ds > {day} AND exists(replaced, r -> r.ds = {day}))")


def _as_inserted(new: DataFrame, day: str) -> DataFrame:
    """Rows of the form of `_changes` where the table has none near."""
    replaced = F.lit(None).cast(ArrayType(CLAIM)).alias("replaced")
    return new.select(
        *KEY, F.lit("inserted").alias("op"), "value", "context", "source", F.expr(f"{day} AS ds"), replaced
    )


def _changes(new: DataFrame, near: DataFrame, day: str) -> DataFrame:
    """Key, `op` and new state of the rows of the day's input and of the table's rows `near` it."""
    old = near.select(*KEY, *(F.col(name).alias(f"old_{name}") for name in STATE))
    both = new.select(*KEY, "value", "context", "source").join(old, on=list(KEY), how="full")
    both = both.withColumn("earlier", F.coalesce("old_replaced", F.array().cast(ArrayType(CLAIM))))
    both = both.withColumn("of_day", F.expr(f"filter(earlier, r -> r.ds = {day})[0]"))  # null: no state of this day

    in_input, of_this_day = F.col("value").isNotNull(), F.expr(f"old_ds = {day}")
    differs = _differs(F.col("old_value"), F.col("old_context"))
    replaced_differs = F.when(F.col("of_day").isNotNull(), _differs(F.col("of_day.value"), F.col("of_day.context")))
    op = (
        F.when(F.col("old_ds").isNull(), "inserted")
        .when(~in_input & of_this_day & (F.size("earlier") == 0), "deleted")
        .when(~in_input, F.when(of_this_day | F.col("of_day").isNotNull(), "updated"))
        .when(
            F.expr(f"old_ds > {day}"), F.when(F.coalesce(replaced_differs, differs), "updated").otherwise("unchanged")
        )
        .otherwise(F.when(differs, "updated").otherwise("unchanged"))
    )
    new_state = f"struct({day} AS ds, value, context, source)"
    old_state = "struct(old_ds AS ds, old_value AS value, old_context AS context, old_source AS source)"
    new_if_any = f"if(value IS NULL, array(), array({new_state}))"
    before_and_after = f"filter(earlier, r -> r.ds < {day}), {new_if_any}, filter(earlier, r -> r.ds > {day})"
    state = F.expr(f"""CASE
        WHEN old_ds > {day} THEN struct({old_state} AS now, concat({before_and_after}) AS before)
        WHEN old_ds < {day} THEN struct({new_state} AS now, concat(earlier, array({old_state})) AS before)
        WHEN value IS NOT NULL THEN struct({new_state} AS now, earlier AS before)
        ELSE struct(try_element_at(earlier, -1) AS now, slice(earlier, 1, greatest(size(earlier) - 1, 0)) AS before)
        END""")
    changed = both.select(*KEY, op.alias("op"), state.alias("state")).where("op IS NOT NULL")
    before = F.when(F.size("state.before") > 0, F.col("state.before"))
    return changed.select(*KEY, "op", "state.now.*", before.alias("replaced"))


def _differs(value: Column, context: Column) -> Column:
    """Whether the columns `value` or `context` differ from these."""
    contexts = (F.array_sort(F.map_entries(column)) for column in (F.col("context"), context))
    return (F.col("value") != value) | ~next(contexts).eqNullSafe(next(contexts))


def _check_merged(merged: dict[str, int], counts: dict[str, int]) -> None:
    """Raise ConcurrentChangeError, which repeats the merge, if another writer's commit changed the expected counts."""
    for op, rows in merged.items():
        if rows != counts.get(op, 0):
            raise ConcurrentChangeError(f"interactions: {rows:,} rows {op}, {counts.get(op, 0):,} expected: {merged}")
