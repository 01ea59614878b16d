"""The configuration: what wins over what, and one line that names the key for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparkcf.config.load import load_config, parse_config
from sparkcf.config.models import SECTIONS
from sparkcf.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["ds=2024-01-31", "input.path=in.csv"]


def yaml_file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(*overrides: str, files: tuple[Path, ...] = (), needed: list[str] = NEEDED) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(files, [*needed, *overrides])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_win_over_defaults_later_files_over_earlier_and_overrides_over_all(tmp_path: Path) -> None:
    first = yaml_file(
        tmp_path, "a.yaml", "ds: 2024-01-30\ninput: {path: a.csv, format: jsonl}\nals: {rank: 8, alpha: 3}"
    )
    second = yaml_file(tmp_path, "b.yaml", "als:\n  rank: 16\nseed: 1")
    config = load_config([first, second], ["seed=2", "input.columns.value=stars"])
    assert (config.als.rank, config.als.alpha, config.als.iterations) == (16, 3.0, 16)
    assert (config.seed, config.input.path, config.input.format) == (2, "a.csv", "jsonl")
    assert (config.input.columns.value, config.input.columns.user_id) == ("stars", "user_id")
    assert load_config([second, first], []).als.rank == 8


def test_an_override_may_hold_a_list_a_mapping_nothing_or_an_equals_sign() -> None:
    config = load_config(
        (),
        [
            *NEEDED,
            *(
                "evaluation.ks=[5, 100]",
                "input.columns={user_id: u, value: v=1}",
                "train.progress=",
                "topk.users=[7, ann]",
            ),
            *("input.path=s3a://b/{ds}/*.gz?x=1", "input.ts_formats=[epoch_s, 'dd/MM/yyyy HH:mm']"),
        ],
    )
    assert config.evaluation.ks == (5, 100)
    assert (config.input.columns.user_id, config.input.columns.value) == ("u", "v=1")
    assert config.train.progress is None
    assert config.topk.users == ("7", "ann")
    assert config.input_path == "s3a://b/2024-01-31/*.gz?x=1"
    assert config.input.ts_formats == ("epoch_s", "dd/MM/yyyy HH:mm")


def test_the_stored_configuration_reads_back_as_the_same() -> None:
    config = load_config((), [*NEEDED, "als.rank=7", "input.events={buy: 2.5}", "input.value_range=[0, 5]"])
    assert parse_config(json.loads(config.to_json())) == config
    assert json.loads(config.shown()) == {
        "ds": "2024-01-31",
        "input": {"path": "in.csv", "events": {"buy": 2.5}, "value_range": [0.0, 5.0]},
        "als": {"rank": 7},
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("als.rnak=8", "unknown configuration key als.rnak: did you mean als.rank?"),
        ("modle=als", "unknown configuration key modle: did you mean model?"),
        ("input.columns.usr_id=u", "key input.columns.usr_id: did you mean input.columns.user_id?"),
        ("topk.zzz=1", "unknown configuration key topk.zzz: known here: k, exclude_seen, users"),
        ("als.rank=0", "configuration key als.rank=0: input should be greater than or equal to 1"),
        ("als.rank=-3", "configuration key als.rank=-3"),
        ("als.rank=many", "configuration key als.rank='many': input should be a valid integer"),
        ("als.rank=2.5", "configuration key als.rank=2.5"),
        ("topk.k=0", "configuration key topk.k=0"),
        ("evaluation.ks=[10, 0]", "configuration key evaluation.ks.1=0"),
        ("als.regularization=-0.1", "configuration key als.regularization=-0.1"),
        ("als.regularization=.nan", "configuration key als.regularization=nan"),
        ("als.alpha=0", "configuration key als.alpha=0"),
        ("evaluation.holdout_share=1", "configuration key evaluation.holdout_share=1"),
        ("clean.max_quarantined_share=1.1", "configuration key clean.max_quarantined_share=1.1"),
        ("seed=-1", "configuration key seed=-1"),
        ("seed=2147483648", "configuration key seed=2147483648"),
        ("model=nonsense", "key model='nonsense': unknown model; known are als, "),
        ("models=[als, nonsense]", "configuration key model='nonsense': unknown model"),
        ("ds=2024-02-30", "configuration key ds='2024-02-30'"),
        ("ds=tonight", "configuration key ds='tonight'"),
        ("run_id=../../etc", "configuration key run_id='../../etc'"),
        ("lake.root=", "configuration key lake.root=None"),
        ("als=8", "configuration key als=8"),
        ("input.header=false", "header is false: give input.names"),
        ("input.value_range=[5, 1]", "value_range [5.0, 1.0] is empty"),
        ("input.value_range=[.inf, .inf]", "value_range [inf, inf] is empty"),
        ("preference.positive_from=.nan", "configuration key preference.positive_from"),
        ("rerank.caps=[{by: x, mst: 1}]", "key rerank.caps.0.mst: did you mean rerank.caps.0.most?"),
        ("forget.users={alice: 1}", "configuration key forget.users: "),
        ("input.events={buy: 0}", "configuration key input.events.buy=0"),
        ("als.biases=true", "biases go with mode explicit"),
        ("gate.at=7", "gate.at=7 is not among evaluation.ks=[10, 20, 50, 100]"),
        ("als.rank", "argument 'als.rank' is not key=value"),
        ("=8", "argument '=8' is not key=value"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_the_name_of_its_key(override: str, said: str) -> None:
    assert said in refused(override)


def test_every_wrong_key_is_told_at_once() -> None:
    said = refused("als.rank=0", "topk.k=0", "sed=1")
    assert "als.rank" in said and "topk.k" in said and "did you mean seed?" in said


@pytest.mark.parametrize(("given", "missing"), [(["input.path=in.csv"], "ds"), (["ds=2024-01-31"], "input")])
def test_what_has_no_default_must_be_given(given: list[str], missing: str) -> None:
    assert f"configuration key {missing} is missing: set it in a --config file or as {missing}=…" in refused(
        needed=given
    )


def test_an_unknown_key_in_a_file_is_refused_too(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "a.yaml", "als: {rank: 8, itertions: 3}")
    assert "als.itertions: did you mean als.iterations?" in refused(files=(path,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("als: [", "is not YAML"),
        ("als:\n\trank: 8", "is not YAML"),
        ("- als", "expected `key: value` lines, found a list"),
        ("just text", "expected `key: value` lines, found a str"),
        ("seed: !!python/object/apply:os.system ['touch owned']", "is not YAML"),
        ("seed: !!python/name:os.system", "is not YAML"),
    ],
)
def test_a_file_that_is_no_plain_yaml_mapping_is_refused(
    tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = yaml_file(tmp_path, "bad.yaml", text)
    message = refused(files=(path,))
    assert said in message and "bad.yaml" in message
    assert not (tmp_path / "owned").exists()


def test_an_override_that_names_a_python_object_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "configuration key seed" in refused("seed=!!python/object/apply:os.system ['touch owned']")
    assert not (tmp_path / "owned").exists()


def test_a_configuration_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    assert f"configuration file {tmp_path}/none.yaml: No such file" in refused(files=(tmp_path / "none.yaml",))
    assert f"configuration file {tmp_path}: " in refused(files=(tmp_path,))
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9")
    assert "latin.yaml is not YAML" in refused(files=(tmp_path / "latin.yaml",))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config([yaml_file(tmp_path, "a.yaml", "# nothing\n")], NEEDED) == load_config((), NEEDED)


def test_the_configuration_of_the_sample_runs_as_it_stands() -> None:
    config = load_config([ROOT / "conf" / "sample.yaml"], [])
    assert (config.input.path, config.input.items.path) == ("sample:ratings.csv.gz", "sample:movies.csv")


def test_the_nightly_configuration_needs_a_day_and_an_input_and_knows_nothing_of_the_sample() -> None:
    nightly = ROOT / "conf" / "nightly.yaml"
    with pytest.raises(ConfigError, match=r"key ds is missing: .*; .*key input\.path is missing"):
        load_config([nightly], [])
    config, plain = (load_config(files, NEEDED) for files in ([nightly], []))
    for key in ("input", "preference", "clean", "evaluation", "gate", "topk", "lake", "model", "models", "seed"):
        assert getattr(config, key) == getattr(plain, key)


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_has_a_configuration_that_goes_with_the_sample(path: Path) -> None:
    config = load_config([ROOT / "conf" / "sample.yaml", path], [])
    assert path.stem.startswith(config.model)


def test_there_is_a_configuration_for_every_model() -> None:
    assert {path.stem for path in (ROOT / "conf" / "models").glob("*.yaml")} >= SECTIONS.keys()


def test_a_night_of_several_models_has_a_configuration_and_names_each_once() -> None:
    files = [ROOT / "conf" / "sample.yaml", ROOT / "conf" / "several.yaml"]
    assert load_config(files, []).models == ("als", "multvae", "popularity")
    assert "names a model twice" in refused("models=[als, als]")


def test_the_shipped_settings_of_fm_are_its_defaults() -> None:
    """What docs/measured.md states for the YAML file holds for other fields and ranks too."""
    given = (["ds=2024-01-31", "input.path=none"],)
    shipped = load_config([str(ROOT / "conf/models/fm.yaml")], *given).fm
    plain = load_config((), ["model=fm", *given[0]]).fm
    for name in ("learner", "burn_in", "samples", "iterations"):
        assert getattr(shipped, name) == getattr(plain, name), name


def test_no_message_shows_a_user_who_is_to_be_forgotten() -> None:
    assert "alice" not in refused("forget.users=alice") and "alice" not in refused("forget.users=[{id: alice}]")
