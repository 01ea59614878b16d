"""From a(x) to a label: the probit of ALS and MCMC, the logistic function of SGD. Numpy and scipy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_ndtr, ndtr

from sparkcf.config.models import FMConfig

F64 = NDArray[np.float64]


def answers(fitted: F64, config: FMConfig) -> F64:
    """What a(x) predicts: itself (regression), or the probability of a yes."""
    if config.task == "regression":
        return fitted
    probabilities: F64 = expit(fitted) if config.learner == "sgd" else ndtr(fitted)
    return probabilities


def latent_means(y: NDArray[Any], fitted: F64) -> F64:
    """E z of z ~ N(a(x), 1) cut to the label's side of 0, (n,)."""
    sign = np.where(y > 0, 1.0, -1.0)
    toward = sign * fitted
    above = np.exp(-0.5 * np.square(toward) - 0.5 * np.log(2 * np.pi) - log_ndtr(toward))
    means: F64 = sign * (toward + above)
    return means


def working_rows(y: NDArray[Any], fitted: F64, config: FMConfig) -> tuple[F64, F64]:
    """Targets and weights (n,) of the least squares whose minimum is a step toward the maximum a posteriori.

    Each step lowers the loss: for the probit it is one of expectation and maximisation, for the logistic function that
    of Polson, Scott, Windle (2013), "Bayesian inference for logistic models using Polya-Gamma latent variables".
    """
    ones = np.ones(len(y))
    if config.task == "regression":
        return np.asarray(y, np.float64), ones
    if config.learner != "sgd":
        return latent_means(y, fitted), ones
    half = np.where(np.abs(fitted) > 1e-6, fitted, 1e-6) / 2
    weights = np.tanh(half) / (4 * half)
    return np.where(y > 0, 0.5, -0.5) / weights, weights
