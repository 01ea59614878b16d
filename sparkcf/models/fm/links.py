"""Link functions from a(x) to a label: probit for ALS and MCMC, logistic for SGD. Numpy and scipy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_ndtr, ndtr

from sparkcf.config.fm import FMConfig
from sparkcf.kernels.fm import IDENTITY, LOGISTIC, PROBIT

F64 = NDArray[np.float64]


def link_of(config: FMConfig) -> int:
    """The link of a fit: IDENTITY, PROBIT or LOGISTIC of `kernels.fm`."""
    if config.task == "regression":
        return IDENTITY
    return LOGISTIC if config.learner == "sgd" else PROBIT


def answers(fitted: F64, config: FMConfig) -> F64:
    """Predictions from a(x): a(x) itself (regression), or the probability of class 1."""
    link = link_of(config)
    if link == IDENTITY:
        return fitted
    probabilities: F64 = expit(fitted) if link == LOGISTIC else ndtr(fitted)
    return probabilities


def latent_means(y: NDArray[Any], fitted: F64) -> F64:
    """E z of z ~ N(a(x), 1) truncated to the label's side of 0, (n,)."""
    sign = np.where(y > 0, 1.0, -1.0)
    toward = sign * fitted
    above = np.exp(-0.5 * np.square(toward) - 0.5 * np.log(2 * np.pi) - log_ndtr(toward))
    means: F64 = sign * (toward + above)
    return means
