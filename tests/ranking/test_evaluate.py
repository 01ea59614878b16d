"""Evaluation by every protocol: the figures of plain numpy, whatever the partitions; golden figures of popularity."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.split import Split, split
from sparkcf.errors import ConfigError, GateRefused
from sparkcf.kernels.metrics import ranking_measures, summarize
from sparkcf.models.als.fit import fit_arrays, fold_in
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.registry import model_of
from sparkcf.ranking import evaluate as module
from sparkcf.ranking.evaluate import Evaluation
from tests.data.shuffles import shuffled_into

N, M, LATE = 90, 45, 80  # users from LATE on come in the last days only
PROTOCOLS = ("q1", "q2", "q3", "q4")
KS = (5, 20)
SCHEMA = "user_idx int, item_idx int, event string, value double, ts timestamp"
Figures = dict[tuple[str, str, int | None, str | None], float]  # by system, measure, k and segment


def settings(protocol: str, *overrides: str) -> Config:
    base = ["ds=2024-01-31", "input.path=none", "evaluation.bootstrap=20", "evaluation.ks=[5,20]", "gate.at=20"]
    base += [f"evaluation.protocol={protocol}", "evaluation.holdout_share=0.2", "preference.positive_from=4"]
    base += ["als.rank=4", "als.iterations=8", "als.regularization=0.05", "als.workers=1"]
    if protocol == "q3":
        base += ["als.mode=explicit", "als.biases=true", "als.regularization=0.1"]
    return load_config((), [*base, *overrides])


def evaluate(events: DataFrame, n_users: int, n_items: int, config: Config) -> Evaluation:
    return module.evaluate(events, model_of(config), TrainingData(events, n_users, n_items), config)


def split_of(events: DataFrame, config: Config) -> Split:
    return split(events, model_of(config).reads, config)


def make_events() -> list[tuple]:
    """Ratings of three tastes: users like the items of their own taste, and no item is popular with all."""
    rng = np.random.default_rng(8)
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    events = []
    for user in range(N):
        for item in np.flatnonzero(rng.random(M) < 0.5).tolist():
            value = float(rng.integers(4, 6) if user % 3 == item % 3 else rng.integers(1, 4))
            day = rng.uniform(18, 20) if user >= LATE else rng.uniform(0, 20)
            events.append((user, item, "rating", value, start + dt.timedelta(days=float(day))))
    return events


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> Iterator[Callable[[int], DataFrame]]:
    rows = spark.createDataFrame(make_events(), SCHEMA).cache()
    rows.count()  # fills the cache
    yield lambda partitions: rows.repartition(partitions)
    rows.unpersist()


@pytest.fixture(scope="module")
def evaluated(spark: SparkSession, events: Callable[[int], DataFrame]) -> Callable[..., Evaluation]:
    """The evaluation by a protocol; the same question is answered once."""
    known: dict[tuple, Evaluation] = {}

    def ask(protocol: str, *overrides: str, partitions: int = 2) -> Evaluation:
        key = (protocol, overrides, partitions)
        if key not in known:
            with shuffled_into(spark, partitions):
                known[key] = evaluate(events(partitions), N, M, settings(protocol, *overrides))
        return known[key]

    return ask


def by_name(found: Evaluation) -> Figures:
    figures = {(f.system, f.metric, f.k, f.segment): f.value for f in found.figures}
    assert len(figures) == len(found.figures)
    return figures


def arrays(part: DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = part.select("user_idx", "item_idx", F.col("value").cast("float")).toPandas()
    rows = rows.sort_values(["user_idx", "item_idx"])
    return tuple(rows[name].to_numpy() for name in rows.columns)


def rows_of(part: tuple[np.ndarray, ...], users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compressed rows of some users."""
    chosen = [np.flatnonzero(part[0] == user) for user in users]
    places = np.concatenate([*chosen, np.empty(0, np.int64)]).astype(np.int64)
    indptr = np.cumsum([0, *map(len, chosen)], dtype=np.int64)
    return indptr, part[1][places].astype(np.int32), part[2][places].astype(np.float32)


