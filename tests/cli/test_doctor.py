"""The doctor names what is wrong and how to mend it, and says nothing failed only where nothing failed."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from deltalake import DeltaTable

from sparkcf.cli import doctor
from sparkcf.cli.doctor import Check, diagnose
from sparkcf.cli.main import main
from sparkcf.errors import ConfigError
from sparkcf.jobs.clean import clean_day
from sparkcf.lake.query import Lake
from tests.lake.test_query import MAY_1, build_lake, publish, write_users


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    return build_lake(tmp_path / "lake")


def tables(root: Path | str) -> dict[str, Check]:
    return {c.check: c for c in diagnose(str(root)) if c.check.startswith(("table", "files"))}


def next_entry(root: Path, table: str, content: str) -> int:
    """Add a log entry with this content; gives the version before it."""
    log = root / table / "_delta_log"
    version = int(max(log.glob("*.json")).stem)
    (log / f"{version + 1:020}.json").write_text(content)
    return version


# The lake.


def test_every_table_of_a_sound_lake_is_good(root: Path) -> None:
    found = tables(root)
    made = ["interactions", "users", "items", "recommendations", "similar_items", "runs", "metrics", "published"]
    assert list(found) == [f"table {name}" for name in made]
    assert {c.status for c in found.values()} == {"ok"}
    assert found["table published"].found == "version 2 is good, 3 files"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"add":{"path":"part', "line 1 of its log entry is not JSON"),
        ('{"commitInfo":{}}\n{"add":', "line 2 of its log entry is not JSON"),
        ("", "its log entry is empty"),
        ("\x00\xff", "line 1 of its log entry is not JSON"),
        ("[1]", "Json error"),
    ],
)
def test_a_corrupt_last_entry_fails_with_the_last_good_version(root: Path, content: str, problem: str) -> None:
    good = next_entry(root, "recommendations", content)
    check = tables(root)["table recommendations"]
    assert check.status == "fail"
    assert f"version {good + 1} is corrupt" in check.found and problem in check.found
    assert check.found.endswith(f"last good version {good}")
    assert f"version {good + 1} out of its _delta_log" in check.cure
    DeltaTable(str(root / "recommendations"), version=good)  # the promise


def test_following_the_cure_mends_the_table(root: Path) -> None:
    good = next_entry(root, "published", "{")
    (root / "published" / "_delta_log" / f"{good + 1:020}.json").unlink()
    assert tables(root)["table published"].status == "ok"
    assert Lake(root).published().run_id == "als-2"


def test_several_corrupt_entries_are_walked_back_over(root: Path) -> None:
    good = next_entry(root, "users", "{")
    next_entry(root, "users", "")
    next_entry(root, "users", '{"commitInfo":{}}')
    check = tables(root)["table users"]
    assert check.found.endswith(f"last good version {good}")
    assert f"versions {good + 1} to {good + 3}" in check.cure


def test_a_table_without_any_good_version_fails(root: Path) -> None:
    (entry,) = (root / "users" / "_delta_log").glob("*.json")
    entry.write_text("{")
    check = tables(root)["table users"]
    assert check.status == "fail" and "no version is good" in check.found
    entry.unlink()
    assert tables(root)["table users"].found == "a folder without a log"


def test_a_checkpoint_stands_for_entries_that_were_cleaned_away(root: Path) -> None:
    for sequence in range(2, 5):
        publish(root, "als", MAY_1, sequence, "als-1")
    table = DeltaTable(str(root / "published"))
    table.create_checkpoint()
    for entry in (root / "published" / "_delta_log").glob("*.json"):
        entry.unlink()
    assert tables(root)["table published"] == Check("table published", "ok", "version 5 is good, 6 files")


def test_missing_data_files_fail(root: Path) -> None:
    (file,) = (root / "recommendations" / "model=als" / "run_id=als-2").glob("*.parquet")
    file.unlink()
    found = tables(root)
    assert found["table recommendations"].status == "ok"
    check = found["files of recommendations"]
    assert check.status == "fail"
    assert check.found.startswith("1 of 3 files are lost or damaged: model=als/run_id=als-2/")
    assert check.found.endswith(" is missing")


def damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    file.write_bytes({"cut": content[:-1], "flipped": flipped, "other": b"PAR1" * (len(content) // 4 + 1)}[kind])


@pytest.mark.parametrize("through", ["a folder", "delta-rs"])
def test_files_of_another_size_fail(root: Path, through: str) -> None:
    (file,) = (root / "items").glob("*.parquet")
    damage(file, "cut")
    lake = Lake(root)
    if through == "delta-rs":
        lake.folder, lake.root = None, root.as_uri()
    good, check = doctor.check_table(lake, "items")
    assert (good.status, check.status) == ("ok", "fail")
    assert f"{file.name} has {file.stat().st_size:,} bytes instead of {file.stat().st_size + 1:,}" in check.found
    assert check.cure == "restore them from a backup"  # the numbers of ids are given once


def test_files_are_read_where_it_is_asked_for(root: Path) -> None:
    files = sorted((root / "recommendations").rglob("*.parquet"))
    size = files[0].stat().st_size
    files[0].write_bytes(b"\0" * size)
    assert "files of recommendations" not in tables(root)
    (check,) = [c for c in diagnose(str(root), deep=True) if c.check == "files of recommendations"]
    assert check.status == "fail" and "cannot be read" in check.found and "`sparkcf doctor --repair" in check.cure


@pytest.mark.parametrize("kind", ["cut", "flipped", "gone"])
def test_what_the_doctor_advises_mends_the_lake(
    spark, config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,ts\n" + "".join(f"u{n},i{n % 3},{1_600_000_000 + n}\n" for n in range(9)))
    settings = config("input.ts_formats=[epoch_s]", path=log)
    clean_day(spark, settings)
    lake = tmp_path / "lake"
    before = Lake(lake).history("u4")
    for file in (lake / "interactions").rglob("*.parquet"):
        damage(file, kind) if kind != "gone" else file.unlink()
    arguments = ["--lake", str(lake), "--deep", "--format", "json"]
    code, out = ask(capsys, *arguments)
    (failed,) = [r for r in json.loads(out) if r["status"] == "fail"]
    assert (code, failed["check"]) == (1, "files of interactions")
    cure = f"`sparkcf doctor --repair --lake {lake}` takes them out of the table; then run jobs/clean.py with ds="
    assert failed["cure"] == f"{cure}2024-01-31"
    code, out = ask(capsys, "--repair", *arguments)
    (repaired,) = [r for r in json.loads(out) if r["check"] == "files of interactions"]
    assert (code, repaired["status"], repaired["cure"]) == (0, "warn", "run jobs/clean.py with ds=2024-01-31")
    assert Lake(lake).history("u4").empty
    assert clean_day(spark, settings)["counts"]["inserted"] == 9
    code, out = ask(capsys, *arguments)
    assert code == 0 and not [r for r in json.loads(out) if r["check"].startswith("files")]
    assert Lake(lake).history("u4").equals(before)


def test_a_table_that_queries_cannot_read_is_warned_of(root: Path) -> None:
    features = ["deletionVectors"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features}
    next_entry(root, "users", json.dumps({"protocol": {**protocol, "writerFeatures": features}}))
    check = tables(root)["table users"]
    assert (check.status, "deletionVectors" in check.found) == ("warn", True)


@pytest.mark.parametrize("name", ["plain", "läke #1 with space"])
def test_a_lake_reached_through_delta_rs_is_checked_too(tmp_path: Path, name: str) -> None:
    root = build_lake(tmp_path / name)
    next_entry(root, "users", "{")
    store = Lake(root)
    store.folder, store.root = None, root.as_uri()  # as if it were an object store
    assert doctor.check_root(store).status == "ok"
    assert [c.status for c in doctor.check_table(store, "users")] == ["fail"]
    assert [c.status for c in doctor.check_table(store, "items")] == ["ok"]
    assert list(doctor.check_table(store, "quarantine")) == []


def test_an_object_store_is_probed_and_left_as_it_was(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Lake(root)
    store.folder, store.root = None, root.as_uri()  # as if it were an object store
    before = sorted(root.rglob("*"))
    assert doctor.check_root(store) == Check("lake", "ok", f"{root.as_uri()} is writable")
    assert sorted(root.rglob("*")) == before

    def refused(*_: object) -> None:
        raise OSError("When uploading: AWS Error ACCESS_DENIED")

    with monkeypatch.context() as patch:
        patch.setattr(doctor.Folder, "write", refused)
        check = doctor.check_root(store)
    assert check.status == "warn" and "ACCESS_DENIED" in check.found and "credentials" in check.cure
    store.root = (tmp_path / "none").as_uri()
    assert doctor.check_root(store).status == "warn" and not (tmp_path / "none").exists()
    store.root = "abfss://lake@account.dfs.core.windows.net/lake"
    check = doctor.check_root(store)
    assert check.status == "ok" and "writing is not checked" in check.found


def lake_check(root: Path | str) -> Check:
    return next(c for c in diagnose(str(root)) if c.check == "lake")


def test_the_lake_is_probed_and_left_as_it_was(root: Path) -> None:
    before = sorted(root.iterdir())
    assert lake_check(root).status == "ok"
    assert sorted(root.iterdir()) == before


def test_a_lake_that_is_not_there_yet_is_no_failure_and_is_not_made(tmp_path: Path) -> None:
    check = lake_check(tmp_path / "none")
    assert check.status == "warn" and "make nightly" in check.cure
    assert not (tmp_path / "none").exists()


def test_a_file_in_the_lakes_place_and_an_unwritable_folder_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert lake_check(tmp_path / "file").status == "fail"

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refused)
    check = lake_check(tmp_path)
    assert check.status == "fail" and "Permission denied" in check.found


def test_little_space_is_warned_of_with_the_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(root / "scratch"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 4 * 2**30))
    disks = [c for c in diagnose(str(root)) if c.check == "disk"]
    assert [(c.status, c.found) for c in disks] == [
        ("warn", f"4.0 GiB free at {root}"),
        ("warn", f"4.0 GiB free at {root / 'scratch'}"),
    ]
    assert all(c.cure for c in disks)


# The machine.


def test_the_wrong_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().status == "ok"
    monkeypatch.setattr(doctor.runtime, "PYTHON", (3, 99))
    assert doctor.check_python().status == "fail"


def test_a_missing_java_fails_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    check = doctor.check_java()
    assert (check.status, check.found) == ("fail", f"no Java found in JAVA_HOME={tmp_path}")
    assert "install" in check.cure


def test_pins_are_compared_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = importlib.metadata.version("pyarrow")
    pins = [f"pyarrow=={here}", "numpy==0.0.1", "no-such-package==1.0", 'ruff==0.0.1; extra == "dev"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: pins)
    check = doctor.check_packages()
    assert check.status == "fail"
    numpy = importlib.metadata.version("numpy")
    assert check.found == f"numpy is {numpy} (pinned 0.0.1), no-such-package is missing (pinned 1.0)"
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: pins[:1])
    assert doctor.check_packages() == Check("packages", "ok", "1 packages as pinned")


def test_a_local_part_of_a_version_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: ["numpy==1.2.3"])
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _: "1.2.3+cpu")
    assert doctor.check_packages().status == "ok"


def test_deltas_jars_are_looked_for_in_sparks_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    jars = tmp_path / "jars"
    jars.mkdir()
    assert doctor.check_jars().status == "warn"
    (jars / "delta-spark_2.12-3.3.3.jar").touch()
    assert doctor.check_jars() == Check("delta jars", "ok", "delta-spark_2.12-3.3.3.jar")
    (jars / "delta-spark_2.12-3.2.0.jar").touch()
    assert doctor.check_jars().status == "fail"


def session(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], slots: int = 4) -> list[str]:
    """Stand in for Spark; gives the list in which its stop is noted."""
    stopped: list[str] = []
    conf = SimpleNamespace(get=lambda key, default: settings.get(key, default))
    context = SimpleNamespace(getConf=lambda: conf, defaultParallelism=slots, master="local[4]")
    spark = SimpleNamespace(sparkContext=context, version="3.5.9", stop=lambda: stopped.append("stopped"))
    monkeypatch.setitem(sys.modules, "sparkcf.jobs.session", SimpleNamespace(open_session=lambda: (spark, True)))
    return stopped


def test_a_sessions_slots_and_settings_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = session(monkeypatch, {"spark.task.cpus": "2"})
    checks = {c.check: (c.status, c.found) for c in doctor.check_spark()}
    assert checks == {
        "spark": ("ok", "Spark 3.5.9 at local[4]"),
        "spark slots": ("ok", "2 at once, spark.task.cpus=2"),
        "dynamic allocation": ("ok", "off"),
        "gpu": ("ok", "none requested"),
    }
    assert stopped == ["stopped"]


def test_settings_that_stop_a_gang_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = "spark.task.resource.gpu.amount"
    session(monkeypatch, {"spark.task.cpus": "8", "spark.dynamicAllocation.enabled": "true", gpu: "0.5"})
    checks = {c.check: c for c in doctor.check_spark()}
    assert [checks[n].status for n in ("spark slots", "dynamic allocation", "gpu")] == ["fail", "warn", "fail"]
    assert "spark.dynamicAllocation.enabled=false" in checks["dynamic allocation"].cure


def test_a_session_that_does_not_open_fails_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise ConfigError("Delta's jars are not on Spark's class path: add `--packages`")

    monkeypatch.setitem(sys.modules, "sparkcf.jobs.session", SimpleNamespace(open_session=refused))
    expected = Check("spark", "fail", "Delta's jars are not on Spark's class path", "add `--packages`")
    assert doctor.check_spark() == [expected]


# The command.


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    return ended.value.code, capsys.readouterr().out


def test_the_exit_code_is_1_only_where_something_failed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--lake", str(root), "--format", "json")
    code, out = ask(capsys, *arguments)
    records = json.loads(out)
    assert list(records[0]) == ["check", "status", "found", "cure"]
    assert (code, {r["status"] for r in records} - {"warn"}) == (0, {"ok"})
    next_entry(root, "metrics", "{")
    code, out = ask(capsys, *arguments)
    failed = [r["check"] for r in json.loads(out) if r["status"] == "fail"]
    assert (code, failed) == (1, ["table metrics"])


def test_the_table_and_csv_forms_name_the_same_checks(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)  # others write to the disk between the two calls
    _, table = ask(capsys, "--lake", str(root))
    _, text = ask(capsys, "--lake", str(root), "--format", "csv")
    for row in csv.DictReader(io.StringIO(text)):
        assert row["check"] in table and row["found"] in table


def test_a_lake_of_one_table_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_users(tmp_path, ["1"])
    assert ask(capsys, "--lake", str(tmp_path))[0] == 0
