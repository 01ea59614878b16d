"""Models of other packages: found by their entry points, and what is said of those that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkcf.config import plugins
from sparkcf.config.load import config_class, load_config, model_names
from sparkcf.errors import ConfigError
from sparkcf.models.registry import model_of

BASE = ("ds=2024-01-31", "input.path=none")
GOOD = """
from typing import ClassVar
from sparkcf.config.section import ModelSection
from sparkcf.models.contract import Model
class Params(ModelSection):
    section: ClassVar[str] = "foreign"
    depth: int = 3
class Foreign(Model):
    section = Params
    reads, width = 1, 0
    def fit(self, data, run): ...
    def open(self, saved): ...
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lay a package of one module, with its entry point, on the path."""

    def lay(source: str, name: str = "foreign", value: str = "") -> None:
        module = f"foreign_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / "foreign_models-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-models\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sparkcf.models]\n{name} = {value or f'{module}:Foreign'}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        plugins.plugin.cache_clear()
        config_class.cache_clear()

    return lay


def test_an_installed_model_has_its_section_where_it_is_named(install) -> None:
    install(GOOD)
    config = load_config((), [*BASE, "model=foreign", "foreign.depth=5"])
    assert config.params.depth == 5 and model_of(config).params is config.params
    assert config.shaping()["foreign"]["depth"] == 5
    assert config.shaping().keys() - load_config((), [*BASE, "model=als"]).shaping().keys() == {"foreign"}
    assert "foreign" in model_names()
    with pytest.raises(ConfigError, match=r"unknown configuration key foreign\.deph: did you mean foreign\.depth\?"):
        load_config((), [*BASE, "model=foreign", "foreign.deph=5"])
    assert load_config((), [*BASE, "models=[als, foreign]"]).models == ("als", "foreign")


def test_a_model_that_nobody_names_is_not_loaded(install) -> None:
    install("raise RuntimeError('loaded')")
    assert load_config((), BASE).model == "als"


@pytest.mark.parametrize(
    ("source", "value", "said"),
    [
        ("raise RuntimeError('no GPU')", "", r"does not load: RuntimeError: no GPU; fix or uninstall"),
        (r"raise OSError('no driver:\n  try again')", "", r"does not load: OSError: no driver:; fix or uninstall"),
        (GOOD, "no_such_module:Foreign", r"does not load: ModuleNotFoundError"),
        (
            GOOD.replace("def open", "def close"),
            "",
            r"breaks the contract of .*Model: it lacks open",
        ),
        (GOOD.replace("width", "length").replace("section = Params", ""), "", r"Model: it lacks width, section"),
        (
            GOOD.replace("Foreign(Model)", "Foreign"),
            "",
            r"breaks the contract: it is not a subclass of sparkcf\.models\.contract\.Model; derive it from that class",
        ),
        ("def Foreign(params, seed): ...", "", r"breaks the contract: it is not a subclass of .*Model; derive"),
        (GOOD.replace("section = Params", "section = dict"), "", r"section=<class 'dict'> is not a subclass of"),
        (GOOD.replace('"foreign"', '"other"'), "", r"its section is named 'other', the entry point 'foreign'"),
    ],
)
def test_one_that_cannot_be_used_is_named_with_what_is_wrong(install, source: str, value: str, said: str) -> None:
    install(source, value=value)
    with pytest.raises(ConfigError, match=rf"model foreign \(.*of foreign-models\).*{said}"):
        load_config((), [*BASE, "model=foreign"])


def test_a_model_that_is_not_there_is_answered_with_those_that_are() -> None:
    install = r"for a model of another package install the package that registers it \(entry points sparkcf\.models\)$"
    with pytest.raises(ConfigError, match=install):
        load_config((), [*BASE, "model=foriegn"])
    with pytest.raises(
        ConfigError, match=r"model='foriegn': unknown model; known are als, bivae, blend, disengcn, ease, fm, hals"
    ):
        load_config((), [*BASE, "model=foriegn"])
    with pytest.raises(ConfigError, match=r"model='svd': unknown model"):
        load_config((), [*BASE, "models=[als, svd]"])
