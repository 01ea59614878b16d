"""Checkpoints of a training: one per epoch, from which it resumes.

epoch-000012.safetensors, .json     net, optimizer and the log up to the epoch
best.safetensors, .json             the net of the best epoch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Adam

from sparkcf.errors import LakeError, TrainingError
from sparkcf.lake.arrays import Arrays, Shapes, read_arrays, write_arrays
from sparkcf.lake.folder import Folder
from sparkcf.training.group import Group

KEPT = 2  # epochs: the newest may be damaged
MEASURE = "ndcg_at_100"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Progress of a training.

    log : an entry per finished epoch.
    best_epoch : number of the best epoch; 0: none yet.
    best : weights of that epoch.
    """

    log: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best: Arrays | None = None

    @property
    def epoch(self) -> int:
        """Number of the last finished epoch."""
        return len(self.log)

    def add(self, entry: dict[str, Any]) -> bool:
        """Append an epoch's log entry; returns whether it is the best so far (always, if nothing is measured)."""
        before = self.log[self.best_epoch - 1].get(MEASURE) if self.best_epoch else None
        self.log.append(entry)
        best = before is None or MEASURE not in entry or entry[MEASURE] > before
        if best:
            self.best_epoch = self.epoch
        return best

    def is_over(self, patience: int) -> bool:
        """Whether `patience` epochs have passed since the best one; 0: never."""
        return bool(patience) and self.epoch - self.best_epoch >= patience

    def keep(self, net: nn.Module) -> None:
        self.best = arrays_of(net)

    def restore(self, net: nn.Module) -> None:
        if self.best is not None:
            load_into(net, self.best)


class Checkpoints:
    """Checkpoints of one training. The main rank writes; every rank must be able to read the folder."""

    def __init__(self, address: str) -> None:
        self._folder = Folder(address)

    def save(
        self,
        progress: Progress,
        net: nn.Module,
        optimizer: Adam,
        group: Group,
        best: bool,
        on_progress: Callable[[dict[str, Any]], None],
    ) -> None:
        """Write the epoch. A failure to write is reported as a note and does not stop the training."""
        if not group.is_main:
            return
        notes = {"log": progress.log, "best_epoch": progress.best_epoch}
        try:
            if best:
                write_arrays(self._folder, _name("best", progress.epoch), arrays_of(net), {})
            write_arrays(self._folder, _name("epoch", progress.epoch), _state_arrays(net, optimizer), notes)
            for kind in ("epoch", "best"):
                for old in self._numbers(kind)[KEPT:]:
                    for ending in (".json", ".safetensors"):
                        self._folder.delete(_name(kind, old) + ending)
        except OSError as error:
            on_progress({"note": f"epoch {progress.epoch} cannot be saved in {self._folder.address}: {error}"})

    def resume(
        self, net: nn.Module, optimizer: Adam, group: Group, on_progress: Callable[[dict[str, Any]], None]
    ) -> Progress | None:
        """Load the newest undamaged epoch into net and optimizer, the same at every rank; None if there is none."""
        found, loaded = 0, None  # type: int, tuple[Arrays, Progress] | None
        if group.is_main:
            for epoch in self._numbers("epoch"):
                try:
                    found, loaded = epoch, self._read(epoch, net)
                    break
                except LakeError as error:
                    found = 0
                    on_progress({"note": f"{error}; using the previous epoch"})
        agreed = group.from_main(found)
        if not agreed:
            return None
        if not group.is_main:
            try:
                loaded = self._read(agreed, net)
            except LakeError as error:
                raise TrainingError(f"rank {group.rank} cannot read the checkpoint that rank 0 read: {error}") from None
        assert loaded is not None
        arrays, progress = loaded
        _restore(net, optimizer, arrays)
        if group.is_main:
            on_progress({"note": f"resuming after epoch {agreed}, from {self._folder.address}"})
        return progress

    def best(self, net: nn.Module) -> Arrays:
        """The weights of the newest best epoch. Raises LakeError."""
        newest = next(iter(self._numbers("best")), 0)
        return read_arrays(self._folder, _name("best", newest), shapes_of(net))[0]

    def clear(self) -> None:
        self._folder.delete()

    def _read(self, epoch: int, net: nn.Module) -> tuple[Arrays, Progress]:
        """State of net and optimizer after the epoch, and the progress. Raises LakeError."""
        shapes = dict(shapes_of(net))
        for name, parameter in net.named_parameters():
            shapes |= {f"{moment}.{name}": tuple(parameter.shape) for moment in MOMENTS} | {f"step.{name}": (1,)}
        arrays, notes = read_arrays(self._folder, _name("epoch", epoch), shapes)
        best = read_arrays(self._folder, _name("best", notes["best_epoch"]), shapes_of(net))[0]
        return arrays, Progress(list(notes["log"]), int(notes["best_epoch"]), best)

    def _numbers(self, kind: str) -> list[int]:
        """Complete epochs of a kind of file, newest first."""
        start, end = f"{kind}-", ".json"
        numbers = (n[len(start) : -len(end)] for n in self._folder.names() if n.startswith(start) and n.endswith(end))
        return sorted((int(n) for n in numbers if n.isdigit()), reverse=True)


def arrays_of(net: nn.Module) -> Arrays:
    """A copy of the net's state as arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in net.state_dict().items()}


def load_into(net: nn.Module, arrays: Arrays) -> None:
    net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})


def shapes_of(net: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def _name(kind: str, epoch: int) -> str:
    return f"{kind}-{epoch:06}"


def _state_arrays(net: nn.Module, optimizer: Adam) -> Arrays:
    arrays = arrays_of(net)
    for name, parameter in net.named_parameters():
        state = optimizer.state.get(parameter, {})  # empty: not trained yet
        zeros = torch.zeros_like(parameter)
        arrays |= {f"{moment}.{name}": state.get(moment, zeros).cpu().numpy() for moment in MOMENTS}
        arrays[f"step.{name}"] = np.array([float(state.get("step", 0.0))], np.float32)
    return arrays


def _restore(net: nn.Module, optimizer: Adam, arrays: Arrays) -> None:
    load_into(net, {name: arrays[name] for name in net.state_dict()})
    for name, parameter in net.named_parameters():
        moments = {m: torch.from_numpy(arrays[f"{m}.{name}"].copy()).to(parameter.device) for m in MOMENTS}
        step = float(arrays[f"step.{name}"][0])
        if step:
            optimizer.state[parameter] = {"step": torch.tensor(step, device=parameter.device)} | moments
