"""The counts of an input's lines, from one pass over them."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.config.input import InputConfig
from sparkcf.data.rules import FORGOTTEN, HEADER, REASONS
from sparkcf.errors import InputError
from sparkcf.lake.sizing import query_settings


@dataclass(frozen=True)
class Tally:
    """Counts of lines.

    lines : all lines.
    rows : lines that are not the first header of their file.
    repeated_headers : further headers of files; they are rejected.
    reasons : rejected rows by reason, repeated headers too.
    forgotten : rows of forgotten users.
    unpaired : lines with an unpaired quote.
    open_quotes : those that leave a quoted field open.
    readable : rows that could be split into fields.
    present : by mapped column, the rows that have something in it.
    """

    lines: int
    rows: int
    repeated_headers: int
    reasons: dict[str, int]
    forgotten: int
    unpaired: int
    open_quotes: int
    readable: int
    present: dict[str, int]

    @classmethod
    def of(cls, rows: DataFrame, config: InputConfig) -> Tally:
        """Count the rows of a checked input: its columns `reason` and `texts` among others."""
        mapped = _mapped(config)
        # A group for every header's file, and one for every combination of a reason and a quote's fault.
        group = (F.col("reason"), F.col("texts.quote").alias("quote"))
        file = F.when(F.col("reason") == HEADER, F.col("source")).alias("file")
        counts = (F.count(value).alias(name) for name, value in mapped.items())
        tallied = rows.groupBy(*group, file).agg(F.count(F.lit(1)).alias("n"), *counts)
        # Adaptive execution would fill the cache in a pass of its own.
        with query_settings(rows.sparkSession, {"spark.sql.adaptive.enabled": "false"}):
            found = tallied.collect()
        headers = [row["n"] for row in found if row["reason"] == HEADER]
        lines = [row for row in found if row["reason"] != HEADER]
        repeated = sum(headers) - len(headers)

        def n(reason: str) -> int:
            return sum(row["n"] for row in lines if row["reason"] == reason)

        reasons = {reason: n(reason) for reason in REASONS}
        reasons["malformed_line"] += repeated
        total = sum(row["n"] for row in lines)
        return cls(
            total + sum(headers),
            total + repeated,
            repeated,
            {reason: number for reason, number in reasons.items() if number},
            n(FORGOTTEN),
            sum(row["n"] for row in lines if row["quote"]),
            sum(row["n"] for row in lines if row["quote"] == "open"),
            total - n("malformed_line"),
            {name: sum(row[name] for row in lines) for name in mapped},
        )

    def check_present(self, config: InputConfig) -> None:
        """Raise InputError if there is no row, or if a mapped column is empty in all of them."""
        rows = self.rows - self.repeated_headers
        if rows == 0:
            raise InputError(f"input.path={config.path}: no rows")
        for name, n in self.present.items() if self.readable else ():
            if n == 0:
                raise InputError(
                    f"input column {getattr(config.columns, name)!r} (input.columns.{name}) is empty in all "
                    f"{rows:,} rows of {config.path}: is it missing or renamed?"
                )


def _mapped(config: InputConfig) -> dict[str, Column]:
    """By mapped column, what is null where the column is empty: a text that could not be read is something."""
    mapped = {"user_id": F.col("user_id"), "item_id": F.col("item_id")}
    if config.columns.ts:
        mapped["ts"] = _either(F.col("ts"), F.col("texts.ts_text"))
    if config.columns.event:
        mapped["event"] = F.col("event")
    if config.columns.value:
        mapped["value"] = _either(F.col("value"), F.col("texts.value_text"))
    return mapped


def _either(typed: Column, text: Column) -> Column:
    return F.when(typed.isNotNull() | text.isNotNull(), 1)
