"""Raw rows to clean interactions: every row ends in `interactions`, as a counted duplicate, or in quarantine.

    raw ──parse──▶ rules, first reason wins ──▶ one row a key ──▶ users and items out of bounds ──▶ interactions
                         │                           └── duplicates, counted      │
                         └──────────────────▶ quarantine ◀───────────────────────┘

All of it is Spark SQL expressions. Nothing here writes; `sparkcf.jobs.clean` does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Observation, Window
from pyspark.sql import functions as F

from sparkcf.config.input import EPOCHS, CleanConfig, InputConfig
from sparkcf.data.duplicates import KEY, deduplicate
from sparkcf.data.fields import constants, normalized_id, parse
from sparkcf.data.outliers import alike, find_outliers
from sparkcf.data.quotes import continued_lines, reject
from sparkcf.data.rules import FORGOTTEN, HEADER, REASONS, with_reason, without_forgotten
from sparkcf.data.tally import Tally
from sparkcf.errors import GateRefused
from sparkcf.lake.forgotten import Forgotten
from sparkcf.lake.frames import one_row

TEXTS = ("raw", "quote", "ts_text", "value_text")  # most of a line's bytes
LOOKS_LIKE = {"epoch_s": (9, 10), "epoch_ms": (12, 13), "epoch_us": (15, 16), "epoch_ns": (18, 19)}  # digits of today
UNITS = dict(zip(EPOCHS, ("seconds", "milliseconds", "microseconds", "nanoseconds"), strict=True))


@dataclass(frozen=True)
class Cleaned:
    """A cleaned input; `release` frees its persisted frames."""

    interactions: DataFrame  # user_id, item_id, event, value, ts, context, source: one row a key
    quarantine: DataFrame  # reason, raw, source
    counts: dict[str, int]  # read, clean, exact_duplicates, superseded, quarantined; forgotten, if any user is
    span: tuple[str, str]  # the first and the last time of the interactions, as texts in UTC
    seen: dict[str, DataFrame]  # by side ("user", "item"): id and first_seen of each of its ids
    reasons: dict[str, int]  # quarantined rows by reason
    figures: dict[str, int]  # largest_user_events, user_ids_alike, item_ids_alike
    notes: tuple[str, ...]  # messages to the user
    kept: tuple[DataFrame, ...]  # persisted frames

    def release(self) -> None:
        for frame in self.kept:
            frame.unpersist()


def clean(
    raw: DataFrame, input_config: InputConfig, config: CleanConfig, ds: dt.date, forgotten: Forgotten | None = None
) -> Cleaned:
    """Partition the raw rows into interactions, duplicates and quarantine.

    Parameters
    ----------
    raw : frame of `ingest.RAW_COLUMNS`.
    ds : logical date; a timestamp later than its end (UTC) plus the tolerance is in the future.
    forgotten : users whose rows are counted and end nowhere.

    Raises
    ------
    InputError
        The input has no row, or a mapped column is empty in every row.
    GateRefused
        Every row, or more than `max_quarantined_share` of them, would go to quarantine.
    """
    observed = Observation("read")
    kept: list[DataFrame] = []
    same = constants(input_config, ds)

    def persisted(frame: DataFrame, level: StorageLevel = StorageLevel.DISK_ONLY) -> DataFrame:
        kept.append(frame.persist(level))  # the disk keeps the heap free, and the system caches its files
        return frame

    def checked_rows(raw: DataFrame, all_texts: bool = False) -> DataFrame:
        rows = with_reason(parse(raw, input_config, config, ds), input_config, config, ds)
        return narrowed(without_forgotten(rows, forgotten) if forgotten else rows, same, all_texts)

    try:
        counted = raw.observe(observed, F.count(F.lit(1)).alias("lines"))
        checked = widened(persisted(checked_rows(counted)), same)
        tally = Tally.of(checked, input_config)  # fills the cache: the one pass over the input
        tally.check_present(input_config)
        if tally.open_quotes:
            # Read again, with all texts. A line's number is of one reading: Spark may split the files otherwise now.
            kept.pop().unpersist()
            checked = widened(persisted(checked_rows(raw, all_texts=True)), same)
            checked = reject(checked, persisted(continued_lines(checked)), "malformed_line")
            tally = Tally.of(checked, input_config)
        unique = deduplicate(checked.where("reason IS NULL"), persisted)
        users = persisted(_by_user(unique), StorageLevel.MEMORY_AND_DISK)
        outliers = find_outliers(unique, users, config)
        kept += outliers.kept
        reasons, with_outliers = tally.reasons, checked
        if outliers.any:  # good rows turn out to belong to quarantine
            unique = outliers.keep(unique)
            users = persisted(_by_user(unique), StorageLevel.MEMORY_AND_DISK)
            again = checked if tally.open_quotes else widened(checked_rows(raw, all_texts=True), same)
            with_outliers = outliers.with_reason(again)
        rejected = with_outliers.where(f"reason NOT IN ('{HEADER}', '{FORGOTTEN}')")
        rejected = rejected.select("reason", "texts.raw", "source")
        if forgotten:
            rejected = forgotten.blanked(rejected, "raw", lambda word: normalized_id(word, config))
        if outliers.any:
            rejected = persisted(rejected)
            found = {row["reason"]: row["count"] for row in rejected.groupBy("reason").count().collect()}
            found["malformed_line"] = found.get("malformed_line", 0) + tally.repeated_headers
            reasons = {reason: found[reason] for reason in REASONS if found.get(reason)}
        if tally.repeated_headers:
            rejected = rejected.unionByName(_repeated_headers(checked))
        sums = (F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in ("clean", "copies", "events"))
        span = (F.min("first_seen").cast("string").alias("first"), F.max("last_seen").cast("string").alias("last"))
        total = one_row(users.agg(*sums, *span))
        counts = {
            "read": observed.get["lines"] - (tally.lines - tally.rows),
            "clean": total["clean"],
            "exact_duplicates": total["copies"] - total["events"],
            "superseded": total["events"] - total["clean"],
            "quarantined": sum(reasons.values()),
        }
        if forgotten:
            counts["forgotten"] = tally.forgotten
        hints = _hints(checked, tally, input_config)
        _check_counts(counts, reasons, config, hints)
        items = unique.groupBy("item_id").agg(F.min("ts").alias("first_seen"))
        items = persisted(items, StorageLevel.MEMORY_AND_DISK)
        seen = {"user": users.select("user_id", "first_seen"), "item": items}
        figures, notes = _alike(seen, config)
    except BaseException:
        for frame in kept:
            frame.unpersist()
        raise
    interactions = unique.drop("copies", "values").withColumn("context", _by_name(input_config.columns.context))
    figures, notes = outliers.figures | figures, (*outliers.notes, *hints, *notes)
    span = (total["first"], total["last"])
    return Cleaned(interactions, rejected, counts, span, seen, reasons, figures, notes, tuple(kept))


def narrowed(rows: DataFrame, same: Mapping[str, Column], all_texts: bool) -> DataFrame:
    """The columns to persist, and the hash of the key.

    Parameters
    ----------
    same : columns that have the same value in every row; they are left out.
    all_texts : keep the texts of good rows too.
    """
    texts = F.struct(*TEXTS)
    names = [name for name in ("user_id", "item_id", "event", "value", "ts", "context") if name not in same]
    kept = texts if all_texts else F.when(F.col("reason").isNotNull(), texts)
    return rows.select("source", "block", "line", *names, "reason", F.xxhash64(*KEY).alias("hash"), kept.alias("texts"))


def widened(rows: DataFrame, same: Mapping[str, Column]) -> DataFrame:
    """The columns that `narrowed` left out, again."""
    return rows.withColumns(dict(same))


def _by_user(unique: DataFrame) -> DataFrame:
    """Every user's numbers of keys (`clean`), of rows (`copies`) and of distinct values (`events`), and their times."""
    return unique.groupBy("user_id").agg(
        F.count(F.lit(1)).alias("clean"),
        F.sum("copies").alias("copies"),
        F.sum("values").alias("events"),
        F.min("ts").alias("first_seen"),
        F.max("ts").alias("last_seen"),
    )


