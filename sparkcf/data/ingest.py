"""Read raw logs of any format as one frame of text.

Every format gives the same columns (`RAW_COLUMNS`), so that the rules of `clean` are written once:

    raw                                    the row as text
    source, block, line                    its file and place; block and line order the rows of a file
    header, malformed                      flags
    quote                                  fault of the line's quotes, see `lines.quote_left`
    user_id, item_id, event, value, ts     the fields as text, null where absent
    context                                texts of `input.columns.context`, in their order
"""

from __future__ import annotations

import codecs
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

from py4j.protocol import Py4JJavaError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DataType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)
from pyspark.sql.utils import AnalysisException

from sparkcf.config.input import AttributesInput, Columns, InputConfig
from sparkcf.data.lines import csv_fields, header_names, json_fields, json_keys, not_utf8, quote_left
from sparkcf.errors import InputError, first_line
from sparkcf.redact import RULES, redacted

FIELDS = ("user_id", "item_id", "event", "value", "ts")
RAW_COLUMNS = ("raw", "source", "block", "line", "header", "malformed", "quote", *FIELDS, "context")
MAX_HEADERS = 32
BROKEN_FILE = (  # parts of the errors of Hadoop's and Spark's readers for a broken file
    "EOFException",
    "incorrect header check",
    "incorrect data check",
    "invalid block type",
    "not a gzip file",
    "not a Parquet file",
    "ParquetDecodingException",
    "FileNotFoundException",
    "Encountered error while reading file",
    "Could not read footer",
    "Parquet column cannot be converted",
    "ClassCastException: class org.apache.spark.sql.types.",  # a column that is a struct in one of the files
)
FILE = re.compile(r"\b(?:file|s3a?|abfss?|hdfs|gs):/(?:.+?(?= is not a Parquet)|\S+?(?=[.:,]?(?:\s|$)))")
ISO_UTC = "yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'"


def resolve_path(path: str) -> str:
    """Resolve `sample:NAME` to a file of the package and `~` to the home folder; other paths stay as they are."""
    scheme, _, name = path.partition(":")
    if scheme != "sample":
        return os.path.expanduser(path)
    found = resources.files("sparkcf").joinpath("sample", name)
    if not found.is_file():
        raise InputError(f"input.path={path}: the package has no such sample; it has ratings.csv.gz and movies.csv")
    return str(found) if isinstance(found, Path) else str(_unpacked(name))


@cache
def _unpacked(name: str) -> Path:
    """A sample unpacked from a zipped package, since Spark reads files only; deleted with this process."""
    path = Path(_unpacked_samples().name, name)
    path.write_bytes(resources.files("sparkcf").joinpath("sample", name).read_bytes())
    return path


@cache
def _unpacked_samples() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sparkcf-sample-")


def read_raw(spark: SparkSession, config: InputConfig, path: str) -> tuple[DataFrame, list[str]]:
    """Read the input: a frame of RAW_COLUMNS, and the names of the input's columns.

    Raises
    ------
    InputError
        No file matches, every file is empty, or a mapped column is missing or repeated in a header.
    """
    path = resolve_path(path)
    try:
        if config.format == "csv":
            return _read_csv(spark, config, path)
        if config.format == "jsonl":
            return _read_json_lines(spark, config, path)
        return _read_typed(spark, config, path)
    except (AnalysisException, Py4JJavaError) as error:
        raise InputError(f"input.path={path} cannot be read as {config.format}: {first_line(error)}") from error


def _read_csv(spark: SparkSession, config: InputConfig, path: str) -> tuple[DataFrame, list[str]]:
    lines = _read_lines(spark, path)
    if not config.header:
        _check_columns(config.columns, config.names, f"{path} (input.names)")
        parsed = _mapped(config.columns, *csv_fields(config, config.names))
        return _with_fields(lines, parsed, F.lit(False), quote_left(config)), list(config.names)
    heads = {file: head for file, head in _first_lines(spark, lines.inputFiles()).items() if head is not None}
    if not heads:
        raise InputError(f"input.path={path}: every file is empty")
    by_head = Counter(heads.values()).most_common()
    if len(by_head) > MAX_HEADERS:
        raise InputError(
            f"input.path={path}: {len(by_head)} different first lines in {len(heads)} files: "
            "do the files have a header? If not: input.header=false input.names=[…]"
        )
    parsed, header, columns = None, F.lit(False), []
    for head, _ in by_head:  # the most common header first: it needs no condition
        names = header_names(head, config)
        columns += [name for name in names if name not in columns]
        files = [file for file, its_head in heads.items() if its_head == head]
        _check_columns(config.columns, names, f"{path} ({files[0]})")
        fields = _mapped(config.columns, *csv_fields(config, names))
        if parsed is None:
            parsed, header = fields, F.col("raw") == head
        else:
            here = F.col("source").isin([re.sub("^file:/+", "file:/", file) for file in files])
            parsed = F.when(here, fields).otherwise(parsed)
            header = F.when(here, F.col("raw") == head).otherwise(header)
    assert parsed is not None
    return _with_fields(lines, parsed, header, quote_left(config)), columns


