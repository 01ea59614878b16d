"""The loop: the same in one process and in two, resumed or not; what goes wrong is named."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparkcf.config.nets import MacridVAEConfig, MultDAEConfig, MultVAEConfig, NetConfig
from sparkcf.data.packed import NO_ROWS, PackedRows, fold_in_and_heldout
from sparkcf.errors import LakeError, TrainingError
from sparkcf.lake.arrays import read_arrays, write_arrays
from sparkcf.lake.folder import Folder
from sparkcf.models.nets.registry import build_net
from sparkcf.training.checkpoint import Checkpoints, arrays_of
from sparkcf.training.feed import MemoryFeed
from sparkcf.training.group import Group, from_environment, joined_group
from sparkcf.training.loop import train, validate

N, M, SEED = 40, 12, 3
ALONE = Group(0, 1, torch.device("cpu"))
SMALL = {"hidden": (8,), "latent_dim": 4, "batch_size": 10, "epochs": 4, "patience": 0, "learning_rate": 0.01}


def rows(n: int = N) -> PackedRows:
    """Users of two tastes: even ones like the first half of the items."""
    random = np.random.default_rng(1)
    lists = [np.sort(random.choice(M // 2, 4, replace=False)) + (M // 2) * (u % 2) for u in range(n)]
    indptr = np.arange(0, 4 * n + 1, 4)
    return PackedRows(np.arange(n), indptr, np.concatenate(lists).astype(np.int32), np.ones(4 * n, np.float32))


def config(**changes: Any) -> MultVAEConfig:
    return MultVAEConfig(**(SMALL | changes))


def macrid(**changes: Any) -> MacridVAEConfig:
    return MacridVAEConfig(**(SMALL | {"concepts": 2} | changes))


def run(configured: Any, saved: Path | None = None, **given: Any) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    net = build_net({"n_items": M}, configured, SEED)
    checkpoints = Checkpoints(str(saved)) if saved else None
    feed = MemoryFeed(rows(), configured.batch_size, SEED)
    return net, train(
        net, feed, configured, SEED, ALONE, given.get("validation"), checkpoints, given.get("heard", print)
    )


def halves() -> list[tuple[PackedRows, PackedRows]]:
    return [fold_in_and_heldout(rows(), 0.5, 1)]


def in_processes(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(group, *arguments)` in so many processes that are a group."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    started = [context.Process(target=_member, args=(r, size, port, answers, work, arguments)) for r in range(size)]
    for process in started:
        process.start()
    try:
        found_answers = dict(answers.get(timeout=120) for _ in started)
    finally:
        for process in started:
            process.join(20)
            process.kill()
    for answer in found_answers.values():
        if isinstance(answer, str):
            raise AssertionError(answer)
    return [found_answers[rank] for rank in range(size)]


def _member(rank: int, size: int, port: int, answers: Any, work: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with joined_group(*from_environment(), 30, 1) as group:
            answers.put((rank, work(group, *arguments)))
    except Exception:
        answers.put((rank, traceback.format_exc()))


def _trained(group: Group, configured: NetConfig, n: int, poisoned: int | None = None) -> dict[str, Any]:
    net = build_net({"n_items": M}, configured, SEED)
    whole = rows(n)
    if poisoned is not None:
        whole.values[whole.indptr[poisoned]] = np.inf
    feed = MemoryFeed(whole, -(-configured.batch_size // group.size), SEED, group.rank, group.size)
    mine = whole.take(np.arange(group.rank, n, group.size))
    try:
        log = train(net, feed, configured, SEED, group, lambda: [fold_in_and_heldout(mine, 0.5, 1)])
    except TrainingError as error:
        return {"error": str(error)}
    return {"log": log, "state": arrays_of(net)}


@pytest.mark.parametrize("n", [40, 37])
def test_two_ranks_train_what_one_trains_on_the_joined_batches(n: int) -> None:
    """Full batches, so that a batch is all rows: then the order, the one thing that differs, does not matter."""
    plain = MultDAEConfig(**(SMALL | {"dropout": 0.0, "batch_size": 64}))
    alone = _trained(ALONE, plain, n)
    for member in in_processes(2, _trained, plain, n):
        for name, array in alone["state"].items():
            np.testing.assert_allclose(member["state"][name], array, atol=2e-6, err_msg=name)
        for mine, theirs in zip(alone["log"], member["log"], strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
            assert theirs["ndcg_at_100"] == pytest.approx(mine["ndcg_at_100"], abs=1e-6)


def _trained_without_noise(group: Group, configured: list[NetConfig]) -> list[dict[str, Any]]:
    torch.randn_like = torch.zeros_like  # in a process of its own
    return [_trained(group, one, N) for one in configured]


def test_two_ranks_train_variational_nets_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, and a batch is all rows: prior, turns and assignments are the same at all ranks."""
    whole = {"dropout": 0.0, "batch_size": 64}
    configured = [config(**RECVAE, **whole), macrid(assignment="softmax", **whole)]
    members = in_processes(2, _trained_without_noise, configured)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    for place, one in enumerate(configured):
        alone = _trained(ALONE, one, N)
        for member in members:
            for name, array in alone["state"].items():
                np.testing.assert_allclose(member[place]["state"][name], array, atol=2e-5, err_msg=name)
            for mine, theirs in zip(alone["log"], member[place]["log"], strict=True):
                for name in ("loss", "kl"):
                    assert theirs[name] == pytest.approx(mine[name], rel=1e-4)
                assert theirs["ndcg_at_100"] == pytest.approx(mine["ndcg_at_100"], abs=1e-6)


