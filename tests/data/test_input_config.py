"""Keys of the input and of cleaning that are checked before Spark starts."""

from __future__ import annotations

import pytest

from sparkcf.config.load import load_config
from sparkcf.errors import ConfigError

NEEDED = ["ds=2024-01-31", "input.path=in.csv"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "input.ts_formats=[epoch_x]",
            r"input\.ts_formats.*'epoch_x' is none of iso8601, epoch_s, .* or a Java pattern",
        ),
        ("input.ts_formats=[iso8601, 'dd/MM/yyyy HH:mm tt']", r"'dd/MM/yyyy HH:mm tt' is none of"),
        ("input.ts_formats=[]", r"input\.ts_formats.* at least 1 item"),
        ("input.value_range=[.nan, 5]", r"value_range \[nan, 5\.0\] is empty: give \[low, high\]"),
        ("input.value_range=[0, .nan]", r"value_range \[0\.0, nan\] is empty"),
        ("input.quote=''", r"input\.quote"),
        ("input.items={path: a.csv, header: false}", r"input\.items.*header is false: give names"),
        ("clean.max_events_per_user=0", r"clean\.max_events_per_user=0: a whole number from 1, or auto"),
        ("clean.max_events_per_user=many", r"clean\.max_events_per_user='many': a whole number"),
        ("clean.minimum=twice", r"clean\.minimum='twice'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_the_cure(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config((), [*NEEDED, override])


@pytest.mark.parametrize(
    "pattern", ["dd/MM/yyyy HH:mm", "yyyy-MM-dd'T'HH:mm:ss.SSSXXX", "d MMM yyyy h:mm a", "[yyyy][yy]-M"]
)
def test_java_patterns_are_taken(pattern: str) -> None:
    config = load_config((), [*NEEDED, f'input.ts_formats=[epoch_ms, "{pattern}"]'])
    assert config.input.ts_formats == ("epoch_ms", pattern)


def test_limits_may_be_numbers_or_found_in_the_data() -> None:
    assert load_config((), NEEDED).clean.max_events_per_user == "auto"
    assert load_config((), [*NEEDED, "clean.max_events_per_user=7"]).clean.max_events_per_user == 7
    assert load_config((), [*NEEDED, "input.value_range=[0, .inf]"]).input.value_range == (0, float("inf"))
