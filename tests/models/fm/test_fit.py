"""Factorization machines in this process: against a model written out in dense numpy, and by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.sparse import csr_matrix
from scipy.special import ndtr

from sparkcf.config.fm import FMConfig, FMField
from sparkcf.kernels.fm import draw_features, move_several, sum_several
from sparkcf.kernels.topk import rank_scores
from sparkcf.models.fm.arrays import FMFit, entries_of, fit_fm_arrays
from sparkcf.models.fm.factors import _histories
from sparkcf.models.fm.rows import Field, FMData, FMPlan, FMRows, make_plan
from sparkcf.models.fm.samples import Sample
from sparkcf.models.fm.sweeps import train_fm
from sparkcf.training.saved_sweeps import SavedSweeps
from tests.training.gangs import in_gang

N, M, GENRES, HAD = 30, 12, 5, 12
CONF = Path(__file__).resolve().parents[3] / "conf" / "models"


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


def as_labels(made: Data) -> Data:
    return replace(made, data=replace(made.data, y=(made.data.y > 3).astype(np.float32)))


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
        made = as_labels(made)
    config = configured(learner=learner, task=task, pairs=pairs)
    expected = fitted(made, config)
    for workers, threads in ((1, 3), (2, 1), (3, 2)):
        samples = gang_samples(made, config, workers, threads)
        assert len(samples) == len(expected.samples)
        for (w0, table), (other_w0, other) in zip(samples, expected.samples, strict=True):
            assert w0 == pytest.approx(other_w0, rel=1e-3, abs=1e-3)
            np.testing.assert_allclose(table, other, atol=5e-3, err_msg=f"{workers} workers, {threads} threads")


def gang_samples(
    made: Data, config: FMConfig, workers: int, threads: int = 1, saved: SavedSweeps | None = None
) -> list[tuple[float, np.ndarray]]:
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
        return train_fm(rows, plan, gang, saved)[0]

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


def dense_sweep(made: Data, w0: float, table: np.ndarray, plan: FMPlan) -> float:
    """One ALS sweep in float64: w_0, then feature after feature, each a ridge regression over all rows; in place."""
    values = lambda: double_loop(made.dense, w0, table, made.field_of, plan.pairs)  # noqa: E731
    w0 += float(np.mean(made.data.y - values()))
    penalties = np.repeat(plan.penalties(), [plan.config.rank, 1], axis=1)
    for number, f in enumerate(plan.fields):
        features = np.flatnonzero(made.field_of == number)
        present = features[made.dense[:, features].any(axis=0)]
        for j in np.concatenate(groups_of(made, features, present)) if f.several else present:
            met = plan.pairs[number][made.field_of] & (np.arange(len(table)) != j)
            x = made.dense[:, j].astype(np.float64)
            h = np.column_stack([x[:, None] * (made.dense[:, met] @ table[met, :-1]), x])
            left = made.data.y - values() + h @ table[j]
            table[j] = np.linalg.solve(h.T @ h + np.diag(penalties[number]), h.T @ left)
    return w0


def groups_of(made: Data, features: np.ndarray, present: np.ndarray) -> list[np.ndarray]:
    """Features with most rows first: each joins the first group none of whose features stands in a row with it."""
    groups: list[list[int]] = []
    for j in sorted(present, key=lambda j: -np.count_nonzero(made.dense[:, j])):
        fits = (g for g in groups if not (made.dense[:, g].any(axis=1) & (made.dense[:, j] != 0)).any())
        if (group := next(fits, None)) is None:
            groups.append(group := [])
        group.append(j)
    return [np.sort(group) for group in groups]


@pytest.mark.parametrize("pairs", PAIRS)
def test_a_sweep_of_als_solves_one_feature_after_the_other_exactly(pairs) -> None:
    made = make(rows=120)
    config = configured(pairs=pairs, regularization=2.0, linear_regularization=0.5)
    before, after = (fitted(made, config.model_copy(update={"iterations": n})) for n in (1, 2))
    table = before.samples[0][1].astype(np.float64)
    w0 = dense_sweep(made, before.samples[0][0], table, after.plan)
    assert after.samples[0][0] == pytest.approx(w0, abs=1e-5)
    np.testing.assert_allclose(after.samples[0][1], table, atol=1e-4)
    lost = np.square(made.data.y - double_loop(made.dense, w0, table, made.field_of, after.plan.pairs)).sum()
    cost = 2 * np.square(table[:, :-1]).sum() + 0.5 * np.square(table[:, -1]).sum()
    assert after.log[-1]["objective"] == pytest.approx(lost + cost, rel=1e-5)


@pytest.mark.parametrize("rank", [2, 32])
@pytest.mark.parametrize("regularization", [0.0, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("pairs", PAIRS)
def test_objective_of_als_never_rises(pairs, regularization, rank) -> None:
    """Without regularisation too, and where features have fewer rows than parameters."""
    made = make(seed=3)
    shared = {"regularization": regularization, "linear_regularization": regularization, "rank": rank}
    for task in ("regression", "classification"):
        data = made.data if task == "regression" else as_labels(made).data
        log = fitted(replace(made, data=data), configured(task=task, pairs=pairs, iterations=20, **shared)).log
        values = np.array([entry["objective"] for entry in log])
        assert np.all(np.diff(values) <= 1e-8 * values[:-1])


def test_a_feature_of_many_rows_moves_as_the_dense_formulas_say() -> None:
    """A field of several features with itself: sums, draw and update of two features, against numpy."""
    rng = np.random.default_rng(0)
    n, k = 300, 4
    starts, rows, x = np.array([0, 200, n]), rng.permutation(n), rng.normal(size=n).astype(np.float32)
    theta, contexts = (rng.normal(size=shape).astype(np.float32) for shape in ((2, k + 1), (n, k)))
    residual, precision, mean = rng.normal(size=n), rng.random(k + 1), rng.normal(size=k + 1)
    normal = rng.normal(size=(2, k + 1)).astype(np.float32)
    a, b, new = np.zeros((2, k + 1, k + 1)), np.zeros((2, k + 1)), theta.copy()
    kept = (True, contexts.copy(), residual.copy())
    features = np.array([1, 0])
    sum_several(features, starts, rows, x, theta, *kept, a, b)
    assert draw_features(a, b, 3.0, precision, mean, normal, new) == 0
    moved = theta.copy()
    move_several(features, starts, rows, x, moved, new, *kept)
    for place, feature in enumerate(features):
        at = slice(starts[feature], starts[feature + 1])
        before, value = theta[feature].astype(np.float64), x[at, None].astype(np.float64)
        h = np.column_stack([value * (contexts[rows[at]] - value * before[:k]), value])
        np.testing.assert_allclose(a[place], h.T @ h, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(b[place], h.T @ residual[rows[at]], rtol=1e-4, atol=1e-3)
        given = 3 * a[place] + np.diag(precision)
        expected = np.linalg.solve(given, 3 * (b[place] + a[place] @ theta[place]) + precision * mean)
        expected += np.linalg.solve(np.linalg.cholesky(given).T, normal[place])
        np.testing.assert_allclose(new[place], expected, atol=1e-4)
        step = new[place] - before
        np.testing.assert_allclose(kept[2][rows[at]], residual[rows[at]] - h @ step, atol=1e-3)
        np.testing.assert_allclose(kept[1][rows[at]], contexts[rows[at]] + value * step[:k], atol=1e-5)
        np.testing.assert_array_equal(moved[feature], new[place])


def test_features_of_no_row_are_zero_in_als_and_the_fields_mean_in_mcmc() -> None:
    made = make()
    absent = [N - 2, N - 1, N + M + 1 + GENRES - 1]  # users nobody is, a genre that nobody has
    assert np.all(fitted(made, configured()).samples[0][1][absent] == 0)
    drawn = fitted(made, configured(learner="mcmc", iterations=30, burn_in=10, samples=20)).samples
    for _, table in drawn:
        np.testing.assert_array_equal(table[absent[0]], table[absent[1]])
    assert np.std([table[absent[0]] for _, table in drawn], axis=0).max() < 1.0


def test_two_fields_are_biased_matrix_factorization() -> None:
    """The same optimum as explicit ALS with biases, the mean held."""
    from sparkcf.config.factorization import ALSConfig
    from sparkcf.models.als.fit import fit_arrays

    made = make(several=False, rows=250)
    pairs = np.unique(made.data.users.astype(np.int64) * M + made.data.items, return_index=True)[1]
    data = FMData.of_pairs(made.data.users[pairs], made.data.items[pairs], made.data.y[pairs])
    fields = (Field("user", N, side=0), Field("item", M, side=1, of_item=True))
    one = fit_fm_arrays(data, fields, N, M, configured(iterations=600, intercept=False, rank=2), 1)
    config = ALSConfig(
        mode="explicit", biases=True, rank=2, iterations=600, regularization=1.0, regularization_exponent=0.0,
        solver="cholesky", init_sd=0.1,
    )  # fmt: skip
    other = fit_arrays(data.users, data.items, data.y, N, M, config, 1)
    assert one.log[-1]["objective"] == pytest.approx(other.log[-1]["objective"], rel=1e-4)
    scores = other.mean + other.user_bias[data.users] + other.item_bias[data.items]
    scores = scores + np.einsum("nk,nk->n", other.user[data.users], other.item[data.items])
    np.testing.assert_allclose(one.predict(data)[0], scores, atol=5e-3)


def shipped(name: str, sizes: dict[str, int]) -> tuple[FMConfig, tuple[Field, ...]]:
    """A small machine of the fields, pairs and task of conf/models/fm-NAME.yaml, and its fields of these sizes."""
    told = yaml.safe_load((CONF / f"fm-{name}.yaml").read_text())["fm"]
    config = FMConfig.model_validate(told | {"rank": 3, "iterations": 4, "burn_in": 1, "samples": 2})
    sides = {"user": 0, "item": 1}
    fields = tuple(
        Field(f.name, sizes[f.name], f.several, sides.get(f.of), of_item=f.side == "item") for f in config.fields
    )
    return config, fields


def machine_of(name: str, data: FMData, sizes: dict[str, int], formula: Any) -> None:
    """Whether predictions are the mean over the samples of `formula`, which is given w_0 and each field's v and w."""
    config, fields = shipped(name, {"user": N, "item": M} | sizes)
    fit = fit_fm_arrays(data, fields, N, M, config, 1)
    cuts = np.cumsum([f.size for f in fields])[:-1]
    values = []
    for w0, table in fit.samples:
        parts = np.split(table.astype(np.float64), cuts)
        values.append(formula(w0, *((part[:, :-1], part[:, -1]) for part in parts)))
    values = ndtr(values) if config.task == "classification" else values
    np.testing.assert_allclose(fit.predict(data)[0], np.mean(values, axis=0), atol=1e-4)


