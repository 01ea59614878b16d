"""A look at a file of interactions: its format, columns and times, guessed from its first lines."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparkcf.data.look import ISO8601, first_text
from sparkcf.errors import InputError, first_line

LINES = 500  # that are looked at
DELIMITERS = ("::", "\t", ";", "|", ",")
NAMES = {  # what columns are called elsewhere, letters and digits only
    "user_id": "userid user uid customerid customer memberid member listenerid listener readerid reader buyerid buyer "
    "visitorid reviewerid authorid playerid accountid",
    "item_id": "itemid item iid movieid movie productid product sku asin trackid track songid song artistid artist "
    "articleid article bookid book isbn businessid gameid game appid videoid video newsid anime contentid",
    "value": "value rating score stars plays playcount count hours quantity weight overall amount",
    "ts": "ts timestamp time date datetime createdat eventtime unixreviewtime playedat eventdate utc",
    "event": "event eventtype action behavior behaviour interaction eventname",
}
PATTERN = re.compile(r"[*?\[\]{}\\]")  # of an input path, which may name many files
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
EPOCHS = {"epoch_s": (9, 10), "epoch_ms": (12, 13), "epoch_us": (15, 16), "epoch_ns": (18, 19)}  # digits
DATES = {  # Java's patterns
    "yyyy/MM/dd": r"\d{4}/\d{2}/\d{2}",
    "dd.MM.yyyy": r"\d{2}\.\d{2}\.\d{4}",
    "dd/MM/yyyy": r"(0[1-9]|[12]\d|3[01])/(0[1-9]|1[0-2])/\d{4}",
    "MM/dd/yyyy": r"(0[1-9]|1[0-2])/(0[1-9]|[12]\d|3[01])/\d{4}",
}
DATES_OF_US = {"MM/dd/yyyy": DATES["MM/dd/yyyy"]}
CLOCKS = {"": "", " HH:mm": r" \d{2}:\d{2}", " HH:mm:ss": r" \d{2}:\d{2}:\d{2}"}


@dataclass(frozen=True)
class Guess:
    """What a file seems to be.

    form : csv, jsonl or parquet.
    names : of its columns, or keys.
    header : csv: the first line names the columns.
    columns : by our name (user_id, item_id, value, ts, event) the file's.
    rows : the first rows as texts.
    notes : what to look at again.
    """

    form: str
    names: tuple[str, ...]
    columns: dict[str, str]
    rows: list[dict[str, str]]
    delimiter: str = ","
    header: bool = True
    ts_format: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def form_in_words(self) -> str:
        """The form; of CSV with its delimiter and header."""
        if self.form != "csv":
            return self.form
        header = "the first line is the header" if self.header else f"no header, so columns are {self.names[0]}, …"
        return f"csv, delimiter {json.dumps(self.delimiter)}, {header}"


def guess_file(path: Path) -> Guess:
    """Look at a file.

    Raises
    ------
    InputError
        The file cannot be read, is empty, is neither text nor Parquet, or has no two columns.
    """
    if PATTERN.search(str(path)):
        raise InputError(f"{path} would be read as a pattern of names: rename it without * ? [ ] {{ }} and backslashes")
    try:
        with open(path, "rb") as file:
            begin = file.read(4)
        if begin == b"PAR1":
            return _typed(path)
        text = first_text(path)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    lines = [line for line in text.splitlines() if line.strip()][:LINES]
    if not lines:
        raise InputError(f"{path} has no line: give a file of interactions")
    return _json(path, lines) if lines[0].lstrip().startswith("{") else _csv(path, lines)


def _typed(path: Path) -> Guess:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        batch = next(file.iter_batches(LINES), None)
    except Exception as error:
        raise InputError(f"{path} cannot be read as Parquet: {first_line(error)}") from None
    if batch is None:
        raise InputError(f"{path} has no row: give a file of interactions")
    rows = [{name: "" if v is None else str(v) for name, v in row.items()} for row in batch.to_pylist()]
    return _guess(path, "parquet", tuple(batch.schema.names), rows)


def _json(path: Path, lines: Sequence[str]) -> Guess:
    rows: list[dict[str, str]] = []
    for line in lines:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # the second: thousands of brackets
            continue
        if isinstance(found, dict):
            rows.append({name: "" if v is None else str(v) for name, v in found.items()})
    if not rows:
        raise InputError(f"{path}: no line is a JSON object: one object per line is needed")
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return _guess(path, "jsonl", names, [{name: row.get(name, "") for name in names} for row in rows])


def _csv(path: Path, lines: Sequence[str]) -> Guess:
    delimiter = max(DELIMITERS, key=lambda d: _evenness(lines, d))
    table = [_cells(line, delimiter) for line in lines]
    width = max(len(cells) for cells in table[:2])
    if width < 2:
        raise InputError(f"{path}: no delimiter separates its first line into columns: {lines[0][:60]!r}")
    table = [cells for cells in table if len(cells) == width]
    header = _is_header(table)
    names = tuple(table[0]) if header else tuple(f"column{n}" for n in range(1, width + 1))
    rows = [dict(zip(names, cells, strict=True)) for cells in (table[1:] if header else table)]
    if not rows:
        raise InputError(f"{path} has a header and no row: give a file of interactions")
    return _guess(path, "csv", names, rows, delimiter=delimiter, header=header)


def _cells(line: str, delimiter: str) -> list[str]:
    if len(delimiter) > 1:
        return [cell.strip() for cell in line.split(delimiter)]
    return [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=delimiter), [])]


def _evenness(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    """How likely lines are separated by a delimiter: the share with as many fields as the first, then their number."""
    try:
        counts = [len(_cells(line, delimiter)) for line in lines]
    except csv.Error:
        return 0.0, 0
    return (sum(n == counts[0] for n in counts) / len(counts), counts[0]) if counts[0] > 1 else (0.0, 0)


def _is_header(table: Sequence[Sequence[str]]) -> bool:
    first = table[0]
    if any(_known(cell) for cell in first):
        return True
    if any(NUMBER.fullmatch(cell) or _time_format([cell]) for cell in first) or len(set(first)) < len(first):
        return False
    return any(all(NUMBER.fullmatch(row[n]) or _time_format([row[n]]) for row in table[1:]) for n in range(len(first)))


def _known(name: str) -> str | None:
    """Our name of a column, by what it is called."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((ours for ours, theirs in NAMES.items() if plain in theirs.split()), None)


