"""The sparse matrix of correlated items, and an independent small solve for each item: arrays in, arrays out.

rows of users ──`correlated`──▶ ItemPairs ──`solve_item` for each item──▶ column of B ──`joined`──▶ B
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from sparkcf.config.linear import MRFConfig
from sparkcf.errors import ConfigError
from sparkcf.kernels.csr import build_csr
from sparkcf.kernels.mrf import add_products, fill_block
from sparkcf.models.contract_data import F32, F64, I32, I64
from sparkcf.models.linear import Compressed

LEAST_VARIANCE = 1e-9  # as a share of the sum of squares; below it a centred item is constant
Found = tuple[int, I32, F32]  # an item, other items ascending, a number for each


@dataclass(frozen=True)
class ItemSums:
    """Sums over the users, with w_u = n_u^-b the weight of a user.

    counts : (m,), number of users.
    sums : (m,), sum_u w_u x_ui.
    squares : (m,), sum_u w_u x_ui^2.
    weight : sum_u w_u.
    """

    counts: F64
    sums: F64
    squares: F64
    weight: float

    @classmethod
    def of(cls, rows: Compressed, m: int, user_exponent: float) -> ItemSums:
        """The sums of compressed rows of users."""
        indptr, indices, values = rows
        weights = user_weights(indptr, user_exponent)
        w = np.repeat(weights, np.diff(indptr))
        squares = np.square(values, dtype=np.float64)
        counts, sums, squares = (
            np.bincount(indices, v, m).astype(np.float64) for v in (np.ones(len(indices)), w * values, w * squares)
        )
        return cls(counts, sums, squares, float(weights[np.diff(indptr) > 0].sum()))

    def variances(self, centred: bool) -> F64:
        """The diagonal of the Gram matrix, (m,): of items that are constant, 0."""
        if not centred:
            return self.squares
        left: F64 = self.squares - self.sums**2 / self.weight
        return np.where(left > LEAST_VARIANCE * self.squares, left, 0.0)


@dataclass(frozen=True)
class ItemPairs:
    """The Gram matrix G of the items without the pairs whose correlation is below `mrf.min_correlation`.

    indptr, indices, values : compressed rows, without the diagonal; the indices of a row ascend.
    variances : (m,), the diagonal.
    counts : (m,), number of users.
    """

    indptr: I64
    indices: I32
    values: F32
    variances: F64
    counts: F64

    @cached_property
    def place(self) -> I32:
        """Work space of `fill_block`."""
        return np.full(len(self.variances), -1, np.int32)

    def row(self, item: int) -> tuple[I32, F32]:
        here = slice(self.indptr[item], self.indptr[item + 1])
        return self.indices[here], self.values[here]


def user_weights(indptr: I64, exponent: float) -> F64:
    """n_u^-b, (n,)."""
    return np.diff(indptr).clip(1).astype(np.float64) ** -exponent


def correlated(rows: Compressed, chosen: I32, sums: ItemSums, params: MRFConfig) -> Iterator[Found]:
    """For each chosen item, the items that correlate with it and their entries of G.

    One row of G is dense at a time. The cost is the sum, over the users of the chosen items, of their items.

    Parameters
    ----------
    rows : rows of all users who have one of the chosen items.
    """
    indptr, indices, values = rows
    m = len(sums.counts)
    weights, variances = user_weights(indptr, params.user_exponent), sums.variances(params.centred)
    number = np.full(m, -1, np.int32)
    number[chosen] = np.arange(len(chosen), dtype=np.int32)
    entries = np.flatnonzero(number[indices] >= 0)
    of_user = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))[entries]
    by_item, users, amounts = build_csr(number[indices[entries]], of_user, values[entries], len(chosen), len(weights))
    total, touched, last = np.zeros(m), np.empty(m, np.int32), np.full(m, -1, np.int32)
    for mark, item in enumerate(chosen.tolist()):
        here = slice(by_item[mark], by_item[mark + 1])
        scales = weights[users[here]] * amounts[here]
        n = add_products(users[here], scales, indptr, indices, values, total, touched, last, mark)
        others = np.sort(touched[:n])
        gram = total[others]
        total[others] = 0.0
        if params.centred:
            gram -= sums.sums[item] * sums.sums[others] / sums.weight
        scale = variances[item] * variances[others]
        kept = (gram**2 >= params.min_correlation**2 * scale) & (scale > 0) & (others != item)
        yield item, others[kept], gram[kept].astype(np.float32)


def pairs_of(found: Iterable[Found], sums: ItemSums, params: MRFConfig) -> ItemPairs:
    """The sparse matrix, from its rows in any order. Raises ConfigError for more entries than `mrf.max_entries`."""
    rows: list[Found] = []
    entries = 0
    for row in found:
        rows.append(row)
        entries += len(row[1])
        if entries > params.max_entries:
            raise ConfigError(
                f"model=mrf: more than {params.max_entries:,} pairs of items correlate by mrf.min_correlation="
                f"{params.min_correlation} or more, which is mrf.max_entries: raise min_correlation, or max_entries "
                "if the driver has 8 bytes for each"
            )
    rows.sort(key=lambda row: row[0])
    indptr = np.zeros(len(sums.counts) + 1, np.int64)
    for item, others, _ in rows:
        indptr[item + 1] = len(others)
    np.cumsum(indptr, out=indptr)
    indices = np.concatenate([row[1] for row in rows] or [np.zeros(0, np.int32)])
    values = np.concatenate([row[2] for row in rows] or [np.zeros(0, np.float32)])
    return ItemPairs(indptr, indices, values, sums.variances(params.centred), sums.counts)


def solve_item(pairs: ItemPairs, item: int, params: MRFConfig) -> tuple[I32, F32, bool]:
    """The neighbours of an item, ascending, and their weights for it: its column of B.

    Also returns whether the neighbours' matrix was not positive definite and got a larger diagonal.
    """
    others, gram = pairs.row(item)
    if len(others) > params.max_neighbours:
        strength = gram.astype(np.float64) ** 2 / pairs.variances[others]
        best = np.sort(np.argsort(-strength, kind="stable")[: params.max_neighbours])
        others, gram = others[best], gram[best]
    d, shrink = len(others), params.scale_exponent / 2
    if not d:
        return others, gram, False
    own, variances, counts = pairs.variances[item], pairs.variances[others], pairs.counts[others]
    scale = variances**-shrink
    block = np.empty((d, d))
    fill_block(others, pairs.indptr, pairs.indices, pairs.values, pairs.place, block)
    block *= scale[:, None] * scale
    diagonal = scale**2 * (variances + params.denoising / (1 - params.denoising) * counts) + params.regularization
    target = gram * scale * own**-shrink
    extra, raised = 0.0, False
    while True:
        block[np.diag_indices(d)] = diagonal + extra
        factor, failed = dpotrf(block.T, lower=1)
        if not failed:
            break
        extra, raised = max(2 * extra, params.regularization), True
    solution, _ = dpotrs(factor, target, lower=1)
    popularity = (counts / pairs.counts[item]) ** params.item_exponent
    return others, (solution * scale * own**shrink * popularity).astype(np.float32), raised


def joined(columns: Iterable[Found], m: int) -> Compressed:
    """B in compressed rows from its columns: row i has the weights of item i for the others."""
    found = list(columns)
    lengths = np.array([len(others) for _, others, _ in found], np.int64)
    targets = np.repeat(np.array([item for item, _, _ in found], np.int32), lengths)
    sources = np.concatenate([others for _, others, _ in found] or [np.zeros(0, np.int32)])
    weights = np.concatenate([w for _, _, w in found] or [np.zeros(0, np.float32)])
    return build_csr(sources, targets, weights, m, m)


def item_weights(rows: Compressed, m: int, params: MRFConfig) -> Compressed:
    """B of compressed rows of users, in this process. Raises ConfigError as `pairs_of`."""
    sums = ItemSums.of(rows, m, params.user_exponent)
    pairs = pairs_of(correlated(rows, np.arange(m, dtype=np.int32), sums, params), sums, params)
    return joined(((item, *solve_item(pairs, item, params)[:2]) for item in range(m)), m)
