"""Folding users in, on a lake of a dozen: the training's own half-sweep, and nobody touched who need not be."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf import Lake as Reader
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.inputs import Inputs
from sparkcf.data.pairs import pairs
from sparkcf.errors import ConfigError, LakeError, NotFoundError, TrainingError
from sparkcf.jobs.fold_in import SOLVED, counted, fold_in_users
from sparkcf.jobs.frame import run_job
from sparkcf.jobs.nightly import nightly
from sparkcf.jobs.recommend import recommend_run
from sparkcf.jobs.train import train_model
from sparkcf.lake.factors import of_run
from sparkcf.lake.published import append_published
from sparkcf.lake.runs import find_run
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.models.als.fit import fit
from sparkcf.models.registry import model_of
from tests.models.als.dense_als import Problem, solve_users, with_defaults

pytestmark = pytest.mark.slow

BEFORE, DAY = dt.date(2024, 1, 30), dt.date(2024, 1, 31)
N, M = 12, 8  # users u0 … u11 and items i0 … i7 of the first day
OLD = {(f"u{u}", f"i{i}"): float(1 + (u * i + u) % 5) for u in range(N) for i in range(M) if (u + 2 * i) % 5 < 3}
ADDED = {  # the second day; nobody had an item named fresh before
    **{("new", item): 5.0 for item in ("i0", "i2", "i4")},
    ("u1", "i1"): 4.0,
    ("u2", "fresh"): 5.0,
    ("lost", "fresh"): 5.0,
}
GONE, REVALUED = "u3", ("u4", "i3")  # what a corrected load of the first day takes away, and what it changes
FORCED = {"u6", "u7", "u8"}  # nothing of theirs changes, but their vectors are taken away
CORRECTED = {pair: value for pair, value in OLD.items() if pair[0] != GONE} | {REVALUED: 6.0 - OLD[REVALUED]}
FORMS = {
    "ials": ("als.regularization=0.05",),
    "explicit": ("als.mode=explicit", "als.biases=true", "als.regularization=0.05"),
    "fm": ("model=fm", "fm.learner=als", "fm.rank=2", "fm.iterations=8"),
    "popularity": ("model=popularity",),
    "multdae": ("model=multdae", "multdae.latent_dim=3", "multdae.epochs=3", "multdae.workers=1"),
    "bivae": ("model=bivae", "bivae.latent_dim=3", "bivae.epochs=3", "bivae.workers=1"),
}
ENCODED = {"multdae", "bivae"}  # by an encoder, which is the same in training and later
EXPECTED = {  # users that are solved on the second day
    "ials": {"new", "u1", "u2", *FORCED},
    "explicit": {"new", "u1", "u2", "u4", *FORCED},  # a rating counts, not only that there is one
    "fm": {"new", "u1", "u2", "u4", *FORCED},
    "popularity": {"new", "u1", "u2", *FORCED},
    "multdae": {"new", "u1", "u2", *FORCED},
    "bivae": {"new", "u1", "u2", *FORCED},
}
COUNTED = ("read", "clean", "exact_duplicates", "superseded", "quarantined")
Vectors = dict[str, tuple[list[float], float]]


@dataclass(frozen=True)
class Lake:
    root: Path
    runs: dict[str, str]  # by form, of the first day

    def arguments(self, form: str, *overrides: str, ds: dt.date = DAY) -> list[str]:
        given = f"""ds={ds} lake.root={self.root} input.path=none als.rank=3 als.iterations=4 als.workers=1 topk.k=4
            als.solver=cholesky
            evaluation.protocol=q2 evaluation.ks=[4] evaluation.min_user_items=2 evaluation.bootstrap=5 gate.at=4"""
        return [*given.split(), *FORMS[form], *overrides]

    def config(self, form: str, *overrides: str, ds: dt.date = DAY) -> Config:
        return load_config((), self.arguments(form, *overrides, ds=ds))

    def tables(self, spark: SparkSession) -> LakeTables:
        return LakeTables(spark, str(self.root))

    def vectors(self, spark: SparkSession, run_id: str, side: str = "user") -> Vectors:
        rows = self.tables(spark).read(f"{side}_factors").where(F.col("run_id") == run_id).collect()
        assert len({row[f"{side}_idx"] for row in rows}) == len(rows)
        return {row[f"{side}_id"]: (row["factor"], row["bias"]) for row in rows}

    def index(self, spark: SparkSession, side: str) -> dict[str, int]:
        return {row[f"{side}_id"]: row[f"{side}_idx"] for row in self.tables(spark).read(f"{side}s").collect()}


def write(tables: LakeTables, values: dict[dt.date, dict[tuple[str, str], float]]) -> None:
    """Make these the interactions, by day; new users and items get the next indices."""
    noon = {day: dt.datetime(day.year, day.month, day.day, 12) for day in values}
    rows = [(*pair, "rating", value, noon[day], "log", day) for day in values for pair, value in values[day].items()]
    names = ["user_id", "item_id", "event", "value", "ts", "source", "ds"]
    events = tables.spark.createDataFrame(rows, names)
    absent = {name: F.lit(None) for name in ("context", "replaced")}
    tables.replace("interactions", events.withColumns(absent), "true")
    for column, side in enumerate(("user", "item")):
        known = {row[0] for row in tables.read(f"{side}s").collect()}
        ids = list(dict.fromkeys(row[column] for row in rows if row[column] not in known))
        given = [(id_, len(known) + n, noon[max(noon)]) for n, id_ in enumerate(ids)]
        frame = tables.spark.createDataFrame(given, f"{side}_id string, {side}_idx int, first_seen timestamp")
        attributes = (f for f in TABLES[f"{side}s"].schema.fields if f.name not in frame.columns)
        tables.append(f"{side}s", frame.select("*", *(F.lit(None).cast(f.dataType).alias(f.name) for f in attributes)))


@pytest.fixture(scope="module")
def first(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """One run of each form, trained on the first day; of ALS the implicit one is published."""
    lake = Lake(tmp_path_factory.mktemp("fold-in") / "lake", {})
    tables = lake.tables(spark)
    write(tables, {BEFORE: OLD})
    for form in FORMS:
        config = lake.config(form, ds=BEFORE)
        lake.runs[form] = train_model(spark, config)["run_id"]
    append_published(tables, "als", BEFORE, lake.runs["ials"], "publish", 1)
    return lake


@pytest.fixture(scope="module")
def lake(spark: SparkSession, first: Lake) -> Lake:
    """The second day: someone new, someone changed, someone lost, someone gone, and some who are to be solved again."""
    second = Lake(Path(shutil.copytree(first.root, first.root.parent / "second")), first.runs)
    tables = second.tables(spark)
    write(tables, {BEFORE: CORRECTED, DAY: ADDED})
    tables.replace("user_factors", tables.read("user_factors").where(~F.col("user_id").isin(*FORCED)), "true")
    return second


@pytest.fixture(scope="module")
def folded(spark: SparkSession, lake: Lake) -> dict[str, dict[str, Any]]:
    """What the job tells, by form. The first is on the published run, and is given another rank than its run's."""
    given = {form: f"run_id={run_id}" for form, run_id in lake.runs.items()} | {"ials": "als.rank=5"}
    return {form: fold_in_users(spark, lake.config(form, given[form])) for form in FORMS}