def _guess(path: Path, form: str, names: tuple[str, ...], rows: list[dict[str, str]], **more: Any) -> Guess:
    if len(names) < 2:
        raise InputError(f"{path} has the column {names[0]!r} alone: a user and an item are needed")
    columns: dict[str, str] = {}
    for name in names:
        ours = _known(name)
        if ours and ours not in columns:
            columns[ours] = name
    notes, left = [], [name for name in names if name not in columns.values()]
    if "ts" not in columns:
        timed = [name for name in left if _time_format([row[name] for row in rows])]
        if timed:
            columns["ts"] = timed[0]
    for ours in ("user_id", "item_id"):
        left = [name for name in names if name not in columns.values()]
        if ours not in columns:
            if not left:
                raise InputError(f"{path}: no column is left for {ours}: it has {', '.join(names)}")
            columns[ours] = left[0]
            notes.append(f"{ours} is taken to be {left[0]}: check it")
    if "value" not in columns and not more.get("header", True):
        numbers = [
            name
            for name in names
            if name not in columns.values() and all(NUMBER.fullmatch(row[name]) for row in rows if row[name])
        ]
        columns |= {"value": numbers[0]} if numbers else {}
    ts_format = None
    if "ts" in columns:
        texts = [row[columns["ts"]] for row in rows if row[columns["ts"]]]
        ts_format = _time_format(texts)
        if ts_format is None and texts:
            notes.append(f"times such as {texts[0]!r} have no known format: set input.ts_formats")
        elif ts_format and ts_format.startswith("dd/MM") and _time_format(texts, DATES_OF_US):
            notes.append(f"times such as {texts[0]!r} are read with the day first: if it is the month, set ts_formats")
    else:
        notes.append("no column of times is known: if there is one, set input.columns.ts and input.ts_formats")
    order = {ours: columns[ours] for ours in NAMES if ours in columns}
    return Guess(form, names, order, rows, ts_format=ts_format, notes=notes, **more)


def _time_format(texts: Sequence[str], dates: Mapping[str, str] = DATES) -> str | None:
    """The format that all texts have, as `input.ts_formats` names it; None if there is none."""
    texts = [text for text in texts if text]
    if not texts:
        return None
    if all(ISO8601.fullmatch(text) for text in texts):
        return "iso8601"
    for name, (low, high) in EPOCHS.items():
        if all(re.fullmatch(rf"\d{{{low},{high}}}(\.\d*)?", text) for text in texts):
            return name
    for day, of_day in dates.items():
        for clock, of_clock in CLOCKS.items():
            if all(re.fullmatch(of_day + of_clock, text) for text in texts):
                return day + clock
    return None


def as_yaml(guess: Guess, path: Path, output: Path) -> str:
    """A commented YAML file for nights on the file that was looked at. JSON's texts are YAML's too."""
    columns = {"user_id": None, "item_id": None, "value": None, "ts": None, "event": None} | guess.columns
    lines = [
        "# A night on this file:",
        f"#     make nightly CONFIG={shlex.quote(str(output))} ARGS=ds=YYYY-MM-DD",
        "# ds is the night's logical date: events after its end are rejected. All keys: docs/configuration.md.",
        "lake:",
        f"  root: {json.dumps(f'./{output.stem}-lake', ensure_ascii=False)}",
        "input:",
        "  # A pattern may name many files; {ds} in it is replaced by the logical date.",
        f"  path: {json.dumps(str(path), ensure_ascii=False)}",
        f"  format: {guess.form}",
    ]
    if guess.form == "csv":
        lines.append(f"  delimiter: {json.dumps(guess.delimiter)}")
        if not guess.header:
            lines += ["  header: false", f"  names: {json.dumps(list(guess.names), ensure_ascii=False)}"]
    lines.append("  columns:")
    lines += [f"    {ours}: {json.dumps(theirs, ensure_ascii=False)}" for ours, theirs in columns.items()]
    if guess.ts_format:
        lines.append(f"  ts_formats: [{json.dumps(guess.ts_format)}]")
    lines += ["model: als  # see `sparkcf models`", "report:  # the page that a night writes at its end"]
    lines += [f"  path: {json.dumps(f'./{output.stem}-report.html', ensure_ascii=False)}", ""]
    return "\n".join(lines)