def test_what_rests_in_an_epoch_does_not_move_at_any_rank() -> None:
    """Encoder and decoder in turns: after two epochs of the encoder the decoder is as it was, then it moves."""
    configured = config(**RECVAE, dropout=0.0)
    start = arrays_of(build_net({"n_items": M}, configured, SEED))["output.weight"]
    for epochs, moved in ((2, False), (3, True)):
        one, two = in_processes(2, _trained, configured.model_copy(update={"epochs": epochs}), N)
        last = [found["state"] for found in (one, two)]
        for name, array in last[0].items():
            np.testing.assert_allclose(last[1][name], array, atol=1e-6, err_msg=name)
        assert np.array_equal(last[0]["output.weight"], start) is not moved


def test_a_loss_that_is_not_finite_is_told_by_every_rank_with_the_users() -> None:
    plain = MultDAEConfig(**(SMALL | {"dropout": 0.0}))
    told = [member["error"] for member in in_processes(2, _trained, plain, N, 8)]
    assert told[0] == told[1]
    assert "epoch 1, step" in told[0] and "user_idx" in told[0] and "multdae.learning_rate" in told[0]


def test_losses_fall_and_validation_rises() -> None:
    net, log = run(config(epochs=30, dropout=0.2), validation=halves)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert log[-1]["ndcg_at_100"] > log[0]["ndcg_at_100"]
    assert validate(net, halves(), ALONE) == pytest.approx(max(entry["ndcg_at_100"] for entry in log))
    assert [entry["epoch"] for entry in log] == list(range(1, 31))
    assert all(entry["rows"] == N for entry in log)