def test_the_shipped_biased_mf_and_svdpp_are_their_own_formulas() -> None:
    """Koren (2008), eq. 15, with 1 / m in the place of 1 / sqrt(m) and the weights w that a machine has."""
    made = make(rows=80, several=False)
    users, items = made.data.users, made.data.items

    def biased_mf(w0, user, item):
        return w0 + user[1][users] + item[1][items] + np.einsum("nk,nk->n", user[0][users], item[0][items])

    machine_of("biased-mf", FMData.of_pairs(users, items, made.data.y), {}, biased_mf)
    rows = csr_matrix((np.ones(len(users)), (users, items)), shape=(N, M))
    config, fields = shipped("svdpp", {"user": N, "item": M, "had": M})
    ptr, feat, val = _histories(rows.indptr.astype(np.int64), rows.indices, make_plan(config, fields, N, M, 0, 1))
    had = csr_matrix((val, feat, ptr), shape=(N, M))[users]
    data = FMData(users, items, made.data.y, had.indptr.astype(np.int64), had.indices, had.data)
    lists = [np.unique(items[users == u]) for u in range(N)]

    def svdpp(w0, user, item, implicit):
        total = biased_mf(w0, user, item)
        for n, (u, i) in enumerate(zip(users, items, strict=True)):
            m = len(lists[u])
            total[n] += sum(implicit[1][j] + item[0][i] @ implicit[0][j] for j in lists[u]) / m
        return total

    machine_of("svdpp", data, {"had": M}, svdpp)


