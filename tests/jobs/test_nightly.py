"""A whole night in one Spark session, on a part of the packaged sample: what the tables hold, what readers see."""

from __future__ import annotations

import csv
import gzip
import json
import random
import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import functions as F

import sparkcf
from sparkcf.cli.main import main as cli
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.inputs import newest_versions
from sparkcf.errors import ConflictError, NotFoundError, NothingNew
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.evaluate import evaluate_run, with_protocol
from sparkcf.jobs.finished import check_new
from sparkcf.jobs.frame import run_job
from sparkcf.jobs.nightly import nightly
from sparkcf.jobs.publish import publish_run, rollback
from sparkcf.jobs.recommend import recommend_run
from sparkcf.jobs.train import train_model
from sparkcf.lake.published import append_published
from sparkcf.lake.runs import find_run
from sparkcf.lake.tables import LakeTables

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CONF = str(ROOT / "conf" / "sample.yaml")
SAMPLE = Path(sparkcf.__file__).parent / "sample"
DAY, K = "2018-09-25", 10
# As users, as items and as titles: each must come out as it went in.
ODD = (
    '../../etc/passwd|\'; DROP TABLE users; --|<script>alert(1)</script>|=1+1|red\x1b[31mtext\x1b[0m!|say "hi"|a,b'
    "|--lake=elsewhere|${jndi:ldap://x}|{{ 7*7 }}|[bold]%s[/bold]|ünï—文字|`id` $(id)|C:\\new\\table"
).split("|")
AT_ALL_COSTS = "gate.allow_below_popularity=true"
SKIPPED = 3  # odd items that an odd user has not seen: what the model must find


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log.csv: 59 users of the sample, users and items with odd names, one who has seen everything, and a cold one.

    items.csv: their titles. shuffled.csv: the log with the items dealt anew to its rows.
    """
    folder = tmp_path_factory.mktemp("input")
    with gzip.open(SAMPLE / "ratings.csv.gz", "rt") as file:
        head, *rows = csv.reader(file)
    rows = [row for row in rows if int(row[0]) < 60 and int(row[1]) < 500]
    for u, user in enumerate(ODD):
        unseen = {(u + step) % len(ODD) for step in range(SKIPPED)}
        rows += [[user, item, "5.0", str(1_500_000_000 + i)] for i, item in enumerate(ODD) if i not in unseen]
    every = sorted({row[1] for row in rows})
    rows += [["everything", item, "4.0", "1500000000"] for item in every]
    rows += [["cold", item, "1.0", "1500000000"] for item in every[:2]]
    with open(SAMPLE / "movies.csv", newline="", encoding="utf-8") as file:
        movies = [row for row in csv.reader(file) if row[0] == "movieId" or int(row[0]) < 700]
    movies += [[item, item, "Odd|Comedy"] for item in ODD]
    items = [row[1] for row in rows]
    random.Random(0).shuffle(items)
    wrong = [[user, item, *rest] for (user, _, *rest), item in zip(rows, items, strict=True)]
    for name, table in (("log", [head, *rows]), ("shuffled", [head, *wrong]), ("items", movies)):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(table)
    with open(folder / "log.csv", "a") as file:
        file.write('1,"an item\nin two lines",5.0,1500000000\n')
    return folder


@dataclass(frozen=True)
class Night:
    lake: Path
    result: dict[str, Any]
    inputs: Path

    def arguments(self, *overrides: str) -> list[str]:
        given = f"""ds={DAY} lake.root={self.lake} input.path={self.inputs}/log.csv als.rank=8
            als.iterations=4 als.workers=1
            input.items.path={self.inputs}/items.csv topk.k={K} topk.similar_items=5 evaluation.protocol=q2
            evaluation.ks=[5,10] evaluation.bootstrap=10 gate.at=10"""
        return [*given.split(), *overrides]

    def config(self, *overrides: str) -> Config:
        return load_config((CONF,), self.arguments(*overrides))


@pytest.fixture(scope="module")
def night(spark, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The first night of a lake. Tests read it; those that write get a copy."""
    new = Night(tmp_path_factory.mktemp("night") / "lake", {}, inputs)
    return replace(new, result=nightly(spark, new.config()))


