"""The number of the lake's format: which tables and columns this version of the code writes and reads.

Every table carries the number as a property; `runs`, which is upgraded last, speaks for the lake. 1: before tables
carried a number.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparkcf.errors import LakeError

FORMAT = 2
PROPERTY = "sparkcf.format"


def format_of(properties: Mapping[str, str]) -> int:
    """The format that a table's properties name."""
    text = properties.get(PROPERTY, "1")
    if not text.isdecimal():
        raise LakeError(f"a table's property {PROPERTY} is {text!r}, a number is needed: restore it")
    return int(text)


def check_readable(root: str, properties: Mapping[str, str]) -> None:
    """Raise LakeError for a table that a newer version of the code has written."""
    if (found := format_of(properties)) > FORMAT:
        raise LakeError(f"lake {root} has format {found}, this sparkcf reads up to {FORMAT}: install a newer one")


def check_writable_format(root: str, properties: Mapping[str, str]) -> None:
    """Raise LakeError for a table of another format than this version of the code writes."""
    check_readable(root, properties)
    if (found := format_of(properties)) < FORMAT:
        raise LakeError(f"lake {root} has format {found}, this sparkcf writes {FORMAT}: run `sparkcf upgrade` first")
