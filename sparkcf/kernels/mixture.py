"""Mixtures of Gaussians, one for every pair: moments, quantiles, responsibilities and scores of calibration.

A mixture has T components: weights that sum to 1, means and standard deviations, float64 (n, T) each. A component that
does not apply to a pair has the weight 0 there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel

F64 = NDArray[np.float64]
BISECTIONS = 40  # halve the bracket of a quantile: 10^-12 of its width is left
REACH = 9.0  # standard deviations around the means that hold every quantile asked for
COVERAGES = (0.5, 0.8, 0.95)  # shares that central intervals should cover
CALIBRATION_MEASURES = (*(f"coverage_{round(100 * share)}" for share in COVERAGES), "log_likelihood", "crps")
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians for each of n pairs; weights, means, sds: float64 (n, T)."""

    weights: F64
    means: F64
    sds: F64

    def mean(self) -> F64:
        """(n,)."""
        return np.einsum("nt,nt->n", self.weights, self.means)

    def sd(self) -> F64:
        """Standard deviation of the whole mixture, (n,)."""
        second = np.einsum("nt,nt->n", self.weights, self.sds**2 + self.means**2)
        return np.sqrt(np.maximum(second - self.mean() ** 2, 0.0))

    def below(self, values: F64) -> F64:
        """The chance of a value at or below `values` (n,): (n,)."""
        return np.einsum("nt,nt->n", self.weights, normal_cdf((values[:, None] - self.means) / self.sds))

    def quantiles(self, levels: tuple[float, ...]) -> F64:
        """Quantiles (n, len(levels)) by bisection; levels between 0 and 1."""
        applies = self.weights > 0
        low = np.where(applies, self.means - REACH * self.sds, np.inf).min(axis=1)
        high = np.where(applies, self.means + REACH * self.sds, -np.inf).max(axis=1)
        found = np.empty((len(low), len(levels)))
        for column, level in enumerate(levels):
            left, right = low.copy(), high.copy()
            for _ in range(BISECTIONS):
                middle = (left + right) / 2
                under = self.below(middle) < level
                left, right = np.where(under, middle, left), np.where(under, right, middle)
            found[:, column] = (left + right) / 2
        return found

    def leading(self) -> NDArray[np.int64]:
        """The component of the largest weight, (n,)."""
        return np.argmax(self.weights, axis=1)

    def log_likelihood(self, values: F64) -> F64:
        """log density of values (n,): (n,)."""
        return log_sum(log_joint(self.weights, values[:, None] - self.means, self.sds))

    def crps(self, values: F64) -> F64:
        """Continuous ranked probability score of values (n,): (n,), 0 is perfect.

        E|X - y| - E|X - X'| / 2 in closed form: Grimit, Gneiting, Berrocal, Johnson (2006), "The continuous ranked
        probability score for circular variables and its application to mesoscale forecast ensemble verification",
        eq. 5.
        """
        first = np.einsum("nt,nt->n", self.weights, _mean_distance(values[:, None] - self.means, self.sds))
        between = np.zeros(len(values))
        for t in range(self.weights.shape[1]):
            apart = self.means - self.means[:, [t]]
            spread = np.sqrt(self.sds**2 + self.sds[:, [t]] ** 2)
            between += self.weights[:, t] * np.einsum("nt,nt->n", self.weights, _mean_distance(apart, spread))
        crps: F64 = first - between / 2
        return crps


def calibration(mixture: Mixture, values: F64) -> F64:
    """CALIBRATION_MEASURES of observed values (n,): (n, 5). A coverage is 1 for a value inside the interval."""
    below = mixture.below(values)
    inside = [np.abs(below - 0.5) <= share / 2 for share in COVERAGES]
    return np.column_stack([*inside, mixture.log_likelihood(values), mixture.crps(values)]).astype(np.float64)


def log_joint(weights: F64, errors: F64, sds: F64) -> F64:
    """log(weight · density) of every component, (n, T); -inf where the weight is 0. `errors`: value minus mean."""
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    joint: F64 = log_weights - 0.5 * (errors / sds) ** 2 - np.log(sds) - 0.5 * LOG_2PI
    return joint


def log_sum(joint: F64) -> F64:
    """log of the sum of exponentials along the components, (n,); at least one component is finite."""
    most = joint.max(axis=1, keepdims=True)
    summed: F64 = np.log(np.exp(joint - most).sum(axis=1)) + most[:, 0]
    return summed


def responsibilities(joint: F64, temperature: float = 1.0) -> F64:
    """The posterior probability of every component, (n, T); rows sum to 1.

    `temperature` T raises weight · density to the power 1 / T: 1 is the E-step, a large one nears equal shares.
    """
    scaled = joint / temperature
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _mean_distance(mean: F64, sd: F64) -> F64:
    """E|Z| of Z ~ N(mean, sd^2)."""
    ratio = mean / sd
    density = np.exp(-0.5 * ratio**2) / np.sqrt(2 * np.pi)
    distance: F64 = 2 * sd * density + mean * (2 * normal_cdf(ratio) - 1)
    return distance


def normal_cdf(values: F64) -> F64:
    """The chance of a standard normal value at or below each of `values`, of any shape."""
    out = np.empty(values.shape)
    _fill_cdf(np.ascontiguousarray(values, np.float64).reshape(-1), out.reshape(-1))
    return out


@kernel()
def _fill_cdf(values, out):
    for place in range(values.size):
        out[place] = 0.5 * math.erfc(-values[place] * 0.7071067811865476)
