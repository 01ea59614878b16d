"""Raw rows to clean interactions: every row ends in `interactions`, as a counted duplicate, or in quarantine.

    raw ──parse──▶ rules, first reason wins ──▶ one row a key ──▶ users and items out of bounds ──▶ interactions
                         │                           └── duplicates, counted      │
                         └──────────────────▶ quarantine ◀───────────────────────┘

All of it is Spark SQL expressions. Nothing here writes; `sparkcf.jobs.clean` does.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Observation, Row, Window
from pyspark.sql import functions as F

from sparkcf.config.input import EPOCHS, CleanConfig, InputConfig
from sparkcf.data.fields import normalized_id, parse, utc
from sparkcf.data.outliers import alike, find_outliers
from sparkcf.errors import GateRefused, InputError
from sparkcf.lake.forgotten import Forgotten

KEY = ("user_id", "item_id", "event", "ts")
REASONS = (
    "malformed_line",
    "missing_user_id",
    "missing_item_id",
    "user_id_too_long",
    "item_id_too_long",
    "unknown_event",
    "unparseable_timestamp",
    "timestamp_too_old",
    "future_timestamp",
    "value_not_a_number",
    "value_not_finite",
    "value_out_of_range",
    "too_many_events_of_user",
    "too_few_events_of_user",
    "too_few_events_of_item",
)
FORGOTTEN = "forgotten"  # the reason of rows that are kept out without a trace
NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"
MOST_HASHES = 500_000  # of repeated keys: some 25 MB at every executor
LONGEST_FIELD = 100  # lines; if a quote stays open for longer, only its own line is rejected
LOOKS_LIKE = {"epoch_s": (9, 10), "epoch_ms": (12, 13), "epoch_us": (15, 16), "epoch_ns": (18, 19)}  # digits of today
UNITS = dict(zip(EPOCHS, ("seconds", "milliseconds", "microseconds", "nanoseconds"), strict=True))


@dataclass(frozen=True)
class Cleaned:
    """A cleaned input; `release` frees its persisted frames."""

    interactions: DataFrame  # user_id, item_id, event, value, ts, context, source: one row a key
    quarantine: DataFrame  # reason, raw, source
    counts: dict[str, int]  # read, clean, exact_duplicates, superseded, quarantined; forgotten, if any user is
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

    def typed(raw: DataFrame) -> DataFrame:
        rows = with_reason(parse(raw, input_config, config, ds), input_config, config, ds)
        return without_forgotten(rows, forgotten) if forgotten else rows

    counted = raw.observe(
        observed, F.count(F.lit(1)).alias("rows"), F.count(F.when(F.col("header"), 1)).alias("headers")
    )
    checked = without_texts(typed(counted)).persist(StorageLevel.DISK_ONLY)  # keeps the heap; the OS caches the files
    kept = [checked]
    try:
        present = _check_present(checked, input_config)  # fills the cache: the one pass over the input
        if present["open_quotes"]:
            # Read again, with all texts. A line's number is of one reading: Spark may split the files otherwise now.
            checked.unpersist()
            checked = typed(raw).persist(StorageLevel.DISK_ONLY)
            continued = continued_lines(checked).persist(StorageLevel.DISK_ONLY)  # few lines, joined again and again
            kept += [checked, continued]
            checked = reject(checked, continued, "malformed_line")
        unique = deduplicate(checked.where(F.col("reason").isNull() & ~F.col("header")), kept)
        outliers = find_outliers(unique, config)
        kept += outliers.kept
        unique = outliers.keep(unique)
        first_headers = _repeated_headers(checked)
        bounded = checked
        if outliers.any:  # good rows turn out to belong to quarantine
            bounded = outliers.with_reason(checked if present["open_quotes"] else typed(raw))
        bad = f"reason IS NOT NULL AND reason <> '{FORGOTTEN}' AND NOT header"
        rejected = bounded.where(bad).select("reason", "raw", "source")
        if forgotten:
            rejected = forgotten.blanked(rejected, "raw", lambda word: normalized_id(word, config))
        if outliers.any:
            rejected = rejected.persist(StorageLevel.DISK_ONLY)
            kept.append(rejected)
        quarantine = rejected.unionByName(first_headers)
        totals = unique.agg(
            F.count(F.lit(1)).alias("clean"),
            F.sum("copies").alias("copies"),
            F.sum("values").alias("values"),
        ).first()
        reasons = {r["reason"]: r["count"] for r in quarantine.groupBy("reason").count().collect()}
        clean_rows, copies, values = (int(totals[name] or 0) for name in ("clean", "copies", "values"))
        header_lines = observed.get["headers"] - sum(
            r["count"] for r in first_headers.groupBy("reason").count().collect()
        )
        counts = {
            "read": observed.get["rows"] - header_lines,
            "clean": clean_rows,
            "exact_duplicates": copies - values,
            "superseded": values - clean_rows,
            "quarantined": sum(reasons.values()),
        }
        if forgotten:
            counts["forgotten"] = checked.where(F.col("reason") == FORGOTTEN).count()
        reasons = {reason: reasons[reason] for reason in REASONS if reason in reasons}
        hints = _hints(checked, reasons, present["unpaired"], input_config)
        _check_counts(counts, reasons, config, hints)
        seen = {side: _seen(unique, side) for side in ("user", "item")}
        kept += seen.values()
        figures, notes = _alike(seen, config)
    except BaseException:
        for frame in kept:
            frame.unpersist()
        raise
    interactions = unique.drop("copies", "values").withColumn("context", _by_name(input_config.columns.context))
    figures, notes = outliers.figures | figures, (*outliers.notes, *hints, *notes)
    return Cleaned(interactions, quarantine, counts, seen, reasons, figures, notes, tuple(kept))


def without_texts(rows: DataFrame) -> DataFrame:
    """Keep `raw` and `ts_text`, most of a row's bytes, only of rejected rows, headers and lines of unpaired quotes."""
    bad = F.col("reason").isNotNull() | F.col("header") | F.col("quote").isNotNull()
    kept = {name: F.when(bad, F.col(name)) for name in ("raw", "ts_text")}
    has = {f"has_{name}": F.col(name).isNotNull() for name in ("ts_text", "value_text")}
    return rows.withColumns(has | kept).drop("value_text")


