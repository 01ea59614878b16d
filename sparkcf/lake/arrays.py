"""Named arrays in a folder: NAME.safetensors, and the manifest NAME.json with its sha256.

The files hold data only: no code is loaded from them, and no array is read before the file's size and header match the
expected ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sparkcf.errors import LakeError
from sparkcf.lake.folder import Folder

Arrays = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int | None, ...]]  # None: a length that only the arrays themselves tell
LONGEST_HEADER = 1 << 20


def write_arrays(folder: Folder, name: str, arrays: Arrays, notes: dict[str, Any]) -> None:
    """Write the arrays, then the manifest with `notes`; without a manifest the arrays do not count."""
    data = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    folder.write(f"{name}.safetensors", data)
    manifest = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "notes": notes}
    folder.write(f"{name}.json", json.dumps(manifest).encode())


def read_arrays(folder: Folder, name: str, shapes: Shapes | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Read the arrays and the manifest's notes.

    Parameters
    ----------
    shapes : name and shape of every expected array; None: any.

    Raises
    ------
    LakeError
        A file is missing, damaged, not a safetensors file, or holds other arrays than `shapes`.
    """
    path = f"{folder.address}/{name}"
    try:
        manifest = folder.read_json(f"{name}.json")
        _check_header(folder, f"{name}.safetensors", int(manifest["bytes"]), shapes)
        data = folder.read(f"{name}.safetensors")
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise ValueError("its sha256 is not the manifest's")
        return load(data), dict(manifest["notes"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LakeError(f"{path}.safetensors cannot be used: {first}") from None


def _check_header(folder: Folder, name: str, size: int, shapes: Shapes | None) -> None:
    """Raise ValueError unless the file's size is the manifest's and its header names arrays of these shapes."""
    found = folder.size(name)
    if found != size:
        raise ValueError(f"it has {found} bytes, its manifest says {size}")
    with folder.open(name) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError(f"its header would have {length} bytes: no safetensors file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    have = {key: tuple(entry["shape"]) for key, entry in header.items()}
    names = sorted({*have, *(shapes or ())})
    wrong = next((key for key in names if shapes is not None and not fits(have.get(key), shapes.get(key))), None)
    if shapes is not None and wrong:
        sizes = f"array {wrong} is {have.get(wrong)}, expected {shapes.get(wrong)}"
        raise ValueError(f"{sizes}: another configuration, or an earlier version? train again")


def fits(shape: tuple[int, ...] | None, expected: tuple[int | None, ...] | None) -> bool:
    """Whether an array has the expected shape; None: there is no array, or none is expected."""
    if shape is None or expected is None:
        return shape is expected
    return len(shape) == len(expected) and all(e in (None, n) for n, e in zip(shape, expected, strict=True))
