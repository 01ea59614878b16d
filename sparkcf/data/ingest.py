"""Raw logs, whatever their format, as one frame of text: the row as it was read, its place, its five fields.

Every format ends in the same columns (`RAW_COLUMNS`), so that the rules of `clean` are written once:
`raw` text, `source` file, `block` and `line` (which order the rows of a file as they stand in it),
`header` and `malformed` flags, and `user_id, item_id, event, value, ts` as text, null where absent; `context`, the
texts of `input.columns.context` in their order.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
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

from sparkcf.config.input import AttributesInput, Columns, InputConfig, ItemsInput, UsersInput
from sparkcf.errors import InputError, first_line

FIELDS = ("user_id", "item_id", "event", "value", "ts")
RAW_COLUMNS = ("raw", "source", "block", "line", "header", "malformed", *FIELDS, "context")
MAX_HEADERS = 32
BROKEN_FILE = (  # what Hadoop's and Spark's readers say of one
    "EOFException",
    "incorrect header check",
    "incorrect data check",
    "invalid block type",
    "not a gzip file",
    "not a Parquet file",
    "ParquetDecodingException",
    "FileNotFoundException",
)
END = "_end_of_line"  # key of the object that closes a line of JSON while it is read
ISO_UTC = "yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'"


def resolve_path(path: str) -> str:
    """`sample:NAME` is a file of the package; anything else stays as it is."""
    scheme, _, name = path.partition(":")
    if scheme != "sample":
        return path
    found = resources.files("sparkcf").joinpath("sample", name)
    if not found.is_file():
        raise InputError(f"input.path={path}: the package has no such sample; it has ratings.csv.gz and movies.csv")
    return str(found) if isinstance(found, Path) else str(_unpacked(name))


@cache
def _unpacked(name: str) -> Path:
    """A sample out of a zipped package, in a folder that lives as long as this process: Spark reads files only."""
    path = Path(_unpacked_samples().name, name)
    path.write_bytes(resources.files("sparkcf").joinpath("sample", name).read_bytes())
    return path


@cache
def _unpacked_samples() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sparkcf-sample-")


def read_raw(spark: SparkSession, config: InputConfig, path: str) -> tuple[DataFrame, list[str]]:
    """The input as a frame of RAW_COLUMNS, and the names of the columns that it has.

    Raises
    ------
    InputError
        No file matches, every file is empty, or a mapped column is missing.
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
        fields = _csv_fields(F.col("raw"), config, list(config.names))
        return _with_fields(lines, fields, F.lit(False)), list(config.names)
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
    for head, _ in by_head:  # the commonest first: it is the one without a condition
        names = _header_names(head, config.delimiter)
        columns += [name for name in names if name not in columns]
        files = [file for file, its_head in heads.items() if its_head == head]
        _check_columns(config.columns, names, f"{path} ({files[0]})")
        fields = _csv_fields(F.col("raw"), config, names)
        if parsed is None:
            parsed, header = fields, F.col("raw") == head
        else:
            here = F.col("source").isin([re.sub("^file:/+", "file:/", file) for file in files])
            parsed = F.when(here, fields).otherwise(parsed)
            header = F.when(here, F.col("raw") == head).otherwise(header)
    assert parsed is not None
    return _with_fields(lines, parsed, header), columns


def _header_names(head: str, delimiter: str) -> list[str]:
    delimiter = delimiter.replace("\\t", "\t")
    if len(delimiter) > 1:  # Python's reader knows one character only
        names = [name.strip().strip('"') for name in head.split(delimiter)]
    else:
        names = next(csv.reader(io.StringIO(head), delimiter=delimiter), [])
    return [name.strip() for name in names]


def _csv_fields(raw: Column, config: InputConfig, names: list[str]) -> Column:
    unique = [f"c{i}" for i in range(len(names))]  # names may repeat or hold odd characters
    schema = ", ".join(f"{name} string" for name in [*unique, "_broken"])
    options = {
        "sep": config.delimiter,
        "quote": '"',
        "escape": '"',  # a quote within quotes is doubled, as in RFC 4180
        "columnNameOfCorruptRecord": "_broken",
        "mode": "PERMISSIVE",
    }
    parsed = F.from_csv(raw, schema, options)
    by_name = {name: parsed[c] for name, c in zip(names, unique, strict=True)}
    broken = parsed.isNull() | parsed["_broken"].isNotNull() | (raw == "")
    return _mapped(config.columns, lambda name: by_name[name], broken)


