"""The reference of the keys: every key says what it is, and who reads it agrees with the jobs' source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sparkcf.config.load import model_names
from sparkcf.config.models import SECTIONS
from sparkcf.config.reference import EVERY_JOB, READ_BY, all_keys, find_keys, near_names
from sparkcf.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
JOBS = {path.stem for path in (ROOT / "jobs").glob("*.py")}


def test_every_key_has_a_type_a_meaning_and_readers() -> None:
    for key in all_keys().values():
        assert key.type and key.read_by, key.name
        assert key.meaning, key.name


def test_readers_are_named_for_every_section_and_are_jobs() -> None:
    heads = {name.partition(".")[0] for name in all_keys()}
    assert heads == {name.partition(".")[0] for name in READ_BY} | SECTIONS.keys()
    assert {job for jobs in READ_BY.values() if jobs != EVERY_JOB for job in jobs} <= JOBS


@pytest.mark.parametrize("job", sorted(JOBS - {"nightly"}))  # a night reads what its steps read
def test_a_job_is_named_as_a_reader_of_what_its_source_reads(job: str) -> None:
    path = ROOT / "sparkcf" / "jobs" / f"{job}.py"
    if not path.exists():  # rollback is a function of publish
        return
    keys = all_keys()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Attribute) and (words := ast.unparse(node).split("."))[0] == "config"):
            continue
        name = ".".join(words[1:3]) if ".".join(words[1:3]) in keys else words[1]
        found = [key for key in keys.values() if f"{key.name}.".startswith(f"{name}.")]
        if name in SECTIONS or not found:  # a method of the configuration, or model_dump
            continue
        assert any(key.read_by in (*EVERY_JOB,) or job in key.read_by.split(", ") for key in found), (job, name)


def test_a_key_is_found_by_its_name_and_a_section_by_its() -> None:
    (rank,) = find_keys("als.rank")
    assert (rank.type, rank.default, rank.required, rank.read_by) == (
        "whole number ≥ 1, ≤ 4,096",
        64,
        False,
        "model als",
    )
    (ds,) = find_keys("ds")
    assert ds.required and ds.default is None and ds.read_by == "every job"
    assert [key.name for key in find_keys("rerank.caps")] == ["rerank.caps", "rerank.caps[].by", "rerank.caps[].most"]
    assert {key.name for key in find_keys("als")} == {name for name in all_keys() if name.startswith("als.")}
    assert find_keys("train.window_days")[0].read_by != find_keys("train.again")[0].read_by


@pytest.mark.parametrize(
    ("typed", "first"),
    [("als.rnak", "als.rank"), ("as.rank", "als.rank"), ("gate.max_fal", "gate.max_fall"), ("multvea", "multvae"),
     ("fm.latent_dim", "macridvae.latent_dim"), ("topk", "topk"), ("window_days", "train.window_days")],
)  # fmt: skip
def test_a_mistyped_key_is_answered_with_the_near_ones(typed: str, first: str) -> None:
    near = near_names(typed, list(all_keys()))
    assert first in near and len(near) <= 5


def test_an_unknown_key_near_to_none_says_how_to_go_on() -> None:
    with pytest.raises(ConfigError, match="zzzz: `sparkcf config explain` lists the sections"):
        find_keys("zzzz")
    assert "zzzz" not in model_names()
