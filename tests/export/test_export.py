"""Every target holds the run's lists; readers see one whole version at any moment; a bad export changes nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sparkcf.errors import ConfigError, ConflictError, LakeError, NotFoundError
from sparkcf.export.export import TARGETS, check_read_back, export_run
from sparkcf.export.files import FILES, SQLiteFile
from sparkcf.export.folders import VersionedFolder
from sparkcf.export.lists import Run, find_run, plain_items, read_lists, read_titles
from sparkcf.export.redis import RedisLists
from sparkcf.export.vectors import recall
from sparkcf.lake.query import Lake
from tests.export.conftest import USERS
from tests.export.redis_server import redis_server
from tests.lake.test_query import MAY_2, write_items, write_lists

RUN = Run("als", "r", MAY_2)


@pytest.fixture(scope="module")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("redis")
    with redis_server(tmp_path_factory.mktemp("redis")) as address:
        if address is None:
            pytest.skip("redis-server is not installed")
        yield address


def lists_in(place: Path, to: str) -> dict[str, list[dict[str, Any]]]:
    """All lists of an export, read with the tools that its users have."""
    if to == "sqlite":
        base = sqlite3.connect(place / "lists.sqlite")
        ask = """SELECT user_id, value ->> 'item_id', value ->> 'score', value ->> 'reason', title
                 FROM lists, json_each(items) LEFT JOIN titles ON item_id = value ->> 'item_id'"""
        found: dict[str, list[dict[str, Any]]] = {}
        for user, item, score, reason, title in base.execute(ask):
            entry = {"item_id": item, "score": score, "reason": reason, "title": title}
            found.setdefault(user, []).extend(plain_items([entry]))
        return found
    if to == "jsonl":
        rows = [json.loads(line) for line in (place / "lists.jsonl").read_text().splitlines()]
    else:
        rows = pq.read_table(place / "lists.parquet").to_pylist()
    return {row["user_id"]: plain_items(row["items"]) for row in rows}


def lists_of(root: Path, run: Run = RUN) -> dict[str, list[dict[str, Any]]]:
    """All lists of a run, as the lake gives them."""
    lake = Lake(root)
    titles = read_titles(lake)
    found = {}
    for lists in (read.with_titles(titles) for read in read_lists(lake, run)):
        structs = lists.as_structs().to_pylist()
        found |= {user: plain_items(items) for user, items in zip(lists.users.to_pylist(), structs, strict=True)}
    return found


@pytest.mark.parametrize("to", FILES)
def test_a_file_holds_every_list_and_says_what_it_is(exported_lake: Path, tmp_path: Path, to: str) -> None:
    done = export_run(Lake(exported_lake), RUN, to, str(tmp_path))
    assert lists_in(tmp_path / "als" / "current", to) == lists_of(exported_lake)
    manifest = json.loads((tmp_path / "als" / "current" / "manifest.json").read_text())
    counts = {name: manifest[name] for name in ("version", "run_id", "users", "rows", "ds", "to")}
    assert counts == {
        "version": "000001-r", "run_id": "r", "users": USERS, "rows": 5 * USERS, "ds": "2024-05-02", "to": to,
    }  # fmt: skip
    assert done.manifest["compared"] > 20 and done.place == str(tmp_path / "als" / "current")


def test_the_same_lists_have_the_same_checksum_in_every_file(exported_lake: Path, tmp_path: Path) -> None:
    sums = {export_run(Lake(exported_lake), RUN, "sqlite", str(tmp_path / name)).manifest["sha256"] for name in "ab"}
    assert len(sums) == 1


def test_old_versions_are_removed_but_as_many_stay_as_are_wanted(exported_lake: Path, tmp_path: Path) -> None:
    made = [export_run(Lake(exported_lake), RUN, "jsonl", str(tmp_path), keep=2) for _ in range(3)]
    assert [one.version for one in made] == ["000001-r", "000002-r", "000003-r"]
    assert [one.removed for one in made] == [[], [], ["000001-r"]]
    folder = tmp_path / "als"
    assert sorted(entry.name for entry in folder.iterdir()) == [".lock", "000002-r", "000003-r", "current"]
    assert os.readlink(folder / "current") == "000003-r"


def test_a_reader_during_switches_sees_one_whole_version(tmp_path: Path) -> None:
    """The lists of a version hold its number: a mix would show two of them."""
    lake = tmp_path / "lake"
    users = [f"u{n}" for n in range(30)]
    for number in (1, 2):
        write_lists(lake, "als", f"r{number}", MAY_2, {user: [f"v{number}"] * 2 for user in users})
    write_items(lake, {"v1": None, "v2": None})

    def export(number: int) -> None:
        export_run(Lake(lake), Run("als", f"r{number}", MAY_2), "sqlite", str(tmp_path / "out"), keep=3)

    export(1)
    seen, ended, problems = set(), threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            base = sqlite3.connect(f"file:{tmp_path / 'out' / 'als' / 'current' / 'lists.sqlite'}?mode=ro", uri=True)
            rows = base.execute("SELECT items FROM lists").fetchall()
            base.close()
            texts = {text for (text,) in rows}
            if len(rows) != len(users) or len(texts) != 1:
                problems.append(texts)
            seen.update(texts)

    reader = threading.Thread(target=read)
    reader.start()
    for number in (2, 1, 2, 1, 2):
        export(number)
    ended.set()
    reader.join(timeout=60)
    assert problems == [] and not reader.is_alive()
    assert len(seen) == 2


def test_an_export_that_fails_leaves_readers_where_they_are(
    exported_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(Lake(exported_lake), RUN, "sqlite", str(tmp_path))
    read_back = SQLiteFile.read_back

    def losing(self: SQLiteFile, users: list[str]) -> tuple[int, int, dict[str, Any]]:
        self_count, rows, lists = read_back(self, users)
        return self_count - 1, rows, lists

    monkeypatch.setattr(SQLiteFile, "read_back", losing)
    with pytest.raises(LakeError, match=f"{USERS - 1} users and {5 * USERS:,} rows were read back of {USERS} users"):
        export_run(Lake(exported_lake), RUN, "sqlite", str(tmp_path))
    assert sorted(entry.name for entry in (tmp_path / "als").iterdir()) == [".lock", "000001-r", "current"]


def test_a_list_that_was_changed_on_its_way_is_noticed() -> None:
    lists = {"u": [{"item_id": "a"}], "v": [{"item_id": "b"}]}
    check_read_back(2, 2, lists, 2, 2, dict(lists))
    check_read_back(2, 2, lists, 2, -1, dict(lists))
    with pytest.raises(LakeError, match="list of user 'v' was read back otherwise"):
        check_read_back(2, 2, lists, 2, 2, {**lists, "v": []})
    with pytest.raises(LakeError, match="1 users and 2 rows were read back"):
        check_read_back(2, 2, lists, 1, 2, lists)


def test_a_user_with_two_lists_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        write_lists(tmp_path / "lake", "als", "r", MAY_2, {"u": ["a"], "v": ["b"]})
    write_items(tmp_path / "lake", {"a": None})
    with pytest.raises(LakeError, match="two lists"):
        export_run(Lake(tmp_path / "lake"), RUN, "sqlite", str(tmp_path / "out"))


def test_two_exports_at_once_do_not_mix(exported_lake: Path, tmp_path: Path) -> None:
    with VersionedFolder(str(tmp_path), "als").writing() as work:
        assert work.is_dir()
        with pytest.raises(ConflictError, match="another export is writing"):
            export_run(Lake(exported_lake), RUN, "jsonl", str(tmp_path))


def test_what_a_killed_export_left_is_removed(exported_lake: Path, tmp_path: Path) -> None:
    left = tmp_path / "als" / ".partial-left"
    left.mkdir(parents=True)
    (left / "lists.jsonl").write_text("half")
    link = tmp_path / "als" / ".partial-link"  # made, but not yet renamed to `current`
    link.symlink_to("000001-r")
    export_run(Lake(exported_lake), RUN, "jsonl", str(tmp_path))
    assert not left.exists() and not link.is_symlink() and (tmp_path / "als" / "current").is_dir()


def test_a_folder_that_cannot_be_written_is_said(exported_lake: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--at: .* cannot be written"):
        export_run(Lake(exported_lake), RUN, "jsonl", str(tmp_path / "file"))


# Redis.


def test_redis_holds_every_list_behind_one_pointer(exported_lake: Path, redis_address: str) -> None:
    import redis

    client = redis.Redis.from_url(redis_address, decode_responses=True)
    client.flushdb()
    made = [export_run(Lake(exported_lake), RUN, "redis", redis_address, keep=2, prefix="shop") for _ in range(3)]
    assert [one.removed for one in made] == [[], [], ["000001-r"]]
    version = client.get("shop:als:current")
    assert version == made[-1].version == "000003-r"
    titles = client.hgetall(f"shop:als:{version}:titles")
    found = {
        user: [item | {"title": titles[item["item_id"]]} for item in plain_items(json.loads(text))]
        for user, text in client.hgetall(f"shop:als:{version}").items()
    }
    assert found == lists_of(exported_lake)
    assert json.loads(client.get(f"shop:als:{version}:manifest"))["users"] == USERS
    assert client.lrange("shop:als:versions", 0, -1) == ["000002-r", "000003-r"]
    keys = {"current", "number", "versions", *(f"{v}{part}" for v in ("000002-r", "000003-r") for part in PARTS)}
    assert set(client.keys("shop:*")) == {f"shop:als:{key}" for key in keys}


PARTS = ("", ":titles", ":manifest")


def test_a_reader_of_redis_during_switches_sees_one_whole_version(tmp_path: Path, redis_address: str) -> None:
    import redis

    users = [f"u{n}" for n in range(200)]
    for number in (1, 2):
        write_lists(tmp_path, "als", f"r{number}", MAY_2, {user: [f"v{number}"] for user in users})
    write_items(tmp_path, {"v1": "one"})

    def export(number: int) -> None:
        export_run(Lake(tmp_path), Run("als", f"r{number}", MAY_2), "redis", redis_address, keep=2, prefix="live")

    export(1)
    client = redis.Redis.from_url(redis_address, decode_responses=True)
    seen, ended, problems = set(), threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            lists = client.hgetall(f"live:als:{client.get('live:als:current')}")
            if len(lists) != len(users) or len(set(lists.values())) != 1:
                problems.append(len(lists))
            seen.update(lists.values())

    reader = threading.Thread(target=read)
    reader.start()
    for number in (2, 1, 2, 1):
        export(number)
    ended.set()
    reader.join(timeout=60)
    assert problems == [] and len(seen) == 2


def test_what_a_killed_export_left_in_redis_is_removed_and_its_lock_is_respected(
    exported_lake: Path, redis_address: str
) -> None:
    import redis

    client = redis.Redis.from_url(redis_address, decode_responses=True)
    client.hset("dead:als:000001-r", "u", "half")
    client.sadd("dead:als:unfinished", "000001-r")
    client.set("dead:als:number", 1)
    client.set("dead:als:writing", "of the dead one", ex=600)
    with pytest.raises(ConflictError, match="another export is writing to dead:als"):
        export_run(Lake(exported_lake), RUN, "redis", redis_address, prefix="dead")
    client.delete("dead:als:writing")
    assert export_run(Lake(exported_lake), RUN, "redis", redis_address, prefix="dead").version == "000002-r"
    assert not client.exists("dead:als:000001-r", "dead:als:unfinished", "dead:als:writing")


def test_a_redis_that_is_full_keeps_its_version(exported_lake: Path, redis_address: str) -> None:
    import redis

    client = redis.Redis.from_url(redis_address, decode_responses=True)
    version = export_run(Lake(exported_lake), RUN, "redis", redis_address, prefix="full").version
    try:
        store = RedisLists(redis_address, "full", "als")
        with pytest.raises(LakeError, match="readers keep the version they have"), store.writing("r2"):
            client.config_set("maxmemory", "1mb")
            for lists in read_lists(Lake(exported_lake), RUN):
                store.add(lists)
    finally:
        client.config_set("maxmemory", "0")
    assert client.get("full:als:current") == version


def test_a_redis_that_is_away_is_one_error_without_its_password(exported_lake: Path) -> None:
    pytest.importorskip("redis")
    with pytest.raises(ConfigError, match=r"redis://\S*127.0.0.1:1.*: Redis cannot be used") as raised:
        export_run(Lake(exported_lake), RUN, "redis", "redis://me:secret@127.0.0.1:1/0")
    assert "secret" not in str(raised.value)


# Vectors.


def test_vectors_have_their_ids_and_give_the_scores_of_the_lists(exported_lake: Path, tmp_path: Path) -> None:
    done = export_run(Lake(exported_lake), RUN, "vectors", str(tmp_path))
    folder = tmp_path / "als" / "current"
    users, items = (np.load(folder / f"{side}_vectors.npy", allow_pickle=False) for side in ("user", "item"))
    ids = {side: pq.read_table(folder / f"{side}_ids.parquet")["id"].to_pylist() for side in ("user", "item")}
    assert users.shape == (USERS, 8) and items.shape == (40, 8)
    assert {side: len(set(names)) for side, names in ids.items()} == {"user": USERS, "item": 40}
    for user, listed in list(lists_of(exported_lake).items())[:20]:
        for item in listed:
            score = users[ids["user"].index(user)] @ items[ids["item"].index(item["item_id"])]
            assert abs(score - item["score"]) < 1e-4
    assert (done.manifest["users"], done.manifest["items"], done.manifest["width"]) == (USERS, 40, 8)
    assert done.manifest["inner_product"] and done.manifest["compared"] > 100


def test_the_index_finds_what_exact_search_finds(exported_lake: Path, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    run = find_run(Lake(exported_lake))
    done = export_run(Lake(exported_lake), run, "vectors", str(tmp_path), faiss=True)
    assert done.manifest["recall_at_20"] > 0.95 and done.manifest["inner_product"]
    index = faiss.read_index(str(tmp_path / "als" / "current" / "items.faiss"))
    assert (index.ntotal, index.d) == (40, 9)


def test_recall_is_the_share_of_the_exact_neighbours() -> None:
    base = np.diag(np.arange(1, 5)).astype(np.float32)
    queries = np.ones((1, 4), np.float32)
    assert recall(queries, base, np.array([[3, 2]])) == 1
    assert recall(queries, base, np.array([[3, 0]])) == 0.5


def test_a_run_without_vectors_is_said(tmp_path: Path) -> None:
    import pyarrow as pa

    from tests.lake.test_query import write

    for side in ("user", "item"):
        columns = {
            f"{side}_id": ["a"],
            "factor": pa.array([[]], pa.list_(pa.float32())),
            "bias": pa.array([0], pa.float32()),
            "model": ["ease"],
            "run_id": ["r"],
        }
        write(tmp_path / "lake", f"{side}_factors", columns, ["model", "run_id"])
    with pytest.raises(NotFoundError, match="scores of ease do not come from vectors"):
        export_run(Lake(tmp_path / "lake"), Run("ease", "r", MAY_2), "vectors", str(tmp_path / "out"))


def test_an_index_of_a_run_without_lists_is_refused_by_the_step_that_is_missing(tmp_path: Path) -> None:
    import pyarrow as pa

    from tests.lake.test_query import write

    write_lists(tmp_path / "lake", "als", "other", MAY_2, {"u": ["a"]})
    for side in ("user", "item"):
        columns = {
            f"{side}_id": ["a"],
            "factor": pa.array([[1.0, 2.0]], pa.list_(pa.float32())),
            "bias": pa.array([0], pa.float32()),
            "model": ["als"],
            "run_id": ["r"],
        }
        write(tmp_path / "lake", f"{side}_factors", columns, ["model", "run_id"])
    with pytest.raises(NotFoundError, match=r"--faiss: run r of als has no lists .* run its recommend step first"):
        export_run(Lake(tmp_path / "lake"), RUN, "vectors", str(tmp_path / "out"), faiss=True)


def test_a_full_disk_is_one_line(exported_lake: Path, tmp_path: Path) -> None:
    file = SQLiteFile(tmp_path)
    file._base.execute("PRAGMA max_page_count = 4")
    with pytest.raises(LakeError, match=r"lists\.sqlite: database or disk is full: check the space"):
        for lists in read_lists(Lake(exported_lake), RUN):
            file.add(lists)
    file._base.close()
    file.path.write_bytes(b"x" * 5000)
    with pytest.raises(LakeError, match="file is not a database"):
        file.read_back(["u"])


def test_every_target_is_tested() -> None:
    assert set(TARGETS) == {*FILES, "redis", "vectors", "encoder"}
