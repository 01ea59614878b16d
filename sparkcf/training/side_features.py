"""Side features of users and items, and counts of items, as arrays that every training process reads.

A side's features are compressed rows by dense index. All arrays are stored beside the checkpoints and removed with
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparkcf.lake.arrays import Arrays, read_arrays, write_arrays
from sparkcf.lake.folder import Folder
from sparkcf.training.batch import Rows

Features = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]  # indptr, feature, value
PARTS = ("offsets", "indices", "values")


def store_features(folder: str, features: Mapping[str, tuple[Features, int]]) -> dict[str, Any]:
    """Write the features of each side (rows, number of distinct features); returns the input of `side_features`."""
    stored: dict[str, Any] = {"folder": folder, "sides": {}}
    for side, (rows, n_features) in features.items():
        arrays: Arrays = dict(zip(PARTS, rows, strict=True))
        write_arrays(Folder(folder), f"features-{side}", arrays, {})
        stored["sides"][side] = {"n": len(rows[0]) - 1, "nnz": len(rows[1]), "n_features": n_features}
    return stored


def side_features(data: Mapping[str, Any]) -> dict[str, tuple[Rows, int]]:
    """By side, its features as tensors and the number of distinct ones. Raises LakeError for a damaged file."""
    stored = data.get("features", {"sides": {}})
    features: dict[str, tuple[Rows, int]] = {}
    for side, sizes in stored["sides"].items():
        shapes = {"offsets": (sizes["n"] + 1,), "indices": (sizes["nnz"],), "values": (sizes["nnz"],)}
        arrays, _ = read_arrays(Folder(stored["folder"]), f"features-{side}", shapes)
        offsets, indices = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("offsets", "indices"))
        features[side] = Rows(indices, offsets, torch.from_numpy(arrays["values"].copy())), int(sizes["n_features"])
    return features


def store_content(folder: str, vectors: NDArray[np.float32], has: NDArray[np.bool_]) -> dict[str, Any]:
    """Write vectors of items' content (n_items, d); returns the input of `item_content`. `has` : (n_items,)."""
    write_arrays(Folder(folder), "item-content", {"vectors": vectors, "has": has.astype(np.float32)}, {})
    return {"folder": folder, "shape": list(vectors.shape)}


def item_content(data: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The stored vectors (n_items, d), and 1 for items that have one (n_items,); None if not stored.

    Raises LakeError for a damaged file.
    """
    stored = data.get("content")
    if stored is None:
        return None
    n, d = stored["shape"]
    arrays, _ = read_arrays(Folder(stored["folder"]), "item-content", {"vectors": (n, d), "has": (n,)})
    return torch.from_numpy(arrays["vectors"].copy()), torch.from_numpy(arrays["has"].copy())


def store_item_counts(folder: str, counts: NDArray[np.int64]) -> dict[str, Any]:
    """Write the number of users of every item, (n_items,); returns the input of `item_counts`."""
    write_arrays(Folder(folder), "item-counts", {"counts": counts}, {})
    return {"folder": folder, "n": len(counts)}


def item_counts(data: Mapping[str, Any]) -> torch.Tensor | None:
    """The number of users of every item, int64 (n_items,); None if not stored. Raises LakeError for a damaged file."""
    stored = data.get("counts")
    if stored is None:
        return None
    arrays, _ = read_arrays(Folder(stored["folder"]), "item-counts", {"counts": (stored["n"],)})
    return torch.from_numpy(arrays["counts"].astype(np.int64))
