"""Queries read exactly the published run, only the files it needs, and no id is ever read as a language."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, WriterProperties, write_deltalake

from sparkcf.errors import ConfigError, LakeError, NotFoundError
from sparkcf.lake.query import Lake, PublishedRun
from sparkcf.lake.reader import COLUMNS, TABLE_NAMES

UTC = dt.UTC
TIME = pa.timestamp("us", tz="UTC")
COUNTS = pa.map_(pa.string(), pa.int64())
APRIL_30, MAY_1, MAY_2 = dt.date(2024, 4, 30), dt.date(2024, 5, 1), dt.date(2024, 5, 2)
# Ids as they come from strangers: SQL, quotes, markup, a formula, a colour code, a path, other scripts.
STRANGE = (
    "x' OR '1'='1",
    'a"b',
    "'); DROP TABLE users; --",
    "[red]x[/red]",
    "=1+1",
    "\x1b[31mred\x1b[0m",
    "../..",
    "%41 %",
    "日本語 ü",
    "a,b\r\nc",
    " ",
)


def write(root: Path, name: str, columns: dict, partition_by: list[str] | None = None, **options) -> None:
    write_deltalake(str(root / name), pa.table(columns), partition_by=partition_by, mode="append", **options)


def write_lists(root: Path, model: str, run_id: str, ds: dt.date, lists: dict[str, list[str]], **options) -> None:
    """One run's recommendations; `lists` gives each user's items from position 1."""
    rows = [(u, p, i) for u, items in lists.items() for p, i in enumerate(items, 1)]
    columns = {
        "ds": pa.array([ds] * len(rows)),
        "user_id": [u for u, _, _ in rows],
        "position": pa.array([p for _, p, _ in rows], pa.int32()),
        "item_id": [i for _, _, i in rows],
        "score": pa.array([1 - p / 10 for _, p, _ in rows], pa.float32()),
        "reason": ["model"] * len(rows),
        "model": [model] * len(rows),
        "run_id": [run_id] * len(rows),
    }
    write(root, "recommendations", columns, ["model", "run_id"], **options)


def publish(root: Path, model: str, ds: dt.date, sequence: int, run_id: str, action: str = "publish") -> None:
    at = dt.datetime(2024, 6, 1, tzinfo=UTC)
    columns = {
        "model": [model],
        "ds": [ds],
        "sequence": [sequence],
        "run_id": [run_id],
        "action": [action],
        "published_by": ["tester"],
        "published_at": pa.array([at], TIME),
        "versions": pa.array([[("recommendations", 1)]], COUNTS),
    }
    write(root, "published", columns)


def write_items(root: Path, titles: dict[str, str | None]) -> None:
    columns = {
        "item_id": list(titles),
        "item_idx": pa.array(range(len(titles)), pa.int32()),
        "first_seen": pa.nulls(len(titles), TIME),
        "title": pa.array(titles.values(), pa.string()),
        "categories": pa.nulls(len(titles), pa.list_(pa.string())),
    }
    write(root, "items", columns)


def write_users(root: Path, users: list[str]) -> None:
    columns = {
        "user_id": users,
        "user_idx": pa.array(range(len(users)), pa.int32()),
        "first_seen": pa.nulls(len(users), TIME),
    }
    write(root, "users", columns)


def write_interactions(root: Path, ds: dt.date, rows: list[tuple[str, str, float, dt.datetime]]) -> None:
    columns = {
        "user_id": [u for u, _, _, _ in rows],
        "item_id": [i for _, i, _, _ in rows],
        "event": ["rating"] * len(rows),
        "value": [v for _, _, v, _ in rows],
        "ts": pa.array([t for _, _, _, t in rows], TIME),
        "source": ["a.csv"] * len(rows),
        "ds": [ds] * len(rows),
    }
    write(root, "interactions", columns, ["ds"])


def write_runs(root: Path, runs: list[tuple[str, str | None, str, int]]) -> None:
    """`runs` are (run_id, model, state, hour of the start)."""
    begun = pa.array([dt.datetime(2024, 5, 2, hour, tzinfo=UTC) for _, _, _, hour in runs], TIME)
    columns = {
        "run_id": [r for r, _, _, _ in runs],
        "job": ["train" if m else "clean" for _, m, _, _ in runs],
        "model": pa.array([m for _, m, _, _ in runs], pa.string()),
        "ds": [MAY_2] * len(runs),
        "state": [s for _, _, s, _ in runs],
        "reason": pa.nulls(len(runs), pa.string()),
        "config": ["{}"] * len(runs),
        "code_version": ["0.1.0"] * len(runs),
        "inputs": pa.array([[]] * len(runs), COUNTS),
        "seed": [42] * len(runs),
        "started_at": begun,
        "updated_at": begun,
        "counts": pa.array([[("read", 9)]] * len(runs), COUNTS),
    }
    write(root, "runs", columns)


def write_metrics(root: Path, run_id: str, values: dict[str, float], protocol: str = "q1") -> None:
    columns = {
        "run_id": [run_id] * len(values),
        "system": ["als"] * len(values),
        "protocol": [protocol] * len(values),
        "metric": list(values),
        "k": pa.array([10] * len(values), pa.int32()),
        "value": list(values.values()),
        "lower": pa.nulls(len(values), pa.float64()),
        "upper": pa.nulls(len(values), pa.float64()),
        "users": [3] * len(values),
    }
    write(root, "metrics", columns)


def build_lake(root: Path) -> Path:
    """Two days of `als`, one of `pop`. Every run recommends another first item, so that lists tell their run."""
    write_users(root, ["1", "2", "3", "cold", *STRANGE])
    write_items(root, {"a": "Alien", "b": "Brazil", "c": None, **{s: f"title {s}" for s in STRANGE}})
    write_lists(root, "als", "als-1", MAY_1, {"1": ["a", "b", "c"], "2": ["b"]})
    write_lists(root, "als", "als-2", MAY_2, {"1": ["b", "c"], "2": ["c"], **{s: [s, "a"] for s in STRANGE}})
    write_lists(root, "pop", "pop-1", MAY_2, {"1": ["c", "a"]})
    publish(root, "als", MAY_1, 1, "als-1")
    publish(root, "als", MAY_2, 1, "als-2")
    publish(root, "pop", MAY_2, 1, "pop-1")
    neighbours = {
        "ds": [MAY_2] * 3,
        "item_id": ["a", "a", STRANGE[0]],
        "position": pa.array([2, 1, 1], pa.int32()),
        "similar_item_id": ["c", "b", "a"],
        "score": pa.array([0.5, 0.75, 0.25], pa.float32()),
        "model": ["als"] * 3,
        "run_id": ["als-2"] * 3,
    }
    write(root, "similar_items", neighbours, ["model", "run_id"])
    noon = dt.datetime(2024, 5, 1, 12, tzinfo=UTC)
    write_interactions(root, MAY_1, [("1", "a", 4.0, noon), ("2", "a", 3.0, noon)])
    early = [("1", "b", 5.0, noon - dt.timedelta(days=9)), ("1", "c", 1.0, noon + dt.timedelta(days=1))]
    write_interactions(root, MAY_2, [*early, *((s, "a", 1.0, noon) for s in STRANGE)])
    write_runs(root, [("als-1", "als", "published", 1), ("pop-1", "pop", "published", 3)])
    write_runs(root, [("als-2", "als", "published", 2), ("als-9", "als", "failed", 4), ("load", None, "cleaned", 0)])
    write_metrics(root, "als-1", {"ndcg_at_k": 0.1})
    write_metrics(root, "als-2", {"recall_at_k": 0.3, "ndcg_at_k": 0.2})
    return root


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(build_lake(tmp_path_factory.mktemp("lake")))


@pytest.fixture()
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parquet files opened since."""
    files: list[str] = []

    class Recorded(pq.ParquetFile):
        def __init__(self, source, **options) -> None:
            files.append(str(source))
            super().__init__(source, **options)

    monkeypatch.setattr("sparkcf.lake.reader.pq.ParquetFile", Recorded)
    return files


