"""User encoders as TorchScript files: the same numbers as the model's, ids beside them, and refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparkcf.config.load import load_config
from sparkcf.config.models import SECTIONS
from sparkcf.errors import ConfigError, LakeError
from sparkcf.export import encoder as exported
from sparkcf.export.encoder import COMPARED, HasUserEncoder, drawn_rows, largest_difference
from sparkcf.export.export import export_run
from sparkcf.export.lists import Run
from sparkcf.lake.query import Lake
from sparkcf.lake.weights import write_state
from sparkcf.models.contract_data import Saved
from sparkcf.models.nets.fit import NetScorer
from sparkcf.models.nets.registry import build_net
from sparkcf.models.registry import model_of
from sparkcf.ranking.opened import open_model
from sparkcf.training.checkpoint import arrays_of
from tests.lake.test_query import MAY_2, publish, write, write_items

ITEMS, USERS, UNKNOWN = 14, 6, (3, 12, 13)  # indices of items that the run does not know
NAMES = tuple(f"i{i}" for i in range(ITEMS))
SMALL = {
    "multvae": ("multvae.hidden=[9]", "multvae.latent_dim=4"),
    "recvae": ("multvae.encoder=dense", "multvae.hidden=[9]", "multvae.dense_layers=3", "multvae.latent_dim=4"),
    "multdae": ("multdae.hidden=[9, 7]", "multdae.latent_dim=4"),
    "macridvae": ("macridvae.concepts=3", "macridvae.hidden=[9]", "macridvae.latent_dim=4"),
    "bivae": ("bivae.latent_dim=4",),
}


def lake_of(root: Path, kind: str, names: tuple[str, ...] = NAMES) -> tuple[Lake, Run]:
    """A run of a net with drawn weights. `names` : ids of the ITEMS items, and of later ones that only have vectors."""
    model = "multvae" if kind == "recvae" else kind
    config = load_config((), ["ds=2024-05-02", "input.path=x", f"model={model}", *SMALL[kind]])
    fitted = model_of(config)
    net = build_net({"n_items": ITEMS, "n_users": USERS}, fitted.params, 5, trains=False)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.5)
    state = arrays_of(net)
    if model == "bivae":
        vectors, bias = (
            np.random.default_rng(1).normal(size=(len(names), 4)).astype(np.float32),
            np.zeros(len(names), np.float32),
        )
    else:
        vectors, bias = fitted.item_arrays(state)
    known = [i for i in range(len(names)) if i not in UNKNOWN]
    columns = {
        "item_idx": pa.array(known, pa.int32()),
        "item_id": [names[i] for i in known],
        "factor": pa.array(list(vectors[known]), pa.list_(pa.float32())),
        "bias": pa.array(bias[known], pa.float32()),
        "model": [model] * len(known),
        "run_id": ["r"] * len(known),
    }
    write(root, "item_factors", columns, ["model", "run_id"])
    write_items(root, {name: f"Film {name}" for name in names})
    run = {"run_id": ["r"], "job": ["train"], "model": [model], "ds": [MAY_2], "config": [config.to_json()]}
    write(root, "runs", run)
    write(
        root,
        "metrics",
        {"run_id": ["x"], "protocol": ["q1"], "metric": ["m"], "value": [0.0], "k": pa.nulls(1, pa.int32())},
    )
    write_state(str(root), "r", state)
    publish(root, model, MAY_2, 1, "r")
    return Lake(root), Run(model, "r", MAY_2)


@pytest.mark.parametrize("kind", SMALL)
def test_the_file_gives_the_models_vectors_and_scores(tmp_path: Path, kind: str) -> None:
    lake, run = lake_of(tmp_path / "lake", kind)
    done = export_run(lake, run, "encoder", str(tmp_path / "out"))
    place = tmp_path / "out" / run.model / "current"
    told = json.loads((place / "manifest.json").read_text())
    assert told["items"] == ITEMS and told["known_items"] == ITEMS - len(UNKNOWN) and told["compared"] == COMPARED
    assert told["largest_difference"] <= 1e-5 and done.manifest["to"] == "encoder"
    ids = pq.read_table(place / "item_ids.parquet")
    assert ids["id"].to_pylist() == list(NAMES)
    assert np.flatnonzero(~ids["known"].to_numpy()).tolist() == list(UNKNOWN)

    # As somebody else uses it: torch alone, rows of zeros and ones.
    module = torch.jit.load(str(place / "encoder.pt"))
    x = torch.zeros(3, ITEMS)
    x[0, [1, 4]] = x[2, [0]] = 1.0
    vectors, scores = module.dense(x)
    again = module(torch.tensor([1, 4, 0]), torch.tensor([0, 2, 2, 3]), torch.ones(3))
    assert all(torch.equal(a, b) for a, b in zip((vectors, scores), again, strict=True))
    scorer = open_model(lake, run).scorer
    ones = np.ones(3, np.float32)
    expected, _ = scorer.fold_in((np.array([0, 2, 2, 3]), np.array([1, 4, 0], np.int32), ones, ones))
    np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-5)
    assert torch.isneginf(scores[:, list(UNKNOWN)]).all() and torch.isfinite(scores[:, [0, 1, 2]]).all()
    assert not torch.allclose(vectors[0], vectors[2])  # it looks at its rows
    assert [tuple(t.shape) for t in module.dense(torch.zeros(0, ITEMS))] == [(0, expected.shape[1]), (0, ITEMS)]


def test_items_that_were_folded_in_have_no_column(tmp_path: Path) -> None:
    """Of BiVAE, whose item encoder gives vectors to items that are newer than its user encoder."""
    lake, run = lake_of(tmp_path / "lake", "bivae", (*NAMES, "new1", "new2", "new3"))
    opened = open_model(lake, run)
    assert opened.scorer.known_items.sum() == opened.scorer.fold_items.sum() + 3
    assert opened.scorer.item_fold_users == USERS
    export_run(lake, run, "encoder", str(tmp_path / "out"))
    place = tmp_path / "out" / "bivae" / "current"
    told = json.loads((place / "manifest.json").read_text())
    assert (told["items"], told["known_items"]) == (ITEMS, ITEMS - len(UNKNOWN)) and told["largest_difference"] <= 1e-5
    assert pq.read_table(place / "item_ids.parquet")["id"].to_pylist() == list(NAMES)


def test_values_count_where_the_model_reads_them(tmp_path: Path) -> None:
    lake, run = lake_of(tmp_path / "lake", "multvae")
    encoder = open_model(lake, run).scorer.user_encoder()  # type: ignore[attr-defined]
    x = np.zeros((2, ITEMS), np.float32)
    x[0, [1, 4]], x[1, [1, 4]] = (1.0, 1.0), (5.0, 1.0)
    vectors, _ = encoder.of_dense(x)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    scorer = open_model(lake, run).scorer
    values = np.array([5.0, 1.0], np.float32)
    expected, _ = scorer.fold_in((np.array([0, 2]), np.array([1, 4], np.int32), values, values))
    np.testing.assert_allclose(vectors[1:], expected, atol=1e-5)


def test_an_encoder_that_differs_is_not_switched_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, run = lake_of(tmp_path / "lake", "multvae")
    export_run(lake, run, "encoder", str(tmp_path / "out"))
    other, _ = lake_of(tmp_path / "other", "multvae")  # other weights
    wrong = open_model(other, run).scorer.user_encoder()  # type: ignore[attr-defined]
    assert largest_difference(wrong, open_model(lake, run).scorer, "r") > 1e-3
    monkeypatch.setattr("sparkcf.models.nets.exported.ExportedEncoder.read_back", lambda *_: wrong)
    with pytest.raises(LakeError, match=r"not switched to: the encoder that was read back is .* apart"):
        export_run(lake, run, "encoder", str(tmp_path / "out"))
    assert [p.name for p in sorted((tmp_path / "out" / "multvae").glob("0*"))] == ["000001-r"]


def test_a_model_without_an_encoder_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, run = lake_of(tmp_path / "lake", "multvae")
    monkeypatch.setattr("sparkcf.models.nets.fit.LinearDecoderModel.open", lambda self, saved: NetScorer(saved, self))
    with pytest.raises(ConfigError, match="--to encoder: model multvae has no encoder of users' rows"):
        export_run(lake, run, "encoder", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_only_the_autoencoders_have_an_encoder_to_hand_over() -> None:
    empty = Saved(np.zeros((1, 1), np.float32), np.zeros(1, np.float32), np.ones(1, bool))
    have = set()
    for name in SECTIONS:
        fitted = model_of(load_config((), ["ds=2024-05-02", "input.path=x", f"model={name}"]))
        if name.startswith(("mult", "macrid", "bi", "disen", "ncf", "als", "hals")) and isinstance(
            fitted.open(empty), HasUserEncoder
        ):
            have.add(name)
    assert have == {"multvae", "multdae", "macridvae", "bivae"}


def test_the_compared_rows_are_of_known_items_and_one_is_empty() -> None:
    known = np.array([0, 2, 5, 9])
    indptr, indices, values, _ = drawn_rows(known, np.random.default_rng(0))
    assert len(indptr) == COMPARED + 1 and indptr[1] == 0 and set(indices) == set(known)
    assert len(values) == len(indices) == indptr[-1] and np.diff(indptr).max() == 4
    assert exported.CLOSE <= 1e-5
