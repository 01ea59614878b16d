"""Machines with fields of users and of the moment, from the raw files to lists, predictions and vectors folded in."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.inputs import Inputs
from sparkcf.data.pairs import in_their_moments, pairs
from sparkcf.errors import ConfigError, InputError
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.evaluate import evaluate_run
from sparkcf.jobs.fold_in import fold_in_users
from sparkcf.jobs.predict import predict_pairs
from sparkcf.jobs.recommend import recommend_run
from sparkcf.jobs.train import train_model
from sparkcf.lake.runs import find_run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.fm.features import features_of
from sparkcf.models.fm.rows import make_plan
from sparkcf.models.registry import model_of

pytestmark = pytest.mark.slow

DAY = dt.date(2024, 1, 31)
USERS, ITEMS = [f"u{n:02}" for n in range(24)], [f"i{n}" for n in range(8)]
Q3 = ("evaluation.protocol=q3", "evaluation.holdout_share=0.2")
FIELDS = [
    {"name": "user", "of": "user"},
    {"name": "item", "of": "item"},
    {"name": "job", "of": "attribute", "column": "job", "table": "users"},
    {"name": "age", "of": "number", "column": "age", "table": "users"},
    {"name": "device", "of": "attribute", "column": "device", "table": "interactions"},
    {"name": "wait", "of": "number", "column": "wait", "table": "interactions"},
    {"name": "hour", "of": "hour"},
    {"name": "weekday", "of": "weekday"},
    {"name": "before", "of": "previous"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of ratings on a phone or a tv, which likes the later items better; users of two jobs."""
    folder = tmp_path_factory.mktemp("moments")
    rng = np.random.default_rng(5)
    lines = []
    for n, user in enumerate(USERS):
        for place, item in enumerate(rng.permutation(len(ITEMS))[:5]):
            tv, at = bool(rng.random() < 0.5), dt.datetime(2024, 1, 1 + place * 3, int(rng.integers(24)), n)
            value = 3 + (2.0 if tv else -2.0) * (item / 4 - 1) + (n % 2) + 0.1 * rng.normal()
            row = {"user_id": user, "item_id": ITEMS[item], "ts": f"{at:%Y-%m-%dT%H:%M:%S}", "value": round(value, 3)}
            lines.append(row | {"device": "tv" if tv else " phone ", "wait": int(rng.integers(9)), "noise": 1})
    lines[0] |= {"device": "", "wait": "long"}
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    people = [f"{user},{'cook' if n % 2 else 'pilot'},{20 + n}" for n, user in enumerate(USERS)]
    (folder / "users.csv").write_text(
        "id,job,age\n" + "\n".join([*people, "new,cook,33", "odd,,x", "u00,baker,"]) + "\n"
    )
    return folder


