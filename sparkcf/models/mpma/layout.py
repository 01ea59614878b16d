"""The stored row of a user or an item: all of its vectors, its mixture weights and its group.

    [vectors of component 0 | … | vectors of component T - 1 | weights (T) | group]

A vector has rank + 1 numbers, the last one its bias. Where a component splits a side by the other side's groups, a row
has a vector for each group, and last the shared vector that these are pulled to. The group is -1 for none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.factorization import MPMAConfig

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
SideName = Literal["user", "item"]
NAMES: tuple[SideName, SideName] = ("user", "item")


@dataclass
class RowState:
    """Rows of a side.

    vectors : by component, float32 (blocks, n, rank + 1).
    shared : by component, float32 (n, rank + 1); None where the component does not split the side.
    weights : float64 (n, T), mixture weights of the row.
    groups : int32 (n,), -1 for none.
    """

    vectors: list[F32]
    shared: list[F32 | None]
    weights: F64
    groups: NDArray[np.int32]


def packed(rows: RowState) -> F32:
    """The rows in the layout above, float32 (n, width)."""
    n = len(rows.groups)
    parts: list[F32] = []
    for vectors, shared in zip(rows.vectors, rows.shared, strict=True):
        parts.extend(vectors)
        if shared is not None:
            parts.append(shared)
    return np.concatenate([*parts, rows.weights, rows.groups.reshape(n, 1)], axis=1, dtype=np.float32)


def unpacked(table: F32, side: SideName, config: MPMAConfig) -> RowState:
    """The parts of rows in the layout above; vectors are copies, each contiguous."""
    n, width, begin = len(table), config.rank + 1, 0
    vectors: list[F32] = []
    shared: list[F32 | None] = []
    for blocks, split in zip(config.blocks(side), config.split(side), strict=True):
        end = begin + blocks * width
        vectors.append(np.ascontiguousarray(table[:, begin:end].reshape(n, blocks, width).transpose(1, 0, 2)))
        shared.append(np.ascontiguousarray(table[:, end : end + width]) if split else None)
        begin = end + width * split
    weights = table[:, begin : begin + len(config.components)].astype(np.float64)
    return RowState(vectors, shared, weights, table[:, -1].round().astype(np.int32))
