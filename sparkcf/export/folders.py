"""Versions of an export in a folder, and the link `current` that readers follow.

    FOLDER/MODEL/000001-RUN_ID/…      written under another name, renamed when it is whole and checked
    FOLDER/MODEL/current              link to the newest version, replaced in one step

A reader that resolves `current` once and reads below what it found sees one whole version.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparkcf.errors import ConfigError, ConflictError

CURRENT = "current"
MANIFEST = "manifest.json"
PARTIAL = ".partial-"
VERSION = re.compile(r"(\d{6,})-.+")


class VersionedFolder:
    """The versions of one model's export.

    Parameters
    ----------
    root : folder of all exports of a kind; it is made if it is missing.
    model : the model's name.
    """

    def __init__(self, root: str, model: str) -> None:
        self.path = Path(root).expanduser() / model

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A new folder to write to, removed unless `publish` has renamed it. One export at a time.

        Raises
        ------
        ConfigError
            The folder cannot be written.
        ConflictError
            Another export is writing here.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"--at: {self.path} cannot be written ({reason}): name another folder") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConflictError(f"another export is writing to {self.path}: wait for its end") from None
            for left in self.path.glob(f"{PARTIAL}*"):  # of an export that was killed: its lock is free
                if left.is_symlink():
                    left.unlink()
                else:
                    shutil.rmtree(left)
            work = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.path))
            work.chmod(0o755)  # mkdtemp's own would let nobody else read the version
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)  # renamed, it is not there
        finally:
            os.close(lock)

    def publish(self, work: Path, run_id: str, manifest: dict[str, Any]) -> str:
        """Give the written folder its name, then let `current` lead to it. Returns the version's name."""
        numbers = [int(found[1]) for name in self.versions() if (found := VERSION.fullmatch(name))]
        version = f"{max(numbers, default=0) + 1:06}-{run_id}"
        (work / MANIFEST).write_text(json.dumps({"version": version, **manifest}, indent=2) + "\n", encoding="utf-8")
        for file in (*work.iterdir(), work):
            _sync(file)
        os.rename(work, self.path / version)
        link = self.path / f"{PARTIAL}link"
        link.unlink(missing_ok=True)
        link.symlink_to(version)
        os.replace(link, self.path / CURRENT)
        _sync(self.path)
        return version

    def versions(self) -> list[str]:
        """Names of the whole versions, oldest first."""
        return sorted(entry.name for entry in self.path.iterdir() if VERSION.fullmatch(entry.name))

    def remove_old(self, keep: int) -> list[str]:
        """Remove all but the newest `keep` versions; returns their names."""
        old = self.versions()[:-keep]
        for version in old:
            shutil.rmtree(self.path / version)
        return old


def _sync(path: Path) -> None:
    """Force a file or folder to the disk, so that the link never leads to a cut version after a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
