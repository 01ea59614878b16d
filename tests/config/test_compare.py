"""The configurations of compared models: a file's values win, everything else is shared, and errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.config.compare import compared
from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def settings(*files: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    listed = f"compare.files=[{', '.join(map(str, files))}]"
    return load_config((), ["ds=2024-01-31", "input.path=log.csv", listed, *overrides])


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_the_values_of_a_file_win_and_the_others_are_shared(tmp_path: Path) -> None:
    small = write(tmp_path, "small.yaml", "model: als\nals: {rank: 4}\n")
    large = write(tmp_path, "large.yaml", "model: als\nals: {rank: 99, iterations: 3}\n")
    found = compared(settings(small, large, overrides=("als.rank=7", "als.iterations=5", "topk.k=3", "model=ease")))
    assert list(found) == ["small", "large"]
    assert [(one.model, one.als.rank, one.als.iterations) for one in found.values()] == [("als", 4, 5), ("als", 99, 3)]
    assert {one.topk.k for one in found.values()} == {3}


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_model_can_be_compared(path: Path) -> None:
    protocol = "q3" if "q3" in path.read_text() else "q2"
    shared = [
        f"evaluation.protocol={protocol}",
        *(["input.columns.context=[tag]"] if "[tag]" in path.read_text() else []),
    ]
    whole = settings(path, overrides=tuple(shared))
    (one,) = compared(whole).values()
    given = load_config((path,), ["ds=2024-01-31", "input.path=log.csv"])
    assert (one.model, one.params) == (given.model, given.params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: alz", r"model='alz': unknown model; known are .*als"),
        ("- als", "expected `key: value` lines, found a list"),
        ("model: [", "is not YAML"),
        ("", "names no model: add a line such as `model: als`"),
        ("als: {rank: 3}", "names no model"),
        ("model: als\nals: {rnk: 3}", "unknown configuration key als.rnk: did you mean als.rank"),
        ("model: als\nals: {rank: 0}", "als.rank=0"),
        ("model: als\nevaluation: {protocol: q3}", r"sets evaluation.protocol=q3, but all .* evaluation.protocol=auto"),
        ("model: als\nseed: 3", "sets seed=3, but all models are compared with seed=42"),
        ("model: als\npreference: {positive_from: 4}", "sets preference.positive_from=4.0, but all .*=null"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compared(settings(write(tmp_path, "one.yaml", text)))
    assert "one.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_lists_of_files_that_cannot_be_used(tmp_path: Path) -> None:
    good = write(tmp_path, "als.yaml", "model: als")
    (tmp_path / "other").mkdir()
    twin = write(tmp_path / "other", "als.yaml", "model: ease")
    odd = write(tmp_path, "a'b.yaml", "model: als")
    for files, message in (
        ((), "compare.files is empty: name the models' YAML files"),
        ((good, twin), "two files are named 'als'"),
        ((good, good), "two files are named 'als'"),
        ((tmp_path / "none.yaml",), "none.yaml: No such file"),
        ((tmp_path,), "Is a directory"),
        ((f'"{odd}"',), "rename the file"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            compared(settings(*files))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"compare\.files"):
        load_config((), ["ds=2024-01-31", "input.path=log.csv", "compare.files=als.yaml"])