@pytest.fixture
def own(lake: Lake, folded: dict[str, Any], tmp_path: Path) -> Lake:
    """A copy of the lake, with the runs of `folded`, that a test may change."""
    return Lake(Path(shutil.copytree(lake.root, tmp_path / "lake")), lake.runs)


def now_of(user: str) -> dict[str, float]:
    """A user's items that the run knows, on the second day."""
    return {item: value for (name, item), value in (CORRECTED | ADDED).items() if name == user and item != "fresh"}


@pytest.mark.parametrize("form", ["ials", "explicit"])
def test_folding_trained_users_in_again_is_the_half_sweep_of_training(spark, first, lake, folded, form: str) -> None:
    tables, run_id = first.tables(spark), first.runs[form]
    config = first.config(form, f"run_id={run_id}", ds=BEFORE)
    vector = F.concat("factor", F.array("bias")) if config.als.biases else F.col("factor")
    starts = {
        side: tables.read(f"{side}_factors").where(of_run("als", run_id)).select(f"{side}_idx", vector)
        for side in ("user", "item")
    }
    starts = {side: frame.toDF("idx", "factor") for side, frame in starts.items()}
    events = Inputs(tables, find_run(tables, config, ("trained",)).row["inputs"]).events(config.ds)
    one = with_defaults(config.als, iterations=1)  # users are solved first, against the items of the start
    swept = fit(pairs(events, model_of(config).reads, config), N, M, one, 1, starts)
    names = {index: user for user, index in first.index(spark, "user").items()}
    expected = {names[row["idx"]]: [*row["factor"], row["bias"]] for row in swept.user_factors.collect()}
    swept.release()
    trained, found = first.vectors(spark, run_id), lake.vectors(spark, folded[form]["run_id"])
    for user in FORCED:
        factor, bias = found[user]
        np.testing.assert_allclose([*factor, bias], expected[user], rtol=1e-5, atol=1e-6)
        assert np.abs(np.subtract(factor, trained[user][0])).max() > 1e-4  # training solved the items once more


