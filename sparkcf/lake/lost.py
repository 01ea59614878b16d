"""Data files that are gone while a job reads their table: one line that names the table, the version and the cure."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from sparkcf.activity import activity
from sparkcf.errors import LakeError, first_line
from sparkcf.lake.roots import local_folder
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables

# As Spark, Hadoop's file systems, Delta, Arrow and Python say it.
GONE = re.compile(r"FileNotFound|No such file|does not exist|FILE_NOT_FOUND|NoSuchKey")


def lost_file(error: Exception, tables: LakeTables) -> LakeError | None:
    """The error to raise instead of one about a data file of the lake that does not exist; None for any other error.

    Spark reads a table's files long after the table was opened. Until then a VACUUM may have removed those of an
    earlier version, to which a run's inputs are pinned.
    """
    try:
        found = _missing(error, tables.root)
        if found is None:
            return None
        name, file = found
        newest = tables.version(name)
        pinned = sorted(activity.versions_read.get(tables.path(name), ()))
        damaged = not pinned or pinned == [newest]
        if len(pinned) > 1 and newest in pinned:
            damaged = any(file in unquote(address) for address in tables.read(name).inputFiles())
    except Exception:  # the lake cannot be asked, such as after the death of the JVM: the first error tells more
        return None
    if damaged:
        return LakeError(
            f"table {name} of lake {tables.root} has lost the file {file} of its newest version {newest}: "
            "`sparkcf doctor` tells how its rows are written again"
        )
    read = f"version {pinned[0]}" if len(pinned) == 1 else f"versions {', '.join(map(str, pinned))}"
    return LakeError(
        f"table {name} of lake {tables.root}, read at {read}, has lost the file {file}, most likely to a VACUUM; the "
        f"newest version is {newest}: train again, and let maintain.vacuum_hours be longer than a night"
    )


def _missing(error: Exception, root: str) -> tuple[str, str] | None:
    """Table and name of the data file that an error does not find; None if it is about something else."""
    folder, address = local_folder(root), urlsplit(root)
    # A message names the path alone, or also the bucket or host.
    places = {folder} if folder else {unquote(address.path), unquote(address.netloc + address.path)} - {""}
    place = "|".join(re.escape(place.rstrip("/")) for place in places)
    file_of_lake = re.compile(rf"(?:{place})/(\w+)/(?!_delta_log/)(?:[^\s'\"]*/)?([^\s'\"/]+\.parquet)")
    for line in (first_line(error), *str(error).splitlines()):
        if GONE.search(line) and (found := file_of_lake.search(unquote(line))) and found[1] in TABLES:
            return found[1], found[2]
    return None
