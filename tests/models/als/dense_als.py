"""ALS written again from its formulas: dense float64 matrices and plain loops, nothing of the library's.

A `Problem` holds ratings (n, m), which of them are observed, and a configuration. `objective` is a double loop over
users and items; `solve_users` builds every user's normal equations, and on `Problem.flipped` every item's; `sweeps`
alternates the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkcf.config.factorization import ALSConfig, FactorizationConfig, HALSConfig

FORMS = ("explicit", "biases", "ials", "hu_koren", "implicit", "frobenius")


def settings(form: str, solver: str = "cholesky", **changes: object) -> ALSConfig | HALSConfig:
    """A small configuration of one of FORMS, for any solver."""
    base: dict[str, object] = {"rank": 3, "iterations": 5, "regularization": 0.1, "alpha": 2.5}
    if form in ("explicit", "biases"):
        base |= {"mode": "explicit", "biases": form == "biases"}
    else:
        base |= {"form": form}
    if solver == "hals":
        return HALSConfig.model_validate(base | changes)
    return ALSConfig.model_validate(base | {"solver": solver} | changes)


def by_solver(config: ALSConfig | HALSConfig, solver: str, **changes: object) -> ALSConfig | HALSConfig:
    """The same objective by another solver."""
    kept = config.model_dump(include=set(FactorizationConfig.model_fields))
    if solver == "hals":
        return HALSConfig.model_validate(kept | changes)
    return ALSConfig.model_validate(kept | {"solver": solver} | changes)


@dataclass
class Problem:
    values: np.ndarray  # (n, m), 0 where not observed
    seen: np.ndarray  # bool (n, m)
    config: ALSConfig | HALSConfig

    @property
    def form(self) -> str:
        return "explicit" if self.config.mode == "explicit" else self.config.form

    @property
    def mean(self) -> float:
        return float(self.values[self.seen].mean()) if self.config.biases else 0.0

    @property
    def flipped(self) -> Problem:
        """Users for items."""
        return Problem(self.values.T, self.seen.T, self.config)

    def triples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        users, items = np.nonzero(self.seen)
        return users.astype(np.int32), items.astype(np.int32), self.values[users, items].astype(np.float32)

    def terms(self, u: int, i: int) -> list[tuple[float, float]]:
        """(weight, target) of every squared difference that the cell (u, i) has in the objective."""
        value, seen, config = self.values[u, i], self.seen[u, i], self.config
        if self.form == "explicit":
            return [(1.0, value - self.mean)] if seen else []
        if self.form == "ials":
            unobserved = [(config.unobserved_weight, 0.0)]
            return [(value, 1.0), *unobserved] if seen else unobserved
        if self.form == "frobenius":
            return [(1.0, value)]
        wanted = float(seen and value > 0)
        if self.form == "hu_koren":
            return [(1 + config.alpha * abs(value), wanted)]
        return [(config.alpha * abs(value), wanted)] if seen else [(1.0, 0.0)]

    def penalty(self, u: int) -> float:
        """lambda times the scale of a user's row; an item's stands in `flipped`."""
        config = self.config
        n = int(self.seen[u].sum())
        if self.form in ("implicit", "frobenius"):
            return config.regularization
        if self.form == "hu_koren":
            n = int((self.values[u] > 0).sum())
        if self.form == "ials":
            n += config.unobserved_weight * int(self.seen.any(axis=0).sum())
        return config.regularization * n**config.regularization_exponent if n > 0 else 0.0


def objective(problem: Problem, p: np.ndarray, q: np.ndarray, b: np.ndarray, c: np.ndarray) -> dict[str, float]:
    """The objective by part, by a double loop. Factors p (n, k), q (m, k); biases b (n,), c (m,)."""
    users, items = problem.seen.any(axis=1), problem.seen.any(axis=0)
    fit = unobserved = 0.0
    for u in np.flatnonzero(users):
        for i in np.flatnonzero(items):
            score = p[u] @ q[i] + b[u] + c[i]
            fit += sum(weight * (target - score) ** 2 for weight, target in problem.terms(u, i))
            alpha0 = {"explicit": 0.0, "ials": problem.config.unobserved_weight}.get(problem.form, 1.0)
            unobserved += alpha0 * score**2
    penalties = sum(problem.penalty(u) * (p[u] @ p[u] + b[u] ** 2) for u in np.flatnonzero(users))
    penalties += sum(problem.flipped.penalty(i) * (q[i] @ q[i] + c[i] ** 2) for i in np.flatnonzero(items))
    parts = {"observed": fit - unobserved, "unobserved": unobserved, "regularization": penalties}
    return parts | {"objective": fit + penalties}


def normal_equations(problem: Problem, u: int, q: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and right side of one user's row, the items fixed; with biases the last unknown is the bias."""
    items = np.flatnonzero(problem.seen.any(axis=0))
    width = problem.config.rank + problem.config.biases
    matrix, right = problem.penalty(u) * np.eye(width), np.zeros(width)
    for i in items:
        vector = np.append(q[i], 1.0) if problem.config.biases else q[i]
        for weight, target in problem.terms(u, i):
            matrix += weight * np.outer(vector, vector)
            right += weight * (target - c[i]) * vector
    return matrix, right


def solve_users(problem: Problem, q: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact factors and biases of all users, the items fixed."""
    n, rank = len(problem.values), problem.config.rank
    p, b = np.zeros((n, rank)), np.zeros(n)
    for u in np.flatnonzero(problem.seen.any(axis=1)):
        solution = np.linalg.solve(*normal_equations(problem, u, q, c))
        p[u], b[u] = solution[:rank], solution[rank] if problem.config.biases else 0.0
    return p, b


def sweeps(problem: Problem, q: np.ndarray, iterations: int) -> tuple[np.ndarray, ...]:
    """(p, q, b, c) after some sweeps from the items' factors `q`; the items' biases start at 0."""
    q, c = np.where(problem.seen.any(axis=0)[:, None], q, 0.0).astype(np.float64), np.zeros(len(q))
    p, b = np.zeros((len(problem.seen), q.shape[1])), np.zeros(len(problem.seen))
    for _ in range(iterations):
        p, b = solve_users(problem, q, c)
        q, c = solve_users(problem.flipped, p, b)
    return p, q, b, c


def random_problem(form: str, n: int = 12, m: int = 9, seed: int = 0, **changes: object) -> Problem:
    """Ratings 1..5 on about half of the cells; the last user has none, and nobody has item 2."""
    rng = np.random.default_rng(seed)
    seen = rng.random((n, m)) < 0.5
    seen[-1], seen[:, 2] = False, False
    values = np.where(seen, rng.integers(1, 6, (n, m)), 0).astype(np.float64)
    if form in ("hu_koren", "implicit"):
        values[0, np.flatnonzero(seen[0])[0]] = -2.0  # a dislike: a weight, but no preference
    return Problem(values, seen, settings(form, **changes))


def with_defaults(config: Any, **changes: Any) -> Any:
    """The configuration with some keys changed, checked again."""
    return type(config).model_validate(config.model_dump() | changes)
