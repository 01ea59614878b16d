"""Hand a run over to what serves it: write a version, read it back, let readers use it, remove old versions."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from sparkcf.errors import ConfigError, LakeError
from sparkcf.export.encoder import open_encoder, write_encoder
from sparkcf.export.files import FILES
from sparkcf.export.folders import VersionedFolder
from sparkcf.export.lists import Items, Lists, Run, as_items, read_lists, read_titles
from sparkcf.export.redis import RedisLists
from sparkcf.export.vectors import write_vectors
from sparkcf.lake.query import Lake
from sparkcf.version import __version__

REDIS = "redis"
VECTORS = "vectors"
ENCODER = "encoder"
TARGETS = (*FILES, REDIS, VECTORS, ENCODER)
PREFIX = "sparkcf"


class Written(Protocol):
    """What lists are written to: a file, or Redis."""

    titled: bool

    def add(self, lists: Lists) -> None: ...

    def close(self, titles: pa.Table) -> None: ...

    def read_back(self, users: list[str]) -> tuple[int, int, dict[str, Items]]: ...


@dataclass(frozen=True)
class Exported:
    """What an export did.

    place : where readers look.
    version : name of the new version.
    manifest : run, day, counts and what was verified, as stored beside the version.
    removed : names of the versions that were removed.
    seconds : time of the whole export.
    """

    run: Run
    to: str
    place: str
    version: str
    manifest: dict[str, Any]
    removed: list[str] = field(default_factory=list)
    seconds: float = 0.0


def export_run(
    lake: Lake, run: Run, to: str, at: str, keep: int = 2, prefix: str = PREFIX, faiss: bool = False
) -> Exported:
    """Write a run's lists, vectors or encoder and let readers use them; nothing changes for readers if a step fails.

    Parameters
    ----------
    to : one of TARGETS.
    at : a folder, or the address of a Redis.
    keep : versions that stay, the new one among them.
    prefix : of the keys in Redis.
    faiss : vectors: also an index of the items for approximate search.

    Raises
    ------
    ConfigError, ConflictError
        The target cannot be written, or another export is writing there; the model has no encoder.
    NotFoundError, LakeError
        The run has no lists or no vectors; or what was read back differs from the lake.
    """
    if to != REDIS and "://" in at:
        raise ConfigError(
            f"--to {to} writes to a folder of this machine, not to an address: name one, or give --to redis"
        )
    if faiss and to != VECTORS:
        raise ConfigError(f"--faiss is an index of vectors, and --to is {to}: give --to vectors")
    begun = time.monotonic()
    about = {"to": to, "model": run.model, "run_id": run.run_id, "ds": run.ds.isoformat(), "sparkcf": __version__}
    about["exported_at"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    if to == REDIS:
        store = RedisLists(at, prefix, run.model)
        with store.writing(run.run_id):
            manifest = about | _write_lists(lake, run, store)
            version = store.publish(manifest)
            removed = store.remove_old(keep)
        place = f"key {prefix}:{run.model}:current"
    else:
        folder = VersionedFolder(at, run.model)
        encodes = open_encoder(lake, run) if to == ENCODER else None
        with folder.writing() as work:
            if to == VECTORS:
                made = write_vectors(lake, run, work, faiss)
            elif encodes is not None:
                made = write_encoder(encodes, work)
            else:
                made = _write_lists(lake, run, FILES[to](work))
            manifest = about | made
            version = folder.publish(work, run.run_id, manifest)
        removed = folder.remove_old(keep)
        place = str(folder.path / "current")
    return Exported(run, to, place, version, manifest, removed, time.monotonic() - begun)


def _write_lists(lake: Lake, run: Run, target: Written) -> dict[str, Any]:
    """Write all lists and compare what is read back: the number of users and rows, and some lists in full."""
    titles = read_titles(lake)
    users = rows = 0
    expected: dict[str, Items] = {}
    for read in read_lists(lake, run):
        lists = read.with_titles(titles) if target.titled else read
        target.add(lists)
        users, rows = users + len(lists), rows + lists.rows
        some = lists.sample()
        texts = some.as_json().to_pylist()
        expected |= {user: as_items(text) for user, text in zip(some.users.to_pylist(), texts, strict=True)}
    target.close(titles)
    check_read_back(users, rows, expected, *target.read_back(list(expected)))
    return {
        "users": users,
        "rows": rows,
        "titles": titles.num_rows,
        "compared": len(expected),
        "sha256": _sum(expected),
    }


def check_read_back(
    users: int, rows: int, expected: dict[str, Items], found_users: int, found_rows: int, found: dict[str, Items]
) -> None:
    """Raise LakeError unless what was read back is what was written. `found_rows` : -1 is not counted."""
    if found_users != users or found_rows not in (rows, -1):
        counted = f"{found_users:,} users and {found_rows:,} rows" if found_rows >= 0 else f"{found_users:,} users"
        raise LakeError(
            f"the export was not switched to: {counted} were read back of {users:,} users and {rows:,} rows; a user "
            "has two lists, or the target loses data: check it and export again"
        )
    wrong = next((user for user, items in expected.items() if found.get(user) != items), None)
    if wrong is not None:
        raise LakeError(
            f"the export was not switched to: the list of user {wrong!r} was read back otherwise: check the target's "
            "disk or memory and export again"
        )


def _sum(lists: dict[str, Items]) -> str:
    """SHA-256 of the compared lists, by user."""
    return hashlib.sha256(json.dumps(lists, sort_keys=True).encode()).hexdigest()