def _by_name(names: tuple[str, ...]) -> Column:
    """The texts of the context as a map by column name; null without context columns."""
    if not names:
        return F.lit(None).cast("map<string,string>")
    return F.map_filter(F.map_from_arrays(F.array(*map(F.lit, names)), "context"), lambda _, text: text.isNotNull())


def _repeated_headers(rows: DataFrame) -> DataFrame:
    """Header lines after the first one of their file, for quarantine."""
    place = F.row_number().over(Window.partitionBy("source").orderBy("block", "line"))
    headers = rows.where(F.col("reason") == HEADER)
    again = headers.select("texts.raw", "source", place.alias("place")).where("place > 1")
    return again.select(F.lit("malformed_line").alias("reason"), "raw", "source")


def _alike(seen: Mapping[str, DataFrame], config: CleanConfig) -> tuple[dict[str, int], tuple[str, ...]]:
    """Number of ids that would coincide if case and unicode were folded, and notes for users and items."""
    folded = {"fold_case": True, "normalize_unicode": True}
    cure = " ".join(f"clean.{key}=true" for key in folded if not getattr(config, key))
    if not cure:
        return {}, ()
    found = {
        side: alike(
            seen[side],
            f"{side}_id",
            normalized_id(F.col(f"{side}_id"), config.model_copy(update=folded)),
            cure,
        )
        for side in ("user", "item")
    }
    return {f"{side}_ids_alike": n for side, (n, _) in found.items()}, tuple(note for _, note in found.values() if note)


