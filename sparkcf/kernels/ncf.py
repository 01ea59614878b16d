"""Scores of neural collaborative filtering (He et al. 2017) as arrays.

With the user's vector [p, x] and the item's vector [q, y], the parts of GMF and of the MLP side by side,

    score = share (a · (p * q) + b_g  +  h · z_L + b_m),    z_1 = relu(U x + V y + c),  z_l = relu(W_l z_{l-1} + c_l)

[U V] is the first layer split into the part of the user and the part of the item, so U x is computed once per user and
V y once per item. n users, m items, d_g and d_m lengths of the parts, h_l widths of the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
PAIRS = 1 << 14  # pairs whose layers are computed at once: they fit in the cache


class Weights(NamedTuple):
    """The weights of the score.

    gmf : a (d_g,); empty without GMF.
    first : U transposed (d_m, h_1), V transposed (d_m, h_1) and c (h_1,); None without an MLP.
    layers : W_l transposed (h_{l-1}, h_l) and c_l (h_l,) of the further layers.
    mlp : h (h_L,); empty without an MLP.
    bias : b_g + b_m.
    share : 1, or 1/2 where the score is the mean of both parts.
    """

    gmf: F32
    first: tuple[F32, F32, F32] | None
    layers: Sequence[tuple[F32, F32]]
    mlp: F32
    bias: float
    share: float


class ItemParts(NamedTuple):
    """What scores take from the items: q (m, d_g) and V y + c (m, h_1), which is empty without an MLP."""

    gmf: F32
    first: F32


def item_parts(items: F32, weights: Weights) -> ItemParts:
    """The items' parts from their vectors (m, d_g + d_m)."""
    q, y = np.split(items, [len(weights.gmf)], axis=1)
    if weights.first is None:
        return ItemParts(q, y)
    _, of_item, bias = weights.first
    return ItemParts(q, y @ of_item + bias)


def score_users(users: F32, items: ItemParts, weights: Weights) -> F32:
    """Scores (n, m) of all items, from users' vectors (n, d_g + d_m)."""
    p, x = np.split(users, [len(weights.gmf)], axis=1)
    scores: F32 = (p * weights.gmf) @ items.gmf.T
    if weights.first is not None:
        first = x @ weights.first[0]  # (n, h_1)
        width, m = first.shape[1], len(items.first)
        height = max(PAIRS // max(len(users), 1), 1)
        for begin in range(0, m, height):
            block = items.first[begin : begin + height]
            z = (first[:, None] + block[None]).reshape(len(users) * len(block), width)
            scores[:, begin : begin + height] += _last(z, weights).reshape(len(users), len(block))
    scores += np.float32(weights.bias)
    scores *= np.float32(weights.share)
    return scores


def score_pairs(users: F32, items: F32, weights: Weights) -> F32:
    """Scores (n,) of pairs, from the vectors of their users and items (n, d_g + d_m)."""
    p, x = np.split(users, [len(weights.gmf)], axis=1)
    parts = item_parts(items, weights)
    scores: F32 = (p * parts.gmf) @ weights.gmf
    if weights.first is not None:
        scores += _last(x @ weights.first[0] + parts.first, weights)
    return (scores + np.float32(weights.bias)) * np.float32(weights.share)


def _last(z: F32, weights: Weights) -> F32:
    """h · z_L (n,) from the first layer before its ReLU (n, h_1), which is overwritten."""
    np.maximum(z, 0.0, out=z)
    for weight, bias in weights.layers:
        z = z @ weight
        z += bias
        np.maximum(z, 0.0, out=z)
    return z @ weights.mlp
