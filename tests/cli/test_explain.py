"""`sparkcf explain` on a small lake that delta-rs writes: the parts with titles, as a table and as JSON, and errors."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sparkcf.config.factorization import ALSConfig
from sparkcf.config.load import load_config
from sparkcf.models.als.fit import fold_in
from tests.lake.test_query import MAY_1, UTC, publish, write, write_interactions, write_items, write_users

RANK, ITEMS = 3, ("a", "b", "c", "d", "e")
HAD = {"u1": ("a", "b", "c"), "u2": ("d",)}
PARAMS = ("als.rank=3", "als.regularization=0.1", "preference.positive_from=3")


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """ALS of five items and two users, published; u3 has no vector, item e is not known to the run."""
    root = tmp_path / "lake"
    write_users(root, [*HAD, "u3"])
    write_items(root, {item: f"Film {item} [b]" for item in ITEMS})
    at = dt.datetime(2024, 4, 30, tzinfo=UTC)
    events = [(user, item, 5.0, at) for user, items in HAD.items() for item in items]
    write_interactions(root, MAY_1, [*events, ("u1", "d", 1.0, at)])  # not positive
    config = load_config((), ["ds=2024-05-01", "input.path=x", "model=als", *PARAMS])
    vectors = np.random.default_rng(0).normal(size=(4, RANK)).astype(np.float32)
    places = [np.array([ITEMS.index(item) for item in items], np.int32) for items in HAD.values()]
    users = [solved(vectors, row, config.als) for row in places]
    write_factors(root, "item", list(ITEMS[:4]), vectors)
    write_factors(root, "user", list(HAD), np.stack(users))
    write_run(root, config.to_json())
    publish(root, "als", MAY_1, 1, "r1")
    lists = {"user_id": ["u1"], "position": pa.array([1], pa.int32()), "item_id": ["d"]}
    more = {"score": pa.array([0.5], pa.float32()), "reason": ["model"], "model": ["als"], "run_id": ["r1"]}
    write(root, "recommendations", {"ds": [MAY_1], **lists, **more}, ["model", "run_id"])
    return root


def solved(vectors: np.ndarray, row: np.ndarray, config: ALSConfig) -> np.ndarray:
    ones = np.ones(len(row), np.float32)
    return fold_in(np.array([0, len(row)]), row, ones, vectors, np.zeros(len(vectors), np.float32), config, 4)[0][0]


def write_factors(root: Path, side: str, ids: list[str], vectors: np.ndarray) -> None:
    columns = {
        f"{side}_idx": pa.array(range(len(ids)), pa.int32()),
        f"{side}_id": ids,
        "factor": pa.array(list(vectors), pa.list_(pa.float32())),
        "bias": pa.array([0.0] * len(ids), pa.float32()),
        "model": ["als"] * len(ids),
        "run_id": ["r1"] * len(ids),
    }
    write(root, f"{side}_factors", columns, ["model", "run_id"])


def write_run(root: Path, config: str) -> None:
    write(root, "runs", {"run_id": ["r1"], "job": ["train"], "model": ["als"], "ds": [MAY_1], "config": [config]})
    figures = {"run_id": ["r1"], "protocol": ["fit"], "metric": ["mean"], "value": [0.0]}
    write(root, "metrics", {**figures, "k": pa.nulls(1, pa.int32())})


def test_the_parts_are_the_items_of_the_history_with_titles(lake: Path, run) -> None:
    code, out, err = run("explain", "--user", "u1", "--item", "d", "--lake", str(lake))
    assert code == 0 and not err
    assert "als, published for 2024-05-01, run r1" in out
    assert "user u1, item d Film d [b]: score " in out and "position 1; values sum to the score" in out
    assert all(f"Film {item} [b]" in out for item in "abc")
    assert "smaller parts" not in out
    code, out, _ = run("explain", "--user", "u1", "--item", "d", "--k", "1", "--lake", str(lake))
    assert "2 smaller parts" in out


def test_json_has_every_part_and_they_sum_to_the_score(lake: Path, run) -> None:
    code, out, _ = run("explain", "--user", "u1", "--item", "d", "--lake", str(lake), "--format", "json", "--k", "1")
    found = json.loads(out)
    assert code == 0 and found["exact"] and found["scale"] == "score" and found["position"] == 1
    assert {part["item_id"] for part in found["parts"]} == set(HAD["u1"])  # d was rated 1: no positive
    assert sum(part["value"] for part in found["parts"]) == pytest.approx(found["score"], rel=1e-4)
    sizes = [abs(part["value"]) for part in found["parts"]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("user", "item", "said"),
    [
        ("u9", "a", "user 'u9' is not in lake"),
        ("u3", "a", "user 'u3' has no vector in run r1"),
        ("u1", "z", "item 'z' is not in lake"),
        ("u1", "e", "item 'e' has no score in run r1"),
    ],
)
def test_what_is_unknown_ends_in_a_line(lake: Path, run, user: str, item: str, said: str) -> None:
    code, out, err = run("explain", "--user", user, "--item", item, "--lake", str(lake))
    assert code == 1 and not out and err.count("\n") == 1 and said in err


def test_without_a_published_run_or_of_another_model_it_ends_in_a_line(lake: Path, run, tmp_path: Path) -> None:
    code, _, err = run("explain", "--user", "u1", "--item", "a", "--model", "ease", "--lake", str(lake))
    assert code == 1 and "model 'ease' is not published: published are 'als'" in err
    code, _, err = run("explain", "--user", "u1", "--item", "a", "--lake", str(tmp_path / "none"))
    assert code == 2 and err.count("\n") == 1


def test_a_run_of_a_model_that_is_not_installed_names_the_package_as_the_cure(tmp_path: Path, run) -> None:
    write_users(tmp_path, ["u1"])
    write_items(tmp_path, {"a": "Film a"})
    config = json.loads(load_config((), ["ds=2024-05-01", "input.path=x"]).to_json())
    row = {"run_id": ["r1"], "job": ["train"], "model": ["knn"], "ds": [MAY_1]}
    write(tmp_path, "runs", {**row, "config": [json.dumps(config | {"model": "knn", "knn": {"neighbours": 5}})]})
    publish(tmp_path, "knn", MAY_1, 1, "r1")
    code, out, err = run("explain", "--user", "u1", "--item", "a", "--lake", str(tmp_path))
    assert code == 2 and not out and err.count("\n") == 1
    assert "run r1 (model knn, published for 2024-05-01): its model knn is not installed here: " in err
    assert "install the package that registers it (entry points sparkcf.models)" in err