@pytest.mark.parametrize("form", ["ials", "explicit"])
def test_new_and_changed_users_have_the_exact_solution_of_their_rows(spark, lake: Lake, folded, form: str) -> None:
    base = lake.vectors(spark, lake.runs[form], "item")
    assert set(base) == {f"i{i}" for i in range(M)}
    q, c = (np.array([base[f"i{i}"][part] for i in range(M)], float) for part in (0, 1))
    users = sorted(EXPECTED[form])
    rows = [now_of(user) for user in users]
    # Everyone of the first day stands in the problem as well, so that all items do.
    everyone = [{i: v for (u, i), v in OLD.items() if u == f"u{n}"} for n in range(N)]
    values = np.array([[row.get(f"i{i}", 0.0) for i in range(M)] for row in [*rows, *everyone]])
    config = lake.config(form).als
    mean = float(np.mean(list(OLD.values()))) if config.biases else 0.0
    seen = values > 0
    p, b = solve_users(Centred(values - mean if form == "explicit" else np.ones_like(values), seen, config), q, c)
    found = lake.vectors(spark, folded[form]["run_id"])
    for number, user in enumerate(users):
        np.testing.assert_allclose(found[user][0], p[number], rtol=1e-4, atol=1e-5, err_msg=user)
        assert found[user][1] == pytest.approx(b[number], rel=1e-4, abs=1e-5)


class Centred(Problem):
    """A problem whose values have had their mean taken off."""

    @property
    def mean(self) -> float:
        return 0.0


@pytest.mark.parametrize("form", FORMS)
def test_only_users_whose_pairs_differ_are_solved(spark, first: Lake, lake: Lake, folded, form: str) -> None:
    before, after = first.vectors(spark, lake.runs[form]), lake.vectors(spark, folded[form]["run_id"])
    solved = EXPECTED[form]
    assert before.keys() == {f"u{u}" for u in range(N)}
    assert after.keys() == (before.keys() | {"new"}) - {GONE}  # "lost" has no item that the run knows
    for user in after.keys() - solved:
        assert after[user] == before[user]  # every bit of it
    if form == "popularity":
        assert set(map(str, after.values())) == {"([1.0], 0.0)"}
    elif form in ENCODED:  # only u1 has another row to encode
        for user in solved & before.keys():
            same = np.allclose(after[user][0], before[user][0], atol=1e-6)
            assert same == (user != "u1"), user
    else:
        assert all(after[user] != before[user] for user in solved & before.keys())
    items, kept = (lake.vectors(spark, run, "item") for run in (lake.runs[form], folded[form]["run_id"]))
    new = {"fresh"} if form == "bivae" else set()  # its item encoder has a vector for an item that nobody had before
    assert kept.keys() == items.keys() | new and {item: kept[item] for item in items} == items
    assert folded[form]["counts"] == {
        "users_folded_in": len(solved),
        "users_kept": N - 1 - len(solved - {"new"}),
        "users_without_known_items": 1,
        "items": M + len(new),
    }


