"""The tables' schemas agree with themselves."""

from __future__ import annotations

import pytest

from sparkcf.lake.schemas import TABLES, Table


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_what_a_table_names_are_columns_of_it(table: Table) -> None:
    named = [*table.key, *table.partition_by, *table.mutable, *filter(None, (table.index, table.earliest))]
    assert set(named) <= set(table.schema.names)
    assert len(set(table.schema.names)) == len(table.schema.names)
    assert all(field.metadata["comment"] for field in table.schema)


def test_a_text_that_is_a_feature_has_no_first_event() -> None:
    assert TABLES["features"].earliest == "" and "first_seen" not in TABLES["features"].schema.names
