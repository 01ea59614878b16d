"""Parse lines of CSV and JSON: Spark column expressions over the column `raw`.

They give a line's fields as text, and whether the line is malformed; `sparkcf.data.ingest` reads the files.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType, StructField, StructType

from sparkcf.config.input import InputConfig

Fields = tuple[Callable[[str], Column], Column]  # a field by its name, and whether the line is malformed
END = "_end_of_line"  # key of the object that is appended to a line of JSON before parsing


def header_names(head: str, config: InputConfig) -> list[str]:
    """Column names of a header line."""
    delimiter = config.delimiter.replace("\\t", "\t")
    if len(delimiter) > 1 or config.quote is None:  # Python's reader takes a single character only
        names = [name.strip().strip(config.quote or " ") for name in head.split(delimiter)]
    else:
        names = next(csv.reader(io.StringIO(head), delimiter=delimiter, quotechar=config.quote), [])
    return [name.strip() for name in names]


def csv_fields(config: InputConfig, names: Sequence[str]) -> Fields:
    """Fields of a CSV line with columns `names`."""
    unique = [f"c{i}" for i in range(len(names))]  # names may repeat or hold odd characters
    schema = ", ".join(f"{name} string" for name in [*unique, "_broken"])
    options = {
        "sep": config.delimiter,
        "quote": config.quote or "",
        "escape": config.quote or "",  # a quote within quotes is doubled, as in RFC 4180
        "columnNameOfCorruptRecord": "_broken",
        "mode": "PERMISSIVE",
    }
    parsed = F.from_csv("raw", schema, options)
    by_name = {name: parsed[c] for name, c in zip(names, unique, strict=True)}
    broken = parsed.isNull() | parsed["_broken"].isNotNull() | (F.col("raw") == "")
    return by_name.__getitem__, broken | quote_left(config).isNotNull()


def quote_left(config: InputConfig) -> Column:
    """Fault of a CSV line's quotes; null if every quote is paired.

    open : a quoted field begins on the line and does not end on it.
    stray : any other unpaired quote, such as the end of a field that began on an earlier line.
    """
    if config.quote is None:
        return F.lit(None).cast("string")
    quote, delimiter = (f"\\Q{text}\\E" for text in (config.quote, config.delimiter.replace("\\t", "\t")))
    count = F.length("raw") - F.length(F.replace("raw", F.lit(config.quote)))
    odd = F.col("raw").contains(config.quote) & (count % 2 == 1)
    without_pairs = F.regexp_replace("raw", f"{quote}[^{quote}]*{quote}", "")
    opens = without_pairs.rlike(f"(^|{delimiter}){quote}")
    return F.when(odd, F.when(opens, "open").otherwise("stray"))


def json_fields(names: Sequence[str], flat: Collection[str], scalars: Sequence[str]) -> Fields:
    """Fields of a line that is one JSON object.

    Parameters
    ----------
    names : keys; a dotted name is a field of a nested object.
    flat : names with dots that are plain keys.
    scalars : names whose field may not be an object or an array.
    """
    paths = {name: [name] if name in flat else name.split(".") for name in names}
    # Parsed as an array that ends in the object END, so that any further text on the line makes it malformed.
    schema = ArrayType(_nested_schema([*paths.values(), [END]]))
    framed = F.concat(F.lit("["), "raw", F.lit(f',{{"{END}":"1"}}]'))
    parsed = F.from_json(framed, schema, {"allowSingleQuotes": "false"})
    one = parsed.getItem(0)

    def field(name: str) -> Column:
        found = one
        for part in paths[name]:
            found = found[part]
        return F.regexp_replace(found, '^"(NaN|-?Infinity)"$', "$1")  # Spark quotes these bare literals

    broken = parsed.isNull() | (F.size(parsed) != 2) | one.isNull() | parsed.getItem(1)[END].isNull()
    for name in scalars:
        broken |= _is_nested(field(name), paths[name][-1])
    return field, broken


def _is_nested(text: Column, key: str) -> Column:
    """Whether a field is an object or an array; a text that only looks like one is quoted in the line."""
    leaf = re.escape(json.dumps(key, ensure_ascii=False))
    return F.coalesce(text.rlike(r"^[\[{]") & F.col("raw").rlike(leaf + r"\s*:\s*[\[{]"), F.lit(False))


def _nested_schema(paths: Sequence[Sequence[str]]) -> StructType:
    tree: dict[str, list[Sequence[str]]] = {}
    for first, *rest in paths:
        tree.setdefault(first, [])
        if rest:
            tree[first].append(rest)
    return StructType(
        [StructField(first, _nested_schema(rest) if rest else StringType()) for first, rest in tree.items()]
    )


def json_keys(line: str) -> list[str]:
    """Keys of a line's object; empty if the line is malformed."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(found) if isinstance(found, dict) else []


def not_utf8(text: Column) -> Column:
    """Whether the bytes of a text column are invalid UTF-8."""
    return text.cast("binary") != F.encode(readable(text), "UTF-8")


def readable(text: Column) -> Column:
    """A text column with replacement characters for invalid UTF-8."""
    return F.decode(text.cast("binary"), "UTF-8")
