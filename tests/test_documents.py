"""The documents' SQL, run as it stands there, gives what the query API gives."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable

ROOT = Path(__file__).resolve().parents[1]


def statements(engine: str) -> list[str]:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    block = re.search(rf"^{engine}.*?```sql\n(.*?)```", text, re.S | re.M)
    assert block, f"docs/data.md has no SQL for {engine}"
    return [s.strip() for s in block.group(1).split(";") if s.strip()]


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory) -> Path:
    """Two published runs of one model, the second a day later, and an unpublished third."""
    from sparkcf.lake.tables import LakeTables

    root = tmp_path_factory.mktemp("readme") / "lake"
    tables = LakeTables(spark, str(root))
    lists = [("r1", "a", 1), ("r1", "b", 2), ("r2", "c", 1), ("r2", "a", 2), ("r3", "d", 1)]
    rows = [("2024-01-01", "1", position, item, 0.5, "model", "als", run) for run, item, position in lists]
    names = ["ds", "user_id", "position", "item_id", "score", "reason", "model", "run_id"]
    tables.append("recommendations", spark.createDataFrame(rows, names))
    rows = [("als", "2024-01-01", 1, "r1"), ("als", "2024-01-02", 1, "r3"), ("als", "2024-01-02", 2, "r2")]
    published = spark.createDataFrame(rows, ["model", "ds", "sequence", "run_id"]).selectExpr(
        "*", "'publish' AS action", "'me' AS published_by", "current_timestamp() AS published_at", "map() AS versions"
    )
    tables.append("published", published)
    return root


def test_spark_sql_of_the_documents_shows_the_published_run(spark, lake):
    for statement in statements("Spark SQL"):
        result = spark.sql(statement.replace("./lake", str(lake)))
    assert [(r["position"], r["item_id"]) for r in result.collect()] == [(1, "c"), (2, "a")]


def test_duckdb_sql_of_the_documents_shows_the_published_run(lake):
    database = duckdb.connect()
    for statement in statements("DuckDB"):
        # The extension that reads Delta's log is downloaded by DuckDB; here delta-rs lists the live files.
        def live_files(match: re.Match) -> str:
            files = DeltaTable(str(lake / Path(match.group(1)).name)).file_uris()
            return f"read_parquet({files}, hive_partitioning = true)"

        result = database.sql(re.sub(r"delta_scan\('([^']*)'\)", live_files, statement))
    assert [row[:2] for row in result.fetchall()] == [(1, "c"), (2, "a")]
