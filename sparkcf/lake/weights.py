"""Arrays of runs (weights), for models that need more than factors to score or to fold users in.

_models/RUN_ID/weights.safetensors, weights.json      under the lake's root
"""

from __future__ import annotations

from sparkcf.errors import LakeError, first_line
from sparkcf.lake.arrays import Arrays, Shapes, read_arrays, write_arrays
from sparkcf.lake.folder import Folder

NAME = "weights"


def write_state(root: str, run_id: str, state: Arrays) -> None:
    """Write a run's weights. Raises LakeError if the lake's folder cannot be written without Spark."""
    try:
        write_arrays(Folder(_address(root, run_id)), NAME, state, {"run_id": run_id})
    except OSError as error:
        first = first_line(error)
        raise LakeError(f"the weights of run {run_id} cannot be written under {root}: {first}") from None


def read_state(root: str, run_id: str, shapes: Shapes) -> Arrays:
    """Read a run's weights. Raises LakeError if they are missing, damaged or of other shapes."""
    return read_arrays(Folder(_address(root, run_id)), NAME, shapes)[0]


def read_all(root: str, run_id: str) -> Arrays:
    """Read a run's weights, whatever their shapes; empty if the run has none. Raises LakeError as `read_state`."""
    folder = Folder(_address(root, run_id))
    return read_arrays(folder, NAME)[0] if folder.names() else {}


def _address(root: str, run_id: str) -> str:
    return f"{root}/_models/{run_id}"
