"""Models on frames: what `fit` returns and refuses, and that it is the fit of the jobs."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

import sparkcf
from sparkcf.config.load import config_class, load_config
from sparkcf.data.pairs import Reads
from sparkcf.data.pairs import pairs as spark_pairs
from sparkcf.errors import ConfigError, InputError, LakeError, NotFoundError, SparkcfError
from sparkcf.local.events import Ids, checked_frame, events_of, pairs_of
from sparkcf.local.recommender import fit_events
from sparkcf.models.als.fit import fit as fit_on_spark

SMALL = {"rank": 4, "iterations": 6, "regularization": 0.05}
SETTINGS = {
    "als": SMALL,
    "hals": SMALL,
    "ease": {"regularization": 5},
    "mrf": {"regularization": 5},
    "popularity": {},
    "mpma": {"rank": 2, "iterations": 2, "base_iterations": 4, "min_group": 1, "user_groups": 2, "item_groups": 2},
    "multvae": {"hidden": [8], "latent_dim": 4, "epochs": 3, "batch_size": 20},
    "multdae": {"hidden": [8], "latent_dim": 4, "epochs": 3, "batch_size": 20},
    "macridvae": {"hidden": [8], "latent_dim": 4, "epochs": 2, "concepts": 2, "batch_size": 20},
    "bivae": {"hidden": [8], "latent_dim": 4, "epochs": 2, "batch_size": 20},
    "ncf": {"hidden": [4, 3], "latent_dim": 4, "epochs": 2, "batch_size": 20},
    "disengcn": {"latent_dim": 4, "channels": 2, "epochs": 2, "batch_size": 20},
}


def taste(n_users: int = 60, n_items: int = 30, seed: int = 3) -> pd.DataFrame:
    """Users of three tastes; every third item is of a user's taste."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        for item in rng.choice(n_items, 9, replace=False):
            own = item % 3 == user % 3
            if own or rng.random() < 0.3:
                rows.append((f"u{user}", int(item), 5.0 if own else 2.0, 86_400.0 * len(rows)))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "value", "ts"])


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return taste()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_model_with_a_local_fit_ranks_saves_loads_and_folds_in(
    name: str, frame: pd.DataFrame, tmp_path: Path
) -> None:
    model = sparkcf.fit(name, frame, seed=1, **SETTINGS[name])
    lists = model.recommend(k=5)
    assert list(lists.columns) == ["user_id", "position", "item_id", "score", "reason"]
    assert np.isfinite(lists.score).all() and (lists.groupby("user_id").size() == 5).all()
    seen = lists.merge(frame, on=["user_id", "item_id"], how="inner")
    assert seen.empty and set(lists.reason) == {"model"}
    shuffled = frame.sample(frac=1, random_state=2)
    assert sparkcf.fit(name, shuffled, seed=1, **SETTINGS[name]).recommend(k=5).equals(lists)
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    loaded = sparkcf.load(tmp_path)
    assert loaded.recommend(k=5).equals(lists)
    new = pd.DataFrame({"user_id": "new", "item_id": [0, 3, 6], "value": 5.0})
    for asked in (model, loaded):
        folded = asked.recommend("new", 4, history=new)
        assert folded.reason.tolist() == ["model"] * 4 and not set(folded.item_id) & {0, 3, 6}
    assert set(model.recommend("nobody", 3).reason) == {"fallback"}
    near = model.similar(3, 4)
    assert near.item_id.tolist() == [3] * len(near) and 3 not in set(near.similar_item_id)
    figures = model.evaluate(frame.iloc[:5].assign(item_id=99), ks=(5,), bootstrap=0)
    assert figures.value("ndcg_at_k", 5) == 0  # an item that the training has not is a miss


def test_a_model_finds_the_taste(frame: pd.DataFrame) -> None:
    for name in ("als", "ease"):
        model = sparkcf.fit(name, frame, preference={"positive_from": 4}, **SETTINGS[name])
        first = model.recommend(k=1)
        own = first.user_id.str[1:].astype(int) % 3 == first.item_id % 3
        assert own.mean() > 0.9
        measured = model.evaluate("q2", min_user_items=2, holdout_share=0.3, ks=(5,), bootstrap=20)
        assert measured.value("ndcg_at_k", 5) > 2 * measured.value("ndcg_at_k", 5, "popularity")
        assert {"lower", "upper"} <= set(measured.table.columns)


