"""Mixtures of Gaussians against numerical integration and sampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from sparkcf.kernels.mixture import (
    CALIBRATION_MEASURES,
    Mixture,
    calibration,
    log_joint,
    log_sum,
    responsibilities,
)

MIXTURE = Mixture(
    np.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.6, 0.0, 0.4]]),
    np.array([[1.0, 3.0, 4.5], [9.0, 2.0, -5.0], [3.0, 99.0, 3.0]]),
    np.array([[0.5, 1.0, 0.3], [0.1, 0.7, 2.0], [0.4, 1.0, 1.6]]),
)
VALUES = np.array([2.5, 2.2, 6.0])


def below(row: int, x: float) -> float:
    return float(MIXTURE.weights[row] @ norm.cdf(x, MIXTURE.means[row], MIXTURE.sds[row]))


def test_moments_are_those_of_drawn_values() -> None:
    rng = np.random.default_rng(1)
    for row in range(3):
        which = rng.choice(3, 400_000, p=MIXTURE.weights[row])
        drawn = rng.normal(MIXTURE.means[row][which], MIXTURE.sds[row][which])
        assert MIXTURE.mean()[row] == pytest.approx(drawn.mean(), abs=0.01)
        assert MIXTURE.sd()[row] == pytest.approx(drawn.std(), abs=0.01)


def test_quantiles_invert_the_distribution_function() -> None:
    levels = (0.025, 0.5, 0.9)
    found = MIXTURE.quantiles(levels)
    assert found.shape == (3, 3)
    for row in range(3):
        np.testing.assert_allclose([below(row, x) for x in found[row]], levels, atol=1e-9)


def test_crps_is_the_integral_of_the_squared_difference_of_distribution_functions() -> None:
    for row in range(3):
        value = VALUES[row]
        left = quad(lambda x, row=row: below(row, x) ** 2, -30, value, limit=200)[0]
        right = quad(lambda x, row=row: (1 - below(row, x)) ** 2, value, 30, limit=200)[0]
        assert MIXTURE.crps(VALUES)[row] == pytest.approx(left + right, abs=1e-5)


def test_log_likelihood_is_the_log_of_the_density() -> None:
    density = [MIXTURE.weights[r] @ norm.pdf(VALUES[r], MIXTURE.means[r], MIXTURE.sds[r]) for r in range(3)]
    np.testing.assert_allclose(MIXTURE.log_likelihood(VALUES), np.log(density))


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_responsibilities_sum_to_one_and_are_0_without_weight(temperature: float) -> None:
    errors = VALUES[:, None] - MIXTURE.means
    joint = log_joint(MIXTURE.weights, errors, MIXTURE.sds)
    shares = responsibilities(joint, temperature)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert (shares[MIXTURE.weights == 0] == 0).all()
    if temperature == 1:
        expected = MIXTURE.weights[0] * norm.pdf(VALUES[0], MIXTURE.means[0], MIXTURE.sds[0])
        np.testing.assert_allclose(shares[0], expected / expected.sum())
    far = log_joint(MIXTURE.weights, errors + 1e4, MIXTURE.sds)  # no density is above 0 in float64
    assert np.isfinite(log_sum(far)).all() and np.isfinite(responsibilities(far)).all()


def test_calibration_of_values_drawn_from_the_mixture_covers_what_it_states() -> None:
    rng = np.random.default_rng(2)
    many = Mixture(*(np.repeat(part[:1], 20_000, axis=0) for part in (MIXTURE.weights, MIXTURE.means, MIXTURE.sds)))
    which = rng.choice(3, 20_000, p=MIXTURE.weights[0])
    drawn = rng.normal(MIXTURE.means[0][which], MIXTURE.sds[0][which])
    found = dict(zip(CALIBRATION_MEASURES, calibration(many, drawn).mean(axis=0), strict=True))
    assert [found[f"coverage_{share}"] for share in (50, 80, 95)] == pytest.approx([0.5, 0.8, 0.95], abs=0.012)
    assert found["crps"] == pytest.approx(many.crps(drawn).mean())
