"""Row solves against dense float64 normal equations, and what must hold of every kernel whatever the row."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from scipy.optimize import nnls

from sparkcf.config.factorization import ALSConfig, HALSConfig
from sparkcf.kernels.als import gramian, solve_summed, work_order
from sparkcf.kernels.als import normal_equations as summed
from sparkcf.kernels.cholesky import CHUNK, solve_cholesky
from sparkcf.kernels.csr import build_csr
from sparkcf.models.als.objective import Objective
from sparkcf.models.als.sweeps import solve_rows
from sparkcf.training.blocks import positive_counts
from tests.models.als.dense_als import FORMS, Problem, normal_equations, random_problem, settings, solve_users

KERNELS = ("cholesky", "cg", "subspace", "hals")
EXACT = {"cholesky": {}, "cg": {"cg_steps": 60}, "subspace": {"subspace_size": 64}, "hals": {"passes": 1500}}
SHORT = {"cholesky": {}, "cg": {"cg_steps": 1}, "subspace": {"subspace_size": 2}, "hals": {"passes": 1}}


def configured(kernel: str, rank: int, **changes: object) -> ALSConfig | HALSConfig:
    return settings("explicit", kernel, rank=rank, **changes)


class Rows:
    """The users of a dense problem as the kernels want them, the items' factors fixed at random."""

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        config = problem.config
        self.problem, self.n, self.m = problem, *problem.seen.shape
        self.width = config.rank + config.biases
        self.q = rng.normal(size=(self.m, config.rank)) * problem.seen.any(axis=0)[:, None]
        self.c = rng.normal(size=self.m) * config.biases
        self.indptr, self.indices, values = build_csr(*problem.triples(), self.n, self.m)
        objective = Objective.of(config, problem.mean)
        self.weights, self.targets = objective.coefficients(values)
        counted = objective.counted(np.diff(self.indptr), positive_counts(self.indptr, values))
        self.reg = objective.row_regularization(counted, int(problem.seen.any(axis=0).sum()))
        self.fixed = np.ones((self.m, self.width), np.float32)
        self.fixed[:, : config.rank] = self.q
        self.offsets = self.c.astype(np.float32) if config.biases else np.empty(0, np.float32)
        self.gramian = (objective.alpha0 * self.q.T @ self.q).astype(np.float32)
        if config.biases:
            self.gramian = np.zeros((self.width, self.width), np.float32)

    def solve(
        self, kernel: str, threads: int = 1, start: np.ndarray | None = None, **changes: object
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Solve to convergence, or as `changes` of the configuration say."""
        out = np.zeros((self.n, self.width), np.float32) if start is None else start.astype(np.float32)
        loss = np.full(self.n, np.nan)
        rows, against = (
            (self.indptr, self.indices, self.weights, self.targets),
            (self.fixed, self.offsets, self.gramian),
        )
        config = configured(kernel, self.width, **(EXACT[kernel] | changes))
        order = work_order(np.diff(self.indptr))
        return out, loss, solve_rows(rows, against, self.reg, order, config, threads, out, loss)

    def value(self, row: int, x: np.ndarray) -> float:
        """x^T A x - 2 b·x of a row, from the dense normal equations."""
        matrix, right = normal_equations(self.problem, row, self.q, self.c)
        x = x.astype(np.float64)
        return float(x @ matrix @ x - 2 * right @ x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_solves_the_dense_normal_equations(kernel: str, form: str) -> None:
    rows = Rows(random_problem(form, rank=4))
    out, _, raised = rows.solve(kernel)
    p, b = solve_users(rows.problem, rows.q, rows.c)
    np.testing.assert_allclose(out[:, : rows.problem.config.rank], p, atol=1e-4)
    if rows.problem.config.biases:
        np.testing.assert_allclose(out[:, -1], b, atol=1e-4)
    assert raised == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_returns_the_value_of_the_row_objective(kernel: str, form: str) -> None:
    rows = Rows(random_problem(form, seed=1))
    start = np.random.default_rng(7).normal(size=(rows.n, rows.width))
    for changes in (SHORT[kernel], EXACT[kernel]):  # far from the minimum, too
        out, loss, _ = rows.solve(kernel, start=start, **changes)
        expected = [rows.value(u, out[u]) for u in range(rows.n - 1)]
        np.testing.assert_allclose(loss[:-1], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_gives_a_row_without_entries_zeros(kernel: str, form: str) -> None:
    rows = Rows(random_problem(form))
    out, loss, _ = rows.solve(kernel, start=np.full((rows.n, rows.width), 7.0))
    assert not out[-1].any() and loss[-1] == 0.0
    assert np.abs(out[:-1]).max(axis=1).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_finds_a_minimum_that_every_step_away_from_it_raises(kernel: str, form: str) -> None:
    rng = np.random.default_rng(2)
    rows = Rows(random_problem(form))
    out, _, _ = rows.solve(kernel)
    for u in range(rows.n - 1):
        least = rows.value(u, out[u])
        for direction in rng.normal(size=(20, rows.width)):
            assert rows.value(u, out[u] + 0.05 * direction) > least
            assert rows.value(u, out[u] - 0.05 * direction) > least


def test_cg_lowers_the_row_objective_with_every_step() -> None:
    rows = Rows(random_problem("hu_koren", rank=6))
    start = np.random.default_rng(3).normal(size=(rows.n, 6))
    values = [[rows.value(u, start[u]) for u in range(rows.n - 1)]]
    for steps in (1, 2, 3, 6):
        out, _, _ = rows.solve("cg", cg_steps=steps, start=start)
        values.append([rows.value(u, out[u]) for u in range(rows.n - 1)])
    assert (np.diff(values, axis=0) < 0).all()


def test_cg_goes_on_from_where_it_is_started() -> None:
    rows = Rows(random_problem("ials", rank=6))
    exact, _, _ = rows.solve("cholesky")
    begun, _, _ = rows.solve("cg", cg_steps=1, start=exact + 1e-3)
    afresh, _, _ = rows.solve("cg", cg_steps=1)
    assert 20 * np.abs(begun - exact).max() < np.abs(afresh - exact).max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_sums_a_row_longer_than_a_chunk(kernel: str) -> None:
    rng = np.random.default_rng(4)
    m = 2 * CHUNK + 45
    seen = np.zeros((4, m), bool)
    seen[0] = True
    seen[1, :CHUNK] = True
    seen[2, : CHUNK + 1] = True
    seen[3, 5] = True
    problem = random_problem("biases", n=4, m=m, rank=5)
    problem.values, problem.seen = np.where(seen, rng.integers(1, 6, seen.shape), 0).astype(float), seen
    rows = Rows(problem)
    p, b = solve_users(problem, rows.q, rows.c)
    out, _, _ = rows.solve(kernel)
    np.testing.assert_allclose(out, np.column_stack([p, b]), atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_gives_the_same_factors_with_any_number_of_threads(kernel: str) -> None:
    rows = Rows(random_problem("ials", n=60, m=40))
    one, loss, _ = rows.solve(kernel, threads=1, **SHORT[kernel])
    for threads in (2, 3, 100):
        out, same_loss, _ = rows.solve(kernel, threads=threads, **SHORT[kernel])
        np.testing.assert_array_equal(out, one)
        np.testing.assert_array_equal(same_loss, loss)


def test_cholesky_raises_the_diagonal_of_a_singular_row_and_counts_it() -> None:
    problem = random_problem("explicit", rank=4, regularization=0.0)
    problem.seen[:] = False
    problem.seen[0, 3] = problem.seen[1, [0, 4]] = True  # one and two entries for four unknowns
    problem.seen[2, :] = True
    rows = Rows(problem)
    out, _, raised = rows.solve("cholesky", threads=2)
    assert raised == 2
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[0] @ rows.q[3], problem.values[0, 3], rtol=1e-2)  # it still fits what it has
    exact = np.linalg.solve(*normal_equations(problem, 2, rows.q, rows.c))
    np.testing.assert_allclose(out[2], exact, atol=1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_fits_rows_of_fewer_entries_than_unknowns_without_regularization(kernel: str) -> None:
    rng = np.random.default_rng(5)
    problem = random_problem("explicit", n=40, m=60, rank=32, regularization=0.0)
    problem.seen = np.arange(60) < rng.integers(1, 20, (40, 1))
    problem.values = np.where(problem.seen, rng.integers(1, 6, (40, 60)), 0).astype(float)
    rows = Rows(problem)
    rows.fixed[1] = rows.q[1] = rows.q[0]  # two items that no factor tells apart
    out, _, raised = rows.solve(kernel)
    assert np.abs(out).max() < 1e4  # noise in the lost pivots would give any size
    errors = np.where(problem.seen, problem.values - out @ rows.q.T, 0)
    best = np.array([problem.values[u, :2].std() if problem.seen[u, 1] else 0.0 for u in range(40)])
    assert (np.abs(errors).max(axis=1) < best + 0.1).all()
    assert raised == (40 if kernel in ("cholesky", "subspace") else 0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize(
    ("where", "bad"),
    [*((where, bad) for where in ("weights", "targets", "fixed") for bad in (np.nan, np.inf)), ("fixed", 3e38)],
)
def test_kernel_does_not_hide_a_value_that_is_not_finite(kernel: str, where: str, rank: int, bad: float) -> None:
    rows = Rows(random_problem("explicit", rank=rank))
    if where == "fixed":
        place = rows.indices[rows.indptr[3]]
        hit = np.array([place in rows.indices[rows.indptr[u] : rows.indptr[u + 1]] for u in range(rows.n)])
    else:
        place, hit = rows.indptr[3], np.arange(rows.n) == 3
    getattr(rows, where)[place] = bad
    out, loss, _ = rows.solve(kernel)
    finite = np.isfinite(out).all(axis=1) & np.isfinite(loss)
    np.testing.assert_array_equal(finite, ~hit)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_reads_entries_beyond_2_to_the_31(kernel: str) -> None:
    n = 2**31 + 4
    try:  # memory that is promised but never touched, but for the last entries
        raw = [mmap.mmap(-1, 4 * n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000) for _ in range(3)]
    except (OSError, OverflowError):
        pytest.skip("this machine does not promise 24 GB of address space")
    dtypes = (np.int32, np.float32, np.float32)
    indices, weights, targets = (np.frombuffer(m, t) for m, t in zip(raw, dtypes, strict=True))
    indices[-4:], weights[-4:], targets[-4:] = [0, 1, 1, 2], [1, 1, 1, 1], [2, 3, 5, 7]
    indptr, order = np.array([0, 2**31, n], np.int64), np.array([1])  # the second row alone is solved
    out, loss = np.zeros((2, 3), np.float32), np.zeros(2)
    against = (np.eye(3, dtype=np.float32), np.empty(0, np.float32), np.zeros((3, 3), np.float32))
    reg, config = np.full(2, 1.0, np.float32), configured(kernel, 3, **EXACT[kernel])
    solve_rows((indptr, indices, weights[-8:], targets), against, reg, order[:0], config, 1, out, loss)  # compiles
    solve_rows((indptr, indices, weights, targets), against, reg, order, config, 1, out, loss)
    np.testing.assert_allclose(out[1], [2 / 2, 8 / 3, 7 / 2], rtol=1e-5)


def test_work_order_puts_long_rows_first() -> None:
    assert work_order(np.array([2, 0, 5, 2])).tolist() == [2, 0, 3, 1]


def test_gramian_keeps_what_float32_would_lose() -> None:
    factors = np.ones((5000, 2), np.float32)
    factors[0] = 4096.0  # its square, 2^24, swallows every 1 in float32
    total = gramian(factors)
    assert total.dtype == np.float64
    np.testing.assert_allclose(total, 2.0**24 + 4999, rtol=1e-4)
    assert gramian(np.ones((3 * 4096 + 1, 1), np.float32))[0, 0] == 3 * 4096 + 1
    assert not gramian(np.empty((0, 2), np.float32)).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", ["subspace", "hals"])
def test_a_pass_over_blocks_or_dimensions_never_raises_a_row_and_ends_at_its_minimum(kernel: str, form: str) -> None:
    rows = Rows(random_problem(form, rank=6))
    exact, least, _ = rows.solve("cholesky")
    out, before = np.random.default_rng(3).normal(size=(rows.n, rows.width)), np.full(rows.n, np.inf)
    for _ in range(400):
        out, loss, _ = rows.solve(kernel, start=out, **SHORT[kernel])
        assert (loss <= before + 1e-4).all()
        before = loss
    np.testing.assert_allclose(out[:-1], exact[:-1], atol=2e-3)
    np.testing.assert_allclose(loss, least, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 64])
def test_subspace_blocks_of_any_size_are_the_dense_blocks(size: int) -> None:
    rows = Rows(random_problem("ials", rank=6))
    start = np.random.default_rng(3).normal(size=(rows.n, 6))
    out, _, _ = rows.solve("subspace", start=start, subspace_size=size)
    for u in range(rows.n - 1):
        matrix, right = normal_equations(rows.problem, u, rows.q, rows.c)
        x = start[u].copy()
        for low in range(0, 6, size):
            block = slice(low, low + size)
            x[block] += np.linalg.solve(matrix[block, block], right[block] - matrix[block] @ x)
        np.testing.assert_allclose(out[u], x, atol=2e-4)


@pytest.mark.parametrize("form", ["explicit", "ials", "frobenius"])
@pytest.mark.parametrize("kernel", ["cholesky", "hals"])
def test_a_non_negative_row_satisfies_the_conditions_of_karush_kuhn_and_tucker(kernel: str, form: str) -> None:
    rows = Rows(random_problem(form, rank=5))
    start = np.abs(np.random.default_rng(3).normal(size=(rows.n, 5)))
    out, loss, _ = rows.solve(kernel, start=start, nonnegative=True)
    assert (out >= 0).all()
    assert ((out[:-1] == 0).any(axis=1) & (out[:-1] > 0).any(axis=1)).any()  # some bounds hold, some do not
    for u in range(rows.n - 1):
        matrix, right = normal_equations(rows.problem, u, rows.q, rows.c)
        gradient = matrix @ out[u] - right
        assert (gradient > -5e-3).all()
        assert (np.abs(gradient[out[u] > 0]) < 5e-3).all()
        assert loss[u] == pytest.approx(rows.value(u, out[u]), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("parts", [4, 64])
@pytest.mark.parametrize("entries", [30, 300])
def test_a_non_negative_row_of_rank_64_is_that_of_lawson_and_hanson(entries: int, parts: int) -> None:
    """Also where vectors are nearly of rank 4, which coordinate descent alone would take thousands of passes for."""
    rng = np.random.default_rng(entries)
    vectors = np.abs(rng.normal(size=(entries, parts))) @ np.abs(rng.normal(size=(parts, 64)))
    vectors = (vectors / vectors.std() + 0.05 * np.abs(rng.normal(size=(entries, 64)))).astype(np.float32)
    targets = np.abs(rng.normal(size=entries)).astype(np.float32)
    indptr, indices, ones = np.array([0, entries]), np.arange(entries, dtype=np.int32), np.ones(entries, np.float32)
    reg, out, loss = np.full(1, 0.1, np.float32), np.zeros((1, 64), np.float32), np.zeros(1)
    nothing = (np.zeros(0, np.float32), np.zeros((64, 64), np.float32), reg)
    solve_cholesky(indptr, indices, ones, targets, vectors, *nothing, np.zeros(1, np.int64), 0, 1, True, out, loss)
    stacked = np.vstack([vectors.astype(np.float64), np.sqrt(0.1) * np.eye(64)])
    _, norm = nnls(stacked, np.append(targets, np.zeros(64)), maxiter=10_000)
    least = norm**2 - float(np.square(targets, dtype=np.float64).sum())
    reached = np.square(stacked @ out[0] - np.append(targets, np.zeros(64))).sum() - np.square(targets).sum()
    assert (out >= 0).all() and reached == pytest.approx(least, rel=1e-5)
    assert loss[0] == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_from_its_summed_equations_is_the_row_of_the_kernel(kernel: str, nonnegative: bool) -> None:
    if nonnegative and kernel in ("cg", "subspace"):
        pytest.skip("refused by the configuration")
    rows = Rows(random_problem("ials", n=20, m=15, rank=6))
    start = np.abs(np.random.default_rng(3).normal(size=(rows.n, 6)))
    changes = {"nonnegative": nonnegative} | SHORT[kernel]
    out, loss, _ = rows.solve(kernel, start=start, **changes)
    config = configured(kernel, 6, **changes)
    for u in range(rows.n - 1):
        span = slice(rows.indptr[u], rows.indptr[u + 1])
        a, b = summed(rows.fixed, rows.indices[span], rows.weights[span], rows.targets[span])
        a += rows.gramian + rows.reg[u] * np.eye(6)
        x, value = solve_summed(a, b, start[u], config.solver, config.steps, nonnegative)
        np.testing.assert_allclose(x, out[u], atol=2e-3)
        assert value == pytest.approx(loss[u], rel=1e-3, abs=1e-4)