def _hints(rows: DataFrame, tally: Tally, config: InputConfig) -> tuple[str, ...]:
    """Likely causes where many rows were rejected for one reason."""
    hints = []
    if tally.unpaired:
        hints.append(
            f"{tally.unpaired:,} lines were rejected for an unpaired quote (fields over several lines are not "
            "supported): if quotes are plain text here, set input.quote=null"
        )
    times = [name for name in tally.reasons if "timestamp" in name]
    looks = {
        kind: F.col("reason").isin(*times) & F.col("texts.ts_text").rlike(rf"^\d{{{low},{high}}}(\.\d*)?$")
        for kind, (low, high) in LOOKS_LIKE.items()
        if times and kind not in config.ts_formats
    }
    if config.format == "jsonl" and "malformed_line" in tally.reasons:
        looks["array"] = (F.col("reason") == "malformed_line") & F.col("texts.raw").rlike(r"^\s*\[")
    if not looks:
        return tuple(hints)
    found = rows.agg(
        *(F.count(F.when(condition, 1)).alias(name) for name, condition in looks.items()),
        *(F.min(F.when(condition, F.col("texts.ts_text"))).alias(f"{name}_text") for name, condition in looks.items()),
    ).first()
    for kind in UNITS.keys() & looks:
        if found[kind] * 2 > sum(tally.reasons[name] for name in times):
            text = found[f"{kind}_text"]
            hints.append(f"timestamps such as {text} look like {UNITS[kind]}: set input.ts_formats=[{kind}]")
    if found.asDict().get("array") and tally.reasons["malformed_line"] * 2 > tally.rows:
        hints.append("the input looks like a JSON array: jsonl has one object per line, see `jq -c '.[]'`")
    return tuple(hints)


def _check_counts(counts: dict[str, int], reasons: dict[str, int], config: CleanConfig, hints: tuple[str, ...]) -> None:
    ended = sum(n for name, n in counts.items() if name != "read")
    if counts["read"] != ended:
        raise GateRefused(f"rows do not reconcile: {counts['read']:,} read, {ended:,} accounted for: {counts}")
    by_reason = "; ".join([", ".join(f"{reason} {n:,}" for reason, n in reasons.items()), *hints])
    if counts["clean"] == 0:
        raise GateRefused(f"all {counts['read']:,} rows were rejected: {by_reason}")
    share = counts["quarantined"] / counts["read"]
    if share > config.max_quarantined_share:
        raise GateRefused(
            f"{share:.1%} of {counts['read']:,} rows were rejected, more than "
            f"clean.max_quarantined_share={config.max_quarantined_share}: {by_reason}"
        )