def test_the_shipped_pitf_and_fpmc_are_their_own_formulas() -> None:
    """Rendle, Schmidt-Thieme (2010), eq. 4, and Rendle, Freudenthaler, Schmidt-Thieme (2010), eq. 7, for one item
    before, with the weights w that a machine has."""
    made = make(rows=80, several=False)
    users, items = made.data.users, made.data.items
    third = np.random.default_rng(1).integers(0, M, 80)

    def pitf(w0, user, item, tag):
        meets = np.einsum("nk,nk->n", user[0][users] + item[0][items], tag[0][third])
        return w0 + user[1][users] + item[1][items] + tag[1][third] + meets

    def fpmc(w0, user, item, before):
        meets = np.einsum("nk,nk->n", user[0][users] + before[0][third], item[0][items])
        return w0 + user[1][users] + item[1][items] + before[1][third] + meets

    ones = (np.arange(81), third.astype(np.int32), np.ones(80, np.float32))
    machine_of("pitf", FMData(users, items, (made.data.y > 3).astype(np.float32), *ones), {"tag": M}, pitf)
    machine_of("fpmc", FMData(users, items, made.data.y, *ones), {"before": M}, fpmc)


def test_candidates_with_a_context_each_are_ranked_as_their_predictions() -> None:
    made = make()
    fit = fitted(made, configured())
    rng = np.random.default_rng(3)
    dense = (rng.random((N, M, 1 + GENRES + HAD)) < 0.3).astype(np.float32)

    def candidates(users: slice) -> FMData:
        rest = dense[users].reshape(-1, dense.shape[2])
        who, what = np.divmod(np.arange(len(rest)), M)
        ptr = np.concatenate([[0], np.cumsum((rest != 0).sum(axis=1))]).astype(np.int64)
        feat = np.nonzero(rest)[1].astype(np.int32)
        ids = ((who + users.start).astype(np.int32), what.astype(np.int32))
        return FMData(*ids, np.zeros(len(rest), np.float32), ptr, feat, np.ones(len(feat), np.float32))

    nothing = np.zeros(N + 1, np.int64), np.empty(0, np.int32)
    indices, scores = rank_scores(fit.scorer(candidates), N, M, None, *nothing, k=5, score_bytes=4 * M * 7)
    every = fit.predict(candidates(slice(0, N)))[0].reshape(N, M)
    np.testing.assert_allclose(scores, -np.sort(-every, axis=1)[:, :5], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(every, indices.astype(np.int64), 1), scores, atol=1e-5)