def items_of(frame) -> list[str]:
    return list(frame["item_id"])


# Which run answers.


def test_recommendations_come_from_the_latest_day_of_als(lake: Lake) -> None:
    frame = lake.recommendations("1")
    assert list(frame.columns) == ["position", "item_id", "title", "score", "reason"]
    assert frame.values.tolist()[0][:3] == [1, "b", "Brazil"]
    assert items_of(frame) == ["b", "c"]
    assert frame["title"].iloc[1] is None
    assert frame["score"].dtype == "float32"
    assert frame.attrs == {"model": "als", "run_id": "als-2", "ds": "2024-05-02"}


def test_a_named_day_and_a_named_model_are_read(lake: Lake) -> None:
    assert items_of(lake.recommendations("1", ds="2024-05-01")) == ["a", "b", "c"]
    assert items_of(lake.recommendations("1", ds=MAY_1, k=2)) == ["a", "b"]
    assert items_of(lake.recommendations("1", model="pop")) == ["c", "a"]


def test_the_newest_row_of_a_day_wins_so_that_a_rollback_is_seen(tmp_path: Path) -> None:
    root = build_lake(tmp_path)
    publish(root, "als", MAY_2, 2, "als-1", "rollback")
    run = Lake(root).published()
    assert (run.run_id, run.ds, run.sequence, run.action) == ("als-1", MAY_2, 2, "rollback")
    assert items_of(Lake(root).recommendations("1")) == ["a", "b", "c"]