@pytest.mark.parametrize("protocol", ["q1", "q2", "q4"])
def test_protocols_split_without_overlap(frame: pd.DataFrame, protocol: str) -> None:
    from sparkcf.local.split import split_events

    model = sparkcf.fit("popularity", frame)
    settings = {"min_user_items": 2, "holdout_share": 0.3, "bootstrap": 0}
    config = model.config.model_copy(update={"evaluation": model._evaluation(protocol, (5,), settings)})
    parts = split_events(model.events, Reads("positives"), config)
    held = set(zip(parts.users, parts.items, strict=True))
    assert held and not held & set(zip(parts.rows.users, parts.rows.items, strict=True))
    if protocol == "q1":
        assert not set(parts.users) & set(parts.train.users) and set(parts.users) <= set(parts.rows.users)
    assert 0 <= model.evaluate(protocol, ks=(5,), **settings).value("recall_at_k", 5) <= 1


def test_by_time_ages_count_from_the_day_before_the_held_out_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training events of 1 and 2 January, held-out ones of the 9th and 10th: ages count from the 8th."""
    days = [1, 1, 1, 2, 9, 10]
    rows = [(user, n, dt.datetime(2024, 1, day, 12)) for n, day in enumerate(days) for user in (1, 2)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "ts"])
    model, fitted = sparkcf.fit("popularity", frame, preference={"half_life_days": 1}, by="weight"), []

    def noted(events, users, items, config, *rest):
        fitted.append(config.ds)
        return fit_events(events, users, items, config, *rest)

    monkeypatch.setattr("sparkcf.local.recommender.fit_events", noted)
    model.evaluate("q4", ks=(2,), holdout_share=0.4, bootstrap=0)
    assert fitted == [dt.date(2024, 1, 8)]


def test_explicit_als_predicts_values_better_than_their_mean(frame: pd.DataFrame) -> None:
    model = sparkcf.fit("als", frame, mode="explicit", biases=True, **SMALL)
    found = model.evaluate("q3", bootstrap=0)
    assert found.value("rmse") < found.value("rmse", system="popularity")
    asked = model.predict(([frame.user_id[0], "nobody"], [frame.item_id[0], 99]))
    assert asked.known_user.tolist() == asked.known_item.tolist() == [True, False]
    assert np.isfinite(asked.predicted).all()
    with pytest.raises(ConfigError, match="predicts no values"):
        sparkcf.fit("popularity", frame).predict(frame)


def test_ease_explains_a_score_by_the_history(frame: pd.DataFrame) -> None:
    model = sparkcf.fit("ease", frame, regularization=5)
    (listed,) = model.recommend("u1", 1).itertuples()
    parts = model.explain("u1", listed.item_id)
    assert parts.contribution.is_monotonic_decreasing and set(parts.item_id) <= set(
        frame.item_id[frame.user_id == "u1"]
    )
    assert parts.contribution.sum() == pytest.approx(listed.score, abs=1e-4)
    with pytest.raises(NotFoundError, match="nobody"):
        model.explain("nobody", listed.item_id)
    with pytest.raises(NotFoundError, match="item 99"):
        model.explain("u1", 99)


BAD = {
    "no column 'user_id' .it has userId": lambda f: ("als", f.rename(columns={"user_id": "userId"}), {}),
    "no row": lambda f: ("als", f.iloc[:0], {}),
    "2 of 3 rows have no user_id": lambda f: ("als", f.iloc[:3].assign(user_id=[None, "", "a"]), {}),
    "1 of 2 values of value are no finite": lambda f: ("als", f.iloc[:2].assign(value=[1.0, np.nan]), {}),
    "values of ts are no times": lambda f: ("als", f.iloc[:2].assign(ts=["x", "2024-01-01"]), {}),
    "arrays have 2, 1 entries": lambda f: ("als", ([1, 2], [3]), {}),
    "expected a pandas frame": lambda f: ("als", 3, {}),
    "unknown key 'user'": lambda f: ("als", f, {"columns": {"user": "user_id"}}),
    "als.rnk": lambda f: ("als", f, {"rnk": 3}),
    "unknown model": lambda f: ("alz", f, {}),
    "model=fm is fitted by the train job only; without Spark: als, bivae": lambda f: ("fm", f, {}),
    "half_life_days needs times": lambda f: (
        "als",
        f.drop(columns="ts"),
        {"preference": {"half_life_days": 3}},
    ),
    "positive_from too high": lambda f: ("ease", f, {"preference": {"positive_from": 9}}),
}


def test_odd_questions_have_an_answer_or_one_line() -> None:
    pairs = pd.DataFrame({"user_id": [1, 1, 2, 3], "item_id": [1, 2, 2, 1], "value": [1.0, 2, 2, 1]})
    model = sparkcf.fit("popularity", pairs)
    none = model.recommend([], 3)
    assert not len(none) and list(none.columns) == ["user_id", "position", "item_id", "score", "reason"]
    assert set(model.recommend(["--5", "9" * 30, "-", str(2**63)], 1).reason) == {"fallback"}
    assert model.recommend(["3"], 1).reason.tolist() == ["model"]
    assert model.evaluate(pd.DataFrame({"user_id": ["--5"], "item_id": [1]}), ks=(1,), bootstrap=0).figures
    for ask in (model.recommend, model.similar):
        with pytest.raises(ConfigError, match="k=0: a whole number from 1"):
            ask(k=0)
    late = pairs.assign(ts=1_700_000_000_000)
    with pytest.raises(InputError, match=r"4 of 4 values of ts .* such as 1700000000000: divide milliseconds by 1000"):
        sparkcf.fit("popularity", late)


@pytest.mark.parametrize(
    "ids",
    [
        pd.Series([7, 2**40, -3]),
        pd.Series([7, 2**40, -3], dtype=object),
        pd.Series([7.0, 2, -3], dtype=object),
        pd.Series([7, 2], dtype="uint64"),
        pd.Series([7, 2], dtype="Int64"),
        pd.Series([7, 2]).astype("category"),
        pd.Series(["7", "02"]),
        pd.Series(["a", "b"], dtype="string"),
    ],
    ids=lambda ids: f"{ids.dtype}-{ids[0]!r}",
)
def test_ids_come_back_as_they_were(ids: pd.Series) -> None:
    found = Ids.of(ids)
    assert sorted(found.values.tolist()) == sorted(ids.tolist())
    assert (found.values[found.index(ids)] == ids.to_numpy()).all()
    assert found.index([*ids.astype(str), "none"]).tolist()[-1] == -1


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (pd.Series([1, 2**63], dtype="uint64"), "the id 9223372036854775808 is no whole number of 64 bits"),
        (pd.Series([1, 2**70], dtype=object), "64 bits: give such ids as texts"),
        (pd.Series([1.0, 1e20]), "the id 100000000000000000000 is no whole"),
        (pd.Series([1.0, np.inf]), "an id is infinite"),
        (pd.Series([1.5, -np.inf]), "an id is infinite"),
    ],
)
def test_ids_that_would_change_are_refused(ids: pd.Series, said: str) -> None:
    with pytest.raises(InputError, match=said):
        sparkcf.fit("popularity", pd.DataFrame({"user_id": [1, 2], "item_id": ids}))


def test_novelty_is_not_measured_where_nobody_likes_an_item() -> None:
    pairs = pd.DataFrame({"user_id": [1, 1, 2, 3], "item_id": [1, 2, 2, 1], "value": [1.0, 2, 2, 1]})
    model = sparkcf.fit("als", pairs, mode="explicit", rank=2, iterations=2, preference={"positive_from": 4})
    found = model.evaluate(pd.DataFrame({"user_id": [3], "item_id": [2], "value": [5.0]}), ks=(1,), bootstrap=0)
    assert found.value("ndcg_at_k", 1) == 1 and found.value("rmse") > 0
    with pytest.raises(KeyError, match="novelty_at_k"):
        found.value("novelty_at_k", 1)


@pytest.mark.parametrize("message", BAD)
def test_bad_input_ends_in_one_line(message: str, frame: pd.DataFrame) -> None:
    name, data, more = BAD[message](frame)
    with pytest.raises(SparkcfError, match=message) as caught:
        sparkcf.fit(name, data, **more)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_missing_folder_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no saved model"):
        sparkcf.load(tmp_path / "none")
    sparkcf.fit("popularity", frame).save(tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(LakeError, match="sha256"):
        sparkcf.load(tmp_path)
    with pytest.raises(InputError, match="test: no row"):
        sparkcf.fit("popularity", frame).evaluate(frame.iloc[:0])


def test_neither_import_nor_fit_loads_spark() -> None:
    code = """
