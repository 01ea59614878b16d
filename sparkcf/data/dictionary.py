"""Dictionary of feature texts (table `features`): every text that is a feature gets a number and keeps it for ever."""

from __future__ import annotations

from collections.abc import Iterable

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from sparkcf.data.pairs import Texts
from sparkcf.lake.ids import register
from sparkcf.lake.tables import LakeTables

MAPS = {"users": "attributes", "items": "attributes", "interactions": "context"}  # a table's map column of texts


def register_texts(tables: LakeTables, wanted: Iterable[Texts]) -> None:
    """Number the texts of the wanted columns that are not in the dictionary yet."""
    for texts in sorted(set(wanted), key=lambda texts: texts.name):
        if tables.version(texts.table) < 0:
            continue
        value = F.explode(values_of(texts)).alias("value")
        found = tables.read(texts.table).select(value).where("value IS NOT NULL").distinct()
        named = found.select(
            F.concat(F.lit(f"{texts.name}="), "value").alias("feature"),
            F.lit(texts.name).alias("field"),
            "value",
        )
        register(tables, "features", named)


def values_of(texts: Texts) -> Column:
    """The values of a row of the texts' table, array<string>; null, or with null, for a row without any."""
    if texts.column is None:
        return F.col("categories")
    text = F.col(MAPS[texts.table])[texts.column]
    if texts.separator is None:
        return F.array(text)
    literal = "\\Q" + texts.separator.replace("\\E", "\\E\\\\E\\Q") + "\\E"  # as Java's Pattern.quote
    parts = F.transform(F.split(text, literal), lambda part: F.trim(part))
    return F.filter(parts, lambda part: part != "")


def numbered(dictionary: DataFrame, name: str) -> DataFrame:
    """value, feat: the texts of one field of the dictionary, numbered from 0 in order of registration."""
    order = F.row_number().over(Window.partitionBy("field").orderBy("feature_idx")) - 1
    return dictionary.where(F.col("field") == name).select("value", order.cast("int").alias("feat"))