def plain(parts: Split, config: Config) -> Figures:
    """The figures of a ranking protocol in plain numpy."""
    train, rows, heldout = (arrays(part) for part in (parts.train, parts.rows, parts.heldout))
    masked, liked = (arrays(part.withColumn("value", F.lit(1.0))) for part in (parts.seen, parts.popular))
    fitted = fit_arrays(*train, N, M, config.als, config.seed)
    users = np.unique(heldout[0])
    seen, held = rows_of(masked, users), rows_of(heldout, users)
    popular = np.bincount(liked[1], minlength=M).astype(float)
    trained = np.unique(train[0])
    vectors, has = fitted.user[users].astype(float), np.isin(users, trained)
    if config.evaluation.protocol == "q1":
        present = int(fitted.item_present.sum())
        vectors = fold_in(*rows_of(rows, users), fitted.item, fitted.item_bias, config.als, present, fitted.mean)[
            0
        ].astype(float)
        has = np.ones(len(users), bool)
    figures: Figures = {}
    for system in ("model", "popularity"):
        scores = np.where(has[:, None] & (system == "model"), vectors @ fitted.item.T + fitted.item_bias, popular)
        scores[:, ~fitted.item_present] = -np.inf
        for row in range(len(users)):
            scores[row, seen[1][seen[0][row] : seen[0][row + 1]]] = -np.inf
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, : max(KS)].astype(np.int32)
        ranked[np.take_along_axis(scores, ranked, axis=1) == -np.inf] = -1
        names, values = ranking_measures(ranked, *held[:2], KS, popular / len(trained))
        for segment, chosen in ((None, values), ("warm", values[has])):
            figures |= {(system, *name, segment): v for name, v in zip(names, chosen.mean(axis=0), strict=True)}
        if not has.all():
            measure = config.gate_measure()
            figures[system, *measure, "cold"] = values[~has, names.index(measure)].mean()
        if system == "model":
            figures[system, "warm_users", None, None] = has.mean()
        for k in KS:
            listed = np.unique(ranked[:, :k][ranked[:, :k] >= 0])
            figures[system, "coverage_at_k", k, None] = len(listed) / fitted.item_present.sum()
    return figures


def plain_errors(parts: Split, config: Config) -> Figures:
    """The figures of rating prediction in plain numpy."""
    train, heldout = arrays(parts.train), arrays(parts.heldout)
    fitted = fit_arrays(*train, N, M, config.als, config.seed)
    u, i = heldout[0], heldout[1]
    predicted = fitted.mean + fitted.user_bias[u] + fitted.item_bias[i]
    predicted = predicted + (fitted.user[u].astype(float) * fitted.item[i]).sum(axis=1)
    figures: Figures = {}
    for system, guess in (("model", predicted), ("popularity", train[2].astype(float).mean())):
        every = np.abs(heldout[2].astype(float) - guess)
        warm = np.isin(u, train[0])
        for segment, errors in ((None, every), ("warm", every[warm]), ("cold", every[~warm])):
            if not len(errors):
                continue
            figures[system, "rmse", None, segment] = np.sqrt((errors**2).mean())
            figures[system, "mae", None, segment] = errors.mean()
    return figures


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_figures_are_those_of_plain_numpy(
    events: Callable[[int], DataFrame], evaluated: Callable[..., Evaluation], protocol: str
) -> None:
    config = settings(protocol)
    expected = (plain_errors if protocol == "q3" else plain)(split_of(events(2), config), config)
    found = {name: value for name, value in by_name(evaluated(protocol)).items() if name[3] in (None, "warm", "cold")}
    assert found.keys() == expected.keys() and (protocol != "q4" or any(name[3] == "cold" for name in found))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6 if protocol == "q3" else 1e-12), name