import sys, sparkcf
assert not {"numpy", "pandas", "torch", "pyspark"} & set(sys.modules)
model = sparkcf.fit("als", ([1, 1, 2, 2, 3], [1, 2, 2, 3, 1]), rank=2, iterations=2)
net = sparkcf.fit("multvae", ([1, 1, 2, 2, 3], [1, 2, 2, 3, 1]), hidden=[4], latent_dim=2, epochs=1)
assert len(model.recommend(1, 1)) == len(net.recommend(1, 1)) == 1
assert not {"pyspark", "delta", "petastorm"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


REPEATED = pd.DataFrame(
    [
        ("a", "x", 1.0, 100.0, "view"),
        ("a", "x", 4.0, 300.0, "buy"),
        ("a", "x", 3.0, 200.0, "view"),
        ("a", "y", 5.0, 90_000.0, "view"),
        ("b", "x", 2.0, 100.0, "buy"),
    ],
    columns=["user_id", "item_id", "value", "ts", "event"],
)
PREFERENCES = [
    {},
    {"positive_from": 3},
    {"weight": "value"},
    {"weight": "log", "max_weight": 1.5},
    {"weight": "event"},
    {"half_life_days": 0.5},
    {"half_life_days": 0.5, "weight": "event"},
]


@pytest.mark.parametrize("kind", ["positives", "values"])
def test_pairs_have_the_values_and_weights_of_the_jobs(spark: SparkSession, kind: str) -> None:
    frame = checked_frame(REPEATED)
    users, items = Ids.of(frame.user_id), Ids.of(frame.item_id)
    at = users.index(frame.user_id), items.index(frame.item_id)
    rows = frame.assign(user_idx=at[0].astype("int32"), item_idx=at[1].astype("int32"))
    rows["ts"] = pd.to_datetime(rows.ts, unit="s", utc=True)
    on_spark = spark.createDataFrame(rows[["user_idx", "item_idx", "event", "value", "ts"]]).cache()
    for preference in PREFERENCES:
        section = {"path": "x", "events": {"view": 1.0, "buy": 3.0}}
        given = {"ds": "1970-01-02", "input": section, "preference": preference}
        config = config_class().model_validate(given)
        ours = pairs_of(events_of(frame, *at, config), Reads(kind), config, 2, 2)
        theirs = spark_pairs(on_spark, Reads(kind), config).toPandas().sort_values(["user_idx", "item_idx"])
        assert ours.users.tolist() == theirs.user_idx.tolist() and ours.items.tolist() == theirs.item_idx.tolist()
        np.testing.assert_allclose(ours.values, theirs.value, rtol=1e-5, err_msg=str(preference))
        if "weight" in theirs:
            np.testing.assert_allclose(ours.weights, theirs.weight, rtol=1e-5)
        else:
            assert ours.weights is None
    on_spark.unpersist()


def test_als_on_a_frame_has_the_factors_of_als_on_spark(spark: SparkSession, frame: pd.DataFrame) -> None:
    ours = sparkcf.fit("als", frame, seed=7, solver="cholesky", workers=1, **SMALL)
    config = load_config((), ["ds=1970-01-01", "input.path=none", "als.solver=cholesky", "als.workers=1"])
    params = config.als.model_copy(update=SMALL)
    columns = {"user_idx": ours.data.users, "item_idx": ours.data.items, "value": ours.data.values}
    pairs = spark.createDataFrame(pd.DataFrame(columns), "user_idx int, item_idx int, value float")
    theirs = fit_on_spark(pairs, len(ours.users), len(ours.items), params, 7)
    try:
        for side, factors in (("user", theirs.user_factors), ("item", theirs.item_factors)):
            expected = np.array([row["factor"] for row in factors.orderBy("idx").collect()])
            np.testing.assert_allclose(ours.factors(side).to_numpy(), expected, atol=1e-4)
        assert ours.log[-1]["objective"] == pytest.approx(theirs.log[-1]["objective"], rel=1e-5)
    finally:
        theirs.release()
