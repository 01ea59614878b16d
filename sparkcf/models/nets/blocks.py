"""Sums over all rows of a table in blocks, so that memory does not grow with the table.

    sum_j f(z_b · v_j)      b a row of the batch, v_j the rows of a table (n, k)

The products of a batch with all rows would be (B, n). A block has at most BLOCK_NUMBERS products. If there are several
blocks, each is recomputed in the backward pass instead of being stored, so a step needs about 5 BLOCK_NUMBERS numbers
besides the table and the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_NUMBERS = 1 << 24  # 64 MiB of float32


def sum_over_blocks(of_block: Callable[..., Tensor], rows: int, *tables: Tensor) -> Tensor:
    """The sum of `of_block(*parts of the tables)` over blocks of the tables' rows.

    Parameters
    ----------
    rows : number of products per row of the tables.
    tables : (n, …) each.
    """
    with torch.autocast(tables[0].device.type, enabled=False):  # sums over a catalogue need float32
        return _summed(of_block, rows, tables)


def _summed(of_block: Callable[..., Tensor], rows: int, tables: tuple[Tensor, ...]) -> Tensor:
    height = max(BLOCK_NUMBERS // max(rows, 1), 1)
    n = len(tables[0])
    if n <= height:
        return of_block(*tables)
    total = None
    for first in range(0, n, height):
        parts = [table[first : first + height] for table in tables]
        if torch.is_grad_enabled():
            summed = checkpoint(of_block, *parts, use_reentrant=False, preserve_rng_state=False)
        else:
            summed = of_block(*parts)
        total = summed if total is None else total + summed
    assert total is not None
    return total
