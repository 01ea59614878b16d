"""A quarter of a million events with a known amount of dirt end in exactly the known counts."""

from __future__ import annotations

import json
from pathlib import Path

from pyspark.sql import functions as F

from sparkcf.data.clean import clean
from sparkcf.data.ingest import read_raw

REASON_OF = {
    "null_user_id": "missing_user_id",
    "null_item_id": "missing_item_id",
    "non_numeric_value": "value_not_a_number",
    "non_finite_value": "value_not_finite",
    "out_of_range_value": "value_out_of_range",
    "future_ts": "future_timestamp",
    "unparseable_ts": "unparseable_timestamp",
}


def test_every_defect_of_the_dirty_data_set_is_found_and_nothing_else(spark, config, shared_data: Path) -> None:
    folder = shared_data / "ml-latest-small-dirty"
    truth = json.loads((folder / "truth.json").read_text())
    settings = config(
        *("ds=2025-12-31", "input.format=jsonl", "input.value_range=[0.5, 5.0]", "clean.max_quarantined_share=0.6"),
        "input.columns={user_id: user_id, item_id: item_id, event: event, value: value, ts: ts}",
        *("clean.normalize_unicode=true", "clean.fold_case=true", "clean.max_events_per_user=50000"),
        path=folder / "events.jsonl.gz",
    )
    raw, columns = read_raw(spark, settings.input, settings.input_path)
    cleaned = clean(raw, settings.input, settings.clean, settings.ds)

    defects = truth["defects"]
    assert columns == truth["columns"]
    assert cleaned.reasons == {reason: defects[defect] for defect, reason in REASON_OF.items()} | {
        "malformed_line": defects["malformed_line"] + defects["invalid_utf8_bytes"],
        "too_many_events_of_user": truth["bot"]["events"],
    }
    wanted = truth["expected_after_cleaning"]
    assert cleaned.counts == {
        "read": truth["lines"]["events"],
        "clean": wanted["rows"],
        "exact_duplicates": defects["exact_duplicate"],
        "superseded": truth["lines"]["superseded_by_later_value"],
        "quarantined": sum(cleaned.reasons.values()),
    }
    iso = "yyyy-MM-dd'T'HH:mm:ss'Z'"
    got = cleaned.interactions.agg(
        F.count("value").alias("rows"),
        F.countDistinct("user_id").alias("users"),
        F.countDistinct("item_id").alias("items"),
        F.date_format(F.min("ts"), iso).alias("first_ts"),
        F.date_format(F.max("ts"), iso).alias("last_ts"),
        F.sum("value").alias("value_sum"),
    ).first()
    cleaned.release()
    assert got.asDict() == wanted
