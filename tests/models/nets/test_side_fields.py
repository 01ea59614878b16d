"""Side features from the lake's tables: attributes of several values, of users and of items."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.nets import NCFConfig, SideField
from sparkcf.data.dictionary import register_texts
from sparkcf.errors import ConfigError
from sparkcf.lake.schemas import TABLES
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract_data import TrainingData
from sparkcf.models.nets.side_fields import collected_features, encoded_features, texts_of

TAGS = ["sport; news", "news", None, " news ;news;; ", ";"]
PARTS = [{"sport", "news"}, {"news"}, set(), {"news"}, set()]
SEVERAL = SideField(of="attribute", column="tags", separator=";")
ONE = SideField(of="attribute", column="tags")


@pytest.mark.parametrize("side", ["user", "item"])
def test_an_attribute_of_users_or_items_has_several_values(spark: SparkSession, tmp_path: Path, side: str) -> None:
    """The same column may be read as a whole beside it: then each of its texts is one value."""
    tables, table = LakeTables(spark, str(tmp_path)), f"{side}s"
    texts = [None if tags is None else {"tags": tags} for tags in TAGS]
    described = spark.createDataFrame(
        [(f"x{n}", n, dt.datetime(2024, 1, 1), each) for n, each in enumerate(texts)],
        f"{side}_id string, {side}_idx int, first_seen timestamp, attributes map<string,string>",
    )
    absent = [f for f in TABLES[table].schema.fields if f.name not in described.columns]
    tables.append(table, described.select("*", *(F.lit(None).cast(f.dataType).alias(f.name) for f in absent)))
    fields = (SEVERAL, ONE)
    register_texts(tables, [texts_of(table, f) for f in fields])
    dictionary = tables.read("features")
    given: Any = {table: tables.read(table)}
    data = TrainingData(described.limit(0), len(TAGS), len(TAGS), dictionary=dictionary, **given)
    encoded = encoded_features(data, side, fields, "key")
    names: dict[str, list[str]] = {}
    for row in dictionary.orderBy("feature_idx").collect():
        names.setdefault(row["field"], []).append(row["value"])
    whole = [tags for tags in TAGS if tags is not None]
    assert {name: sorted(texts) for name, texts in names.items()} == {
        f"{table}.tags[;]": ["news", "sport"],
        f"{table}.tags": sorted(whole),
    }
    assert encoded.n_features == 2 + len(whole)
    numbered = [*names[f"{table}.tags[;]"], *names[f"{table}.tags"]]
    indptr, features, values = collected_features(encoded.rows, len(TAGS))
    found = [{numbered[f] for f in part} for part in np.split(features, indptr[1:-1])]
    assert found == [parts | ({tags} - {None}) for parts, tags in zip(PARTS, TAGS, strict=True)]
    assert (values == 1.0).all() and len(features) == 2 + 1 + 1 + len(whole)


def test_a_separator_goes_with_an_attribute_of_the_nets() -> None:
    with pytest.raises(ValueError, match=r"separator=';' goes with of: attribute, not number: leave it out"):
        NCFConfig(item_features=[{"of": "number", "column": "year", "separator": ";"}])
    with pytest.raises(ValueError, match="at least 1 character"):
        SideField(of="attribute", column="tags", separator="")
    field = "{name: tags, of: attribute, table: users, column: tags, separator: ';'}"
    with pytest.raises(ConfigError, match=r"fm\.fields.*separator") as refused:
        load_config((), ["ds=2024-01-31", "input.path=none", "model=fm", f"fm.fields=[{field}]"])
    assert "\n" not in str(refused.value)
