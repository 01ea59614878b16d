"""Neighbourhood routing of DisenGCN: the channels of a node's vector take in the neighbours that share their cause.

Ma, Cui, Kuang, Wang, Zhu (2019), "Disentangled graph convolutional networks", ICML, algorithm 1. A node u with the
vectors z_u,k of its K channels and the neighbours v = 1, …, n takes T rounds:

    p_v,k = softmax over k of (z_v,k / |z_v,k| · c_u,k / |c_u,k|)      in the first round 1 / K
    c_u,k = z_u,k + weight_u · sum over v of p_v,k z_v,k

and c_u,k of the last round is the result. The paper has vectors of unit length, weight_u = 1 and as many neighbours of
every node; here both are the caller's. With weight_u = K / n, and K = 1 or T = 1, c_u is z_u plus the mean of the
neighbours' vectors: a graph convolution by means.

The rounds infer which channel an edge belongs to. Gradients pass through the sums of the last round alone, to which the
p_v,k are constants.

A node with neighbours 4 and 7 and one without any, whose neighbours' vectors are the rows of a table:

    places [4, 7]   offsets [0, 2, 2]
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparkcf.training.batch import Rows

EDGES = 1 << 14  # whose products are in memory at once


def route(own: Tensor, sources: Tensor, edges: Rows, rounds: int, weights: Tensor) -> Tensor:
    """The vectors c (n, K, d) of nodes after `rounds` rounds.

    Parameters
    ----------
    own : (n, K, d), z of the nodes; 0 for a node that has none of its own.
    sources : (m, K, d), z of the neighbours.
    edges : the places of every node's neighbours in `sources`. Its values are not read.
    weights : (n,), of the nodes' sums.
    """
    with torch.no_grad():
        shares = _shares(own, sources, edges, rounds, weights)  # (K, nnz)
    return own + _weighted_sums(sources, edges, shares) * weights[:, None, None]


def unit(vectors: Tensor) -> Tensor:
    """The vectors of all channels divided by their lengths; 0 stays 0."""
    return F.normalize(vectors, dim=-1)


def _shares(own: Tensor, sources: Tensor, edges: Rows, rounds: int, weights: Tensor) -> Tensor:
    """The p of the last round, (K, nnz), found for blocks of rows at a time."""
    n_channels = own.shape[1]
    shares = own.new_full((n_channels, len(edges.indices)), 1.0 / n_channels)
    if rounds == 1 or n_channels == 1 or not len(edges.indices):
        return shares
    directions = unit(sources)
    places = torch.arange(0, len(edges.indices), EDGES, device=own.device)
    ends = edges.offsets.tolist()
    starts = sorted({0, *torch.searchsorted(edges.offsets, places, right=True).sub(1).tolist(), len(edges)})
    for first, last in pairwise(starts):
        here = slice(ends[first], ends[last])
        if here.start == here.stop:
            continue
        block = Rows(edges.indices[here], edges.offsets[first : last + 1] - here.start, edges.values[:0])
        z, row_of = directions[block.indices], block.row_of  # (E, K, d)
        for _ in range(rounds - 1):
            summed = _weighted_sums(sources, block, shares[:, here])
            c = unit(own[first:last] + summed * weights[first:last, None, None])
            shares[:, here] = (z * c[row_of]).sum(dim=2).softmax(dim=1).T
    return shares


def _weighted_sums(sources: Tensor, edges: Rows, shares: Tensor) -> Tensor:
    """The sums (n, K, d) of the sources by row, with the shares (K, nnz)."""
    channels = [_WeightedSum.apply(sources[:, k], edges, share) for k, share in enumerate(shares)]
    return torch.stack(channels, dim=1)


class _WeightedSum(torch.autograd.Function):
    """sum over the entries of a row of weight x source, and its gradient by the sources.

    The gradient is the same kind of sum over the transposed edges, much faster than torch's own gradient of it.
    """

    @staticmethod
    def forward(ctx: Any, sources: Tensor, edges: Rows, weights: Tensor) -> Tensor:
        """Sums (n, d). `sources` : (m, d). `weights` : (nnz,)."""
        ctx.edges, ctx.n = edges, len(sources)
        ctx.save_for_backward(weights)
        return _sum_by_row(sources, edges.indices, edges.offsets, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        order, offsets = transposed(ctx.edges, ctx.n)
        return _sum_by_row(gradient, ctx.edges.row_of[order], offsets, weights[order]), None, None


def transposed(edges: Rows, n: int) -> tuple[Tensor, Tensor]:
    """The entries ordered by their neighbour of n, int64 (nnz,), and the offsets (n + 1,); kept with the edges."""
    known = edges.__dict__.get("transposed")
    if known is None:
        counts = torch.bincount(edges.indices, minlength=n)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        known = edges.__dict__["transposed"] = edges.indices.int().argsort(stable=True), offsets
    return known


def _sum_by_row(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    if not len(indices) or len(offsets) == 1:  # embedding_bag refuses an empty batch
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    bags: Tensor = F.embedding_bag(
        indices,
        table.contiguous(),
        offsets,
        mode="sum",
        per_sample_weights=weights.to(table.dtype),
        include_last_offset=True,
    )
    return bags