def test_a_day_published_later_than_a_newer_day_does_not_become_the_latest(tmp_path: Path) -> None:
    root = build_lake(tmp_path)
    write_lists(root, "als", "als-0", APRIL_30, {"1": ["c"]})
    for sequence in (1, 2, 3):
        publish(root, "als", APRIL_30, sequence, "als-0")
    assert Lake(root).published().run_id == "als-2"
    assert items_of(Lake(root).recommendations("1", ds="2024-04-30")) == ["c"]


def test_the_only_published_model_is_the_default_else_als_else_the_first_by_name(tmp_path: Path) -> None:
    publish(tmp_path, "pop", MAY_1, 1, "pop-1")
    assert Lake(tmp_path).published().model == "pop"
    publish(tmp_path, "acf", MAY_1, 1, "acf-1")
    assert Lake(tmp_path).published().model == "acf"
    publish(tmp_path, "als", MAY_1, 1, "als-1")
    assert Lake(tmp_path).published().model == "als"


def test_rows_of_a_run_that_is_not_published_are_never_seen(tmp_path: Path) -> None:
    root = build_lake(tmp_path)
    write_lists(root, "als", "als-3", MAY_2, {"1": ["a"], "new": ["a"]})
    assert items_of(Lake(root).recommendations("1")) == ["b", "c"]
    with pytest.raises(NotFoundError, match="no recommendations in run als-2"):
        Lake(root).recommendations("new")


# How much is read.


def test_only_the_files_of_the_published_run_are_opened(lake: Lake, opened: list[str]) -> None:
    lake.recommendations("1")
    lists = [file for file in opened if "/recommendations/" in file]
    assert len(lists) == 1
    assert "/model=als/run_id=als-2/" in lists[0]


def test_only_row_groups_that_can_hold_the_user_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [f"u{n:02}" for n in range(20)]
    small = WriterProperties(max_row_group_size=4)
    write_lists(tmp_path, "als", "r", MAY_1, {u: ["a", "b"] for u in users}, writer_properties=small)
    publish(tmp_path, "als", MAY_1, 1, "r")
    write_items(tmp_path, {"a": "Alien"})
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def recorded(file: pq.ParquetFile, number: int, columns: list[str]) -> pa.Table:
        if file.metadata.num_row_groups > 1:
            read.append(number)
        return original(file, number, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recorded)
    assert items_of(Lake(tmp_path).recommendations("u07")) == ["a", "b"]
    assert set(read) == {3}  # of ten: rows 12 to 15 are those of u06 and u07


def test_a_list_in_several_files_and_row_groups_comes_in_order(tmp_path: Path) -> None:
    tiny = WriterProperties(max_row_group_size=1)
    rows = {"1": ["a", "b", "c"], "2": ["c"]}
    write_lists(tmp_path, "als", "r", MAY_1, {"2": ["a"]}, writer_properties=tiny)
    write_lists(tmp_path, "als", "r", MAY_1, rows, writer_properties=tiny)
    publish(tmp_path, "als", MAY_1, 1, "r")
    write_items(tmp_path, {"c": "Cube"})
    assert items_of(Lake(tmp_path).recommendations("1")) == ["a", "b", "c"]