def without_forgotten(rows: DataFrame, forgotten: Forgotten) -> DataFrame:
    """Rows of forgotten users have the reason FORGOTTEN and nothing else: no id, no text."""
    marked = forgotten.marked(rows, "of_forgotten")
    gone = F.col("of_forgotten") & ~F.col("header")
    texts = ("user_id", "item_id", "raw", "ts_text", "value_text", "context")
    emptied = {name: F.when(~gone, F.col(name)) for name in texts}
    reason = F.when(gone, FORGOTTEN).otherwise(F.col("reason"))
    return marked.withColumns(emptied | {"reason": reason}).drop("of_forgotten")


def _seen(unique: DataFrame, side: str) -> DataFrame:
    """The ids of a side and their first events, persisted: they are read for notes and for the table of ids."""
    first = unique.groupBy(f"{side}_id").agg(F.min("ts").alias("first_seen"))
    return first.persist(StorageLevel.MEMORY_AND_DISK)


def _by_name(names: tuple[str, ...]) -> Column:
    """The texts of the context as a map by column name; null without context columns."""
    if not names:
        return F.lit(None).cast("map<string,string>")
    return F.map_filter(F.map_from_arrays(F.array(*map(F.lit, names)), "context"), lambda _, text: text.isNotNull())


def with_reason(rows: DataFrame, input_config: InputConfig, config: CleanConfig, ds: dt.date) -> DataFrame:
    """Add `reason`: the first rule that a row breaks, in the order of REASONS; null for a good row."""
    horizon = dt.datetime.combine(ds, dt.time()) + dt.timedelta(days=1, hours=config.future_tolerance_hours)
    value, text = F.col("value"), F.col("value_text")
    rules = {
        "malformed_line": F.col("malformed"),
        "missing_user_id": F.col("user_id").isNull(),
        "missing_item_id": F.col("item_id").isNull(),
        "user_id_too_long": F.length("user_id") > config.max_id_length,
        "item_id_too_long": F.length("item_id") > config.max_id_length,
        "unknown_event": F.col("event").isNull() | (F.col("event") == ""),
        "unparseable_timestamp": F.col("ts").isNull(),
        "timestamp_too_old": F.col("ts") < utc(config.earliest),
        "future_timestamp": F.col("ts") >= utc(horizon),
        # Where a value could be read, its text is a number.
        "value_not_a_number": value.isNull() & (text.isNull() | ~text.rlike(NOT_FINITE)),
        "value_not_finite": value.isNull() | value.isin(float("inf"), float("-inf")),
    }
    if input_config.events is not None:
        rules["unknown_event"] |= ~F.col("event").isin(*input_config.events)
    if input_config.value_range is not None:
        rules["value_out_of_range"] = ~value.between(*input_config.value_range)
    reason = F.coalesce(*(F.when(broken, F.lit(name)) for name, broken in rules.items()))
    return rows.select("*", reason.alias("reason"))


