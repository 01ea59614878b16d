"""Small inputs for the cleaning tests: lines are written, read and cleaned, and come back as plain Python."""

from __future__ import annotations

import gzip
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from sparkcf.config.root import Config
from sparkcf.data.clean import Cleaned, clean
from sparkcf.data.ingest import read_raw


def write_lines(path: Path, *lines: str | bytes, end: str = "\n") -> Path:
    """Write a file, gzipped where its name ends so; text lines as UTF-8, bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join((line.encode() if isinstance(line, str) else line) + end.encode() for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@dataclass
class Outcome:
    """A cleaned input, collected."""

    counts: dict[str, int]
    reasons: dict[str, int]
    rows: list[tuple[str, str, str, float, str]]  # user_id, item_id, event, value, ts as ISO text in UTC; sorted
    quarantine: list[tuple[str, str | None]]  # reason, raw
    sources: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def reason_of(self) -> dict[str | None, str]:
        """Each rejected line's reason; a line that was rejected twice would be a fault of its own."""
        twice = [raw for raw, n in Counter(raw for _, raw in self.quarantine).items() if n > 1]
        assert not twice, f"lines rejected more than once: {twice}"
        return {raw: reason for reason, raw in self.quarantine}

    @property
    def values(self) -> dict[str, float]:
        return {row[0]: row[3] for row in self.rows}

    @property
    def times(self) -> dict[str, str]:
        return {row[0]: row[4] for row in self.rows}


def collect(cleaned: Cleaned) -> Outcome:
    ts = "date_format(ts, \"yyyy-MM-dd'T'HH:mm:ss.SSSSSS\") AS ts"
    rows = cleaned.interactions.selectExpr("user_id", "item_id", "event", "value", ts, "source").collect()
    rejected = cleaned.quarantine.select("reason", "raw").collect()
    cleaned.release()
    return Outcome(
        cleaned.counts,
        cleaned.reasons,
        sorted((r["user_id"], r["item_id"], r["event"], r["value"], r["ts"].removesuffix(".000000")) for r in rows),
        sorted((r["reason"], r["raw"]) for r in rejected),
        sorted({r["source"] for r in rows}),
        cleaned.notes,
        cleaned.figures,
    )


def clean_input(spark: SparkSession, config: Config, partitions: int | None = None) -> Outcome:
    """Read and clean the input of a configuration, spread over so many partitions."""
    raw, _ = read_raw(spark, config.input, config.input_path)
    if partitions is not None:
        raw = raw.repartition(partitions)
    return clean_frame(raw, config)


def clean_frame(raw: DataFrame, config: Config) -> Outcome:
    return collect(clean(raw, config.input, config.clean, config.ds))