@pytest.mark.parametrize("form", sorted(ENCODED))
def test_a_folded_run_of_a_net_is_recommended_though_items_were_added(spark, own: Lake, folded, form: str) -> None:
    """The stored weights have the sizes of the run that was trained."""
    named = own.config(form, f"run_id={folded[form]['run_id']}", "topk.similar_items=0")
    assert recommend_run(spark, named)["counts"]["users_fallback"] == 2


def test_bivae_folds_in_night_after_night_though_its_encoders_know_the_first_days_ids_alone(
    spark, own: Lake, folded
) -> None:
    run_id, third = folded["bivae"]["run_id"], DAY + dt.timedelta(days=1)
    added = {("new", "later"): 5.0, ("lost", "later"): 5.0, ("u5", "later"): 5.0, ("new", "alone"): 5.0}
    write(own.tables(spark), {BEFORE: CORRECTED, DAY: ADDED, third: added})
    again = fold_in_users(spark, own.config("bivae", f"run_id={run_id}", ds=third))
    before, after = (own.vectors(spark, run) for run in (run_id, again["run_id"]))
    np.testing.assert_allclose(after["new"][0], before["new"][0], rtol=1e-5)  # newer items do not count in a row
    assert again["counts"]["users_without_known_items"] == 1 and "lost" not in after
    items = own.vectors(spark, again["run_id"], "item")
    assert {"fresh", "later"} <= items.keys() and "alone" not in items  # which nobody of the training has


def test_the_run_tells_what_it_stands_on(spark, lake: Lake, folded) -> None:
    tables = lake.tables(spark)
    rows = {row["run_id"]: row for row in tables.read("runs").collect()}
    for form, told in folded.items():
        row, base = rows[told["run_id"]], rows[lake.runs[form]]
        stored = json.loads(row["config"])
        assert (row["job"], row["state"], row["ds"], row["model"]) == ("fold_in", "trained", DAY, base["model"])
        assert told["base_run_id"] == stored["run_id"] == base["run_id"]
        assert stored["als"] == json.loads(base["config"])["als"]  # whatever the job was given
        assert row["counts"] == told["counts"]
        names = ("interactions", "users", "items")
        assert {name: row["inputs"][name] for name in names} == {name: tables.version(name) for name in names}
        assert base["inputs"]["interactions"] < row["inputs"]["interactions"]


def test_a_folded_run_is_recommended_and_stood_on_like_any(spark, lake: Lake, first: Lake, own: Lake, folded) -> None:
    names = ("published", "recommendations")
    assert [lake.tables(spark).version(n) for n in names] == [first.tables(spark).version(n) for n in names]
    run_id, config = folded["ials"]["run_id"], own.config("ials", "topk.similar_items=0")
    named = config.model_copy(update={"run_id": run_id})
    assert recommend_run(spark, named)["counts"]["users_fallback"] == 2  # the lost one, and the one who is gone
    rows = own.tables(spark).read("recommendations").where(F.col("run_id") == run_id).collect()
    lists = {user: [row for row in rows if row["user_id"] == user] for user in ("new", "lost")}
    assert {row["reason"] for row in lists["new"]} == {"model"} and len(lists["new"]) == 4
    assert not {row["item_id"] for row in lists["new"]} & {"i0", "i2", "i4", "fresh"}
    assert {row["reason"] for row in lists["lost"]} == {"fallback"} and len(lists["lost"]) == 4
    append_published(own.tables(spark), "als", DAY, run_id, "publish", 1)
    again = fold_in_users(spark, config)  # on a run that was folded in itself: nobody changed since
    assert again["base_run_id"] == run_id
    assert again["counts"] == {"users_folded_in": 0, "users_kept": N, "users_without_known_items": 1, "items": M}
    assert own.vectors(spark, again["run_id"]) == own.vectors(spark, run_id)