def continued_lines(rows: DataFrame) -> DataFrame:
    """Lines inside a quoted field that began on an earlier line: source, block, line.

    Lines with an unpaired quote (`lines.quote_left`) are rejected already. If one of them opens a field and the next
    one follows within LONGEST_FIELD lines, all lines between the two belong to that field. A line after a `stray` one,
    or far from the previous one, opens a new field; otherwise openings and endings alternate.
    """
    blocks = rows.groupBy("source", "block").agg(F.min("line").alias("first"), F.count(F.lit(1)).alias("lines"))
    before = Window.partitionBy("source").orderBy("block").rowsBetween(Window.unboundedPreceding, -1)
    shift = F.coalesce(F.sum("lines").over(before), F.lit(0)) - F.col("first")
    shifts = F.broadcast(blocks.select("source", "block", shift.alias("shift")))  # a row for each block of a file
    lines = rows.select("source", "block", "line", "quote").join(shifts, on=["source", "block"], how="inner")
    placed = lines.withColumn("place", F.expr("line + shift"))

    by_place = Window.partitionBy("source").orderBy("place")
    last_place, last_quote = F.lag("place").over(by_place), F.lag("quote").over(by_place)
    anew = last_quote.isNull() | (last_quote == "stray") | (F.col("place") - last_place > LONGEST_FIELD)
    odd = placed.where(F.col("quote").isNotNull()).select(
        "source", "place", "quote", F.lead("place").over(by_place).alias("next"), anew.cast("int").alias("anew")
    )
    odd = odd.withColumn("run", F.sum("anew").over(by_place))
    odd = odd.withColumn("nth", F.row_number().over(Window.partitionBy("source", "run").orderBy("place")))
    begin = odd.where("quote = 'open' AND nth % 2 = 1").where(f"next - place BETWEEN 2 AND {LONGEST_FIELD}")
    within = begin.select("source", F.explode(F.expr("sequence(place + 1, next - 1)")).alias("place"))
    return placed.join(within, on=["source", "place"], how="inner").select("source", "block", "line")


def reject(rows: DataFrame, lines: DataFrame, reason: str) -> DataFrame:
    """Set the reason of the rows of some lines (source, block, line)."""
    marked = rows.join(lines.withColumn("marked", F.lit(reason)), on=["source", "block", "line"], how="left")
    return marked.withColumn("reason", F.coalesce("marked", "reason")).drop("marked")


def deduplicate(rows: DataFrame, kept: list[DataFrame]) -> DataFrame:
    """One row per (user, item, event, ts): the last by file name, then by place in the file.

    Adds the number of rows of the key, `copies`, and of their distinct values, `values`. Only rows whose key's hash
    occurs again are grouped by the key; if there are more such hashes than every executor can hold, all rows are.

    Parameters
    ----------
    kept : persisted frames are added to it.
    """

    def persisted(frame: DataFrame) -> DataFrame:
        kept.append(frame.persist(StorageLevel.DISK_ONLY))
        return frame

    hashed = rows.withColumn("hash", F.xxhash64(*KEY))
    again = persisted(hashed.groupBy("hash").count().where("count > 1").select("hash"))
    if again.count() > MOST_HASHES:
        return persisted(_one_a_key(rows))
    again_here = F.broadcast(again)
    repeated = persisted(_one_a_key(hashed.join(again_here, on="hash", how="left_semi")))
    once = hashed.join(again_here, on="hash", how="left_anti")
    alone = once.withColumns({"copies": F.lit(1).cast("long"), "values": F.lit(1)}).select(*repeated.columns)
    return alone.unionByName(repeated)