@pytest.mark.parametrize("learner", ["als", "mcmc"])
@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize(
    "change",
    [
        {"y": np.zeros(200, np.float32)},
        {"y": np.ones(200, np.float32)},
        {"val": np.zeros(0)},
        {"y": np.where(np.arange(200) == 7, 1e6, 1).astype(np.float32)},
    ],
    ids=["all zero", "all one", "features of value zero", "a huge value"],
)
def test_odd_data_has_finite_answers(learner, task, change) -> None:
    made = make()
    data = replace(made.data, **change) if "y" in change else replace(made.data, val=np.zeros_like(made.data.val))
    fit = fitted(replace(made, data=data), configured(learner=learner, task=task))
    mean, sd = fit.predict(data)
    assert np.isfinite(mean).all() and np.isfinite(sd).all()
    if task == "classification":
        assert np.all((mean >= 0) & (mean <= 1))
        if set(np.unique(data.y)) in ({0.0}, {1.0}):
            assert np.abs(mean - data.y[0]).mean() < 0.2
    elif learner == "als" and np.ptp(data.y) == 0:
        np.testing.assert_allclose(mean, data.y, atol=0.05)


def test_one_row_and_no_row() -> None:
    made = make(rows=1, several=False)
    mean, _ = fitted(made, configured(learner="mcmc")).predict(made.data)
    assert np.isfinite(mean).all()
    with pytest.raises(Exception, match="no row to train on"):
        fitted(replace(made, data=FMData.of_pairs(*[np.empty(0)] * 3)), configured())


def test_unseen_users_items_and_features_add_nothing() -> None:
    made = make(rows=60)
    fit = fitted(made, configured())
    unseen = FMData(*(np.array([-1, N + 5], np.int32), np.array([M, -1], np.int32), np.zeros(2, np.float32)),
                    np.array([0, 1, 1]), np.array([GENRES + HAD + 1], np.int32), np.ones(1, np.float32))  # fmt: skip
    np.testing.assert_allclose(fit.predict(unseen)[0], fit.samples[0][0])
    assert entries_of(unseen, fit.plan)[0][0].tolist() == [0, 0, 0]


def test_values_and_probabilities_are_recovered() -> None:
    """Data drawn from the model: predictions are near the values and probabilities that it was drawn with."""
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, N, 3000), rng.integers(0, M, 3000)
    p, q, b = rng.normal(size=(N, 2)) / 2, rng.normal(size=(M, 2)), rng.normal(size=N) / 2
    signal = 0.3 + b[users] + np.einsum("nk,nk->n", p[users], q[items])
    fields = (Field("user", N, side=0), Field("item", M, side=1, of_item=True))
    config = configured(learner="mcmc", iterations=120, burn_in=40, samples=80)
    data = FMData.of_pairs(users, items, signal + 0.5 * rng.normal(size=3000))
    fit = fit_fm_arrays(data, fields, N, M, config, 3)
    mean, _ = fit.predict(data)
    assert np.sqrt(np.square(mean - signal).mean()) < 0.15
    labels = (signal + rng.normal(size=3000) > 0).astype(np.float32)
    likely, _ = fit_fm_arrays(FMData.of_pairs(users, items, labels), fields, N, M,
                              configured(**config.model_dump(exclude={"task"}), task="classification"), 3
                              ).predict(data)  # fmt: skip
    assert np.abs(likely - ndtr(signal)).mean() < 0.08


def test_same_seed_same_samples_and_another_seed_others() -> None:
    made = make()
    config = configured(learner="mcmc")
    one, again, other = (fitted(made, config, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.samples[-1][1], again.samples[-1][1])
    assert np.abs(one.samples[-1][1] - other.samples[-1][1]).max() > 0.1


def test_a_weight_is_of_a_field_of_several_features() -> None:
    assert [FMField(name="f", of=of).own_weight for of in ("categories", "history")] == ["one", "sqrt"]
    with pytest.raises(ValueError, match="weight=mean goes with of: categories or history, not user: leave it out"):
        FMField(name="f", of="user", weight="mean")
