"""A recommender in a folder: model.safetensors, and model.json with its configuration, shapes and sha256.

Ids that are texts are stored as their UTF-8 bytes and where each of them ends. No code is loaded from the files.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np

from sparkcf.config.load import parse_config
from sparkcf.config.root import Config
from sparkcf.errors import LakeError, first_line
from sparkcf.lake.arrays import Arrays, read_arrays, write_arrays
from sparkcf.lake.folder import Folder
from sparkcf.local.events import Events, Ids
from sparkcf.models.contract_data import LocalFit
from sparkcf.version import __version__

NAME, FORMAT = "model", 1


def save(folder: str, config: Config, users: Ids, items: Ids, events: Events, fitted: LocalFit) -> None:
    """Write the parts of a recommender. Raises LakeError if the folder cannot be written."""
    arrays = fitted.to_arrays()
    arrays |= {f"events.{f.name}": getattr(events, f.name) for f in fields(Events)}
    for side, ids in (("users", users), ("items", items)):
        arrays |= {f"ids.{side}.{name}": array for name, array in _packed_ids(ids).items()}
    needed = {"ds", "seed", "model", "preference", config.model}
    settings = config.model_dump(mode="json", include=needed)
    notes = {
        "format": FORMAT,
        "version": __version__,
        "config": settings | {"input": {"path": "frame", "events": config.input.events}},
        "mean": fitted.saved.mean,
        "average": fitted.saved.average,
        "log": json.loads(json.dumps(fitted.log, default=float)),
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
    }
    try:
        write_arrays(Folder(folder), NAME, arrays, notes)
    except OSError as error:
        raise LakeError(f"{folder} cannot be written: {first_line(error)}") from None


def load(folder: str) -> tuple[Config, Ids, Ids, Events, LocalFit]:
    """The parts of a recommender. Raises LakeError if the folder holds none, or a damaged one."""
    place = Folder(folder)
    try:
        notes = place.read_json(f"{NAME}.json")["notes"]
        if notes["format"] != FORMAT:
            raise ValueError(
                f"format {notes['format']} is not {FORMAT}: use the version {notes.get('version')} of sparkcf"
            )
        shapes = {str(name): tuple(int(n) for n in shape) for name, shape in notes["shapes"].items()}
        config = parse_config(notes["config"])
        mean, average, log = float(notes["mean"]), float(notes["average"]), list(notes["log"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LakeError(f"{folder} holds no saved model: {first_line(error)}") from None
    arrays, _ = read_arrays(place, NAME, shapes)
    try:
        users, items = (_ids(_part(arrays, f"ids.{side}.")) for side in ("users", "items"))
        events = Events(**_part(arrays, "events."))
        fitted = LocalFit.of_arrays(arrays, mean, average, log)
    except (TypeError, KeyError, ValueError) as error:
        raise LakeError(f"{folder} holds no saved model: {first_line(error)}") from None
    return config, users, items, events, fitted


def _part(arrays: Arrays, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _packed_ids(ids: Ids) -> Arrays:
    if ids.values.dtype != object:
        return {"numbers": ids.values.astype(np.int64)}
    encoded = [str(value).encode() for value in ids.values]
    ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
    return {"texts": np.frombuffer(b"".join(encoded), np.uint8), "ends": ends}


def _ids(arrays: Arrays) -> Ids:
    if "numbers" in arrays:
        return Ids(arrays["numbers"])
    text, ends = arrays["texts"].tobytes(), arrays["ends"].tolist()
    return Ids(np.array([text[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)], object))
