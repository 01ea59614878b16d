"""Search spaces: which files are taken, and the one line for each wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.config.load import load_config
from sparkcf.config.tune import Range, search_space, with_values
from sparkcf.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def space(tmp_path: Path, text: str, *overrides: str) -> tuple[Range, ...]:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return search_space(load_config((), ["ds=2024-01-31", "input.path=none", f"tune.space={file}", *overrides]))


def test_a_space_has_ranges_of_each_kind_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """
als.rank: {int: [32, 128], step: 32}
als.regularization: {log: [0.001, 1]}
als.unobserved_weight: {float: [0, 1], step: 0.25}
als.solver: {choice: [cg, cholesky]}
"""
    assert space(tmp_path, text) == (
        Range("als.rank", "int", (32, 128), 32),
        Range("als.regularization", "log", (0.001, 1.0)),
        Range("als.unobserved_weight", "float", (0.0, 1.0), 0.25),
        Range("als.solver", "choice", ("cg", "cholesky")),
    )


def test_a_key_of_a_part_of_a_section_is_reached_by_its_dots(tmp_path: Path) -> None:
    text = "fm.sgd.learning_rate: {log: [0.01, 0.1]}"
    assert space(tmp_path, text, "model=fm")[0].key == "fm.sgd.learning_rate"
    config = load_config((), ["ds=2024-01-31", "input.path=none", "model=fm", "fm.sgd={batch_size: 7}"])
    changed = with_values(config, {"fm.sgd.learning_rate": 0.02})
    assert (changed.params.sgd.learning_rate, changed.params.sgd.batch_size) == (0.02, 7)


def test_a_value_that_only_another_value_makes_valid_is_no_error(tmp_path: Path) -> None:
    assert space(tmp_path, "als.nonnegative: {choice: [true, false]}\nals.solver: {choice: [cg, cholesky]}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no keys"),
        ("- als.rank", "expected `key: value` lines"),
        ("als.rnk: {int: [1, 2]}", r"unknown configuration key als\.rnk: did you mean als\.rank\?"),
        ("als: {int: [1, 2]}", r"key als is no parameter of model=als: a search space has keys such as als\.…"),
        ("ease.denoising: {float: [0, 0.5]}", r"key ease\.denoising is no parameter of model=als: set model=ease"),
        ("preference.weight: {choice: [one, log]}", "key preference.weight is no parameter of model=als"),
        ("als.rank: [32, 64]", r"key als\.rank has \[32, 64\]: expected \{int: "),
        ("als.rank: {int: [32, 64], float: [1, 2]}", "expected {int: "),
        ("als.rank: {int: [64, 32]}", r"key als\.rank has an empty range \[64, 32\]: give the lower number first"),
        ("als.rank: {int: [32, 32]}", "empty range"),
        ("als.rank: {int: [32]}", r"expected two whole numbers, \[low, high\]"),
        ("als.rank: {int: [1.5, 2]}", "expected two whole numbers"),
        ("als.alpha: {float: [true, 2]}", "expected two numbers"),
        ("als.alpha: {float: [1, .inf]}", "expected two numbers"),
        ("als.rank: {float: [32, 64]}", r"configuration key als\.rank=43\.84: input should be a valid integer"),
        ("als.rank: {int: [0, 64]}", r"configuration key als\.rank=0: input should be greater than or equal to 1"),
        ("als.regularization: {log: [0, 1]}", "a log range begins above 0"),
        ("als.rank: {int: [8, 16], step: 9}", "has step 9: expected a number up to 8"),
        ("als.solver: {choice: [cg]}", "expected a list of two or more different values"),
        ("als.solver: {choice: [cg, lu]}", r"configuration key als\.solver='lu': input should be 'cg'"),
    ],
)
def test_a_wrong_space_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        space(tmp_path, text)
    assert "space.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_without_a_file_the_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"tune\.space is empty: name a search space, such as conf/tune/als\.yaml"):
        search_space(load_config((), ["ds=2024-01-31", "input.path=none"]))


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "tune").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_spaces_that_come_with_the_package_are_valid(file: Path) -> None:
    given = ["ds=2024-01-31", "input.path=none", f"model={file.stem}", f"tune.space={file}"]
    assert len(search_space(load_config((), given))) >= 3
