"""Read the attributes of users and items from the configured tables, in the columns of the lake's tables."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, MapType, StructType

from sparkcf.config.input import AttributesInput, ItemsInput, UsersInput
from sparkcf.data.ingest import read_attributes
from sparkcf.data.lines import readable
from sparkcf.errors import InputError


def read_users(spark: SparkSession, config: UsersInput) -> DataFrame:
    """Read the users' attributes: user_id, attributes, numbers. Raises InputError as `read_items`."""
    columns = config.columns
    mapped = {"user_id": columns.user_id}
    rows = _read(spark, "users", config, mapped, {"attributes": columns.attributes, "numbers": columns.numbers})
    return rows.select(
        _text(columns.user_id).alias("user_id"),
        _texts(rows, columns.attributes).alias("attributes"),
        _numbers(columns.numbers).alias("numbers"),
    )


def read_items(spark: SparkSession, config: ItemsInput) -> DataFrame:
    """Read the items' attributes: item_id, title, categories, attributes, numbers, vectors.

    Raises InputError if the file or a mapped column is missing.
    """
    columns = config.columns
    mapped = {"item_id": columns.item_id, "title": columns.title, "categories": columns.categories}
    named = {"attributes": columns.attributes, "numbers": columns.numbers, "vectors": columns.vectors}
    rows = _read(spark, "items", config, mapped, named)
    return rows.select(
        _text(columns.item_id).alias("item_id"),
        _text_or_null(columns.title).alias("title"),
        _categories(rows, config).alias("categories"),
        _texts(rows, columns.attributes).alias("attributes"),
        _numbers(columns.numbers).alias("numbers"),
        _vectors(rows, columns.vectors).alias("vectors"),
    )


def _read(
    spark: SparkSession,
    kind: str,
    config: AttributesInput,
    mapped: dict[str, str | None],
    named: dict[str, Sequence[str]],
) -> DataFrame:
    rows = read_attributes(spark, kind, config)
    wanted = [*mapped.items(), *((key, name) for key, names in named.items() for name in names)]
    for ours, name in wanted:
        if name is not None and name not in rows.columns:
            raise InputError(
                f"input column {name!r} (input.{kind}.columns.{ours}) is missing in {config.path}: "
                f"it has {rows.columns}"
            )
    return rows


def _text(name: str) -> Column:
    return readable(_column(name).cast("string"))


def _column(name: str) -> Column:
    return F.col("`" + name.replace("`", "``") + "`")


def _text_or_null(name: str | None) -> Column:
    return _text(name) if name else F.lit(None).cast("string")


def _categories(rows: DataFrame, config: ItemsInput) -> Column:
    name = config.columns.categories
    if name is None:
        return F.lit(None).cast("array<string>")
    column = _column(name)
    if isinstance(rows.schema[name].dataType, ArrayType):
        return F.array_compact(column.cast("array<string>"))
    parts = F.split(_text(name), "\\Q" + config.category_separator + "\\E")
    return F.when(column.isin(*config.no_category), F.array().cast("array<string>")).otherwise(parts)


def _texts(rows: DataFrame, names: Sequence[str]) -> Column:
    """A map of some columns' texts by name, without the empty ones; of an array the texts with | between them."""
    if not names:
        return F.lit(None).cast("map<string,string>")
    arrays = {name for name in names if isinstance(rows.schema[name].dataType, ArrayType)}
    texts = [
        readable(F.array_join(_column(name).cast("array<string>"), "|")) if name in arrays else _text(name)
        for name in names
    ]
    plain = [F.nullif(F.trim(text), F.lit("")) for text in texts]
    made = F.map_from_arrays(F.array(*map(F.lit, names)), F.array(*plain))
    return F.map_filter(made, lambda _, text: text.isNotNull())


def _numbers(names: Sequence[str]) -> Column:
    if not names:
        return F.lit(None).cast("map<string,double>")
    pairs = [part for name in names for part in (F.lit(name), _column(name).cast("double"))]
    return F.create_map(*pairs)


def _vectors(rows: DataFrame, names: Sequence[str]) -> Column:
    """A map of some columns' vectors by name. A text has numbers between spaces, commas or semicolons.

    A vector with anything but finite numbers is left out.
    """
    if not names:
        return F.lit(None).cast("map<string,array<float>>")
    vectors = []
    for name in names:
        column, dtype = _column(name), rows.schema[name].dataType
        if isinstance(dtype.elementType if isinstance(dtype, ArrayType) else dtype, StructType | MapType | ArrayType):
            raise InputError(
                f"input column {name!r} (input.items.columns.vectors) has type {dtype.simpleString()}: an array of "
                "numbers or a text is needed"
            )
        if not isinstance(dtype, ArrayType):
            inner = F.regexp_replace(column.cast("string"), r"^[\s\[(]+|[\s\])]+$", "")
            column = F.split(inner, r"[\s,;]+")
        vector = column.cast("array<float>")
        finite = F.forall(vector, lambda number: F.coalesce(F.abs(number) < float("inf"), F.lit(False)))
        vectors.append(F.when((F.size(vector) > 0) & finite, vector))
    made = F.map_from_arrays(F.array(*map(F.lit, names)), F.array(*vectors))
    return F.map_filter(made, lambda _, vector: vector.isNotNull())
