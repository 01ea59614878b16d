"""Quoted fields over several lines: all their lines are rejected, also those that look like rows."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

LONGEST_FIELD = 100  # lines; if a quote stays open for longer, only its own line is rejected


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
    lines = rows.select("source", "block", "line", "texts.quote").join(shifts, on=["source", "block"], how="inner")
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