def test_long_ids_that_differ_only_at_their_end_are_told_apart(tmp_path: Path) -> None:
    users = ["ü" * 200 + str(n) for n in range(8)]  # statistics of columns may cut them
    for run, user in enumerate(users):
        write_lists(tmp_path, "als", "r", MAY_1, {user: [f"i{run}"]})
    publish(tmp_path, "als", MAY_1, 1, "r")
    write_items(tmp_path, {"i0": "Zero"})
    for run, user in enumerate(users):
        assert items_of(Lake(tmp_path).recommendations(user)) == [f"i{run}"]


# The other questions.


def test_k_larger_than_the_list_gives_the_list(lake: Lake) -> None:
    assert len(lake.recommendations("1", k=1000)) == 2


def test_similar_items_come_by_position_with_their_titles(lake: Lake) -> None:
    frame = lake.similar_items("a")
    assert frame.values.tolist() == [[1, "b", "Brazil", 0.75], [2, "c", None, 0.5]]
    assert items_of(lake.similar_items("a", k=1)) == ["b"]


def test_history_is_newest_first_across_days_of_loading(lake: Lake) -> None:
    frame = lake.history("1")
    assert list(frame.columns) == ["ts", "item_id", "title", "event", "value"]
    assert items_of(frame) == ["c", "a", "b"]
    assert frame["ts"].iloc[1] == dt.datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert items_of(lake.history("1", limit=1)) == ["c"]


def test_history_of_a_known_user_without_interactions_is_empty(lake: Lake) -> None:
    assert lake.history("cold").empty


def test_history_reads_the_timestamps_that_spark_writes(tmp_path: Path) -> None:
    build_lake(tmp_path)
    for uri in DeltaTable(str(tmp_path / "interactions")).file_uris():
        rows = pq.ParquetFile(uri).read()
        far = pa.array([dt.datetime(2300, 1, 1, tzinfo=UTC)] * rows.num_rows, TIME)
        rows = rows.set_column(rows.column_names.index("ts"), "ts", far)
        pq.write_table(rows, uri, use_deprecated_int96_timestamps=True)
    assert Lake(tmp_path).history_rows("1")["ts"][0].as_py() == dt.datetime(2300, 1, 1, tzinfo=UTC)


def test_runs_are_newest_first_and_can_be_of_one_model(lake: Lake) -> None:
    assert list(lake.runs()["run_id"]) == ["als-9", "pop-1", "als-2", "als-1", "load"]
    assert list(lake.runs(limit=2)["run_id"]) == ["als-9", "pop-1"]
    assert list(lake.runs(model="als")["run_id"]) == ["als-9", "als-2", "als-1"]
    assert lake.runs()["counts"].iloc[0] == {"read": 9}


def test_metrics_are_those_of_the_published_run_or_of_a_named_one(lake: Lake) -> None:
    assert list(lake.metrics()["metric"]) == ["ndcg_at_k", "recall_at_k"]
    assert lake.metrics().attrs["run_id"] == "als-2"
    assert list(lake.metrics(run_id="als-1")["value"]) == [0.1]


def test_metrics_end_with_the_log_of_the_fit(tmp_path: Path) -> None:
    build_lake(tmp_path)
    write_metrics(tmp_path, "als-2", {"objective": 9.0}, "fit")
    assert list(Lake(tmp_path).metrics()["metric"]) == ["ndcg_at_k", "recall_at_k", "objective"]


def test_a_column_that_older_files_lack_is_null_there(tmp_path: Path) -> None:
    build_lake(tmp_path)
    more = {"item_id": ["z"], "item_idx": pa.array([99], pa.int32()), "subtitle": ["last"]}
    write(tmp_path, "items", more, schema_mode="merge")
    write_lists(tmp_path, "als", "als-2", MAY_2, {"9": ["z", "a"]})
    assert list(Lake(tmp_path).recommendations("9")["title"]) == [None, "Alien"]


# Strange ids and places.


@pytest.mark.parametrize("strange", STRANGE)
def test_a_strange_id_is_only_an_id(lake: Lake, strange: str) -> None:
    frame = lake.recommendations(strange)
    assert items_of(frame) == [strange, "a"]
    assert list(frame["title"]) == [f"title {strange}", "Alien"]
    assert items_of(lake.history(strange)) == ["a"]


@pytest.mark.parametrize("strange", ["' OR 1=1 --", "1' OR '1'='1", "a' UNION SELECT", "", "../als-1", "als/../../x"])
def test_a_strange_unknown_name_finds_nothing(lake: Lake, strange: str) -> None:
    for ask in (lake.recommendations, lake.history, lake.similar_items):
        with pytest.raises(NotFoundError):
            ask(strange)
    for ask in (lake.runs, lake.metrics, lake.published):
        with pytest.raises(NotFoundError):
            ask(model=strange)
    with pytest.raises(NotFoundError):
        lake.metrics(run_id=strange)


