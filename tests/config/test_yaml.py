"""What YAML lets through elsewhere and the configuration does not take."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.config.load import load_config
from sparkcf.errors import ConfigError

BASE = ("ds=2024-01-31", "input.path=none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", r"key 'seed' is repeated"),
        ("als: {rank: 8, rank: 9}\n", r"key 'rank' is repeated"),
        ("models: &same [als, *same]\n", r"aliases \(\*name\) are not allowed"),
        ("{[a, b]: 1}\n", r"a key is no plain text"),
        ("[" * 5000 + "]" * 5000, r"more than 30 levels of nesting"),
    ],
)
def test_files_that_hide_something_are_refused_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "night.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"configuration file .*night\.yaml is not YAML: {said}") as refused:
        load_config([file], BASE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("als.rank=true", r"als\.rank=True: expected a number or a text, not true or false"),
        ("ds=1706659200", r"ds=1706659200: expected a day such as 2024-01-31, not a number"),
    ],
)
def test_values_that_would_be_taken_for_others_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"configuration key {said}"):
        load_config((), [*BASE, override])


def test_ids_keep_their_leading_zeros() -> None:
    assert load_config((), [*BASE, "topk.users=[01, 007, 7, 0]"]).topk.users == ("01", "007", "7", "0")
    assert load_config((), [*BASE, "als.nonnegative=true", "als.solver=cholesky", "als.rank=12"]).als.nonnegative