def _read_json_lines(spark: SparkSession, config: InputConfig, path: str) -> tuple[DataFrame, list[str]]:
    lines = _read_lines(spark, path)
    heads = [head for head in _first_lines(spark, lines.inputFiles()).values() if head is not None]
    if not heads:
        raise InputError(f"input.path={path}: every file is empty")
    names = [name for name in _mapping(config.columns).values() if name]
    # Read as an array that ends in an object of our own: whatever else stands on the line then makes it malformed.
    schema = ArrayType(_nested_schema([*names, END]))
    framed = F.concat(F.lit("["), "raw", F.lit(f',{{"{END}":"1"}}]'))
    parsed = F.from_json(framed, schema, {"allowSingleQuotes": "false"})
    one = parsed.getItem(0)

    def field(name: str) -> Column:
        found = one
        for part in name.split("."):
            found = found[part]
        return F.regexp_replace(found, '^"(NaN|-?Infinity)"$', "$1")  # Spark quotes these bare literals

    broken = parsed.isNull() | (F.size(parsed) != 2) | one.isNull() | parsed.getItem(1)[END].isNull()
    for name in (config.columns.user_id, config.columns.item_id, config.columns.event):
        if name is not None:
            broken |= _is_nested(field(name), name)
    columns = list(dict.fromkeys([*names, *(key for head in heads for key in _keys(head))]))
    return _with_fields(lines, _mapped(config.columns, field, broken), F.lit(False)), columns


def _is_nested(text: Column, name: str) -> Column:
    """Whether a field holds an object or an array; text that only looks like one stands in quotes in the line."""
    leaf = re.escape(json.dumps(name.rpartition(".")[2], ensure_ascii=False))
    return F.coalesce(text.rlike(r"^[\[{]") & F.col("raw").rlike(leaf + r"\s*:\s*[\[{]"), F.lit(False))


def _keys(line: str) -> list[str]:
    """The keys of a line's object; none where it is malformed."""
    try:
        found = json.loads(line)
    except ValueError:
        return []
    return list(found) if isinstance(found, dict) else []


def _nested_schema(names: Sequence[str]) -> StructType:
    tree: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name.partition(".")
        tree.setdefault(first, [])
        if rest:
            tree[first].append(rest)
    return StructType(
        [StructField(first, _nested_schema(rest) if rest else StringType()) for first, rest in tree.items()]
    )


def _read_typed(spark: SparkSession, config: InputConfig, path: str) -> tuple[DataFrame, list[str]]:
    rows = spark.read.format(config.format).load(path)
    names = _check_columns(config.columns, rows.columns, path, rows)
    parsed = _mapped(config.columns, lambda name: _as_text(rows, name), F.lit(False))
    located = rows.select(
        F.to_json(F.struct(*[F.col(f"`{c}`") for c in rows.columns])).alias("raw"),
        F.col("_metadata.file_path").alias("source"),
        F.col("_metadata.file_block_start").alias("block"),
        F.monotonically_increasing_id().alias("line"),
        F.lit(False).alias("header"),
        parsed.alias("parsed"),
    )
    return _flat(located), names


def _as_text(rows: DataFrame, name: str) -> Column:
    dtype = rows.select(name).schema[0].dataType
    if isinstance(dtype, TimestampType):
        return F.date_format(name, ISO_UTC)
    return F.col(name).cast("string")


def _read_lines(spark: SparkSession, path: str) -> DataFrame:
    text = spark.read.text(path)
    return text.select(
        F.col("value").alias("raw"),
        F.col("_metadata.file_path").alias("source"),
        F.col("_metadata.file_block_start").alias("block"),
        F.monotonically_increasing_id().alias("line"),
    )


def _with_fields(lines: DataFrame, parsed: Column, header: Column) -> DataFrame:
    return _flat(lines.select("*", header.alias("header"), parsed.alias("parsed")))


def _flat(rows: DataFrame) -> DataFrame:
    return rows.select("raw", "source", "block", "line", "header", "parsed.*")


def _mapped(columns: Columns, field, malformed: Column) -> Column:
    values = [
        (field(getattr(columns, ours)) if getattr(columns, ours) else F.lit(None).cast("string")).alias(ours)
        for ours in FIELDS
    ]
    context = F.array(*map(field, columns.context)).cast("array<string>").alias("context")
    return F.struct(
        (malformed | not_utf8(F.col("raw")) if malformed is not None else malformed).alias("malformed"),
        *values,
        context,
    )


def not_utf8(text: Column) -> Column:
    """Whether the bytes of a text column are no valid UTF-8."""
    return text.cast("binary") != F.encode(F.decode(text.cast("binary"), "UTF-8"), "UTF-8")


def _mapping(columns: Columns) -> dict[str, str | None]:
    return {ours: getattr(columns, ours) for ours in FIELDS} | {f"context, {name}": name for name in columns.context}


def _check_columns(columns: Columns, names: Sequence[str], where: str, rows: DataFrame | None = None) -> list[str]:
    for ours, name in _mapping(columns).items():
        if name is None:
            continue
        try:
            present = name in names or (rows is not None and rows.select(name) is not None)
        except AnalysisException:
            present = False
        if not present:
            raise InputError(
                f"input column {name!r} (input.columns.{ours}) is missing in {where}: it has {list(names)}"
            )
        if rows is not None:
            _check_type(ours, name, rows.select(name).schema[0].dataType, where)
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
        return None if line is None else line.removeprefix("\ufeff")  # Spark leaves the mark out too
    finally:
        stream.close()


