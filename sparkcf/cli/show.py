"""How the command prints records: as a table, JSON or CSV, with data that stays data."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from sparkcf.errors import SparkcfError

# Packages heavier than the standard library are imported in functions, so that `--help` is fast.
Record = dict[str, Any]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a text begins that a spreadsheet takes for a formula
STATUS_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def show(records: list[Record], columns: list[str], form: str, *captions: str, guarded: bool = False) -> None:
    """Print records in a form. `guarded` : in CSV a text that a spreadsheet takes for a formula begins with '."""
    as_utf8(form)
    if form == "json":
        print_json(records)
    elif form == "csv":
        _print_csv(records, columns, guarded)
    else:
        print_table(records, columns, captions)


def as_utf8(form: str) -> None:
    """Write standard output as UTF-8, whatever the locale."""
    if hasattr(sys.stdout, "reconfigure"):  # false for the replaced stdout of tests
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace" if form == "table" else "strict")


def print_json(values: list[Record] | Record) -> None:
    import json
    import math
    import re

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(
        plain(values),
        ensure_ascii=False,
        default=lambda value: value.isoformat(),
    )
    # JSON escapes only control characters below the space; a terminal also interprets those from 7f to 9f.
    print(re.sub("[\x7f-\x9f]", lambda c: f"\\u{ord(c[0]):04x}", text))


def _print_csv(records: list[Record], columns: list[str], guarded: bool) -> None:
    import csv
    import json

    def plain(value: Any) -> Any:
        if guarded and isinstance(value, str) and value.startswith(FORMULA):
            return f"'{value}"
        if isinstance(value, dt.date):
            return value.isoformat()
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | tuple | bool) else value

    minimal = csv.writer(sys.stdout, lineterminator="\n")
    quoting = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    minimal.writerow(columns)
    for record in records:
        row = [plain(record[name]) for name in columns]
        # With "\n" as line end the csv module does not quote a bare carriage return, which breaks readers.
        (quoting if any("\r" in v for v in row if isinstance(v, str)) else minimal).writerow(row)


def print_table(records: list[Record], columns: list[str], captions: Sequence[str]) -> None:
    """Print a table as wide as the terminal; see `layout`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sparkcf.cli.layout import Column, blocks

    # Into a pipe nothing is folded, so that every row stays on one line.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1_000_000)
    laid = []
    for name in columns:
        values = [record[name] for record in records]
        laid.append(Column(name, _cells(values), any(isinstance(v, int | float) for v in values)))
    for caption in filter(None, captions):
        console.print(Text(visible(caption)))
    for block in blocks(laid, console.width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for one, width in block:
            side: Literal["left", "right"] = "right" if one.numeric else "left"
            table.add_column(one.name, justify=side, overflow="fold", no_wrap=one.whole, max_width=width)
        for row in zip(*(one.cells for one, _ in block), strict=True):
            styles = [
                STATUS_STYLES.get(cell, "") if one.name == "status" else ""
                for (one, _), cell in zip(block, row, strict=True)
            ]
            table.add_row(*(Text(cell, style) for cell, style in zip(row, styles, strict=True)))
        console.print(table)


def print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(visible(line))


def repeat(look: Callable[[], Callable[[], None]], every: float) -> None:
    """Look, clear the screen and print what was seen, again and again, until Ctrl-C; an error of a look is a line.

    Parameters
    ----------
    look : gives the function that prints.
    every : seconds between two looks.
    """
    import time

    from rich.console import Console

    try:
        while True:
            try:
                seen = look()
            except SparkcfError as error:  # such as a file that was removed meanwhile: look again
                seen = partial(print_lines, [str(error)])
            Console().clear()  # of a terminal; elsewhere nothing happens
            seen()
            sys.stdout.flush()
            time.sleep(every)
    except KeyboardInterrupt:
        return


def _cells(values: list[Any]) -> list[str]:
    whole = all(v.is_integer() for v in values if isinstance(v, float))

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:.0f}" if whole else f"{value:.4g}" if abs(value) < 0.001 else f"{value:.4f}"
        if isinstance(value, dt.datetime):
            return f"{value:%Y-%m-%d %H:%M:%S}"
        return visible(value)

    return [cell(value) for value in values]


def visible(text: object) -> str:
    """Text on one line, with control characters escaped."""
    from sparkcf.progress import printable

    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
