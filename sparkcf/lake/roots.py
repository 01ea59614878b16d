"""The lake's root: a folder or an address, and whether it can be written. No Spark, no delta-rs."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote

from sparkcf.errors import LakeError


def resolve_root(root: str) -> str:
    """A root without a scheme is a local folder; it becomes an absolute `file:` address."""
    if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:", root):
        return root.rstrip("/")
    return Path(os.path.abspath(root)).as_uri().replace("file:///", "file:/")


def check_writable(root: str) -> None:
    """Raise LakeError unless a local root can be made and written; costs no Spark."""
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
    try:  # root may do anything by its rights, and still not here
        os.rmdir(tempfile.mkdtemp(prefix=".sparkcf-", dir=existing))
    except OSError as error:
        reason = error.strerror or str(error)
        raise LakeError(f"lake.root={root}: {existing} cannot be written ({reason}): choose another root") from None


def local_folder(root: str) -> str | None:
    """The folder on this machine behind a root, or None for an object store."""
    if root.startswith("file:"):
        return unquote("/" + root.removeprefix("file:").lstrip("/"))
    return None if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:", root) else os.path.abspath(root)
