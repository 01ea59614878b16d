"""log p(x | logits) of a user's whole row, without terms that do not depend on the logits.

Each takes one pass over the dense logits f and one over the entries of x. Liang et al. (2018), equations 2 to 4.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from sparkcf.models.nets.layers import by_row, entries
from sparkcf.training.batch import Rows

CONFIDENCE = 10.0  # Gaussian: c of an observed entry; 1 of the others


def multinomial(logits: Tensor, rows: Rows) -> Tensor:
    """sum_i x_i log softmax(f)_i, (B,)."""
    logits = logits.float()
    return by_row(rows.values * entries(logits, rows), rows) - rows.sums() * logits.logsumexp(dim=1)


def gaussian(logits: Tensor, rows: Rows) -> Tensor:
    """-1/2 sum_i c_i (x_i - f_i)^2 with c_i = CONFIDENCE where x has an entry, else 1, (B,)."""
    logits = logits.float()
    f = entries(logits, rows)
    return -0.5 * (logits.square().sum(dim=1) + by_row(CONFIDENCE * (rows.values - f) ** 2 - f**2, rows))


def logistic(logits: Tensor, rows: Rows) -> Tensor:
    """sum_i x_i log s(f_i) + (1 - x_i) log(1 - s(f_i)) with the sigmoid s, (B,)."""
    logits = logits.float()
    return by_row(rows.values * entries(logits, rows), rows) - F.softplus(logits).sum(dim=1)


LIKELIHOODS: dict[str, Callable[[Tensor, Rows], Tensor]] = {
    "multinomial": multinomial,
    "gaussian": gaussian,
    "logistic": logistic,
}
