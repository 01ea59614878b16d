"""Parts of explanations sum to the score, whatever the history; nearest items are a hint and say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkcf.config.factorization import ALSConfig, HALSConfig
from sparkcf.config.fm import FMConfig, FMField
from sparkcf.config.linear import EASEConfig
from sparkcf.config.nets import MacridVAEConfig
from sparkcf.kernels.vectors import unit_rows
from sparkcf.models.als.explain import contributions
from sparkcf.models.als.fit import FactorScorer
from sparkcf.models.contract import InnerProduct, Scorer
from sparkcf.models.contract_data import Described, Saved, UserBlock
from sparkcf.models.ease import EASEScorer, item_weights
from sparkcf.models.explanation import Explanation
from sparkcf.models.fm.factors import folded as folded_fm
from sparkcf.models.fm.factors import parts_of, plan_of, sample_count, sample_width
from sparkcf.models.fm.fit import FMScorer
from sparkcf.models.nets.concepts import ConceptScorer, MacridVAEModel

M, RANK = 20, 4
ALS = {
    "ials": ALSConfig(rank=RANK, regularization=0.05),
    "hu_koren": ALSConfig(rank=RANK, form="hu_koren", alpha=3.0),
    "implicit": HALSConfig(rank=RANK, form="implicit", alpha=2.0),
    "frobenius": HALSConfig(rank=RANK, form="frobenius", regularization=0.1),
    "non-negative": ALSConfig(rank=RANK, nonnegative=True, solver="cholesky"),
    "explicit": ALSConfig(rank=RANK, mode="explicit", regularization=0.1),
    "explicit with biases": ALSConfig(rank=RANK, mode="explicit", biases=True, regularization=0.1),
}
histories = st.lists(st.integers(0, M - 1), min_size=1, max_size=M, unique=True)


def rows(had: list[int], seed: int) -> tuple[Any, ...]:
    values = np.random.default_rng(seed).integers(1, 6, len(had)).astype(np.float32)
    return np.array([0, len(had)]), np.array(had, np.int32), values, np.ones(len(had), np.float32)


def known(vectors: np.ndarray, bias: np.ndarray | None = None, **more: Any) -> Saved:
    return Saved(
        vectors, np.zeros(len(vectors), np.float32) if bias is None else bias, np.ones(len(vectors), bool), **more
    )


def folded(scorer: Scorer, given_rows: tuple[Any, ...]) -> UserBlock:
    return UserBlock(*scorer.fold_in(given_rows), np.ones(1, bool), given_rows)


def check_sum(explained: Explanation, whole: bool = True) -> None:
    """Parts and remainder sum to the total; `whole` : the parts alone do."""
    assert explained.exact and explained.total is not None and explained.remainder is not None
    size = max(abs(explained.total), *(abs(part.value) for part in explained.parts))
    total = sum(part.value for part in explained.parts)
    assert abs(total + explained.remainder - explained.total) <= 1e-6 * size
    assert not whole or abs(total - explained.total) <= 1e-4 * size


def als_scorer(name: str, seed: int = 0) -> FactorScorer:
    config, rng = ALS[name], np.random.default_rng(seed)
    vectors = rng.normal(0, 0.5, (M, RANK)).astype(np.float32)
    bias = rng.normal(0, 0.3, M).astype(np.float32) if config.biases else None
    return FactorScorer(known(np.abs(vectors) if config.nonnegative else vectors, bias, mean=3.0), config)


@pytest.mark.parametrize("name", ALS)
@settings(max_examples=30, deadline=None)
@given(had=histories, item=st.integers(0, M - 1), seed=st.integers(0, 99))
def test_the_items_of_a_history_bring_the_whole_score_of_a_solved_row(name: str, had, item, seed) -> None:
    scorer = als_scorer(name, seed)
    user = folded(scorer, rows(had, seed))
    explained = scorer.explain(user, item)
    check_sum(explained)
    assert explained.score == pytest.approx(float(scorer.score_block(user)[0, item]), rel=1e-4, abs=1e-5)
    assert [part.item for part in explained.parts if part.kind == "history"] == had


def test_a_vector_that_is_not_the_rows_solution_leaves_a_remainder() -> None:
    scorer = als_scorer("ials")
    user = folded(scorer, rows([1, 2, 5], 0))
    user.vectors[0] += 0.5
    explained = scorer.explain(user, 7)
    check_sum(explained, whole=False)
    assert explained.remainder == pytest.approx(0.5 * scorer.item_vectors[7].sum(), rel=1e-4)


def test_an_item_brings_what_the_score_loses_without_it_where_the_weights_stay() -> None:
    """By definition: contributions are linear in the targets, so a target of zero takes exactly its part away."""
    scorer = als_scorer("explicit")
    _, had, values, weights = rows([3, 4, 9], 1)
    items = (scorer.item_vectors, scorer.item_bias, M)
    gram = scorer.item_vectors.T.astype(np.float64) @ scorer.item_vectors
    listed, vector = np.array([0, 7], np.int32), np.ones(RANK, np.float32)
    whole = contributions((had, values, weights), listed, items, vector, gram, 0.0, scorer.params)
    without = contributions((had, values * [1, 0, 1], weights), listed, items, vector, gram, 0.0, scorer.params)
    np.testing.assert_allclose(without[[0, 2]], whole[[0, 2]], rtol=1e-10)
    assert (without[1] == 0).all() and (whole[1] != 0).all()


@settings(max_examples=30, deadline=None)
@given(had=histories, item=st.integers(0, M - 1))
def test_ease_weights_bring_the_score_and_the_largest_is_the_reason(had, item) -> None:
    rng = np.random.default_rng(3)
    x = (rng.random((60, M)) < 0.3).astype(float)
    weights = item_weights(x.T @ x, x.sum(axis=0), EASEConfig(regularization=5.0))
    arrays = {"weights": weights, "items": np.arange(M, dtype=np.int32)}
    scorer = EASEScorer(known(np.zeros((M, 0), np.float32), arrays=arrays))
    user = UserBlock(np.zeros((1, 0), np.float32), np.zeros(1, np.float32), np.ones(1, bool), rows(had, 1))
    explained = scorer.explain(user, item)
    check_sum(explained)
    assert explained.score == pytest.approx(float(scorer.score_block(user)[0, item]), abs=1e-5)
    check_reason(scorer, user, item, explained)


@pytest.mark.parametrize("name", ALS)
def test_the_short_reason_is_the_item_that_brings_most(name: str) -> None:
    scorer = als_scorer(name, 5)
    user = folded(scorer, rows([2, 3, 11, 17], 2))
    for item in range(M):
        check_reason(scorer, user, item, scorer.explain(user, item))


def check_reason(scorer: Scorer, user: UserBlock, item: int, explained: Explanation) -> None:
    reasons = scorer.because(user, np.array([[item, -1]], np.int32))
    brought = {p.item: p.value for p in explained.parts if p.kind == "history" and p.item != item and p.value > 0}
    assert reasons is not None and reasons[0, 1] == -1
    if brought:
        assert brought[reasons[0, 0]] == pytest.approx(max(brought.values()), rel=1e-5)
    else:
        assert reasons[0, 0] == -1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), item=st.integers(0, M - 1))
def test_concepts_bring_the_exponential_of_the_score(seed, item) -> None:
    rng = np.random.default_rng(seed)
    model = MacridVAEModel(MacridVAEConfig(concepts=3, latent_dim=RANK), 1)
    items = unit_rows(rng.normal(size=(M, RANK)).astype(np.float32))
    prototypes = rng.normal(size=(3, RANK)).astype(np.float32)
    scorer = ConceptScorer(known(items, arrays={"prototypes": prototypes}), model)
    z = unit_rows(rng.normal(size=(3, RANK)).astype(np.float32)).reshape(1, -1)
    user = UserBlock(z, np.zeros(1, np.float32), np.ones(1, bool))
    explained = scorer.explain(user, item)
    check_sum(explained)
    assert explained.scale == "exp(score)" and explained.parts[0].label == "concept 0"
    assert explained.score == pytest.approx(float(scorer.score_block(user)[0, item]), rel=1e-4)
    largest = max(range(3), key=lambda k: explained.parts[k].value)
    assert scorer.concepts(user, np.array([[item]], np.int32)).tolist() == [[largest]]
    assert scorer.because(user, np.array([[item]], np.int32)) is None


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), item=st.integers(0, M - 1))
def test_terms_of_field_pairs_sum_to_a_factorization_machines_score(seed, item) -> None:
    fields = (
        FMField(name="user", of="user"),
        FMField(name="had", of="history"),
        FMField(name="item", of="item"),
        FMField(name="genre", of="categories"),
    )
    pairs = (("user", "item"), ("had", "item"), ("user", "genre"))
    config = FMConfig(fields=fields, pairs=pairs, rank=3, iterations=6, burn_in=2, samples=4)
    width, rng = sample_count(config) * sample_width(config), np.random.default_rng(seed)
    user, items = (rng.normal(size=(n, width)).astype(np.float32) for n in (1, M))
    scorer = FMScorer(known(items), config)
    explained = scorer.explain(UserBlock(user, np.zeros(1, np.float32), np.ones(1, bool)), item)
    check_sum(explained)
    assert explained.score == pytest.approx(float(user[0] @ items[item]), rel=1e-4, abs=1e-4)
    assert {part.label for part in explained.parts} >= {"user + had × item", "user × genre", "linear: item + genre"}
    assert len(explained.parts) == len(parts_of(config)) + 2


@pytest.mark.parametrize("task", ["all pairs", "chosen pairs"])
def test_single_fields_of_a_factorization_machine_are_told_apart(task: str) -> None:
    """Vectors are folded from known parameters, and every term is what the parameters say."""
    fields = (
        FMField(name="user", of="user"),
        FMField(name="had", of="history"),
        FMField(name="age", of="number", column="age", table="users"),
        FMField(name="item", of="item"),
        FMField(name="genre", of="categories"),
    )
    pairs = None if task == "all pairs" else (("user", "item"), ("had", "item"), ("genre", "user"), ("had", "had"))
    config = FMConfig(fields=fields, pairs=pairs, rank=3, iterations=6, burn_in=2, samples=4)
    rng, samples, sizes = np.random.default_rng(2), sample_count(config), (5, M, 1, M, 3)
    everywhere = rng.normal(size=(samples, M + 1 + 3, 4)).astype(np.float32)
    own = {side: rng.normal(size=(1, samples, 4)).astype(np.float32) for side in ("user", "item")}
    state = {"w0": rng.normal(size=samples), "everywhere": everywhere, "sizes": np.array(sizes)}
    state["scales"] = np.array([[0, 1], [0, 1], [30.0, 10.0], [0, 1], [0, 1]])
    plan, had, value = plan_of(state, config, M), [2, 7, 11], 1 / np.sqrt(3)
    of_user = (np.array([0, 4]), np.array([*had, M], np.int32), np.array([value, value, value, 1.5], np.float32))
    of_item = (np.array([0, 2]), np.array([M + 1, M + 3], np.int32), np.ones(2, np.float32))
    user = folded_fm(False, own["user"], of_user, state["w0"], everywhere, plan)
    item = folded_fm(True, own["item"], of_item, state["w0"], everywhere, plan)
    scorer = FMScorer(known(np.tile(item, (M, 1)), arrays=state), config)
    block = UserBlock(user, np.zeros(1, np.float32), np.ones(1, bool), rows(had, 0))
    texts = {"categories": {"a": 0, "b": 1, "c": 2}}
    described = Described({"numbers": [("age", 45.0)]}, {"categories": ["c", "a", "unheard of"]}, texts)
    explained = scorer.explain_described(block, 5, described)
    check_sum(explained)
    table = np.concatenate([own["user"][0][:, None], everywhere, own["item"][0][:, None]], axis=1).astype(np.float64)
    x = {"user": {0: 1.0}, "had": {1 + i: value for i in had}, "age": {1 + M: 1.5}}
    x |= {"item": {M + 5: 1.0}, "genre": {M + 2: 1.0, M + 4: 1.0}}
    expected = {"w_0": state["w0"].mean()}
    for number, f in enumerate(fields):
        expected[f"linear: {f.name}"] = sum(table[:, j, 3].mean() * v for j, v in x[f.name].items())
        for g in fields[number:]:
            if config.interacting(f.name, g.name) and (f != g or f.several):
                crossed = [(i, j, a * b) for i, a in x[f.name].items() for j, b in x[g.name].items() if f != g or i < j]
                dots = [(table[:, i, :3] * table[:, j, :3]).sum(axis=1).mean() * ab for i, j, ab in crossed]
                expected[f"{f.name} × {g.name}"] = sum(dots)
    assert {part.label: part.value for part in explained.parts} == pytest.approx(expected, abs=1e-4)


def test_without_parts_the_nearest_items_are_a_hint_and_not_exact() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(M, RANK)).astype(np.float32)
    scorer = InnerProduct(known(vectors))
    user = UserBlock(
        rng.normal(size=(1, RANK)).astype(np.float32), np.zeros(1, np.float32), np.ones(1, bool), rows([4, 8], 0)
    )
    explained = scorer.explain(user, 6)
    unit = unit_rows(vectors)
    assert not explained.exact and explained.scale == "cosine" and explained.total is explained.remainder is None
    assert [part.value for part in explained.parts] == pytest.approx([unit[6] @ unit[4], unit[6] @ unit[8]], rel=1e-5)
    check_reason(scorer, user, 6, explained)


def test_similar_items_of_many_blocks_scale_the_vectors_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, scaled = np.random.default_rng(3), []
    vectors = rng.normal(size=(6, 3)).astype(np.float32)

    def counted(rows: np.ndarray) -> np.ndarray:
        scaled.append(len(rows))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    monkeypatch.setattr("sparkcf.models.contract.unit_rows", counted)
    scorer = InnerProduct(Saved(vectors, np.zeros(6, np.float32), np.ones(6, bool)))
    found = np.concatenate([scorer.similar_block(np.array([item], np.int32)) for item in range(6)])
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-5)
    assert scaled == [6]
