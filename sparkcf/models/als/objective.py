"""The objectives of ALS, and the coefficients of each entry and row in the normal equations.

With s = p_u·q_i, observed pairs S with value r, n_u and n_i the entries of a row, N users and M items in training:

explicit        sum_S w (r - mu - b_u - b_i - s)^2 + lambda (sum_u n_u^nu (|p_u|^2 + b_u^2) + sum_i n_i^nu (...))
                w is 1 unless the pairs have a weight; mu, b only with `biases`.
                nu = 1 is MLlib's ALS-WR (Zhou et al. 2008), nu = 0 plain ridge.
form ials       sum_S w (1 - s)^2 + alpha0 sum_{all u,i} s^2
                + lambda (sum_u (n_u + alpha0 M)^nu |p_u|^2 + sum_i (n_i + alpha0 N)^nu |q_i|^2), w = r
                Rendle et al. (2021), "Revisiting the performance of iALS", eq. 1-5. w is 1 for plain positives.
form hu_koren   sum_{all u,i} c (1[r > 0] - s)^2 + lambda (sum_u n_u^nu |p_u|^2 + ...), c = 1 + alpha |r|
                Hu, Koren, Volinsky (2008). nu = 1 is MLlib's `implicitPrefs` (n counts r > 0), same alpha, same lambda.
form implicit   as hu_koren, but c = alpha |r| on observed pairs and 1 elsewhere, and nu = 0: lambda is plain.
                The objective of the `implicit` library for data r, with its alpha and regularization.
form frobenius  sum_{all u,i} (r - s)^2 + lambda (sum_u |p_u|^2 + sum_i |q_i|^2), r = 0 for unobserved pairs.
                With non-negative factors: NMF (Lee, Seung 1999), twice the objective of scikit-learn's NMF.

Every objective is  sum_S (a s^2 - 2 b s + const) + alpha0 sum_all s^2 + sum of reg |.|^2  with the a, b below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.factorization import FactorizationConfig

F32 = NDArray[np.float32]
NO_WEIGHTS: F32 = np.empty(0, np.float32)


@dataclass(frozen=True)
class Objective:
    """One of the objectives above; computes its coefficients. `mean` is mu (mode explicit with biases)."""

    form: str  # explicit, ials, hu_koren, implicit, frobenius
    regularization: float
    exponent: float
    alpha: float
    alpha0: float
    mean: float = 0.0

    @classmethod
    def of(cls, config: FactorizationConfig, mean: float = 0.0) -> Objective:
        form = "explicit" if config.mode == "explicit" else config.form
        alpha0 = {"explicit": 0.0, "ials": config.unobserved_weight}.get(form, 1.0)
        return cls(
            form,
            config.regularization,
            config.regularization_exponent,
            config.alpha,
            alpha0,
            mean if config.biases else 0.0,
        )

    def coefficients(self, values: F32, weights: F32 = NO_WEIGHTS) -> tuple[F32, F32]:
        """a and b of every entry, float32 (nnz,) each. `weights`: w of form explicit, (nnz,), or (0,) if all are 1."""
        if self.form == "explicit":
            a = weights if len(weights) else np.ones_like(values)
            return a, (a * (values - np.float32(self.mean))).astype(np.float32)
        if self.form == "ials":
            return values, values
        if self.form == "frobenius":
            return np.zeros_like(values), values
        if self.form == "hu_koren":
            weight = np.float32(self.alpha) * np.abs(values)
            return weight, np.where(values > 0, weight + 1, 0).astype(np.float32)
        confidence = np.float32(self.alpha) * np.abs(values)
        return confidence - 1, np.where(values > 0, confidence, 0).astype(np.float32)

    def refused(self, values: F32) -> int:
        """Number of values that make the objective unbounded below: negative weights in form ials."""
        return int(np.count_nonzero(values < 0)) if self.form == "ials" else 0

    def constant(self, values: F32, weights: F32 = NO_WEIGHTS, offsets: F32 | None = None) -> float:
        """The constant part of the observed sum: the objective of all-zero factors.

        `offsets` (nnz,), for form explicit with biases, are subtracted from the values first.
        """
        if self.form == "explicit":
            left = values - np.float32(self.mean) - (np.float32(0) if offsets is None else offsets)
            squares = np.square(left, dtype=np.float64)
            return float(np.vdot(weights, squares) if len(weights) else squares.sum())
        targets = self.coefficients(values)[1]
        if self.form == "frobenius":
            return float(np.square(targets, dtype=np.float64).sum())
        return float(targets.sum(dtype=np.float64))

    def row_regularization(self, counts: NDArray[np.int64], n_other: int) -> F32:
        """lambda times the row's scale, float32 (n,). `counts`: the row's entries; `n_other`: the other side's rows."""
        if self.form in ("implicit", "frobenius"):
            return np.full(len(counts), self.regularization, np.float32)
        scale = counts + (self.alpha0 * n_other if self.form == "ials" else 0.0)
        with np.errstate(divide="ignore"):
            scaled = np.where(scale > 0, np.power(scale.astype(np.float64), self.exponent), 0.0)
        return (self.regularization * scaled).astype(np.float32)

    def counted(self, counts: NDArray[np.int64], positives: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entries of a row that its regularisation counts, int64 (n,): MLlib counts only positives."""
        return positives if self.form == "hu_koren" else counts
