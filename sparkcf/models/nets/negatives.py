"""Draws items that a user does not have, exactly and without rejection.

Items stand on a line, each over a stretch as long as its mass (an integer). Without the stretches of the row's own
items, the line of a row has length `left`; a point t of it is drawn, and moved right over the own items before it.
A row with the items 1 and 3, of masses [2, 3, 1, 1, 2]:

    item         0     1         2   3   4          left = 9 - 4 = 5
    stretch      0–2   (2–5)     5–6 (6–7) 7–9      t = 2 → 2 + 3 = 5: item 2      t = 3 → 3 + 4 = 7: item 4
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparkcf.training.batch import Rows


def draw_negatives(rows: Rows, mass: Tensor, count: int, seen: bool = False) -> tuple[Tensor, Tensor]:
    """For every entry of the rows, draw `count` items with probability proportional to their mass.

    Parameters
    ----------
    mass : int64 (n_items,); items of mass 0 are never drawn.
    seen : the items of the row may be drawn too.

    Returns
    -------
    items : int64 (nnz, count).
    drawn : bool (nnz,), False for the entries of a row that has every item of positive mass: nothing can be drawn.
    """
    ends = mass.cumsum(0)  # of the items' stretches
    total = int(ends[-1])
    row_of, b = rows.row_of, len(rows)
    if seen:
        points = _points(torch.full_like(row_of, total), count)
        return torch.searchsorted(ends, points, right=True).clamp_max(len(mass) - 1), torch.ones_like(
            row_of, dtype=torch.bool
        )
    order = (row_of * len(mass) + rows.indices).argsort()
    own = rows.indices[order]  # by row, then by item
    own_mass = mass[own]
    before = torch.cat([own_mass.new_zeros(1), own_mass.cumsum(0)])  # own mass of all rows up to an entry
    of_row = before[rows.offsets]  # (B + 1,)
    left = total - of_row.diff()  # (B,)
    start = ends[own] - own_mass - (before[:-1] - of_row[row_of])  # of own stretches, on the line without own items
    points = _points(left[row_of], count)
    key = row_of[:, None] * (total + 1)
    passed = torch.searchsorted(row_of * (total + 1) + start, key + points, right=True)
    moved = points + before[passed] - of_row[:b][row_of][:, None]
    items = torch.searchsorted(ends, moved, right=True).clamp_max(len(mass) - 1)
    return items, left[row_of] > 0


def _points(lengths: Tensor, count: int) -> Tensor:
    """Uniform integers in [0, length), int64 (n, count); 0 for a length of 0."""
    random = torch.rand(len(lengths), count, dtype=torch.float64, device=lengths.device)
    return torch.minimum((random * lengths[:, None]).long(), (lengths[:, None] - 1).clamp_min(0))
