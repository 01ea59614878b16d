"""Lists within a concept keep to what the run's configuration allows."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sparkcf.config.load import load_config
from sparkcf.lake.concepts import Concepts
from sparkcf.lake.query import Lake
from tests.cli.conftest import run  # noqa: F401
from tests.lake.test_query import publish, write, write_interactions

DAY, RUN = dt.date(2024, 5, 1), "r1"
ITEMS = {  # categories and brand
    "seen": (["x"], "acme"),
    "both": (["x", "y", None], "acme"),
    "y": (["y"], None),
    "none": ([], "other"),
    "untold": (None, None),
}
VECTORS = [[np.cos(a), np.sin(a)] for a in (0.1, 0.2, 0.4, 0.8, 1.2)]  # in order of their cosine with the user's


def lake_of(root: Path, *overrides: str) -> Lake:
    """A lake of one published run with two concepts; the user `u` has the item `seen`."""
    given = ["ds=2024-05-01", "input.path=none", "model=macridvae", "macridvae.temperature=1", *overrides]
    whose = {"model": "macridvae", "run_id": RUN}
    n, ids, floats = len(ITEMS), list(ITEMS), pa.list_(pa.float32())

    def of_run(name: str, columns: dict) -> None:
        size = len(next(iter(columns.values())))
        write(root, name, columns | {key: [value] * size for key, value in whose.items()}, list(whose))

    publish(root, "macridvae", DAY, 1, RUN)
    write(root, "runs", {"run_id": [RUN], "config": [load_config((), given).to_json()]})
    of_run("item_factors", {"item_id": ids, "factor": pa.array(VECTORS, floats)})
    of_run("user_factors", {"user_id": ["u"], "factor": pa.array([[1.0, 0.0, 0.0, 1.0]], floats)})
    concepts = {
        "item_id": [item for item in ids for _ in range(2)],
        "concept": pa.array([0, 1] * n, pa.int32()),
        "probability": pa.array([0.5] * (2 * n), pa.float32()),
        "users": pa.array([1] * (2 * n), pa.int32()),
    }
    of_run("item_concepts", concepts)
    texts = pa.map_(pa.string(), pa.string())
    brands = [None if brand is None else [("brand", brand)] for _, brand in ITEMS.values()]
    items = {
        "item_id": ids,
        "title": pa.nulls(n, pa.string()),
        "categories": pa.array([categories for categories, _ in ITEMS.values()], pa.list_(pa.string())),
        "attributes": pa.array(brands, texts),
    }
    write(root, "items", items)
    write_interactions(root, DAY, [("u", "seen", 1.0, dt.datetime(2024, 5, 1, tzinfo=dt.UTC))])
    figures = {"run_id": [RUN], "metric": ["users_led"], "segment": ["concept 0"], "value": [1.0]}
    write(root, "metrics", figures)
    return Lake(root)


@pytest.mark.parametrize(
    ("overrides", "listed"),
    [
        ((), ["both", "y", "none", "untold"]),
        (("topk.exclude_seen=false",), ["seen", "both", "y", "none", "untold"]),
        (("topk.categories=[x]",), ["both"]),
        (("topk.exclude_categories=[y]",), ["none", "untold"]),
        (("topk.categories=[y]", "topk.exclude_categories=[x]"), ["y"]),
        (("rerank.exclude=[{by: brand, values: [acme]}]",), ["y", "none", "untold"]),
        (("rerank.exclude=[{by: categories, values: [y]}, {by: brand, values: [other]}]",), ["untold"]),
    ],
)
def test_items_that_the_night_bans_are_not_listed(tmp_path: Path, overrides: tuple[str, ...], listed: list) -> None:
    concepts = Concepts.read(lake_of(tmp_path, *overrides), "macridvae")
    assert concepts.list_within("u", 0, 10)["item_id"].to_pylist() == listed
    assert concepts.list_within("u", 1, 1)["item_id"].to_pylist() == listed[-1:]
    assert concepts.users_led == [1, None] and concepts.unread_ban is None


def test_a_table_of_banned_items_that_only_the_job_reads_is_named(tmp_path: Path, run) -> None:  # noqa: F811
    lake_of(tmp_path, "topk.ineligible=banned.csv")
    asked = ("recommend", "--user", "u", "--concept", "0", "--lake", str(tmp_path))
    code, out, err = run(*asked)
    assert (code, err) == (0, "") and "topk.ineligible=banned.csv may be listed" in " ".join(out.split())
    code, out, _ = run(*asked, "--format", "json")
    assert code == 0 and len(json.loads(out)) == 4


def test_a_run_of_a_version_before_the_rules_of_reranking_is_listed(tmp_path: Path) -> None:
    lake = lake_of(tmp_path)
    concepts = Concepts.read(lake, "macridvae")
    del concepts.config["rerank"]
    assert concepts.list_within("u", 0, 10)["item_id"].to_pylist() == ["both", "y", "none", "untold"]
