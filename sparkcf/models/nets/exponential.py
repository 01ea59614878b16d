"""One-parameter exponential families as likelihoods of the entries of a matrix.

    log p(x | f) = T(x) eta(f) - A(eta(f)) + h(x)

f is a decoder's output for an entry, eta(f) the natural parameter by a link, T(x) = x the sufficient statistic, A the
log-partition; h does not depend on f and is left out. Truong, Salah, Lauw (2021), section 3.1.

    family      A(eta)              links: eta(f)
    bernoulli   log(1 + exp eta)    sigmoid: f
    poisson     exp eta             sigmoid: log s(f)    exp: f    softplus: log softplus(f)
    gaussian    eta^2 / 2           identity: f          sigmoid: s(f)

An entry without an interaction has x = 0: only its log-partition counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    """A likelihood and its link, as functions of a decoder's output f.

    eta : natural parameter eta(f).
    partition : A(eta(f)), written so that it does not overflow.
    """

    eta: Function
    partition: Function


def _log_softplus(f: Tensor) -> Tensor:
    return torch.where(f < -15, f, F.softplus(f.clamp_min(-15)).log())  # log softplus(f) -> f


FAMILIES: dict[tuple[str, str], Family] = {
    ("bernoulli", "sigmoid"): Family(lambda f: f, F.softplus),
    ("poisson", "sigmoid"): Family(F.logsigmoid, torch.sigmoid),
    ("poisson", "exp"): Family(lambda f: f, torch.exp),
    ("poisson", "softplus"): Family(_log_softplus, F.softplus),
    ("gaussian", "identity"): Family(lambda f: f, lambda f: 0.5 * f.square()),
    ("gaussian", "sigmoid"): Family(torch.sigmoid, lambda f: 0.5 * torch.sigmoid(f).square()),
}
