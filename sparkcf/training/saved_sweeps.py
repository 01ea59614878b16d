"""Checkpoints of a gang's sweeps, from which training resumes after a worker or the driver was killed.

    folder/sweep-000010/worker-00000-of-00002.safetensors      factors of one worker's users and items
    folder/sweep-000010/shared.safetensors                     what all workers hold alike, if there is anything
    folder/sweep-000010.json                                   written last: workers, sizes, log, sha256 of each file

A sweep is complete when its JSON file exists. Any number of workers can resume from it: row r of a side is in the file
of worker r mod W, at place r div W.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sparkcf.errors import ConfigError, first_line
from sparkcf.lake.folder import Folder
from sparkcf.training.blocks import KINDS, row_ids
from sparkcf.training.gang import Gang

F32 = NDArray[np.float32]
SHARED = "shared.safetensors"
KEPT = 2  # sweeps: the newest may be damaged


@dataclass(frozen=True)
class SavedSweep:
    """A worker's state after a sweep.

    factors : of its users and its items, float32 (n, width).
    log : log entries of all sweeps so far.
    shared : further arrays, the same at every worker.
    """

    factors: list[F32]
    log: list[dict[str, Any]]
    shared: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class SavedSweeps:
    """The saved sweeps in one folder.

    Parameters
    ----------
    folder : a path or address that every worker can write: file, s3, gs or hdfs.

    Raises
    ------
    ConfigError
        Arrow cannot write to the address.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        try:
            self._files = Folder(folder)
        except ConfigError as error:
            raise ConfigError(
                f"progress cannot be saved in {error}; set train.progress to such a place, or save_every to 0"
            ) from None

    def save(self, gang: Gang, sweep: SavedSweep) -> str | None:
        """Write this worker's file; the first worker then declares the sweep complete. A collective.

        Returns None, or at every worker an error message if any of them failed: the sweep then stays incomplete.
        """
        folder = f"sweep-{len(sweep.log):06}"
        data = save(dict(zip(KINDS, sweep.factors, strict=True)))
        problem = self._tried(lambda: self._files.write(f"{folder}/{_worker(gang.rank, gang.size)}", data))
        shared = save({key: np.ascontiguousarray(array) for key, array in sweep.shared.items()})
        if sweep.shared and gang.rank == 0 and problem is None:
            problem = self._tried(lambda: self._files.write(f"{folder}/{SHARED}", shared))
        if gang.sum(np.array([problem is not None], np.int64))[0]:
            return problem or "another worker could not write"
        digest = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        digests = [d.tobytes().hex() for d in gang.exchange([digest] * gang.size)]
        if gang.rank == 0:
            manifest = {"workers": gang.size, "log": sweep.log, "sha256": digests}
            if sweep.shared:
                manifest["shared"] = hashlib.sha256(shared).hexdigest()
            problem = self._tried(lambda: self._declare(folder, manifest))
        if gang.sum(np.array([problem is not None], np.int64))[0]:
            return problem or "the first worker could not write"
        return None

    @staticmethod
    def _tried(write: Callable[[], None]) -> str | None:
        try:
            write()
        except OSError as error:
            return first_line(error)
        return None

    def _declare(self, folder: str, manifest: dict[str, Any]) -> None:
        self._files.write(f"{folder}.json", json.dumps(manifest).encode())
        for old in self._sweeps()[KEPT:]:
            self._files.delete(f"sweep-{old:06}.json")
            self._files.delete(f"sweep-{old:06}")

    def load(self, gang: Gang, sizes: tuple[int, int], width: int | None) -> SavedSweep | None:
        """This worker's rows of the newest complete, undamaged sweep; None if there is none. A collective.

        Parameters
        ----------
        sizes : users and items over all workers.
        width : columns of a factor row; None: of each side as many as were saved.
        """
        mine = np.zeros(KEPT, np.int64)
        if gang.rank == 0:
            with suppress(OSError):  # a folder that cannot be listed: start anew, `save` reports the cause
                newest = self._sweeps()[:KEPT]
                mine[: len(newest)] = newest
        for sweep in gang.sum(mine):
            if sweep == 0:
                continue
            found = self._read(int(sweep), gang.rank, gang.size, sizes, width)
            if int(gang.sum(np.array([found is None], np.int64))[0]) == 0:
                return found
        return None

    def clear(self) -> str | None:
        """Remove all saved sweeps. Returns None, or an error message."""
        return self._tried(self._files.delete)

    def _sweeps(self) -> list[int]:
        """Complete sweeps, newest first."""
        names = [name for name in self._files.names() if name.endswith(".json")]
        return sorted((int(n[6:-5]) for n in names if n.startswith("sweep-") and n[6:-5].isdigit()), reverse=True)

    def _read(self, sweep: int, rank: int, size: int, sizes: tuple[int, int], width: int | None) -> SavedSweep | None:
        """One worker's rows; None where a file is missing, damaged or of other sizes."""
        try:
            manifest = self._files.read_json(f"sweep-{sweep:06}.json")
            workers = int(manifest["workers"])
            ids = [row_ids(n, rank, size) for n in sizes]
            factors: list[F32] = []
            for worker in range(workers):
                if workers == size and worker != rank:
                    continue
                stored = self._arrays(f"sweep-{sweep:06}/{_worker(worker, workers)}", manifest["sha256"][worker])
                if not factors:
                    widths = [stored[name].shape[1] if width is None else width for name in KINDS]
                    factors = [np.zeros((len(rows), w), np.float32) for rows, w in zip(ids, widths, strict=True)]
                for side, name in enumerate(KINDS):
                    in_file = ids[side] % workers == worker
                    factors[side][in_file] = stored[name][ids[side][in_file] // workers]
            digest = manifest.get("shared")
            shared = self._arrays(f"sweep-{sweep:06}/{SHARED}", digest) if digest else {}
            return SavedSweep(factors, list(manifest["log"]), shared)
        except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError):
            return None

    def _arrays(self, name: str, digest: str) -> dict[str, NDArray[Any]]:
        data = self._files.read(name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{name} is damaged")
        return load(data)


def _worker(rank: int, size: int) -> str:
    return f"worker-{rank:05}-of-{size:05}.safetensors"