def configured(folder: Path, *overrides: str) -> Config:
    return load_config(
        (),
        [
            f"ds={DAY}",
            f"lake.root={folder}/lake",
            f"input.path={folder}/log.jsonl",
            "input.format=jsonl",
            "input.columns={value: value, context: [device, wait]}",
            f"input.users={{path: {folder}/users.csv, columns: {{user_id: id, attributes: [job], numbers: [age]}}}}",
            "model=fm",
            f"fm.fields={json.dumps(FIELDS)}",
            "fm.pairs=[[user, item], [item, device], [item, before], [job, item]]",
            "fm.rank=4",
            "fm.iterations=40",
            "fm.burn_in=10",
            "fm.samples=4",
            "fm.workers=1",
            "topk.k=3",
            "topk.similar_items=0",
            "preference.positive_from=3",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def lake(spark: SparkSession, folder: Path) -> Iterator[LakeTables]:
    clean_day(spark, configured(folder))
    yield LakeTables(spark, f"{folder}/lake")


@pytest.fixture(scope="module")
def run_id(spark: SparkSession, folder: Path, lake: LakeTables) -> str:
    return str(train_model(spark, configured(folder))["run_id"])


def test_what_the_input_says_of_users_and_moments_is_in_the_lake(lake) -> None:
    rows = {(r["user_id"], r["item_id"]): r["context"] for r in lake.read("interactions").collect()}
    assert len(rows) == 5 * len(USERS)
    assert {context.get("device") for context in rows.values()} == {"tv", "phone", None}
    assert sum("device" not in context for context in rows.values()) == 1
    users = {r["user_id"]: (r["attributes"], r["numbers"]) for r in lake.read("users").collect()}
    assert users["u01"] == ({"job": "cook"}, {"age": 21.0})
    assert users["new"] == ({"job": "cook"}, {"age": 33.0})
    assert users["odd"] == ({}, {"age": None})
    assert users["u00"] == ({"job": "pilot"}, {"age": 20.0})  # of two rows of one id the larger texts


def test_a_second_load_changes_nothing_and_another_context_does(spark, folder, lake) -> None:
    again = clean_day(spark, configured(folder))["counts"]
    assert (again["inserted"], again["updated"], again["unchanged"]) == (0, 0, 5 * len(USERS))
    fewer = clean_day(spark, configured(folder, "input.columns.context=[device]"))["counts"]
    assert fewer["updated"] == 5 * len(USERS)
    assert clean_day(spark, configured(folder))["counts"]["updated"] == 5 * len(USERS)


def test_a_missing_column_is_named(spark, folder, tmp_path) -> None:
    with pytest.raises(InputError, match=r"input column 'shoe' \(input\.users\.columns\.attributes\) is missing"):
        clean_day(spark, configured(folder, "input.users.columns.attributes=[shoe]", f"lake.root={tmp_path}"))
    plain = tmp_path / "log.csv"
    plain.write_text("user_id,item_id,ts\na,b,2024-01-01\n")
    given = (
        f"input.path={plain}",
        "input.format=csv",
        "input.columns={value: null, context: [device]}",
        f"lake.root={tmp_path}/l",
    )
    with pytest.raises(InputError, match=r"input column 'device' \(input\.columns\.context, device\) is missing"):
        clean_day(spark, configured(folder, *given))


def test_pairs_have_the_moment_of_their_last_event(spark) -> None:
    at = dt.datetime(2024, 1, 1, 5)
    rows = [
        (0, 4, "r", 1.0, at, {"device": "tv"}),
        (0, 4, "r", 2.0, at + dt.timedelta(hours=3), {"device": "phone"}),
        (0, 7, "r", 3.0, at + dt.timedelta(hours=1), None),
        (1, 7, "r", 5.0, at, {"b": "2", "a": "1"}),
    ]
    schema = "user_idx int, item_idx int, event string, value double, ts timestamp, context map<string,string>"
    found = {(r[0], r[1]): r for r in in_their_moments(spark.createDataFrame(rows, schema)).collect()}
    assert len(found) == 3
    last = found[0, 4]
    assert (last["value"], last["context"], last["previous"]) == (2.0, {"device": "phone"}, 7)
    assert (found[0, 7]["context"], found[0, 7]["previous"]) == (None, None)
    assert found[1, 7]["context"] == {"a": "1", "b": "2"}


def test_rows_have_the_features_of_their_moment(spark, folder, lake, run_id) -> None:
    config = configured(folder)
    run = find_run(lake, config.model_copy(update={"run_id": run_id}), ("trained", "recommended", "evaluated"))
    trained = pairs(Inputs(lake, run.row["inputs"]).events(config.ds), model_of(config).reads, config)
    data = TrainingData(trained, 26, 8, *(lake.read(name) for name in ("users", "items", "features")))
    features = features_of(data, config.fm)
    sizes = {f.name: f.size for f in features.fields}
    assert sizes == {
        "user": 26, "item": 8, "job": 2, "age": 1, "device": 2, "wait": 1, "hour": 24, "weekday": 7, "before": 8,
    }  # fmt: skip
    starts = dict(zip(sizes, make_plan(config.fm, features.fields, 26, 8, 0, 1).starts(), strict=True))
    devices = {r["value"]: n for n, r in enumerate(lake.read("features").where("field = 'interactions.device'")
                                                   .orderBy("feature_idx").collect())}  # fmt: skip
    rows = features.in_context(trained).join(trained.select("user_idx", "item_idx", "ts", "context", "previous"),
                                             on=["user_idx", "item_idx"]).collect()  # fmt: skip
    mean, sd = features.scales[5]
    for row in rows:
        has = {e["feat"]: e["val"] for e in row["moment"]}
        expected = {starts["hour"] + row["ts"].hour: 1.0, starts["weekday"] + row["ts"].weekday(): 1.0}
        if device := row["context"].get("device"):
            expected[starts["device"] + devices[device]] = 1.0
        if row["context"].get("wait") != "long":
            expected[starts["wait"]] = pytest.approx((float(row["context"]["wait"]) - mean) / sd, abs=1e-6)
        if row["previous"] is not None:
            expected[starts["before"] + row["previous"]] = 1.0
        assert has == expected
    ages = [e["val"] for r in features.user.collect() for e in r["features"] if e["feat"] == starts["age"]]
    assert len(ages) == 25 and abs(np.mean(ages)) < 1e-6 and np.std(ages) == pytest.approx(1, abs=1e-5)


def test_lists_are_made_for_the_moment_that_is_asked_for(spark, folder, lake) -> None:
    config = configured(folder, "fm.context={device: phone}", "topk.exclude_seen=false")
    run_id = train_model(spark, config)["run_id"]
    recommend_run(spark, config.model_copy(update={"run_id": run_id}))
    lists = lake.read("recommendations").where(F.col("run_id") == run_id).collect()
    assert {row["reason"] for row in lists} == {"model"}  # a user without events has attributes
    assert np.mean([int(row["item_id"][1:]) for row in lists]) < 2


def test_ratings_of_the_training_are_predicted_nearly(spark, folder, lake, run_id, tmp_path) -> None:
    """Only where every row is given its own moment."""
    rows = lake.read("interactions").select("user_id", "item_id", "ts", "value", "context.device", "context.wait")
    rows.write.parquet(f"{tmp_path}/asked.parquet")
    counts = predict_pairs(spark, configured(folder, f"predict.path={tmp_path}/asked.parquet", f"run_id={run_id}"))
    assert counts["counts"]["pairs"] == 5 * len(USERS)
    found = {(r["user_id"], r["item_id"]): r["value"] for r in lake.read("predictions").collect()}
    errors = [found[r["user_id"], r["item_id"]] - r["value"] for r in rows.collect()]
    assert np.sqrt(np.mean(np.square(errors))) < 0.4


def test_predictions_take_the_moment_from_the_table(spark, folder, lake, run_id, tmp_path) -> None:
    asked = tmp_path / "asked.csv"
    rows = ["u01,i7,tv,2024-01-20T08:00:00", "u01,i7,phone,2024-01-20T08:00:00", "u01,i7,fridge,", "who,i7,tv,"]
    asked.write_text("user_id,item_id,device,ts\n" + "\n".join([*rows, "u01,i99,tv,", "new,i0,tv,", rows[0]]) + "\n")
    config = configured(folder, f"predict.path={asked}", f"run_id={run_id}")
    counts = predict_pairs(spark, config)["counts"]
    assert counts == {
        "pairs": 6, "unknown_users": 1, "unknown_items": 1, "unknown_values": 1, "without_id": 0, "duplicates": 1,
    }  # fmt: skip
    found = {
        (r["user_id"], r["item_id"], (r["context"] or {}).get("device")): r for r in lake.read("predictions").collect()
    }
    assert found["u01", "i7", "tv"]["value"] > 4.5 > 3.5 > found["u01", "i7", "phone"]["value"]
    assert found["u01", "i7", "tv"]["sd"] > 0
    assert found["u01", "i7", "tv"]["ts"] == dt.datetime(2024, 1, 20, 8)
    assert not found["who", "i7", "tv"]["known_user"] and found["new", "i0", "tv"]["known_user"]


def test_held_out_ratings_are_predicted_in_their_moments(spark, folder, lake, run_id) -> None:
    given = (
        "evaluation.protocol=q3",
        "evaluation.holdout_share=0.2",
        f"run_id={run_id}",
    )
    figures = evaluate_run(spark, configured(folder, *given))["figures"]
    assert figures["model:rmse"] < 0.8 * figures["popularity:rmse"]


def test_users_held_out_are_folded_in_with_what_they_have(spark, folder, lake, run_id) -> None:
    given = ("evaluation.protocol=q1", "evaluation.holdout_share=0.3", "evaluation.min_user_items=2")
    figures = evaluate_run(spark, configured(folder, *given, f"run_id={run_id}"))["figures"]
    assert 0 < figures["model:ndcg_at_k@10"] <= 1


def test_vectors_of_unchanged_users_stay_and_changed_ones_are_near(spark, folder, lake, run_id) -> None:
    config = configured(folder, f"run_id={run_id}")
    folded = fold_in_users(spark, config)
    known_by_attributes = 2  # users of the table of users who have no event
    assert folded["counts"]["users_kept"] == len(USERS) + known_by_attributes
    assert folded["counts"]["users_folded_in"] == 0 and folded["counts"]["users_without_known_items"] == 0


def test_fields_and_moments_that_do_not_fit_are_refused_in_a_line(spark, folder, lake) -> None:
    def refused(match: str, *overrides: str) -> None:
        with pytest.raises(ConfigError, match=match):
            train_model(spark, configured(folder, "fm.pairs=null", *overrides))

    shoe = [*FIELDS[:2], {"name": "shoe", "of": "attribute", "column": "shoe", "table": "users"}]
    refused(
        r"no user has shoe: give it in input\.users\.columns\.attributes, or drop shoe", f"fm.fields={json.dumps(shoe)}"
    )
    size = [*FIELDS[:2], {"name": "size", "of": "number", "column": "size", "table": "interactions"}]
    refused(r"no event has a number 'size': give it in input\.columns\.context", f"fm.fields={json.dumps(size)}")
    refused(r"fm\.context\.device='fridge' is not a known value", "fm.context={device: fridge}")
    refused(r"context names 'job', which is no context field", "fm.context={job: cook}")
    refused(r"context gives 24\.0 for hour", "fm.context={hour: 24}")


def test_descent_learns_the_moments_too(spark, folder, lake, tmp_path) -> None:
    sgd = (
        "fm.learner=sgd",
        "fm.sgd={epochs: 60, batch_size: 30, learning_rate: 0.02, workers: 1}",
        "fm.regularization=0.1",
    )
    config = configured(folder, *sgd, "fm.context={device: tv}", "topk.exclude_seen=false")
    done = train_model(spark, config)
    recommend_run(spark, config.model_copy(update={"run_id": done["run_id"]}))
    lists = lake.read("recommendations").where(F.col("run_id") == done["run_id"]).collect()
    assert np.mean([int(row["item_id"][1:]) for row in lists]) > 5
    logged = lake.read("metrics").where((F.col("run_id") == done["run_id"]) & (F.col("metric") == "loss")).count()
    assert logged == 60
    q3 = (
        "evaluation.protocol=q3",
        "evaluation.holdout_share=0.2",
        f"run_id={done['run_id']}",
    )
    figures = evaluate_run(spark, configured(folder, *sgd, *q3))["figures"]
    assert figures["model:rmse"] < figures["popularity:rmse"]
    assert lake.read("example_rows").select("snapshot").distinct().count() == 1  # that of the evaluation is gone


def test_a_user_with_first_events_is_folded_in_with_attributes(spark, folder, lake, run_id) -> None:
    """Who likes everything better than other cooks do, on a day after the training."""
    day = DAY + dt.timedelta(days=1)
    lines = [
        {"user_id": "new", "item_id": ITEMS[item], "ts": f"{day}T{item:02}:00:00", "device": device, "wait": 3}
        | {"value": 5.5 + (2.0 if device == "tv" else -2.0) * (item / 4 - 1)}
        for item, device in enumerate(["tv", "phone"] * 4)
    ]
    (folder / "next.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    config = configured(folder, f"ds={day}", f"input.path={folder}/next.jsonl")
    assert clean_day(spark, config)["counts"]["inserted"] == len(ITEMS)
    counts = (folded := fold_in_users(spark, config.model_copy(update={"run_id": run_id})))["counts"]
    assert (counts["users_folded_in"], counts["users_kept"]) == (1, len(USERS) + 1)
    scores = {}
    items = {r["item_idx"]: np.array(r["factor"]) for r in factors(lake, "item", run_id)}
    for run in (run_id, folded["run_id"]):
        vector = next(np.array(r["factor"]) for r in factors(lake, "user", run) if r["user_id"] == "new")
        scores[run] = np.mean([vector @ items[n] for n in range(len(ITEMS))])
    assert scores[run_id] + 0.3 < scores[folded["run_id"]] < 6.2


def factors(lake: LakeTables, side: str, run_id: str) -> list[Row]:
    return lake.read(f"{side}_factors").where(F.col("run_id") == run_id).collect()
