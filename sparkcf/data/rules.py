"""The rules that a row has to keep; one that breaks any gets a reason and goes to quarantine."""

from __future__ import annotations

import datetime as dt

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.config.input import CleanConfig, InputConfig
from sparkcf.data.fields import utc
from sparkcf.lake.forgotten import Forgotten

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
HEADER, FORGOTTEN = "header", "forgotten"  # reasons of lines that are in neither of the two tables
NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"


def with_reason(rows: DataFrame, input_config: InputConfig, config: CleanConfig, ds: dt.date) -> DataFrame:
    """Add `reason`: HEADER, or the first rule that a row breaks, in the order of REASONS; null for a good row."""
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
    reason = F.coalesce(*(F.when(broken, F.lit(name)) for name, broken in ({HEADER: F.col("header")} | rules).items()))
    return rows.select("*", reason.alias("reason"))


def without_forgotten(rows: DataFrame, forgotten: Forgotten) -> DataFrame:
    """Rows of forgotten users have the reason FORGOTTEN and nothing else: no id, no text."""
    marked = forgotten.marked(rows, "of_forgotten")
    gone = F.col("of_forgotten") & ~F.col("header")
    texts = ("user_id", "item_id", "raw", "ts_text", "value_text", "context")
    emptied = {name: F.when(~gone, F.col(name)) for name in texts}
    reason = F.when(gone, FORGOTTEN).otherwise(F.col("reason"))
    return marked.withColumns(emptied | {"reason": reason}).drop("of_forgotten")
