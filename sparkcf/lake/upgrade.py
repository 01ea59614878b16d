"""Bring a lake of an older format to the present one: columns and properties that its tables lack."""

from __future__ import annotations

from dataclasses import dataclass

from sparkcf.lake.format import FORMAT, PROPERTY, check_readable, format_of
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import PROPERTIES, LakeTables, retry_conflicts


@dataclass(frozen=True)
class Change:
    """A statement that changes one table; its rows stay as they are."""

    table: str
    words: str
    sql: str


def changes(tables: LakeTables) -> list[Change]:
    """What an upgrade would change, in its order; `runs`, whose format speaks for the lake, comes last.

    Raises LakeError if the lake's format is newer than this code.
    """
    found: list[Change] = []
    for name in sorted(TABLES, key=lambda name: name == "runs"):
        if tables.exists(name):
            found += _of_table(tables, name)
    return found


def apply(tables: LakeTables, found: list[Change]) -> None:
    """Make the changes. Each is one commit; a run that is killed in between is repeated."""
    for change in found:
        retry_conflicts(f"upgrade {change.table}", lambda change=change: tables.spark.sql(change.sql))  # type: ignore[misc]


def _of_table(tables: LakeTables, name: str) -> list[Change]:
    properties, found = tables.properties(name), []
    check_readable(tables.root, properties)
    target = f"delta.`{tables.path(name)}`"
    present = tables.read(name).columns
    missing = [f for f in TABLES[name].schema if f.name not in present]
    if missing:
        comments = {f.name: f.metadata["comment"].replace("\\", "\\\\").replace("'", "\\'") for f in missing}
        added = ", ".join(f"{f.name} {f.dataType.simpleString()} COMMENT '{comments[f.name]}'" for f in missing)
        words = f"add {', '.join(f.name for f in missing)}"
        found.append(Change(name, words, f"ALTER TABLE {target} ADD COLUMNS ({added})"))
    lacking = {key: value for key, value in PROPERTIES.items() if properties.get(key) != value}
    if lacking:
        listed = ", ".join(f"'{key}' = '{value}'" for key, value in lacking.items())
        words = f"format {format_of(properties)} to {FORMAT}" if PROPERTY in lacking else f"set {', '.join(lacking)}"
        found.append(Change(name, words, f"ALTER TABLE {target} SET TBLPROPERTIES ({listed})"))
    return found