def test_a_night_may_fold_in_instead_of_training(spark, own: Lake, monkeypatch) -> None:
    monkeypatch.setattr("sparkcf.jobs.nightly.clean_day", lambda *_: {"counts": dict.fromkeys(COUNTED, 0)})
    monkeypatch.setattr("sparkcf.jobs.nightly.train_model", lambda *_: pytest.fail("trained"))
    told = nightly(spark, own.config("ials", "night=fold_in", "gate.max_fall=1", "gate.allow_below_popularity=true"))
    reader = Reader(own.root)
    assert reader.published("als").run_id == told["run_id"] != own.runs["ials"]
    assert set(reader.recommendations("new", 4, model="als")["reason"]) == {"model"}
    (row,) = own.tables(spark).read("runs").where(F.col("run_id") == told["run_id"]).collect()
    assert (row["job"], row["state"]) == ("fold_in", "published")


def test_bases_that_cannot_be_are_refused_in_a_line(spark, own: Lake, capsys) -> None:
    tables = own.tables(spark)
    runs = tables.read("runs").count()
    with pytest.raises(NotFoundError, match=r"no run 'nothing' of model als: the newest are"):
        fold_in_users(spark, own.config("ials", "run_id=nothing"))
    with pytest.raises(ConfigError, match=r"ds=2024-01-29 is before run .* set ds=2024-01-30 or later"):
        fold_in_users(spark, own.config("ials", ds=dt.date(2024, 1, 29)))
    tables.replace("metrics", tables.read("metrics").where("metric <> 'mean'"), "true")
    with pytest.raises(LakeError, match=r"its mean was not stored: run jobs/train\.py"):
        fold_in_users(spark, own.config("explicit", f"run_id={own.runs['explicit']}"))
    tables.replace("item_factors", tables.read("item_factors").where("model <> 'als'"), "true")
    with pytest.raises(LakeError, match=r"has no item factors in .*: name another by run_id=…"):
        fold_in_users(spark, own.config("ials"))
    tables.replace("published", tables.read("published").where("false"), "true")
    code = run_job("fold_in", fold_in_users, own.arguments("ials"))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, told["status"]) == (1, "NotFoundError")
    assert "no run of model als is published" in told["error"] and "or name a trained run by run_id=…" in told["error"]
    assert tables.read("runs").count() == runs


def test_a_failure_is_written_with_the_run(spark, own: Lake, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise TrainingError("user row 1 is not finite")

    monkeypatch.setattr("sparkcf.jobs.fold_in.counted", fail)
    with pytest.raises(TrainingError):
        fold_in_users(spark, own.config("ials"))
    rows = own.tables(spark).read("runs").where("job = 'fold_in' AND state = 'failed'").collect()
    assert [row["reason"] for row in rows] == ["TrainingError: user row 1 is not finite"]
    assert not own.vectors(spark, rows[0]["run_id"])


@pytest.mark.parametrize(("number", "bias"), [("inf", 0.0), ("nan", 0.0), ("1", float("nan"))])
def test_vectors_that_are_not_finite_are_named(spark, first: Lake, number: str, bias: float) -> None:
    rows = [(3, [0.5, 1.0], 0.0, True), (2, [0.5, float(number)], bias, False), (4, None, 0.0, False)]
    with pytest.raises(TrainingError, match=r"user row 2 is not finite: raise als\.regularization"):
        counted(spark.createDataFrame(rows, SOLVED), first.config("ials"))