def test_names_of_models_and_runs_may_need_escaping_in_paths(tmp_path: Path) -> None:
    model, run_id = "my model/ü", "r 1:2%3=4"
    write_lists(tmp_path, model, run_id, MAY_1, {"1": ["a"]})
    publish(tmp_path, model, MAY_1, 1, run_id)
    write_items(tmp_path, {"a": "Alien"})
    assert items_of(Lake(tmp_path).recommendations("1", model=model)) == ["a"]


@pytest.mark.parametrize("name", ["plain", "with space", "läke #1 'x' & ü"])
def test_a_lake_is_found_by_folder_by_address_and_through_delta_rs(tmp_path: Path, name: str) -> None:
    root = build_lake(tmp_path / name)
    single = "file:" + root.as_uri().removeprefix("file://")
    for given in (str(root), root, root.as_uri(), single, single + "/"):
        assert items_of(Lake(given).recommendations("1")) == ["b", "c"]
    store = Lake(root)
    store.folder, store.root = None, root.as_uri()  # as if it were an object store
    assert items_of(store.recommendations("1")) == ["b", "c"]
    with pytest.raises(NotFoundError, match="known users look like '1', '2'"):
        store.recommendations("nobody")


# What is told when there is no answer.


def message(error: type[Exception], ask) -> str:
    with pytest.raises(error) as told:
        ask()
    assert "\n" not in str(told.value)
    return str(told.value)


def test_an_unknown_user_is_told_with_users_that_are_there(lake: Lake) -> None:
    told = message(NotFoundError, lambda: lake.recommendations("99999"))
    assert told.startswith("user '99999' has no recommendations in run als-2 (model als, published for 2024-05-02)")
    assert "the lake has no such user" in told
    assert told.endswith("known users look like '1', '2', \"x' OR '1'='1\"")
    assert "user '99999' is not in lake" in message(NotFoundError, lambda: lake.history("99999"))


def test_a_known_user_without_a_list_is_told_so(lake: Lake) -> None:
    assert "is in the lake, but the run made no list" in message(NotFoundError, lambda: lake.recommendations("cold"))


def test_ids_close_to_the_unknown_one_are_offered(tmp_path: Path) -> None:
    root = build_lake(tmp_path)
    write_lists(root, "als", "als-2", MAY_2, {"anna.smith": ["a"]})
    told = message(NotFoundError, lambda: Lake(root).recommendations("ana.smith"))
    assert "did you mean 'anna.smith'?" in told


def test_a_very_long_unknown_id_is_cut_in_the_message(lake: Lake) -> None:
    assert len(message(NotFoundError, lambda: lake.recommendations("9" * 100_000))) < 500


def test_an_unknown_item_model_day_or_run_is_told_with_what_is_there(lake: Lake) -> None:
    assert "item 'zz' has no similar items" in message(NotFoundError, lambda: lake.similar_items("zz"))
    assert "is in the lake, but the run made no list" in message(NotFoundError, lambda: lake.similar_items("b"))
    assert "published are 'als', 'pop'" in message(NotFoundError, lambda: lake.published("nmf"))
    told = message(NotFoundError, lambda: lake.recommendations("1", ds="2023-01-01"))
    assert "not published for 2023-01-01: published are 2024-05-02, 2024-05-01" in told
    assert "newest runs are 'als-9'" in message(NotFoundError, lambda: lake.metrics(run_id="nope"))
    assert "its state is failed" in message(NotFoundError, lambda: lake.metrics(run_id="als-9"))
    assert "there are 'als', 'pop'" in message(NotFoundError, lambda: lake.runs(model="nmf"))


def test_a_published_run_without_rows_is_told(tmp_path: Path) -> None:
    root = build_lake(tmp_path)
    publish(root, "als", MAY_2, 2, "gone")
    told = message(NotFoundError, lambda: Lake(root).recommendations("1"))
    assert "run gone (model als, published for 2024-05-02) has no rows in table recommendations" in told


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"k": -1}, {"k": 1.5}, {"ds": "yesterday"}, {"ds": "2024-13-01"}, {"ds": 20240501}]
)
def test_wrong_usage_is_refused(lake: Lake, options: dict) -> None:
    message(ConfigError, lambda: lake.recommendations("1", **options))


