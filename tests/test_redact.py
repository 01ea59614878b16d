"""No credential of an address or a setting is printed or stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sparkcf.cli.main import main
from sparkcf.config.load import load_config
from sparkcf.errors import LakeError
from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.frame import run_job
from sparkcf.jobs.nightly import nightly
from sparkcf.redact import redacted, redacted_values

SECRET = "hunter2Hunter"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"lake s3a://AKIA1:{SECRET}@bucket/lake: gone", "lake s3a://***@bucket/lake: gone"),
        (f"s3a://AKIA1:hun/{SECRET}+x=@bucket", "s3a://***@bucket"),
        (f"ftp://user:p@{SECRET}@host/in.csv", "ftp://***@host/in.csv"),
        (f"https://{SECRET}@host/x", "https://***@host/x"),
        (f"wasbs://c@a.blob.core.windows.net/x?sv=1&sig={SECRET}%3D&se=2", "wasbs://c@a.blob.core.windows.net/x?sv=1&sig=***&se=2"),
        (f"AccountName=a;AccountKey={SECRET}==;Suffix=b", "AccountName=a;AccountKey=***;Suffix=b"),
        (f"X-Amz-Security-Token={SECRET}&x=1", "X-Amz-Security-Token=***&x=1"),
        (f"spark.hadoop.fs.s3a.secret.key={SECRET}", "spark.hadoop.fs.s3a.secret.key=***"),
        (f"fs.azure.account.key.a.core.windows.net = '{SECRET}'", "fs.azure.account.key.a.core.windows.net = '***'"),
        (f'{{"db.password": "{SECRET}", "rank": 3}}', '{"db.password": "***", "rank": 3}'),
        (f"('fs.s3a.access.key', '{SECRET}')", "('fs.s3a.access.key', '***')"),
    ],
)  # fmt: skip
def test_credentials_are_replaced_and_the_rest_stays(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "abfss://container@account.dfs.core.windows.net/lake",
        "hdfs://namenode:8020/user/me@home/lake",
        "s3a://bucket/day=2024-01-31/part@1",
        "unknown token 'x' in line 3: expected a number",
        "signal SIGTERM, sigma=3, user_id=5, password",
        "nobody@example.org: 3 rows",
    ],
)
def test_addresses_without_credentials_stay(text: str) -> None:
    assert redacted(text) == text


def test_a_long_word_takes_no_longer_than_a_short_one_of_its_length() -> None:
    """Quadratic rules would take minutes."""
    assert redacted("x" * 300_000 + f" token={SECRET}").endswith(" token=***")


def test_the_values_of_json_are_redacted_and_stay_json() -> None:
    value = {"root": f"s3a://k:{SECRET}@b", "token": 5, "list": [f"sig={SECRET}", None, 1.5], "deep": {"x": ("a",)}}
    shown = {"root": "s3a://***@b", "token": 5, "list": ["sig=***", None, 1.5], "deep": {"x": ["a"]}}
    assert redacted_values(value) == shown


def test_an_error_never_has_credentials_in_its_message() -> None:
    assert str(LakeError(f"cannot read s3a://k:{SECRET}@b")) == "cannot read s3a://***@b"


# In each place of the configuration and of the command line that an address may stand in.
PLANTED = [
    f"lake.root=s3a://KEY:{SECRET}@bucket/lake",
    f"input.path=https://host/day.csv?sig={SECRET}",
    f"input.users.path=wasbs://c@a/users.csv?AccountKey={SECRET}",
    f"train.progress=s3a://KEY:{SECRET}@bucket/progress",
    f"topk.ineligible=ftp://user:{SECRET}@host/list.csv",
]


@pytest.mark.parametrize("wrong", [[], ["als.rank=0"], [f"s3a://KEY:{SECRET}@b"], [f"seed=s3a://K:{SECRET}@b"]])
def test_a_dry_run_and_refused_arguments_show_no_credential(capsys: pytest.CaptureFixture[str], wrong: list) -> None:
    code = run_job("clean", nightly, ["--dry-run", "ds=2024-01-31", *PLANTED, *wrong])
    shown = capsys.readouterr()
    assert code == (2 if wrong else 0)
    assert SECRET not in shown.out + shown.err and ("***" in shown.err or wrong == ["als.rank=0"])


def test_an_unknown_option_shows_no_credential(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_job("clean", nightly, [f"--lake=s3a://KEY:{SECRET}@bucket"])
    assert SECRET not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["recommend", "--user", "1"], ["runs"], ["doctor"]])
def test_the_command_line_tool_shows_no_credential(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--lake", f"/none/s3a://KEY:{SECRET}@bucket/x?sig={SECRET}"])
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err and "***" in shown.out + shown.err


def everything(folder: Path) -> str:
    """The text of every file below a folder, and of every value of its Parquet files."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append(f"{path.relative_to(folder)}\n{path.read_bytes().decode(errors='replace')}")
        if path.suffix == ".parquet":
            found.append(json.dumps(pq.ParquetFile(path).read().to_pylist(), default=str))
    return "\n".join(found)


def test_a_run_writes_no_credential_into_the_lake(
    spark, config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials in the names of local folders stand for those of addresses: jobs treat both alike."""
    folder = tmp_path / f"sig={SECRET}"
    folder.mkdir()
    log = folder / "log.csv"
    log.write_text("user_id,item_id,ts\nu1,i1,1600000000\nu1,,1600000000\n")
    settings = ["input.ts_formats=[epoch_s]", "ds=2024-01-31", f"lake.root={tmp_path / 'lake'}", f"input.path={log}"]
    monkeypatch.setattr("sparkcf.jobs.frame.open_session", lambda *_: (spark, False))
    assert run_job("clean", clean_day, settings) == 0
    shown = [capsys.readouterr()]
    log.unlink()
    assert run_job("clean", clean_day, settings) == 2  # its reason is stored
    planted = [value for value in PLANTED if not value.startswith(("lake.root", "input.path", "input.users.path"))]
    (folder / "log.csv").write_text("user_id,item_id,ts\nu1,i1,1600000000\n")
    assert run_job("nightly", nightly, [*settings, *planted]) == 2
    shown.append(capsys.readouterr())
    written = everything(tmp_path / "lake")
    assert "sig=***" in written  # the configuration, the reason and the source are there
    assert SECRET not in written
    for one in shown:
        assert SECRET not in one.out + one.err and "***" in one.err


def test_a_stored_configuration_still_gives_back_what_shaped_the_fit() -> None:
    config = load_config((), ["ds=2024-01-31", "als.rank=7", *PLANTED])
    assert SECRET not in config.to_json() + config.shown()
    assert config.with_shaping(json.loads(config.to_json())).shaping() == config.shaping()