@pytest.fixture(scope="module")
def second(spark, night: Night, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The same day once more in a copy of the lake, job by job, up to where it would be published."""
    lake = shutil.copytree(night.lake, tmp_path_factory.mktemp("second") / "lake")
    again = Night(lake, {}, night.inputs)
    cleaned = clean_day(spark, again.config())
    settings = again.config("train.again=true")
    told = [function(spark, settings) for function in (train_model, evaluate_run, recommend_run)]
    assert len({done["run_id"] for done in told}) == 1
    return replace(again, result=told[0] | told[1] | {"counts": cleaned["counts"] | told[2]["counts"]})


@pytest.fixture
def ready(second: Night, tmp_path: Path) -> Night:
    """A lake of this test's own: one run is published, a second one waits for it."""
    return Night(shutil.copytree(second.lake, tmp_path / "lake"), second.result, second.inputs)


def read(spark, lake: Path, name: str, run_id: str | None = None) -> list[Any]:
    rows = LakeTables(spark, str(lake)).read(name)
    return (rows if run_id is None else rows.where(F.col("run_id") == run_id)).collect()


def lists(spark, night: Night, run_id: str | None = None) -> dict[str, list[Any]]:
    """By user the rows of the run, in order of their positions."""
    by_user = defaultdict(list)
    for row in sorted(read(spark, night.lake, "recommendations", run_id or night.result["run_id"])):
        by_user[row["user_id"]].append(row)
    return by_user


def versions(spark, lake: Path, *names: str) -> list[int]:
    return [LakeTables(spark, str(lake)).version(name) for name in names]


def job(night: Night, capsys, name: str, function, *overrides: str) -> dict[str, Any]:
    """Run a job as its file does; its last line of standard output."""
    code = run_job(name, function, ["--config", CONF, *night.arguments(*overrides)])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["exit_code"] == code
    return told


def served(lake: Path, users: list[str]) -> list[Any]:
    """What readers without Spark get: the run, and every user's rows as they are stored."""
    reader = sparkcf.Lake(lake)
    lists = {user: reader.recommend_rows(user, 1000, "als").to_pylist() for user in users}
    similar = {item: reader.similar_rows(item, 1000, "als").to_pylist() for item in ODD}
    return [reader.published("als").run_id, lists, similar]


def test_lists_agree_with_the_other_tables(spark, night: Night) -> None:
    users = {row["user_id"] for row in read(spark, night.lake, "users")}
    items = {row["item_id"] for row in read(spark, night.lake, "items")}
    seen, liked, warm = defaultdict(set), set(), set()
    for row in read(spark, night.lake, "interactions"):
        seen[row["user_id"]].add(row["item_id"])
        if row["value"] >= 4:
            liked, warm = liked | {row["item_id"]}, warm | {row["user_id"]}
    found = lists(spark, night)
    assert len(users) == 59 + len(ODD) + 2 and len(items) > len(liked) > 200
    for user in users:
        rows = found[user]
        listed = [row["item_id"] for row in rows]
        assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) == min(K, len(liked - seen[user]))
        assert len(set(listed)) == len(listed) and set(listed) <= items
        assert not set(listed) & seen[user]
        scores = [row["score"] for row in rows]
        assert np.isfinite(scores).all() and scores == sorted(scores, reverse=True)
        assert {row["reason"] for row in rows} <= {"model" if user in warm else "fallback"}
    assert found["everything"] == [] and found["cold"][0]["reason"] == "fallback"
    counts = night.result["counts"]
    assert (counts["users"], counts["recommendations"], counts["nan_scores"]) == (75, sum(map(len, found.values())), 0)
    assert counts["users_model"] == len(warm) - 1  # one has seen everything
    assert counts["users_fallback"] == len(users) - len(warm)