@pytest.mark.parametrize("protocol", [protocol for protocol in PROTOCOLS if protocol != "q3"])
def test_every_tested_user_and_held_out_item_is_in_one_segment(
    events: Callable[[int], DataFrame], evaluated: Callable[..., Evaluation], protocol: str
) -> None:
    figures = evaluated(protocol).figures
    tested = next(f.users for f in figures if f.metric == "ndcg_at_k")
    config = settings(protocol)
    held = split_of(events(2), config).heldout.count()
    for system in ("model", "popularity"):
        of_system = [f for f in figures if f.system == system and f.segment]
        assert sum(f.users for f in of_system if f.segment.startswith("activity ")) == tested
        assert sum(f.users for f in of_system if f.segment.startswith("popularity ")) == held


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_figures_do_not_depend_on_the_partitions(evaluated: Callable[..., Evaluation], protocol: str) -> None:
    one = evaluated(protocol)
    for partitions in (1, 7):
        other = evaluated(protocol, partitions=partitions)
        assert other.note == one.note
        for figure, expected in zip(other.figures, one.figures, strict=True):
            assert figure[:3] == expected[:3] and figure[6:8] == expected[6:8]
            for value, same in zip(figure[3:6], expected[3:6], strict=True):  # the value and its bounds
                assert value == same or value == pytest.approx(same, rel=1e-12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_model_beats_popularity_where_there_are_tastes(evaluated: Callable[..., Evaluation], protocol: str) -> None:
    found = evaluated(protocol)
    assert all(np.isfinite(figure[3]) and figure[6] > 0 for figure in found.figures)
    for _, _, _, value, lower, upper, *_ in found.figures:
        assert lower is None or (lower <= value * (1 + 1e-12) and value <= upper * (1 + 1e-12))
    if protocol == "q3":
        assert found.value("rmse", None) < 0.8 * found.value("rmse", None, "popularity")
    else:
        for metric in ("ndcg_at_k", "recall_at_k", "map_at_k", "mrr_at_k"):
            assert found.value(metric, 5) > 1.3 * found.value(metric, 5, "popularity"), metric


@pytest.mark.parametrize("overrides", [("model=popularity",), ("als.biases=false", "als.mode=implicit")])
def test_a_model_that_predicts_no_ratings_is_not_measured_by_them(
    events: Callable[[int], DataFrame], overrides: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=r"q3 measures predicted ratings.*als\.mode=explicit"):
        evaluate(events(2), N, M, settings("q3", *overrides))


@pytest.mark.parametrize("protocol", ["q1", "q2", "q4"])
def test_popularity_as_a_model_is_the_baseline(evaluated: Callable[..., Evaluation], protocol: str) -> None:
    found = by_name(evaluated(protocol, "model=popularity"))
    baseline = by_name(evaluated(protocol))
    for (system, metric, k, segment), value in found.items():
        assert np.isfinite(value)
        if metric != "warm_users":  # whom the other model knows is another thing
            others = [found["popularity", metric, k, segment], baseline["popularity", metric, k, segment]]
            assert value == others[0] and (segment or value == others[1]), (system, metric, k)


def test_users_without_factors_get_popularity_and_are_counted(
    events: Callable[[int], DataFrame], evaluated: Callable[..., Evaluation]
) -> None:
    parts = split_of(events(2), settings("q4"))
    tested, trained = (set(np.unique(arrays(part)[0])) for part in (parts.heldout, parts.train))
    cold = tested - trained
    assert cold == set(range(LATE, N)) & tested and cold
    found = evaluated("q4")
    assert found.value("warm_users", None) == pytest.approx(1 - len(cold) / len(tested))
    assert evaluated("q1").value("warm_users", None) == 1  # folded in


def test_q1_folds_in_by_the_weights_of_the_training(
    events: Callable[[int], DataFrame], evaluated: Callable[..., Evaluation]
) -> None:
    overrides = ("preference.weight=value", "als.form=hu_koren", "als.alpha=4")
    config = settings("q1", *overrides)
    expected = plain(split_of(events(2), config), config)
    found = by_name(evaluated("q1", *overrides))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name
    flat = split_of(events(2), config)
    ones = replace(flat, rows=flat.rows.withColumn("value", F.lit(1.0)))
    assert plain(ones, config) != expected  # so the weights are seen


@pytest.mark.parametrize(("name", "share"), [("train", 1.0), ("held-out", 0.0)])
def test_a_split_that_leaves_nothing_is_refused(
    events: Callable[[int], DataFrame], monkeypatch: pytest.MonkeyPatch, name: str, share: float
) -> None:
    whole = events(2).where("value >= 4").select("user_idx", "item_idx", "value")
    nothing = whole.where("value < 0")
    train, heldout = (nothing if name == part else whole for part in ("train", "held-out"))
    parts = Split(whole, train, whole, whole, whole, heldout, "a cut")
    monkeypatch.setattr(module, "split", lambda events, reads, config: parts)
    with pytest.raises(GateRefused, match=rf"q2: the {name} part is empty \(a cut\)"):
        evaluate(whole, N, M, settings("q2"))


@pytest.mark.parametrize(
    ("data", "protocol", "expected"),
    [("ml-100k", "q1", (0.2790, 0.1754, 0.2101, 0.3459)), ("ml-100k", "q2", (0.2614, 0.1688, 0.2061, 0.3240))],
)
def test_popularity_has_its_golden_figures(
    spark: SparkSession,
    shared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: str,
    protocol: str,
    expected: tuple[float, ...],
) -> None:
    with np.load(shared_data / "splits" / f"{data}-{protocol}.npz", allow_pickle=False) as archive:
        parts = dict(archive)
    if protocol == "q1":  # every part counts its own users from 0
        offset = np.array([len(parts["train_users"]), 0], np.int32)
        given = (parts["train"], parts["test_foldin"] + offset, parts["test_heldout"] + offset)
        n_users = len(parts["train_users"]) + len(parts["test_users"])
    else:
        given = (parts["train"], np.concatenate([parts["train"], parts["valid"]]), parts["test"])
        n_users = len(parts["users"])

    def frame(pairs: np.ndarray) -> DataFrame:
        rows: dict[str, Any] = {"user_idx": pairs[:, 0], "item_idx": pairs[:, 1], "value": np.ones(len(pairs))}
        return spark.createDataFrame(pd.DataFrame(rows), "user_idx int, item_idx int, value double")

    train, known, heldout = map(frame, given)
    fixed = Split(known, train, known, known, train, heldout, "as published")
    monkeypatch.setattr(module, "split", lambda events, reads, config: fixed)
    config = settings(protocol, "model=popularity", "evaluation.ks=[20,50,100]")
    found = evaluate(fixed.train, n_users, int(parts["n_items"]), config)
    for system in ("model", "popularity"):
        names = (("ndcg_at_k", 100), ("ndcg_at_k", 20), ("recall_at_k", 20), ("recall_at_k", 50))
        assert tuple(round(found.value(metric, k, system), 4) for metric, k in names) == expected


def test_measures_of_lists_are_means_over_those_who_have_them() -> None:
    """User 1's list has one item, user 2's items have no category, user 3 has nothing held out, nobody has the last."""
    nan = np.nan
    values = np.array([[0.5], [0.1], [0.0], [nan]])
    more = np.array([[0.8, 0.3, nan], [nan, 0.1, nan], [0.4, nan, nan], [9.0, 9.0, 9.0]])
    summary = summarize(module.rule_columns(values, more), np.arange(4), 1, 50)
    names = [("diversity", 5), ("kl", 5), ("none", 5)]
    found = {f.metric: f for f in module.rule_figures("plain", [("ndcg", 5)], names, summary)}
    assert {name: (round(f.value, 6), f.users) for name, f in found.items()} == {
        "ndcg": (0.2, 3), "diversity": (0.6, 2), "kl": (0.2, 2),
    }  # fmt: skip
    assert 0.4 <= found["diversity"].lower < found["diversity"].upper <= 0.8 + 1e-9


def test_rules_of_reranking_are_measured_before_and_after(spark: SparkSession, events) -> None:
    config = settings("q2", "topk.k=10", "rerank={diversity: 0.5, similarity: categories, exploration: 0.2}")
    rows = [(item, [f"taste {item % 3}"]) for item in range(M)]
    items = spark.createDataFrame(rows, "item_idx int, categories array<string>")
    items = items.withColumn("attributes", F.create_map().cast("map<string,string>"))
    items = items.withColumn("numbers", F.create_map().cast("map<string,double>"))
    found = module.evaluate(events(2), model_of(config), TrainingData(events(2), N, M), config, items=items)
    plain, after = ({f.metric: f.value for f in found.figures if (f.system, f.k) == (s, 10)} for s in module.RERANKED)
    assert plain["exploration_share_at_k"] == 0 and after["exploration_share_at_k"] == pytest.approx(0.2)
    assert after["intra_list_diversity_at_k"] > plain["intra_list_diversity_at_k"] + 0.05
    assert 0 < after["ndcg_at_k"] < plain["ndcg_at_k"]
    assert {f.k for f in found.figures if f.system == "plain"} == {5, 10}
    assert found.value("ndcg_at_k", 5, "plain") == pytest.approx(
        found.value("ndcg_at_k", 5)
    )  # the gate's is the model's
