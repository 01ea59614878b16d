"""Factorization machines in this process: against a model written out in dense numpy, and by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from sparkcf.config import FMConfig, FMField
from sparkcf.fm import FMData, FMFit, fit_fm_arrays, make_plan
from sparkcf.fm_sweeps import Field, FMRows, Sample, train_fm
from tests.gangs import in_gang

N, M, GENRES, HAD = 30, 12, 5, 12


@dataclass(frozen=True)
class Data:
    """Rows with a user, an item, a number, several genres and several items had; some features stand in no row."""

    data: FMData
    fields: tuple[Field, ...]
    dense: np.ndarray  # (n, features)
    field_of: np.ndarray


def make(seed: int = 0, rows: int = 200, several: bool = True) -> Data:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, N - 2, rows), rng.integers(0, M, rows)
    fields = [Field("user", N, side=0), Field("item", M, side=1, of_item=True), Field("year", 1, of_item=True)]
    sizes = [1]
    if several:
        fields += [Field("genres", GENRES, several=True, of_item=True), Field("had", HAD, several=True)]
        sizes += [GENRES, HAD]
    dense = np.zeros((rows, N + M + sum(sizes)), np.float32)
    dense[np.arange(rows), users], dense[np.arange(rows), N + items] = 1, 1
    rest = dense[:, N + M :]
    rest[:, 0] = rng.normal(size=M)[items]
    if several:
        rest[:, 1 : 1 + GENRES] = (rng.random((M, GENRES)) < 0.4)[items]
        rest[:, 1 + GENRES - 1] = 0  # a genre that nobody has
        rest[:, 1 + GENRES :] = (rng.random((N, HAD)) < 0.3)[users] / 2
    y = 3 + rng.normal(size=N)[users] + rng.normal(size=M)[items] + 0.3 * rng.normal(size=rows)
    ptr = np.concatenate([[0], np.cumsum((rest != 0).sum(axis=1))]).astype(np.int64)
    feat, val = np.nonzero(rest)[1].astype(np.int32), rest[rest != 0].astype(np.float32)
    data = FMData(users.astype(np.int32), items.astype(np.int32), y.astype(np.float32), ptr, feat, val)
    field_of = np.repeat(np.arange(len(fields)), [f.size for f in fields])
    return Data(data, tuple(fields), dense, field_of)


def configured(**changes: Any) -> FMConfig:
    names = {"user": "user", "item": "item", "year": "number", "genres": "categories", "had": "history"}
    fields = tuple(
        FMField(name=name, of=of, column="year" if of == "number" else None)  # type: ignore[arg-type]
        for name, of in names.items()
    )
    given = {"learner": "als", "rank": 3, "iterations": 4, "fields": fields, "burn_in": 1, "samples": 2}
    return FMConfig.model_validate(given | changes)


def fitted(made: Data, config: FMConfig, seed: int = 1, threads: int = 1) -> FMFit:
    return fit_fm_arrays(made.data, made.fields, N, M, config, seed, threads)


def double_loop(dense: np.ndarray, w0: float, table: np.ndarray, field_of: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Rendle (2010), eq. 1, as it stands there."""
    v, w = table[:, :-1].astype(np.float64), table[:, -1].astype(np.float64)
    values = w0 + dense @ w
    for j, other in combinations(range(dense.shape[1]), 2):
        if pairs[field_of[j], field_of[other]]:
            values = values + (v[j] @ v[other]) * dense[:, j] * dense[:, other]
    return values


PAIRS = [None, (("user", "item"), ("item", "had"), ("genres", "genres"), ("year", "user"))]


@pytest.mark.parametrize("pairs", PAIRS)
def test_predictions_are_those_of_the_double_loop(pairs) -> None:
    made = make()
    fit = fitted(made, configured(pairs=pairs, iterations=2))
    w0, table = fit.samples[0]
    expected = double_loop(made.dense, w0, table, made.field_of, fit.plan.pairs)
    np.testing.assert_allclose(fit.predict(made.data)[0], expected, atol=1e-4)


@pytest.mark.parametrize("learner", ["als", "mcmc"])
@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("pairs", PAIRS)
def test_result_does_not_depend_on_workers_or_threads(learner, task, pairs) -> None:
    made = make()
    if task == "classification":
        made = replace(made, data=replace(made.data, y=(made.data.y > 3).astype(np.float32)))
    config = configured(learner=learner, task=task, pairs=pairs)
    expected = fitted(made, config)
    for workers, threads in ((1, 3), (2, 1), (3, 2)):
        samples = gang_samples(made, config, workers, threads)
        assert len(samples) == len(expected.samples)
        for (w0, table), (other_w0, other) in zip(samples, expected.samples, strict=True):
            assert w0 == pytest.approx(other_w0, rel=1e-3, abs=1e-3)
            np.testing.assert_allclose(table, other, atol=5e-3, err_msg=f"{workers} workers, {threads} threads")


def gang_samples(made: Data, config: FMConfig, workers: int, threads: int) -> list[tuple[float, np.ndarray]]:
    plan = make_plan(config, made.fields, N, M, 1, threads)

    def work(gang: Any) -> list[Sample]:
        rows = []
        for own, other in ((made.data.users, made.data.items), (made.data.items, made.data.users)):
            mine = np.flatnonzero(own % workers == gang.rank)
            mine = np.random.default_rng(gang.rank).permutation(mine)  # as a shuffle brings them
            counts = np.diff(made.data.ptr)[mine]
            ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            source = np.concatenate([np.arange(made.data.ptr[r], made.data.ptr[r + 1]) for r in mine])
            lists = (made.data.feat[source], made.data.val[source])
            rows.append(FMRows(own[mine] // workers, other[mine], made.data.y[mine], mine, ptr, *lists))
        return train_fm(rows, plan, gang)[0]

    found = in_gang(workers, work)
    samples = []
    for number in range(len(found[0])):
        parts = [worker[number] for worker in found]
        tables = []
        for side, n in ((0, N), (1, M)):
            table = np.zeros((n, config.rank + 1), np.float32)
            for rank, part in enumerate(parts):
                table[rank::workers] = part.own[side]
                np.testing.assert_array_equal(part.everywhere, parts[0].everywhere)
            tables.append(table)
        samples.append((parts[0].w0, np.concatenate([*tables, parts[0].everywhere])))
    return samples