def read_users(spark: SparkSession, config: UsersInput) -> DataFrame:
    """The users' attributes: user_id, attributes, numbers. Raises InputError as `read_items`."""
    columns = config.columns
    mapped = {"user_id": columns.user_id}
    rows = _read_attributes(spark, "users", config, mapped, columns.attributes, columns.numbers)
    return rows.select(
        F.col(f"`{columns.user_id}`").cast("string").alias("user_id"),
        _texts(columns.attributes).alias("attributes"),
        _numbers(columns.numbers).alias("numbers"),
    )


def read_items(spark: SparkSession, config: ItemsInput) -> DataFrame:
    """The items' attributes as text and typed columns: item_id, title, categories, attributes, numbers.

    Raises InputError where the file or a mapped column is missing.
    """
    columns = config.columns
    mapped = {"item_id": columns.item_id, "title": columns.title, "categories": columns.categories}
    rows = _read_attributes(spark, "items", config, mapped, columns.attributes, columns.numbers)
    return rows.select(
        F.col(f"`{columns.item_id}`").cast("string").alias("item_id"),
        _text_or_null(columns.title).alias("title"),
        _categories(rows, config).alias("categories"),
        _texts(columns.attributes).alias("attributes"),
        _numbers(columns.numbers).alias("numbers"),
    )


def _read_attributes(
    spark: SparkSession,
    kind: str,
    config: AttributesInput,
    mapped: dict[str, str | None],
    texts: Sequence[str],
    numbers: Sequence[str],
) -> DataFrame:
    path = resolve_path(config.path)
    try:
        reader = spark.read
        if config.format == "csv":
            rows = reader.csv(path, header=True, sep=config.delimiter, quote='"', escape='"')
        elif config.format == "jsonl":
            rows = reader.json(path)
        else:
            rows = reader.format(config.format).load(path)
    except AnalysisException as error:
        raise InputError(f"input.{kind}.path={path} cannot be read as {config.format}: {first_line(error)}") from error
    wanted = [*mapped.items(), *(("attributes", name) for name in texts), *(("numbers", name) for name in numbers)]
    for ours, name in wanted:
        if name is not None and name not in rows.columns:
            raise InputError(
                f"input column {name!r} (input.{kind}.columns.{ours}) is missing in {path}: it has {rows.columns}"
            )
    return rows


def _text_or_null(name: str | None) -> Column:
    return F.col(f"`{name}`").cast("string") if name else F.lit(None).cast("string")


def _categories(rows: DataFrame, config: ItemsInput) -> Column:
    name = config.columns.categories
    if name is None:
        return F.lit(None).cast("array<string>")
    column = F.col(f"`{name}`")
    if isinstance(rows.schema[name].dataType, ArrayType):
        return column.cast("array<string>")
    parts = F.split(column.cast("string"), "\\Q" + config.category_separator + "\\E")
    return F.when(column.isin(*config.no_category), F.array().cast("array<string>")).otherwise(parts)


def _texts(names: Sequence[str]) -> Column:
    """A map of what is not empty of some columns."""
    if not names:
        return F.lit(None).cast("map<string,string>")
    plain = [F.nullif(F.trim(F.col(f"`{name}`").cast("string")), F.lit("")) for name in names]
    made = F.map_from_arrays(F.array(*map(F.lit, names)), F.array(*plain))
    return F.map_filter(made, lambda _, text: text.isNotNull())


def _numbers(names: Sequence[str]) -> Column:
    if not names:
        return F.lit(None).cast("map<string,double>")
    pairs = [part for name in names for part in (F.lit(name), F.col(f"`{name}`").cast("double"))]
    return F.create_map(*pairs)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Tell a file that turns out to be broken while it is read from a fault of ours: InputError."""
    try:
        yield
    except Py4JJavaError as error:
        if any(sign in str(error.java_exception) for sign in BROKEN_FILE):
            raise InputError(f"input.path={path}: a file is cut off, damaged or gone: {first_line(error)}") from error
        raise


def decoded(source: Column) -> Column:
    """Spark's URL-encoded file path as people write it."""
    return F.url_decode(F.regexp_replace(source, r"\+", "%2B"))


def shown_path(path: str) -> str:
    return unquote(path)


def read_listing(
    spark: SparkSession, key: str, path: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> DataFrame:
    """Some columns, as text, of a table that the configuration's `key` names: CSV and parquet by their ending, else
    Delta. `optional` columns that it does not have are null.

    Raises InputError where it cannot be read or has no such column.
    """
    try:
        if path.split("?")[0].rstrip("/").endswith((".csv", ".csv.gz")):
            rows = spark.read.csv(path, header=True, quote='"', escape='"')
        elif path.rstrip("/").endswith(".parquet"):
            rows = spark.read.parquet(path)
        else:
            rows = spark.read.format("delta").load(path)
    except Exception as error:
        raise InputError(f"{key}={path} cannot be read: {first_line(error)}") from error
    for name in columns:
        if name not in rows.columns:
            raise InputError(f"{key}={path}: column {name} is missing, it has {rows.columns}")
    found = [_as_text(rows, name).alias(name) for name in (*columns, *optional) if name in rows.columns]
    missing = [F.lit(None).cast("string").alias(name) for name in optional if name not in rows.columns]
    return rows.select(*found, *missing)
