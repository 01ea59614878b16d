"""The command `sparkcf upgrade`."""

from __future__ import annotations

from sparkcf.errors import NotFoundError
from sparkcf.jobs.session import open_session, stop_session
from sparkcf.lake.tables import LakeTables
from sparkcf.lake.upgrade import Change, apply, changes


def upgrade_lake(root: str, make: bool) -> list[Change]:
    """The changes that an upgrade of the lake needs; with `make` they are made. Raises NotFoundError without a lake."""
    spark, started = open_session()
    try:
        tables = LakeTables(spark, root)
        if not tables.exists("runs"):
            raise NotFoundError(f"there is no lake at {root}: name another with --lake")
        found = changes(tables)
        if make:
            apply(tables, found)
        return found
    finally:
        if started:
            stop_session(spark)
