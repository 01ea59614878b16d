"""The row problem of alternating least squares, with the other side's factors fixed.

For every row u with entries e (weight a_e, target b_e, fixed vector y_e, offset o_e) a solver minimises or lowers

    x^T G x + sum_e [ a_e (x·y_e)^2 - 2 (b_e - a_e o_e) x·y_e ] + reg_u |x|^2 = x^T A x - 2 b·x

with A = G + sum_e a_e y_e y_e^T + reg_u I and b = sum_e (b_e - a_e o_e) y_e. G is the weighted Gramian of all fixed
vectors (implicit) or zero (explicit). `sparkcf.models.als.objective` gives a, b, G and reg of each objective.

The value reached, `loss_u`, is a by-product of the solve: the objective after a sweep is the sum over the rows of the
side solved last, plus terms that do not depend on that side. A row without entries gets zeros.

`solve_cholesky` (exact), `solve_cg`, `solve_subspace` and `solve_hals` solve rows of a block, one call per thread. This
module has their common functions, and `solve_summed` for rows whose A and b are summed over all workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.cholesky import solve_nonnegative

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
SLICE = 4096  # rows of one float32 product; the products are summed in float64


def work_order(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows from the longest to the shortest, int64 (n,): threads take them in strides and end at the same time."""
    return np.argsort(-counts, kind="stable")


def gramian(factors: F32) -> F64:
    """factors^T factors, float64 (k, k)."""
    k = factors.shape[1]
    total = np.zeros((k, k))
    for part in _slices(len(factors)):
        total += factors[part].T @ factors[part]
    return total


def normal_equations(fixed: F32, rows: NDArray[np.int32], weights: F32, targets: F32) -> tuple[F64, F64]:
    """sum_e a_e y_e y_e^T (k, k) and sum_e b_e y_e (k,) over entries e with y_e = fixed[rows[e]]; arrays (n,)."""
    k = fixed.shape[1]
    a, b = np.zeros((k, k)), np.zeros(k)
    for part in _slices(len(rows)):
        vectors = fixed[rows[part]]
        a += (vectors * weights[part, None]).T @ vectors
        b += targets[part] @ vectors
    return a, b


def _slices(n: int) -> Iterator[slice]:
    return (slice(first, first + SLICE) for first in range(0, n, SLICE))


def solve_summed(a: F64, b: F64, x: F64, solver: str, steps: int, nonnegative: bool) -> tuple[F64, float]:
    """Solve one row from its summed A and b, by the same steps as the row kernels.

    Parameters
    ----------
    x : initial vector.
    solver : cholesky, cg, subspace or hals.
    steps : steps of conjugate gradient; dimensions of a subspace block; passes of coordinate descent.

    Returns
    -------
    (x, value)
        float64 (k,), and x^T A x - 2 b·x.
    """
    if solver == "cholesky" and nonnegative:
        x = x.copy()
        solve_nonnegative(a, b, x)
    elif solver == "cholesky":
        x = np.linalg.lstsq(a, b, rcond=None)[0]
    elif solver == "cg":
        x = _conjugate_gradient(a, b, x, steps)
    elif solver == "subspace":
        x = x.copy()
        for low in range(0, len(x), steps):
            block = slice(low, low + steps)
            x[block] += np.linalg.lstsq(a[block, block], b[block] - a[block] @ x, rcond=None)[0]
    else:
        x = _coordinates(a, b, x, steps, nonnegative)
    return x, float(x @ a @ x - 2 * (b @ x))


def _conjugate_gradient(a: F64, b: F64, x: F64, steps: int) -> F64:
    residual = b - a @ x
    direction, old = residual, residual @ residual
    for _ in range(steps):
        product = a @ direction
        curvature = direction @ product
        if not curvature > 0:
            break
        x = x + old / curvature * direction
        residual = residual - old / curvature * product
        new = residual @ residual
        direction, old = residual + new / old * direction, new
    return x


def _coordinates(a: F64, b: F64, x: F64, passes: int, nonnegative: bool) -> F64:
    x, gradient = x.copy(), a @ x - b
    for _ in range(passes):
        before = x.copy()
        for d in np.flatnonzero(a.diagonal() > 0):
            new = x[d] - gradient[d] / a[d, d]
            new = max(new, 0.0) if nonnegative else new
            gradient += (new - x[d]) * a[d]
            x[d] = new
        if np.allclose(x, before, rtol=1e-6, atol=0):
            break
    return x
