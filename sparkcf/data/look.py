"""A look at the input's files before Spark starts: are they there, do their first lines have the columns and times?

Only local files are looked at, and only CSV and JSON lines are read. What is found is a doubt, not an error: the files
may be written later, or be seen by the executors alone.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sparkcf.config.input import EPOCHS, InputConfig
from sparkcf.config.root import Config
from sparkcf.lake.roots import local_folder

LINES = 200  # that are looked at
BYTES = 1 << 20  # that are read, however long a line is
SAMPLE = "sample:"  # begins the name of a file of the package
ISO8601 = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?)?( ?(Z|UTC|[+-]\d{2}(:?\d{2})?))?")
LAST_SECOND = 4_102_444_800  # the year 2100
UNITS = dict(zip(EPOCHS, (1, 1e3, 1e6, 1e9), strict=True))  # in a second
NUMERIC = "yuMLdDHhkKmsSn"  # letters of Java's patterns that stand for digits; months of three letters are names
LETTERS = re.compile(r"'[^']*'|([A-Za-z])\1*|.", re.S)


def named_files(config: Config) -> dict[str, tuple[str, list[str] | None]]:
    """Path of every input by its key, and the local files that match it; None: it is not looked up."""
    tables = {"input.users.path": config.input.users, "input.items.path": config.input.items}
    paths = {"input.path": config.input_path} | {name: table.path for name, table in tables.items() if table}
    if config.topk.ineligible:
        paths["topk.ineligible"] = config.topk.ineligible
    found: dict[str, tuple[str, list[str] | None]] = {}
    for key, path in paths.items():
        folder = None if path.startswith(SAMPLE) else local_folder(path)
        looked_up = folder is not None and "{" not in folder  # Hadoop's {a,b}
        found[key] = path, sorted(glob.glob(folder)) if folder is not None and looked_up else None
    return found


def doubts(config: Config) -> list[str]:
    """What seems wrong with the input's files, a line each."""
    named = named_files(config)
    said = [f"{key}={path}: no such file" for key, (path, files) in named.items() if files == []]
    path, files = named["input.path"]
    first = next((file for file in files or () if Path(file).is_file()), None)
    if first is not None:
        try:
            said += _doubts_about(config.input, first)
        except (OSError, EOFError, ValueError, csv.Error) as error:  # such as a cut or wrongly named .gz
            said.append(f"input.path={path}: the first lines of {first} cannot be read: {error}")
    return said


def _doubts_about(config: InputConfig, file: str) -> Iterator[str]:
    rows = _rows(config, file)
    if not rows:
        return
    columns = config.columns
    wanted = {
        f"input.columns.{name}": getattr(columns, name) for name in ("user_id", "item_id", "ts", "event", "value")
    }
    for key, name in wanted.items():
        if name is not None and not any(name in row for row in rows):
            there = ", ".join(list(rows[0])[:20])
            yield f"{key}={name}: no row of {file} has such a column; there are {there}"
    given = (row[columns.ts] for row in rows if columns.ts in row)
    values = [text for value in given if value is not None and (text := str(value).strip())]
    formats = list(config.ts_formats)
    if values and not any(is_time(value, form) for value in values for form in formats):
        yield (
            f"input.ts_formats={formats}: no time in the first {len(rows)} rows of {file} has such a format; the first "
            f"is {values[0][:60]!r}"
        )


def is_time(text: str, form: str) -> bool:
    """Whether a text looks like a time of a format of `input.ts_formats`. Epochs must be of 1970 to 2100."""
    if form == "iso8601":
        return ISO8601.fullmatch(text) is not None
    if form in UNITS:
        try:
            return 0 <= float(text) / UNITS[form] < LAST_SECOND
        except ValueError:
            return False
    return re.fullmatch(_expression(form), text) is not None


def _expression(pattern: str) -> str:
    """A regular expression that the times of one of Java's patterns match, and few others."""
    parts, open_brackets = [], 0
    for found in LETTERS.finditer(pattern):
        token, letter = found[0], found[1]
        if token == "[":  # begins what may be left out
            parts.append("(?:")
            open_brackets += 1
        elif token == "]" and open_brackets:
            parts.append(")?")
            open_brackets -= 1
        elif letter is None:
            parts.append(re.escape(token.strip("'") or "'" if token.startswith("'") else token))
        elif letter in NUMERIC and not (letter in "ML" and len(token) >= 3):
            parts.append(r"\d{1,9}" if len(token) == 1 else rf"\d{{{len(token)}}}")
        else:
            parts.append(r"[\w.:+/-]+")
    return "".join(parts) + ")?" * open_brackets  # as in Java, the end of the pattern closes them


def _rows(config: InputConfig, file: str) -> list[dict[str, Any]]:
    """The first rows by their columns; fields of nested objects by dotted names. Empty for other formats."""
    if config.format not in ("csv", "jsonl") or Path(file).suffix in (".bz2", ".zst", ".lz4", ".snappy", ".deflate"):
        return []
    lines = [line.rstrip("\r\n") for line in islice(io.StringIO(first_text(Path(file))), LINES)]
    if config.format == "jsonl":
        return [row for line in lines if (row := _flat(line))]
    delimiter = config.delimiter.replace("\\t", "\t")
    if len(delimiter) == 1:
        quoting = csv.QUOTE_MINIMAL if config.quote else csv.QUOTE_NONE
        fields = list(csv.reader(lines, delimiter=delimiter, quotechar=config.quote or '"', quoting=quoting))
    else:
        fields = [line.split(delimiter) for line in lines]
    names = [name.strip() for name in fields[0]] if config.header and fields else list(config.names)
    return [dict(zip(names, row, strict=False)) for row in fields[int(config.header) :] if row]


def first_text(path: Path) -> str:
    """The first whole lines of a text file, plain or, if its name ends in .gz, gzipped.

    Raises ValueError if it is no text, or its name does not say what it is: Spark unpacks files by their names.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if path.suffix == ".gz" and not zipped:
        raise ValueError("it is not gzipped, as its name says")
    if zipped and path.suffix != ".gz":
        raise ValueError("it is gzipped: give it a name that ends in .gz, by which Spark unpacks it")
    with gzip.open(path) if zipped else open(path, "rb") as file:
        try:
            data = file.read(BYTES)
        except zlib.error as error:
            raise ValueError(f"its gzip data is damaged: {error}") from None
    if b"\0" in data:
        raise ValueError("it is neither text (CSV, JSON lines) nor Parquet")
    whole = data[: data.rfind(b"\n") + 1] if len(data) == BYTES else data
    return whole.decode("utf-8-sig", errors="replace")


def _flat(line: str) -> dict[str, Any]:
    """The fields of a JSON object, those of objects inside it by dotted names; empty for another text."""
    try:
        whole = json.loads(line)
    except (ValueError, RecursionError):  # the second: thousands of brackets
        return {}
    found: dict[str, Any] = {}
    waiting = [("", whole)] if isinstance(whole, dict) else []
    while waiting:
        prefix, value = waiting.pop()
        for name, inner in value.items():
            found[f"{prefix}{name}"] = inner
            if isinstance(inner, dict):
                waiting.append((f"{prefix}{name}.", inner))
    return found