def _read_json_lines(spark: SparkSession, config: InputConfig, path: str) -> tuple[DataFrame, list[str]]:
    lines = _read_lines(spark, path)
    heads = [head for head in _first_lines(spark, lines.inputFiles()).values() if head is not None]
    if not heads:
        raise InputError(f"input.path={path}: every file is empty")
    keys = [key for head in heads for key in json_keys(head)]
    names = [name for name in _mapping(config.columns).values() if name]
    ids = [name for name in (config.columns.user_id, config.columns.item_id, config.columns.event) if name]
    parsed = _mapped(config.columns, *json_fields(names, keys, ids))
    return _with_fields(lines, parsed, F.lit(False)), list(dict.fromkeys([*names, *keys]))


def _read_typed(spark: SparkSession, config: InputConfig, path: str) -> tuple[DataFrame, list[str]]:
    rows = _of_one_version(spark, path) if config.format == "delta" else spark.read.format(config.format).load(path)
    names = _check_columns(config.columns, rows.columns, path, rows)
    located = rows.select(
        F.to_json(F.struct(*(_column(rows, name) for name in rows.columns))).alias("raw"),
        *_place(),
        F.lit(False).alias("header"),
        F.lit(None).cast("string").alias("quote"),
        _mapped(config.columns, lambda name: _as_text(rows, name), F.lit(False)).alias("parsed"),
    )
    return _flat(located), names


def _of_one_version(spark: SparkSession, path: str) -> DataFrame:
    """A Delta table at its newest version, also where it is read twice while others write to it."""
    log = spark._jvm.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, path)
    none = spark._jvm.scala.Option.empty()
    return spark.read.format("delta").option("versionAsOf", int(log.update(False, none, none).version())).load(path)


def _column(rows: DataFrame, name: str) -> Column:
    """A column by its name; a dotted name is a field of a struct."""
    parts = [name] if name in rows.columns else name.split(".")
    return F.col(".".join("`" + part.replace("`", "``") + "`" for part in parts))


def _as_text(rows: DataFrame, name: str) -> Column:
    column = _column(rows, name)
    if isinstance(rows.select(column).schema[0].dataType, TimestampType):
        return F.date_format(column, ISO_UTC)
    return column.cast("string")