def test_similar_items_have_no_self_and_a_true_cosine(spark, night: Night) -> None:
    run_id = night.result["run_id"]
    vectors = {row["item_id"]: np.array(row["factor"]) for row in read(spark, night.lake, "item_factors", run_id)}
    rows = read(spark, night.lake, "similar_items", run_id)
    assert {row["item_id"] for row in rows} == set(vectors)
    for row in rows:
        a, b = vectors[row["item_id"]], vectors[row["similar_item_id"]]
        assert row["item_id"] != row["similar_item_id"] and -1.000001 <= row["score"] <= 1.000001
        assert row["score"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    nearest = [row["similar_item_id"] for row in rows if row["item_id"] == "=1+1"]
    assert set(nearest) <= set(ODD)


def test_the_run_and_its_figures_are_told(spark, night: Night) -> None:
    run_id = night.result["run_id"]
    runs = {row["job"]: row for row in read(spark, night.lake, "runs")}
    train = runs["train"]
    assert (train["run_id"], train["state"], runs["clean"]["state"]) == (run_id, "published", "cleaned")
    assert json.loads(train["config"]) == json.loads(night.config().to_json())
    assert (train["code_version"], train["seed"]) == (sparkcf.__version__, 42)
    names = ("interactions", "users", "items", "published")
    assert [train["inputs"][name] for name in names] == [*versions(spark, night.lake, *names[:3]), -1]
    assert train["counts"]["users_trained"] == train["counts"]["users_model"] + 1  # one has seen everything
    cleaned = runs["clean"]["counts"]
    assert cleaned["read"] == cleaned["clean"] + 2 and cleaned["reason:malformed_line"] == 2
    assert cleaned["clean"] == len(read(spark, night.lake, "interactions"))
    assert list(runs["clean"]["seconds"]) == ["clean", "write dense indices and quarantine", "write interactions"]
    steps = ("train", "write factors", "evaluate", "recommend", "find similar items", "publish")
    assert set(steps) <= train["seconds"].keys() and min(train["seconds"].values()) >= 0
    assert sum(train["seconds"][name] for name in steps) <= (train["ended_at"] - train["started_at"]).total_seconds()
    assert train["application_id"] == spark.sparkContext.applicationId
    assert versions(spark, night.lake, "runs") == [7]  # created; two rows with one and four changes: no more commits
    figures = sparkcf.Lake(night.lake).metrics()
    figures, warm = figures[figures.segment.isna()], figures[figures.segment == "warm"]
    at = figures[(figures.metric == "ndcg_at_k") & (figures.k == 10)].set_index("system")
    assert set(at.index) == {"model", "popularity"} and (at.lower <= at.value).all() and (at.value <= at.upper).all()
    assert set(warm.users) == {at.users["model"]} and "replicates" not in figures  # all who are tested have a vector
    assert night.result["figures"]["model:ndcg_at_k@10"] == pytest.approx(at.value["model"], abs=1e-6)
    objective = figures[figures.metric == "objective"].sort_values("k").value.tolist()
    assert len(objective) == 4 and objective == sorted(objective, reverse=True)


def test_odd_ids_and_titles_come_back_as_the_same_text(spark, night: Night, capsys) -> None:
    found, reader = lists(spark, night), sparkcf.Lake(night.lake)
    for u, user in enumerate(ODD):
        hidden = {ODD[(u + step) % len(ODD)] for step in range(SKIPPED)}
        assert {row["item_id"] for row in found[user][:SKIPPED]} == hidden
        answer = reader.recommendations(user, SKIPPED)
        assert set(answer.item_id) == set(answer.title) == hidden
        assert set(reader.history(user).item_id) == set(ODD) - hidden
        with pytest.raises(SystemExit) as ended:
            cli(["recommend", f"--user={user}", "--k=3", f"--lake={night.lake}", "--format=json"])
        assert ended.value.code == 0
        told = json.loads(capsys.readouterr().out)
        assert [row["item_id"] for row in told] == [row["title"] for row in told] == answer.item_id.tolist()
        with pytest.raises(SystemExit):
            cli(["recommend", f"--user={user}", f"--lake={night.lake}"])
        assert "\x1b" not in capsys.readouterr().out


def test_the_day_again_changes_no_row_and_no_version(spark, night: Night, second: Night) -> None:
    names = ("interactions", "users", "items")
    assert versions(spark, second.lake, *names) == versions(spark, night.lake, *names)
    for name in ("interactions", "users", "items", "quarantine"):
        assert sorted(map(str, read(spark, second.lake, name))) == sorted(map(str, read(spark, night.lake, name)))
    counts = second.result["counts"]
    assert counts["unchanged"] == counts["clean"] > counts["inserted"] + counts["updated"] + counts["deleted"] == 0


def test_a_finished_day_is_trained_again_only_for_a_reason(spark, night: Night, tmp_path: Path, capsys) -> None:
    done = Night(shutil.copytree(night.lake, tmp_path / "lake"), night.result, night.inputs)
    before = versions(spark, done.lake, "interactions", "user_factors", "recommendations", "published")
    told = job(done, capsys, "nightly", nightly)
    assert (told["exit_code"], told["status"]) == (5, "NothingNew") and night.result["run_id"] in told["error"]
    assert versions(spark, done.lake, "interactions", "user_factors", "recommendations", "published") == before
    tables = LakeTables(spark, str(done.lake))
    inputs = newest_versions(tables)
    with pytest.raises(NothingNew):
        check_new(tables, done.config("gate.max_fall=1", "train.progress=elsewhere", "multvae.hidden=[7]"), inputs)
    for setting in ("train.again=true", "als.rank=7", "topk.k=4", "seed=1", "train.window_days=9", "ds=2018-09-26"):
        check_new(tables, done.config(setting), inputs)
    check_new(tables, done.config(), inputs | {"interactions": inputs["interactions"] + 1})


def test_after_a_day_without_data_readers_keep_their_lists_and_runs_has_the_reason(
    spark, night: Night, tmp_path: Path, capsys
) -> None:
    quiet = Night(shutil.copytree(night.lake, tmp_path / "lake"), {}, night.inputs)
    before = served(night.lake, ["1", "cold"])
    (tmp_path / "header.csv").write_text("userId,movieId,rating,timestamp\n")
    for name, why in (("header.csv", "no rows"), ("never-written.csv", "never-written.csv cannot be read as csv")):
        told = job(quiet, capsys, "nightly", nightly, "ds=2018-09-26", f"input.path={tmp_path / name}")
        assert (told["exit_code"], told["status"]) == (2, "InputError") and why in told["error"]
        failed = [row for row in read(spark, quiet.lake, "runs") if str(row["ds"]) == "2018-09-26"]
        newest = max(failed, key=lambda row: row["started_at"])
        assert (newest["job"], newest["state"]) == ("clean", "failed") and why in newest["reason"]
        assert served(quiet.lake, ["1", "cold"]) == before
    names = ("interactions", "users", "items", "quarantine", "published")
    assert versions(spark, quiet.lake, *names) == versions(spark, night.lake, *names)


def test_single_jobs_give_what_the_night_gives(spark, night: Night, second: Night) -> None:
    assert second.result["run_id"] != night.result["run_id"]
    assert second.result["figures"] == pytest.approx(night.result["figures"], abs=1e-5)
    for name in ("recommendations", "similar_items", "user_factors", "item_factors"):
        value = "factor" if "factor" in name else "score"
        frames = []
        for one in (night, second):
            rows = LakeTables(spark, str(one.lake)).read(name).where(F.col("run_id") == one.result["run_id"])
            keys = [c for c in rows.columns if c.endswith(("_idx", "_id", "position")) and c != "run_id"]
            frames.append(rows.drop("run_id").toPandas().sort_values(keys, ignore_index=True))
        assert len(frames[0]) and frames[0].drop(columns=value).equals(frames[1].drop(columns=value))
        assert np.allclose(*(np.stack(frame[value].tolist()) for frame in frames), atol=1e-5)


def test_publishing_again_takes_the_place_and_a_third_time_is_nothing_new(spark, night: Night, ready: Night, capsys):
    gauges, events = ready.lake.parent / "night.prom", ready.lake.parent / "events.jsonl"
    observed = (f"observe.prometheus={gauges}", f"observe.openlineage={events}")
    code = run_job("publish", publish_run, ["--config", CONF, *ready.arguments(*observed)])
    shown = capsys.readouterr()
    told = json.loads(shown.out.splitlines()[-1])
    assert code == 0 and f"was published already by run {night.result['run_id']}" in shown.err
    compared = [line for line in gauges.read_text().splitlines() if line.startswith("sparkcf_gate_figure{")]
    assert len(compared) == 3 and any('measure="ndcg@10",system="published"' in line for line in compared)
    written = {row["name"]: row["facets"] for row in json.loads(events.read_text().splitlines()[-1])["outputs"]}
    assert written.keys() == {f"{ready.lake}/runs", f"{ready.lake}/published"}
    newest = versions(spark, ready.lake, "published")[0]
    assert written[f"{ready.lake}/published"]["version"]["datasetVersion"] == str(newest)
    assert (told["run_id"], told["replaced"]) == (second_id := ready.result["run_id"], night.result["run_id"])
    rows = sorted(read(spark, ready.lake, "published"), key=lambda row: row["sequence"])
    assert [row["run_id"] for row in rows] == [night.result["run_id"], second_id]
    assert sparkcf.Lake(ready.lake).published().run_id == second_id
    again = job(ready, capsys, "publish", publish_run)
    assert (again["exit_code"], again["status"]) == (5, "NothingNew")
    assert len(read(spark, ready.lake, "published")) == 2


def test_filters_bind_and_k_may_exceed_the_catalogue(spark, ready: Night) -> None:
    items = read(spark, ready.lake, "items")
    comedies, dramas = ({r["item_id"] for r in items if kind in r["categories"]} for kind in ("Comedy", "Drama"))
    banned = ready.lake.parent / "banned.csv"
    with open(banned, "w", newline="") as file:
        csv.writer(file).writerows([["item_id", "why"], *([item, "sold out"] for item in ODD[:7])])
    as_delta = ready.lake.parent / "banned"
    spark.createDataFrame([(item,) for item in ODD[7:]], "item_id string").write.format("delta").save(str(as_delta))
    base = ("topk.users=[1, cold, '=1+1', everything]", "topk.similar_items=0", "topk.k=5000")

    def listed(*overrides: str) -> dict[str, set[str]]:
        recommend_run(spark, ready.config(*base, *overrides))
        found = lists(spark, ready)
        assert set(found) <= {"1", "cold", "=1+1", "everything"}
        return {user: {row["item_id"] for row in rows} for user, rows in found.items()}

    seen = defaultdict(set)
    for row in read(spark, ready.lake, "interactions"):
        seen[row["user_id"]].add(row["item_id"])
    every = {row["item_id"] for row in read(spark, ready.lake, "item_factors", ready.result["run_id"])}
    unseen = {user: every - seen[user] for user in ("1", "cold", "=1+1")}
    some = listed("topk.categories=[Comedy]", f"topk.ineligible={banned}")
    assert some == {user: items & comedies - set(ODD[:7]) for user, items in unseen.items()}
    some = listed("topk.exclude_categories=[Drama]", f"topk.ineligible={as_delta}")
    assert some == {user: items - dramas - set(ODD[7:]) for user, items in unseen.items()}
    assert listed("topk.exclude_seen=false") == dict.fromkeys((*unseen, "everything"), every)
    with pytest.raises(NotFoundError, match=r"topk\.categories: no item is of category 'Comdy': there are .*Comedy"):
        recommend_run(spark, ready.config(*base, "topk.categories=[Comdy]"))
    with pytest.raises(NotFoundError, match=r"unknown user 'nobody'"):
        recommend_run(spark, ready.config("topk.users=[nobody]"))
    assert {user: len(rows) for user, rows in lists(spark, ready).items()}["everything"] == len(every)


def test_a_warm_start_goes_on_from_the_published_factors(spark, ready: Night, capsys) -> None:
    warm = train_model(spark, ready.config("train.warm_start=true", "als.iterations=1"))
    published = sparkcf.Lake(ready.lake).published().run_id
    assert f"starting from the factors of run {published}" in capsys.readouterr().err
    log = [r for r in read(spark, ready.lake, "metrics", published) if r["metric"] == "objective"]
    sweeps = [r["value"] for r in sorted(log, key=lambda r: r["k"])]
    assert warm["objective"] < sweeps[-1] < sweeps[0]


@pytest.mark.parametrize(
    ("overrides", "counts", "why"),
    [
        ([], {"nan_scores": 3}, "3 scores are NaN"),
        (["gate.min_user_coverage=0.99"], {}, "the model has recommendations for 93.3% of 75 users"),
        (["gate.max_fallback_share=0.01"], {}, "5.3% of users have the fallback"),
    ],
)
def test_the_gate_refuses(spark, night: Night, ready: Night, capsys, overrides, counts, why) -> None:
    waiting = find_run(LakeTables(spark, str(ready.lake)), ready.config(), ("recommended",))
    if counts:
        waiting.update("recommended", counts=counts)
    told = job(ready, capsys, "publish", publish_run, *overrides)
    assert (told["exit_code"], told["status"]) == (3, "GateRefused") and why in told["error"]
    run = next(r for r in read(spark, ready.lake, "runs") if r["run_id"] == ready.result["run_id"])
    assert run["state"] == "refused" and why in run["reason"]
    assert versions(spark, ready.lake, "published") == versions(spark, night.lake, "published")
    assert served(ready.lake, ["1", "cold"]) == served(night.lake, ["1", "cold"])


def test_users_whose_vectors_are_not_numbers_have_no_list_and_the_gate_refuses(spark, ready: Night, capsys) -> None:
    tables = LakeTables(spark, str(ready.lake))
    of_run = f"model = 'als' AND run_id = '{ready.result['run_id']}'"
    nothing = F.transform("factor", lambda x: F.lit(float("nan")).cast("float"))
    broken = F.when(F.col("user_idx") % 3 > 0, nothing).otherwise(F.col("factor"))
    vectors = tables.read("user_factors").where(of_run).withColumn("factor", broken)
    tables.replace("user_factors", vectors.localCheckpoint(), of_run)
    counts = job(ready, capsys, "recommend", recommend_run, "topk.similar_items=0")["counts"]
    assert counts["users_model"] < 30 and counts["users_fallback"] == 4 and counts["nan_scores"] == 0
    told = job(ready, capsys, "publish", publish_run)
    assert told["exit_code"] == 3 and f"for {counts['users_model'] / 75:.1%} of 75 users" in told["error"]


def test_shuffled_input_is_refused_and_a_rollback_gives_the_rows_back(spark, night: Night, ready: Night, capsys):
    users = sorted({row["user_id"] for row in read(spark, night.lake, "users")} - {"everything"})
    first = served(night.lake, users)
    wrong = f"input.path={ready.inputs}/shuffled.csv"
    told = job(ready, capsys, "nightly", nightly, wrong)
    assert (told["exit_code"], told["status"]) == (3, "GateRefused") and "worse than popularity's" in told["error"]
    assert served(ready.lake, users) == first
    told = job(ready, capsys, "publish", publish_run, wrong, AT_ALL_COSTS)
    assert told["exit_code"] == 3 and f"of the published run {first[0]}" in told["error"]
    forced = job(ready, capsys, "publish", publish_run, wrong, "gate.max_fall=1.0", AT_ALL_COSTS)
    corrected = served(ready.lake, users)
    assert corrected[0] == forced["run_id"] and corrected[1] != first[1]
    plain = lists(spark, ready, first[0])
    back = job(ready, capsys, "rollback", rollback)
    assert (back["run_id"], back["rolled_back"]) == (first[0], forced["run_id"])
    assert served(ready.lake, users) == first and lists(spark, ready, first[0]) == plain
    assert job(ready, capsys, "rollback", rollback)["run_id"] == forced["run_id"]
    assert served(ready.lake, users) == corrected
    named = job(ready, capsys, "rollback", rollback, f"run_id={first[0]}")
    assert named["run_id"] == first[0] and served(ready.lake, users) == first
    assert job(ready, capsys, "rollback", rollback, f"run_id={first[0]}")["exit_code"] == 5
    history = sorted(read(spark, ready.lake, "published"), key=lambda row: row["sequence"])
    assert [row["action"] for row in history] == ["publish", "publish", "rollback", "rollback", "rollback"]


def test_what_was_not_measured_alike_is_no_refusal_and_asks_for_an_evaluation(spark, ready: Night, capsys) -> None:
    tables, second = LakeTables(spark, str(ready.lake)), ready.result["run_id"]
    first = sparkcf.Lake(ready.lake).published().run_id
    measured = tables.read("metrics").localCheckpoint()

    def published_with(figures) -> dict[str, Any]:
        tables.replace("metrics", figures, "true")
        told = job(ready, capsys, "publish", publish_run)
        assert (told["exit_code"], told["status"]) == (1, "NotFoundError")
        waits = find_run(tables, ready.config(), ("recommended",))
        assert waits.run_id == second and sparkcf.Lake(ready.lake).published().run_id == first
        return told

    told = published_with(measured.where(f"run_id <> '{second}'"))
    assert f"run {second} has no figure ndcg@10 by evaluation.protocol=q2, it was measured by none" in told["error"]
    ours = F.col("run_id") == second
    by_q4 = F.when(ours & (F.col("protocol") == "q2"), "q4").otherwise(F.col("protocol"))
    told = published_with(measured.withColumn("protocol", by_q4))
    assert "by evaluation.protocol=q2, it was measured by q4 only: run jobs/evaluate.py" in told["error"]
    wider = F.regexp_replace("settings", '"holdout_share": 0.1', '"holdout_share": 0.3')
    told = published_with(measured.withColumn("settings", F.when(ours, wider).otherwise(F.col("settings"))))
    assert f"the published run {first} was measured by it with holdout_share=0.1 (now 0.3)" in told["error"]
    assert f"run jobs/evaluate.py run_id={first}" in told["error"]
    tables.replace("metrics", measured, "true")
    assert job(ready, capsys, "publish", publish_run)["exit_code"] == 0


def test_a_night_keeps_the_protocol_by_which_the_published_run_was_measured(spark, night: Night, capsys) -> None:
    """Of events that would say another: figures of two protocols do not compare."""
    tables, config = LakeTables(spark, str(night.lake)), night.config("evaluation.protocol=auto")
    days = spark.range(100).selectExpr("cast(id as int) user_idx", "5.0 value", "timestamp_seconds(id * 86400) ts")
    assert with_protocol(tables, days, config).evaluation.protocol == "q2"
    assert "as the published run" in capsys.readouterr().err
    other = with_protocol(tables, days, config.model_copy(update={"model": "popularity"}))
    assert other.evaluation.protocol == "q2" and "a split by time needs 100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["evaluation.protocol=q3"], "q3 measures predicted ratings, and model=als predicts none"),
        (["models=[popularity, als]", "evaluation.protocol=q3"], "model=popularity predicts none"),
        (["topk.ineligible=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_a_later_step_would_refuse_is_refused_before_the_first(spark, night: Night, capsys, wrong, why) -> None:
    before = versions(spark, night.lake, "runs", "interactions")
    told = job(night, capsys, "nightly", nightly, *wrong)
    assert told["exit_code"] == 2 and why in told["error"]
    assert versions(spark, night.lake, "runs", "interactions") == before


def test_what_the_day_brings_is_checked_before_the_training(spark, ready: Night, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sparkcf.jobs.nightly.clean_day", lambda *_: {"counts": {}})
    monkeypatch.setattr("sparkcf.jobs.nightly.train_model", lambda *_: pytest.fail("trained"))
    for wrong, why in (
        ("topk.users=[nobody]", "unknown user 'nobody'"),
        ("topk.categories=[Comdy]", "no item is of category 'Comdy'"),
    ):
        told = job(ready, capsys, "nightly", nightly, wrong)
        assert told["exit_code"] == 1 and why in told["error"]
    tables = LakeTables(spark, str(ready.lake))
    one_day = tables.read("interactions").withColumn("ts", F.timestamp_seconds(F.lit(1_500_000_000)))
    tables.replace("interactions", one_day.dropDuplicates(["user_id", "item_id"]).localCheckpoint(), "true")
    told = job(ready, capsys, "nightly", nightly, "evaluation.protocol=q4")
    assert told["exit_code"] == 3 and "needs events of two days or more" in told["error"]


def test_a_run_that_another_overtook_is_a_conflict(spark, ready: Night, capsys) -> None:
    tables, config = LakeTables(spark, str(ready.lake)), ready.config()
    append_published(tables, "als", config.ds, "overtaker", "publish", 2)
    told = job(ready, capsys, "publish", publish_run)
    assert (told["exit_code"], told["status"]) == (4, "ConflictError") and "run overtaker" in told["error"]
    assert sparkcf.Lake(ready.lake).published().run_id == "overtaker"
    with pytest.raises(ConflictError, match="run overtaker of als was published for 2018-09-25 at the same moment"):
        append_published(tables, "als", config.ds, ready.result["run_id"], "publish", 2)
    assert job(ready, capsys, "rollback", rollback, f"run_id={ready.result['run_id']}")["exit_code"] == 0


def test_an_older_day_filled_in_later_is_written_and_does_not_become_the_latest(spark, ready: Night) -> None:
    older = ready.lake.parent / "older.csv"
    with open(older, "w", newline="") as file:
        rows = [[f"early{u}", item, 5, 1_400_000_000] for u in range(8) for i, item in enumerate(ODD) if (u + i) % 3]
        csv.writer(file).writerows([["userId", "movieId", "rating", "timestamp"], *rows])
    before = served(ready.lake, ["1"])
    day = ("ds=2018-09-24", f"input.path={older}", "gate.max_fall=1", "gate.min_user_coverage=0.05")
    told = nightly(spark, ready.config(*day))
    by_day = [row["ds"].isoformat() for row in read(spark, ready.lake, "interactions")]
    assert by_day.count("2018-09-24") == len(rows) and by_day.count(DAY) == len(by_day) - len(rows)
    assert served(ready.lake, ["1"]) == before
    assert sparkcf.Lake(ready.lake).published(ds="2018-09-24").run_id == told["run_id"]
    assert sparkcf.Lake(ready.lake).recommendations("early0", ds="2018-09-24").reason.tolist()[0] == "model"


def test_one_user_and_one_item_give_an_empty_release_that_the_gate_refuses(spark, night: Night, tmp_path, capsys):
    (tmp_path / "one.csv").write_text("userId,movieId,rating,timestamp\nme,it,5,1400000000\n")
    alone = Night(tmp_path / "lake", {}, night.inputs)
    given = (f"input.path={tmp_path / 'one.csv'}", "input.items=null")
    told = job(alone, capsys, "nightly", nightly, *given)
    assert told["exit_code"] == 3 and "part is empty" in told["error"]  # nobody can be measured
    run = find_run(LakeTables(spark, str(alone.lake)), alone.config(), ("failed",))
    assert told["error"] in run.row["reason"]
    run.update("trained")
    counts = job(alone, capsys, "recommend", recommend_run, *given)["counts"]
    names = ("users", "users_model", "users_fallback", "recommendations", "nan_scores", "similar_items")
    assert counts == dict(zip(names, (1, 0, 0, 0, 0, 0), strict=True))
    told = job(alone, capsys, "publish", publish_run, *given)
    assert told["exit_code"] == 3 and "0.0% of 1 users" in told["error"]