def test_the_divergence_weighs_more_with_every_update_to_the_cap_resumed_or_not(tmp_path: Path) -> None:
    """The weights that the loss is given, not those in the log: from 0, by update and not by epoch."""

    class Recording(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.weights = torch.nn.Parameter(torch.zeros(1)), []

        def loss(self, rows: Any, kl_weight: float) -> torch.Tensor:
            self.weights.append(kl_weight)
            return (self.slope - kl_weight).square() * torch.ones(len(rows))

    def given(configured: MultVAEConfig, saved: Checkpoints | None = None, heard: Any = print) -> list[float]:
        net = Recording()
        try:
            train(net, MemoryFeed(rows(), 10, SEED), configured, SEED, ALONE, checkpoints=saved, on_progress=heard)
        except Killed:
            pass
        return net.weights

    annealed = config(epochs=4, anneal_cap=0.3, anneal_steps=10)
    expected = [0.3 * min(update / 10, 1) for update in range(16)]  # four updates an epoch
    assert given(annealed) == pytest.approx(expected)
    saved = Checkpoints(str(tmp_path))
    assert given(annealed, saved, killed_after(2)) == pytest.approx(expected[:8])
    assert given(annealed, saved) == pytest.approx(expected[8:])
    assert given(config(epochs=1, anneal_cap=0.3, anneal_steps=0)) == [0.3] * 4


def test_the_log_has_the_divergences_weight_in_the_last_step_where_all_rows_have_one() -> None:
    log = run(config(epochs=3, anneal_cap=0.3, anneal_steps=10))[1]  # four updates an epoch
    assert [entry["kl_weight"] for entry in log] == pytest.approx([0.3 * update / 10 for update in (3, 7, 10)])
    assert "kl_weight" not in run(config(epochs=1, kl_per_item=0.01))[1][0]
    assert "kl_weight" not in run(MultDAEConfig(**(SMALL | {"epochs": 1})))[1][0]


class OfIds(torch.nn.Module):
    """Its posterior means are the rows' numbers and 1, its divergences the numbers and 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def loss(self, rows: Any, kl_weight: float) -> torch.Tensor:
        return self.slope.square() * torch.ones(len(rows))

    def posterior(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        numbers, ones = rows.ids.float(), torch.ones(len(rows))
        return torch.stack([numbers, ones], dim=1), torch.stack([numbers, 0.5 * ones], dim=1)


@pytest.mark.parametrize("batch_size", [1, 7, N])
def test_a_short_epochs_active_units_and_divergences_are_those_of_all_its_rows(batch_size: int) -> None:
    given = config(epochs=1, batch_size=batch_size)
    (entry,) = train(OfIds(), MemoryFeed(rows(), batch_size, SEED), given, SEED, ALONE)
    assert entry["active_units"] == 1
    assert entry["kl_by_dimension"] == [pytest.approx((N - 1) / 2), 0.5]
    assert entry["kl"] == pytest.approx((N - 1) / 2 + 0.5)


def _of_ids(group: Group) -> dict[str, Any]:
    given = config(epochs=1, batch_size=10)
    (entry,) = train(OfIds(), MemoryFeed(rows(), 5, SEED, group.rank, group.size), given, SEED, group)
    return entry


def test_both_ranks_have_the_figures_of_the_rows_of_both() -> None:
    for entry in in_processes(2, _of_ids):
        assert (entry["active_units"], entry["kl_by_dimension"]) == (1, [(N - 1) / 2, 0.5])


def test_the_same_seed_gives_the_same_losses() -> None:
    assert [e["loss"] for e in run(config())[1]] == [e["loss"] for e in run(config())[1]]


def test_training_ends_when_validation_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr("sparkcf.training.loop.validate", lambda *_: next(figures))
    _, log = run(config(epochs=9, patience=2), validation=halves)
    assert [entry["ndcg_at_100"] for entry in log] == [0.1, 0.3, 0.2, 0.3]


def test_the_best_epochs_weights_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected, _ = run(config(epochs=2))
    figures = iter([0.1, 0.3, 0.2, 0.2])
    monkeypatch.setattr("sparkcf.training.loop.validate", lambda *_: next(figures))
    net, _ = run(config(), tmp_path, validation=halves)
    for name, array in arrays_of(expected).items():
        np.testing.assert_array_equal(arrays_of(net)[name], array)
        np.testing.assert_array_equal(Checkpoints(str(tmp_path)).best(net)[name], array)


def test_items_that_were_folded_in_are_not_ranked() -> None:
    class SeenFirst(torch.nn.Module):
        """Scores what it is shown highest, then the other items from the last to the first."""

        def forward(self, rows: Any) -> tuple[torch.Tensor, None]:
            logits = torch.arange(float(M)).repeat(len(rows), 1)
            logits[rows.row_of, rows.indices] = 1e6
            return logits, None

    def part(items: list[int]) -> PackedRows:
        indptr, ones = np.array([0, len(items)]), np.ones(len(items), np.float32)
        return PackedRows(np.zeros(1, np.int64), indptr, np.array(items, np.int32), ones)

    for seen, hidden, expected in (
        ([0, M - 1], [M - 2, M - 3], 1.0),
        ([0, M - 1], [M - 3], 1 / np.log2(3)),
        ([0], [M - 1], 1.0),
    ):
        assert validate(SeenFirst(), [(part(seen), part(hidden))], ALONE) == pytest.approx(expected)


class Killed(BaseException):
    pass


def killed_after(epoch: int) -> Callable[[dict[str, Any]], None]:
    def heard(entry: dict[str, Any]) -> None:
        if entry.get("epoch") == epoch:
            raise Killed

    return heard


RECVAE = {"encoder": "dense", "dense_layers": 2, "prior": "composite", "kl_per_item": 0.01, "encoder_epochs": 2}


@pytest.mark.parametrize(
    "configured",
    [config(epochs=5), config(epochs=5, **RECVAE), macrid(epochs=5)],
    ids=["multvae", "recvae", "macridvae"],
)
def test_a_killed_training_goes_on_along_the_same_losses(tmp_path: Path, configured: NetConfig) -> None:
    whole, log = run(configured, validation=halves)
    for epoch in (2, 4):
        with pytest.raises(Killed):
            run(configured, tmp_path, validation=halves, heard=killed_after(epoch))
    notes: list[dict[str, Any]] = []
    net, resumed = run(configured, tmp_path, validation=halves, heard=notes.append)
    assert "resuming after epoch 4" in notes[0]["note"]
    assert [entry.get("epoch") for entry in notes[1:]] == [5]
    for mine, theirs in zip(log, resumed, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-6)
        assert theirs["ndcg_at_100"] == pytest.approx(mine["ndcg_at_100"], abs=1e-7)
    for name, array in arrays_of(whole).items():
        np.testing.assert_allclose(arrays_of(net)[name], array, atol=1e-6)


@pytest.mark.parametrize("damage", ["flip", "cut", "pickle"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_that_is_said(tmp_path: Path, damage: str) -> None:
    _, log = run(config(epochs=5))
    with pytest.raises(Killed):
        run(config(epochs=5), tmp_path, heard=killed_after(4))
    newest = tmp_path / "epoch-000004.safetensors"
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    newest.write_bytes({"flip": bytes(data), "cut": bytes(data[:-9]), "pickle": b"\x80\x04cposix\nsystem\n."}[damage])
    notes: list[dict[str, Any]] = []
    _, resumed = run(config(epochs=5), tmp_path, heard=notes.append)
    assert "epoch-000004.safetensors cannot be used" in notes[0]["note"]
    assert "resuming after epoch 3" in notes[1]["note"]
    assert [e["loss"] for e in resumed] == pytest.approx([e["loss"] for e in log], rel=1e-6)


def test_damaged_best_weights_give_way_to_the_epoch_before_or_to_a_new_beginning(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(config(epochs=5), tmp_path, heard=killed_after(4))
    (tmp_path / "best-000004.safetensors").write_bytes(b"no")
    notes: list[dict[str, Any]] = []
    _, log = run(config(epochs=4), tmp_path, heard=notes.append)
    assert "best-000004.safetensors cannot be used" in notes[0]["note"] and "after epoch 3" in notes[1]["note"]
    for path in tmp_path.glob("best-*.safetensors"):
        path.write_bytes(b"no")
    again: list[dict[str, Any]] = []
    _, anew = run(config(epochs=4), tmp_path, heard=again.append)
    assert [entry["epoch"] for entry in again if "epoch" in entry] == [1, 2, 3, 4]
    assert [entry["loss"] for entry in anew] == pytest.approx([entry["loss"] for entry in log], rel=1e-6)


def test_only_the_newest_epochs_are_kept(tmp_path: Path) -> None:
    run(config(epochs=5), tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert kept == [f"{kind}-00000{epoch}.safetensors" for kind in ("best", "epoch") for epoch in (4, 5)]


def test_a_folder_that_cannot_be_written_costs_a_note(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    notes: list[dict[str, Any]] = []
    _, log = run(config(epochs=1), tmp_path / "taken" / "x", heard=notes.append)
    assert len(log) == 1 and "cannot be saved" in notes[0]["note"]


def test_no_row_to_train_on_is_said() -> None:
    net = build_net({"n_items": M}, config(), SEED)
    with pytest.raises(TrainingError, match="no row to train on"):
        train(net, MemoryFeed(NO_ROWS, 5, 1), config(), SEED, ALONE)


def test_gradients_are_clipped_where_asked() -> None:
    free, tight = (run(config(epochs=1, dropout=0.0, clip_norm=c))[0] for c in (None, 1e-9))
    start = arrays_of(build_net({"n_items": M}, config(), SEED))["output.weight"]
    moved = [np.abs(arrays_of(net)["output.weight"] - start).max() for net in (free, tight)]
    assert moved[0] > 1e-3 and moved[1] < moved[0]


GOOD = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.float32)}
SHAPES = {name: array.shape for name, array in GOOD.items()}


def test_arrays_come_back_with_their_notes(tmp_path: Path) -> None:
    write_arrays(Folder(str(tmp_path)), "x", GOOD, {"epoch": 3})
    arrays, notes = read_arrays(Folder(str(tmp_path)), "x", SHAPES)
    assert notes == {"epoch": 3} and arrays.keys() == GOOD.keys()
    np.testing.assert_array_equal(arrays["a"], GOOD["a"])


def _edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "x.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _write(folder: Path, data: bytes) -> None:
    (folder / "x.safetensors").write_bytes(data)
    _edit_manifest(folder, bytes=len(data))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another checksum": (lambda f: _edit_manifest(f, sha256="0" * 64), "sha256"),
    "pickle": (lambda f: _write(f, b"\x80\x04cposix\nsystem\n(S'x'\ntR." * 9), "no safetensors file"),
    "a huge header": (lambda f: _write(f, (2**60).to_bytes(8, "little") + b"{}"), "no safetensors file"),
    "a header of megabytes": (lambda f: _write(f, (1 << 21).to_bytes(8, "little") + b" " * (1 << 21)), "header"),
    "a cut file": (lambda f: (f / "x.safetensors").write_bytes(b"123"), "its manifest says"),
    "no file": (lambda f: (f / "x.safetensors").unlink(), "its manifest says"),
    "no manifest": (lambda f: (f / "x.json").unlink(), "x.json"),
    "a manifest that is none": (lambda f: (f / "x.json").write_text("[1]"), ""),
    "a manifest that is no JSON": (lambda f: (f / "x.json").write_text("{"), ""),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path, name: str) -> None:
    write_arrays(Folder(str(tmp_path)), "x", GOOD, {})
    spoil, told = BAD[name]
    spoil(tmp_path)
    with pytest.raises(LakeError, match=r"x\.safetensors cannot be used: .*" + told):
        read_arrays(Folder(str(tmp_path)), "x", SHAPES)


def test_arrays_of_other_shapes_are_refused_by_name(tmp_path: Path) -> None:
    write_arrays(Folder(str(tmp_path)), "x", GOOD, {})
    with pytest.raises(LakeError, match=r"array b is \(4,\), expected \(5,\)"):
        read_arrays(Folder(str(tmp_path)), "x", SHAPES | {"b": (5,)})
    with pytest.raises(LakeError, match=r"array c is None, expected \(5,\)"):
        read_arrays(Folder(str(tmp_path)), "x", SHAPES | {"c": (5,)})


def test_groups_speak_with_one_voice() -> None:
    assert ALONE.sum(1, 2.5) == [1, 2.5] and ALONE.first_of("x") == "x" and ALONE.is_main
    assert not replace(ALONE, rank=1).is_main
    assert _summed(ALONE) == [2.5, 2.5]
    assert in_processes(2, _summed) == [[6.0, 2.5], [6.0, 3.5]]


def _summed(group: Group) -> list[float]:
    value = torch.tensor(2.5 + group.rank, dtype=torch.float64)
    return [group.summing(value)(), value.item()]