def _read_lines(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.text(path).select(F.col("value").alias("raw"), *_place())


def _place() -> tuple[Column, ...]:
    """File, block and line of a row; `line` is consecutive within a block."""
    return (
        F.col("_metadata.file_path").alias("source"),
        F.col("_metadata.file_block_start").alias("block"),
        F.monotonically_increasing_id().alias("line"),
    )


def _with_fields(lines: DataFrame, parsed: Column, header: Column, quote: Column | None = None) -> DataFrame:
    quote = F.lit(None).cast("string") if quote is None else quote
    return _flat(lines.select("*", header.alias("header"), quote.alias("quote"), parsed.alias("parsed")))


def _flat(rows: DataFrame) -> DataFrame:
    return rows.select("raw", "source", "block", "line", "header", "quote", "parsed.*")


def _mapped(columns: Columns, field: Callable[[str], Column], malformed: Column) -> Column:
    values = [
        (field(getattr(columns, ours)) if getattr(columns, ours) else F.lit(None).cast("string")).alias(ours)
        for ours in FIELDS
    ]
    context = F.array(*map(field, columns.context)).cast("array<string>").alias("context")
    return F.struct((malformed | not_utf8(F.col("raw"))).alias("malformed"), *values, context)


def _mapping(columns: Columns) -> dict[str, str | None]:
    return {ours: getattr(columns, ours) for ours in FIELDS} | {f"context, {name}": name for name in columns.context}


def _check_columns(columns: Columns, names: Sequence[str], where: str, rows: DataFrame | None = None) -> list[str]:
    for ours, name in _mapping(columns).items():
        if name is None:
            continue
        try:
            present = name in names or (rows is not None and rows.select(_column(rows, name)) is not None)
        except AnalysisException:
            present = False
        if not present:
            raise InputError(
                f"input column {name!r} (input.columns.{ours}) is missing in {where}: it has {list(names)}"
            )
        if list(names).count(name) > 1:
            raise InputError(
                f"input column {name!r} (input.columns.{ours}) occurs twice in {where}: rename one of {list(names)}"
            )
        if rows is not None:
            _check_type(ours, name, rows.select(_column(rows, name)).schema[0].dataType, where)
    return list(names)


def _check_type(ours: str, name: str, dtype: DataType, where: str) -> None:
    if isinstance(dtype, StructType | ArrayType | MapType | BinaryType):
        raise InputError(
            f"input column {name!r} (input.columns.{ours}) has type {dtype.simpleString()} in {where}: "
            "a text, number or timestamp is needed"
        )


def _first_lines(spark: SparkSession, files: Sequence[str]) -> dict[str, str | None]:
    """The first line of every file (None: empty), read by the driver through Hadoop, decompressed."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return dict(zip((f for f in files), pool.map(lambda f: _first_line(spark, f), files), strict=True))


def _first_line(spark: SparkSession, file: str) -> str | None:
    jvm = spark._jvm
    conf = spark._jsparkSession.sessionState().newHadoopConf()
    path = jvm.org.apache.hadoop.fs.Path(jvm.java.net.URI(file))
    codec = jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(conf).getCodec(path)
    stream = path.getFileSystem(conf).open(path)
    try:
        plain = stream if codec is None else codec.createInputStream(stream)
        reader = jvm.java.io.BufferedReader(jvm.java.io.InputStreamReader(plain, codecs.lookup("utf-8").name))
        line = reader.readLine()
        return None if line is None else line.removeprefix("\ufeff")  # Spark drops the byte order mark too
    finally:
        stream.close()


def read_attributes(spark: SparkSession, kind: str, config: AttributesInput) -> DataFrame:
    """Read the table of attributes of `input.users` or `input.items`, unchanged."""
    path = resolve_path(config.path)
    try:
        if config.format == "jsonl":
            return spark.read.json(path)
        if config.format != "csv":
            return spark.read.format(config.format).load(path)
        reader = spark.read.options(sep=config.delimiter, quote='"', escape='"')
        if config.header:
            return reader.csv(path, header=True)
        schema = StructType([StructField(name, StringType()) for name in config.names])
        return reader.csv(path, schema=schema)
    except (AnalysisException, Py4JJavaError) as error:
        raise InputError(f"input.{kind}.path={path} cannot be read as {config.format}: {first_line(error)}") from error


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Raise InputError for a file that turns out to be broken while Spark reads it; pass other errors on."""
    try:
        yield
    except Py4JJavaError as error:
        chain = _chain(error)
        if any(sign in text for text in chain for sign in BROKEN_FILE):
            found = next((unquote(match[0]) for text in chain if (match := FILE.search(text))), None)
            which = f"file {found}" if found and found != path else "a file"
            raise InputError(
                f"input.path={path}: {which} is cut off, damaged, gone or of another type than the others: "
                f"{first_line(error)}"
            ) from error
        raise


def _chain(error: Py4JJavaError) -> list[str]:
    """The first line of a Java exception and of each of its causes."""
    texts, java = [], error.java_exception
    while java is not None:
        texts.append(next(iter(java.toString().splitlines()), ""))
        java = java.getCause()
    return texts


def decoded(source: Column, path: str = "") -> Column:
    """Spark's URL-encoded file path, decoded; without the credentials that the input's address `path` may have."""
    text = F.when(source.contains("%"), F.url_decode(F.regexp_replace(source, r"\+", "%2B"))).otherwise(source)
    if redacted(path) != path:
        for pattern, replacement in RULES:
            text = F.regexp_replace(text, pattern.pattern, replacement.replace("\\1", "$1"))
    return text


def read_listing(
    spark: SparkSession, key: str, path: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> DataFrame:
    """Read columns, as text, of a table: CSV or parquet by the ending of `path`, otherwise Delta.

    Parameters
    ----------
    key : the configuration's key that names the table, for messages.
    path : `~` is the home folder.
    optional : columns that are null if the table does not have them.

    Raises InputError if the table cannot be read or lacks a column.
    """
    file = os.path.expanduser(path)
    try:
        if file.split("?")[0].rstrip("/").endswith((".csv", ".csv.gz")):
            rows = spark.read.csv(file, header=True, quote='"', escape='"')
        elif file.rstrip("/").endswith(".parquet"):
            rows = spark.read.parquet(file)
        else:
            rows = spark.read.format("delta").load(file)
    except Exception as error:
        raise InputError(f"{key}={path} cannot be read: {first_line(error)}") from error
    for name in columns:
        if name not in rows.columns:
            raise InputError(f"{key}={path}: column {name} is missing, it has {rows.columns}")
    found = [_as_text(rows, name).alias(name) for name in (*columns, *optional) if name in rows.columns]
    missing = [F.lit(None).cast("string").alias(name) for name in optional if name not in rows.columns]
    return rows.select(*found, *missing)