def _one_a_key(rows: DataFrame) -> DataFrame:
    last = F.max(F.struct("source", "block", "line", "value", "context"))
    grouped = rows.groupBy(*KEY).agg(
        last.alias("last"),
        F.count(F.lit(1)).alias("copies"),
        F.size(F.collect_set("value")).alias("values"),
    )
    return grouped.select(
        *KEY[:3],
        F.col("last.value").alias("value"),
        "ts",
        F.col("last.context").alias("context"),
        F.col("last.source").alias("source"),
        "copies",
        "values",
    )


def _repeated_headers(rows: DataFrame) -> DataFrame:
    """Header lines after the first one of their file, for quarantine."""
    place = F.row_number().over(Window.partitionBy("source").orderBy("block", "line"))
    again = rows.where("header").select("raw", "source", place.alias("place")).where("place > 1")
    return again.select(F.lit("malformed_line").alias("reason"), "raw", "source")


def _check_present(rows: DataFrame, config: InputConfig) -> Row:
    """Raise InputError if a mapped column is empty in all rows; returns counts of rows.

    `unpaired` counts the lines with an unpaired quote, `open_quotes` those which leave a quoted field open.
    """
    data = rows.where(~F.col("header"))
    mapped = {"user_id": "user_id", "item_id": "item_id"}
    if config.columns.ts:
        mapped["ts"] = "has_ts_text"
    if config.columns.event:
        mapped["event"] = "event"
    if config.columns.value:
        mapped["value"] = "has_value_text"
    present = data.agg(
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(~F.col("malformed"), 1)).alias("readable"),
        F.count("quote").alias("unpaired"),
        F.count(F.when(F.col("quote") == "open", 1)).alias("open_quotes"),
        *(F.count(_given(ours)).alias(name) for name, ours in mapped.items()),
    ).first()
    if present["rows"] == 0:
        raise InputError(f"input.path={config.path}: no rows")
    for name in mapped if present["readable"] else ():
        if present[name] == 0:
            raise InputError(
                f"input column {getattr(config.columns, name)!r} (input.columns.{name}) is empty in all "
                f"{present['rows']:,} rows of {config.path}: is it missing or renamed?"
            )
    return present


def _given(name: str) -> Column:
    """Null where a mapped column is empty."""
    return F.when(F.col(name), 1) if name.startswith("has_") else F.col(name)


def _alike(seen: dict[str, DataFrame], config: CleanConfig) -> tuple[dict[str, int], tuple[str, ...]]:
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


def _hints(rows: DataFrame, reasons: dict[str, int], unpaired: int, config: InputConfig) -> tuple[str, ...]:
    """Likely causes where many rows were rejected for one reason."""
    hints = []
    if unpaired:
        hints.append(
            f"{unpaired:,} lines were rejected for an unpaired quote (fields over several lines are not supported): "
            "if quotes are plain text here, set input.quote=null"
        )
    times = [name for name in reasons if "timestamp" in name]
    looks = {
        kind: F.col("reason").isin(*times) & F.col("ts_text").rlike(rf"^\d{{{low},{high}}}(\.\d*)?$")
        for kind, (low, high) in LOOKS_LIKE.items()
        if times and kind not in config.ts_formats
    }
    if config.format == "jsonl" and "malformed_line" in reasons:
        looks["array"] = (F.col("reason") == "malformed_line") & F.col("raw").rlike(r"^\s*\[")
    if not looks:
        return tuple(hints)
    found = rows.agg(
        *(F.count(F.when(condition, 1)).alias(name) for name, condition in looks.items()),
        *(F.min(F.when(condition, F.col("ts_text"))).alias(f"{name}_text") for name, condition in looks.items()),
        F.count(F.lit(1)).alias("rows"),
    ).first()
    for kind in UNITS.keys() & looks:
        if found[kind] * 2 > sum(reasons[name] for name in times):
            text = found[f"{kind}_text"]
            hints.append(f"timestamps such as {text} look like {UNITS[kind]}: set input.ts_formats=[{kind}]")
    if found.asDict().get("array") and reasons["malformed_line"] * 2 > found["rows"]:
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
