"""A worker's rows in the stored layout, and checkpoints of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.models.mpma.layout import NAMES, RowState, packed, unpacked
from sparkcf.models.mpma.state import State
from sparkcf.models.mpma.weights import Weights
from sparkcf.training.gang import Gang
from sparkcf.training.saved_sweeps import SavedSweep, SavedSweeps

F32 = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
Log = list[dict[str, Any]]


def packed_rows(state: State, own: list[int]) -> list[F32]:
    """This worker's rows by side, float32 (n, width); before the split every group has the shared vector.

    `own` : rows of each side at this worker, without padding.
    """
    config, tables = state.config, []
    for side, name in enumerate(NAMES):
        n, vectors, shared = own[side], list[F32](), list[F32 | None]()
        of_side = zip(state.vectors[side], state.shared[side], config.blocks(name), config.split(name), strict=True)
        for rows, mean, blocks, split in of_side:
            whole = np.tile(rows, (blocks, 1)) if split and mean is None else rows
            vectors.append(whole.reshape(blocks, -1, rows.shape[1])[:, :n])
            shared.append((rows if mean is None else mean)[:n] if split else None)
        tables.append(packed(RowState(vectors, shared, state.row_weights[side][:n], state.groups[side][:n])))
    return tables


def save(saved: SavedSweeps, state: State, own: list[int], extra: Arrays, log: Log, gang: Gang) -> str | None:
    """Save a sweep; returns an error message if that failed. A collective.

    `extra` : further arrays that all workers share; they and the weights stand in the last log entry of the checkpoint.
    """
    arrays = {"overall": state.weights.overall, "table": state.weights.table, "sds": state.sds, "scales": state.scales}
    kept = {name: array.tolist() for name, array in (arrays | extra).items()} | {"kind": state.weights.kind}
    tables = packed_rows(state, own)
    width = max(table.shape[1] for table in tables)  # a checkpoint has one width for both sides
    padded = [np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in tables]
    return saved.save(gang, SavedSweep(padded, [*log[:-1], log[-1] | {"state": kept}]))


def resume(saved: SavedSweeps, state: State, own: list[int], sizes: tuple[int, int], gang: Gang) -> tuple[Log, Arrays]:
    """Set the state to the newest checkpoint; returns its log and further arrays, empty without a checkpoint."""
    config = state.config
    newest = saved.load(gang, sizes, max(config.width_of(name) for name in NAMES))
    if newest is None:
        return [], {}
    kept, split = newest.log[-1].pop("state"), len(newest.log) > config.base_iterations
    for side, name in enumerate(NAMES):
        rows, n = unpacked(newest.factors[side][:, : config.width_of(name)], name, config), own[side]
        for t, (vectors, shared) in enumerate(zip(rows.vectors, rows.shared, strict=True)):
            table = np.zeros((len(vectors) if split else 1, state.copies[side].places, vectors.shape[2]), np.float32)
            table[:, :n] = vectors if split else vectors[:1]
            state.vectors[side][t] = table.reshape(-1, vectors.shape[2])
            if split and shared is not None:
                mean = np.zeros(table.shape[1:], np.float32)
                mean[:n] = shared
                state.shared[side][t] = mean
        state.row_weights[side][:n] = rows.weights
        if split:
            state.groups[side][:] = -1
            state.groups[side][:n] = rows.groups
    state.weights = Weights(kept["kind"], np.array(kept["overall"]), np.array(kept["table"]))
    state.sds, state.scales = np.array(kept["sds"]), np.array(kept["scales"])
    return newest.log, {name: np.array(value) for name, value in kept.items() if name.startswith(NAMES)}
