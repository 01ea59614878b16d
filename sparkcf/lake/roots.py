"""The lake's root, a folder or an address: resolve it and check that it can be written. No Spark, no delta-rs.

A local folder is given as a plain path or as a `file:` address, which may be percent-encoded. Both name the same
folder for Spark, delta-rs and pyarrow.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from sparkcf.errors import LakeError

UNREADABLE = r"%[0-9A-Fa-f]{2}|[\\`]"  # delta-rs decodes the first two; Delta does not quote the last
FREE = 5 * 2**30  # bytes; less is worth a warning


def resolve_root(root: str) -> str:
    """The root as an address for Hadoop; a local folder becomes `file:` and its absolute path, not encoded.

    Resolving a resolved address does not change it. Raises LakeError as `check_name`.
    """
    check_name(root)
    return absolute(root)


def absolute(address: str) -> str:
    """The address for processes in any working folder: of a local folder `file:` and its absolute path."""
    folder = local_folder(address)
    return address.rstrip("/") if folder is None else f"file:{folder}"


def check_name(root: str) -> None:
    """Raise LakeError for a local folder whose name some Delta readers cannot handle."""
    if found := re.search(UNREADABLE, local_folder(root) or ""):
        kind = "%XX" if found[0].startswith("%") else found[0]
        raise LakeError(f"lake {root}: rename the folder: Delta's readers cannot read a path with {kind}")


def check_writable(root: str) -> None:
    """Raise LakeError unless a local root can be created and written; needs no Spark."""
    check_name(root)
    folder = local_folder(root)
    if folder is None:
        return
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise LakeError(f"lake.root={root}: {existing} is not a folder: choose another root")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise LakeError(f"lake.root={root}: {existing} is not writable: change its rights or choose another root")
    try:  # os.access allows everything to the user root, also on a read-only disk
        os.rmdir(tempfile.mkdtemp(prefix=".sparkcf-", dir=existing))
    except OSError as error:
        reason = error.strerror or str(error)
        raise LakeError(f"lake.root={root}: {existing} cannot be written ({reason}): choose another root") from None


def little_space(places: Iterable[str]) -> Iterator[tuple[str, int]]:
    """The local folders, or their nearest parents that exist, on disks with less than FREE, and their free bytes."""
    yield from ((place, free) for place, free in free_space(places) if free < FREE)


def free_space(places: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Free bytes of the disk of each local folder, which need not exist yet."""
    for place in dict.fromkeys(places):
        existing = Path(place)
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        yield place, shutil.disk_usage(existing).free


def local_folder(root: str) -> str | None:
    """The absolute path of a root on this machine, or None for an object store."""
    if root.startswith("file:"):
        return os.path.abspath(unquote("/" + root.removeprefix("file:").lstrip("/")))
    if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:", root):
        return None
    return os.path.abspath(os.path.expanduser(root))
