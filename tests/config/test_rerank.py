"""Rules of re-ranking that cannot work are refused when the configuration is read."""

from __future__ import annotations

import pytest

from sparkcf.config.load import load_config
from sparkcf.errors import ConfigError

BASE = ["ds=2024-01-31", "input.path=x", "input.items.path=items.csv", "input.items.columns.attributes=[brand]"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rerank.caps=[{by: brand, most: 0}]", r"rerank\.caps\.0\.most=0"),
        ("rerank.exploration=1.5", r"rerank\.exploration=1\.5"),
        ("rerank.diversity=-0.1", r"rerank\.diversity=-0\.1"),
        ("rerank.factor=0", r"rerank\.factor=0"),
        ("rerank.boosts=[{by: brand, value: x, multiply: -1}]", r"multiply=-1"),
        ("rerank.exclude=[{by: brand, values: []}]", r"rerank\.exclude\.0\.values"),
        ("rerank.caps=[{by: colour, most: 1}]", r"rerank\.caps\[0\]\.by reads 'colour'.*there are categories, brand"),
        ("rerank.boosts=[{by: colour, value: red}]", r"rerank\.boosts\[0\]\.by reads 'colour'"),
        ("rerank.fresh_from=released", r"rerank\.fresh_from=released: input\.items\.columns brings no such"),
        ("rerank={diversity: 0.6, calibration: 0.6}", r"leave no weight to scores: their sum is at most 1"),
        ("rerank.shuffle=true", r"unknown configuration key rerank\.shuffle"),
    ],
)
def test_bad_rules_are_refused_with_their_key(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config((), [*BASE, "input.items.columns.categories=genres", override])


def test_calibration_needs_categories_of_the_input() -> None:
    with pytest.raises(ConfigError, match=r"rerank reads 'categories', which input\.items\.columns does not bring"):
        load_config((), [*BASE, "input.items.columns.categories=null", "rerank.calibration=0.3"])
    assert load_config((), ["ds=2024-01-31", "input.path=x", "rerank.calibration=0.3"]).rerank.active  # of the lake


def test_without_rules_nothing_is_active() -> None:
    assert not load_config((), BASE).rerank.active
    assert not load_config((), [*BASE, "rerank.factor=9", "rerank.similarity=categories"]).rerank.active