def test_a_run_and_a_model_together_are_refused(lake: Lake) -> None:
    message(ConfigError, lambda: lake.metrics(run_id="als-1", model="als"))


def test_a_missing_lake_and_a_folder_that_is_none_are_told_with_the_cure(tmp_path: Path) -> None:
    told = message(LakeError, lambda: Lake(tmp_path / "none").runs())
    assert told.startswith("no lake at ") and "run `make nightly` or jobs/nightly.py first" in told
    assert "is not a lake" in message(LakeError, lambda: Lake(tmp_path).published())
    (tmp_path / "file").touch()
    assert "is not a lake" in message(LakeError, lambda: Lake(tmp_path / "file").runs())
    assert "Unknown scheme" in message(LakeError, lambda: Lake("nope://bucket/lake").runs())
    assert "%XX" in message(LakeError, lambda: Lake(tmp_path / "a%41b"))
    message(ConfigError, lambda: Lake(" "))


def test_a_lake_in_which_nothing_is_published_yet_is_told(tmp_path: Path) -> None:
    write_users(tmp_path, ["1"])
    assert "nothing is published" in message(NotFoundError, lambda: Lake(tmp_path).recommendations("1"))
    publish(tmp_path, "als", MAY_1, 1, "als-1")
    told = message(NotFoundError, lambda: Lake(tmp_path).recommendations("1"))
    assert "no table recommendations yet" in told
    DeltaTable(str(tmp_path / "published")).delete()
    assert "nothing is published" in message(NotFoundError, lambda: Lake(tmp_path).recommendations("1"))


def test_a_corrupt_last_log_entry_is_told_with_the_table_and_the_doctor(tmp_path: Path) -> None:
    root = build_lake(tmp_path)
    log = root / "recommendations" / "_delta_log"
    newest = max(log.glob("*.json"))
    newest.with_name(f"{int(newest.stem) + 1:020}.json").write_text(newest.read_text()[:200])
    told = message(LakeError, lambda: Lake(root).recommendations("1"))
    assert told.startswith("table recommendations of lake") and "sparkcf doctor" in told


def test_a_lost_log_and_a_lost_or_broken_file_are_told(tmp_path: Path) -> None:
    root = build_lake(tmp_path)
    (file,) = (root / "recommendations" / "model=als" / "run_id=als-2").glob("*.parquet")
    file.write_bytes(b"PAR1 no more PAR1")
    told = message(LakeError, lambda: Lake(root).recommendations("1"))
    assert "table recommendations" in told and "cannot read model=als/run_id=als-2/" in told
    file.unlink()
    assert "cannot read" in message(LakeError, lambda: Lake(root).recommendations("1"))
    for entry in (root / "published" / "_delta_log").iterdir():
        entry.unlink()
    assert "table published" in message(LakeError, lambda: Lake(root).recommendations("1"))


def test_a_table_whose_files_mean_something_else_is_refused(tmp_path: Path) -> None:
    root = build_lake(tmp_path)
    log = root / "users" / "_delta_log"
    features = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"]}
    features["writerFeatures"] = ["deletionVectors"]
    (log / f"{1:020}.json").write_text(json.dumps({"protocol": features}))
    assert "uses deletionVectors" in message(LakeError, lambda: Lake(root).history("9"))


# Promises to other modules.


def test_the_columns_read_here_are_those_of_the_schemas() -> None:
    show = "import json, sparkcf.lake.schemas as s; print(json.dumps({n: t.schema.names for n, t in s.TABLES.items()}))"
    out = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    schemas = json.loads(out.stdout)
    assert tuple(schemas) == TABLE_NAMES
    for name, columns in COLUMNS.items():
        assert set(columns) <= set(schemas[name]), name
    assert COLUMNS["published"] == tuple(PublishedRun.__dataclass_fields__)


def test_a_query_imports_neither_spark_nor_torch_nor_a_compiler(lake: Lake) -> None:
    ask = (
        "import sys, sparkcf.lake.query; sparkcf.lake.query.Lake(sys.argv[1]).recommend_rows('1');"
        "print(sorted({'pyspark', 'py4j', 'torch', 'numba', 'pandas', 'petastorm'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", ask, lake.root], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
