"""The training loop: epochs over a feed, validation, early stopping, checkpoints, in one or many processes.

    feed ──batch──▶ loss of the rows ÷ rows of all ranks ──gradients summed over ranks──▶ Adam

A step's loss is the mean over the rows of all ranks, so every row counts the same where batches are unequal. For a net
of two sides every epoch has a phase of items' rows, then one of users' rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparkcf.config.nets import GradientConfig
from sparkcf.data.packed import PackedRows
from sparkcf.errors import TrainingError
from sparkcf.kernels.metrics import ranking_measures
from sparkcf.training.batch import Rows
from sparkcf.training.checkpoint import Checkpoints, Progress
from sparkcf.training.feed import Batch, Feed
from sparkcf.training.group import Group
from sparkcf.training.posterior import PosteriorSample
from sparkcf.training.shared_gradients import shared_gradients
from sparkcf.training.sparse_gradients import LazyAdam, average, clip

OnProgress = Callable[[dict[str, Any]], None]
Validation = Callable[[], Iterable[tuple[PackedRows, PackedRows]]]  # rows to fold in, and their held-out entries
NDCG_AT = 100  # k of the NDCG for early stopping
NAMED = 5  # rows named in a message
BUCKET_MB = 2  # gradients sent at once: small, so that sending overlaps with the backward pass
SHARED_BUCKET_MB = 1024  # nothing is sent: all gradients at once


@runtime_checkable
class Phased(Protocol):
    """A net that does not train all of its parameters in every epoch."""

    def begin_epoch(self, number: int) -> Sequence[nn.Parameter]:
        """Called before every epoch, from 1; returns the parameters that are not trained in the epoch."""
        ...


@runtime_checkable
class WithTables(Protocol):
    """A net of which some parameters may be tables with sparse gradients."""

    def sparse_parameters(self) -> Sequence[nn.Parameter]:
        """The tables (n, k) whose gradients are sparse, in every step."""
        ...


@runtime_checkable
class TwoSided(Protocol):
    """A net whose two parts, one for the rows of each side, train in turns; each part has a `loss`."""

    def part(self, side: str) -> nn.Module:
        """The part for the rows of a side, "user" or "item"."""
        ...

    def store(self, side: str, rows: Rows) -> None:
        """Called after every step: store the vectors of these rows, against which the other part trains."""
        ...

    def stored(self, side: str) -> Sequence[Tensor]:
        """The tables (n, k) that `store` writes to."""
        ...


class BatchLoss(nn.Module):
    """The summed loss of a batch as a module: DDP synchronises only gradients of `forward`.

    A net has `loss(rows, kl_weight)`, (B,), and its call returns a tuple whose first element is logits (B, n_items).
    """

    net: Any

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, rows: Rows, kl_weight: float) -> Tensor:
        summed: Tensor = self.net.loss(rows, kl_weight).sum()
        return summed


@dataclass(frozen=True)
class Phase:
    """The training of one part of a net in an epoch.

    side : "user" or "item".
    feed : rows of the side.
    part : the module with the loss.
    objective : its BatchLoss, with gradients synchronised over the ranks, but for those of tables.
    tables : its parameters with sparse gradients.
    """

    side: str
    feed: Feed
    part: nn.Module
    objective: nn.Module
    tables: Sequence[nn.Parameter]


def train(
    net: nn.Module,
    feed: Feed,
    config: GradientConfig,
    seed: int,
    group: Group,
    validation: Validation | None = None,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress = lambda entry: None,
    item_feed: Feed | None = None,
) -> list[dict[str, Any]]:
    """Train the net in place; it ends with the weights of the best epoch by validation, else of the last.

    Parameters
    ----------
    feed : rows of users.
    validation : returns this rank's share of the validation rows, from the start at each call.
    checkpoints : written after every epoch; the training resumes from them.
    on_progress : called by the main rank with every epoch's log entry: epoch, loss, kl_weight (of the last step; absent
        where `config.annealing` is None), ndcg_at_100, seconds, and the figures of `sparkcf.training.posterior`; names
        of figures of items' phases begin with "item_".
    item_feed : rows of items, for a `TwoSided` net.

    Returns
    -------
    list of dict
        The log, the same at every rank.

    Raises
    ------
    TrainingError
        At every rank: there are no rows, or a loss is not finite.
    """
    feeds = {"user": feed} if item_feed is None else {"item": item_feed, "user": feed}
    if not all(each.steps for each in feeds.values()):
        raise TrainingError("there is no row to train on: check preference.positive_from and the table of rows")
    net.to(group.device)
    phases = [_phase(net, side, each, group) for side, each in feeds.items()]
    optimizer = LazyAdam(net.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True)
    progress = (checkpoints.resume(net, optimizer, group, on_progress) if checkpoints else None) or Progress()
    while progress.epoch < config.epochs and not progress.is_over(config.patience):
        start, number = time.perf_counter(), progress.epoch + 1
        torch.manual_seed(int(np.random.SeedSequence([seed, number, group.rank]).generate_state(1)[0]))
        net.train()
        frozen = net.begin_epoch(number) if isinstance(net, Phased) else []
        entry: dict[str, Any] = {"epoch": number, "rows": 0}
        for phase in phases:
            figures, rows = _run_phase(net, phase, optimizer, config, group, number, frozen)
            entry["rows"] += rows
            entry |= figures if phase.side == "user" else {f"{phase.side}_{name}": v for name, v in figures.items()}
        entry["seconds"] = time.perf_counter() - start
        if validation is not None:
            entry["ndcg_at_100"] = validate(net, validation(), group)
        best = progress.add(entry)
        if best:
            progress.keep(net)
        if checkpoints:
            checkpoints.save(progress, net, optimizer, group, best, on_progress)
        if group.is_main:
            on_progress(entry)
    progress.restore(net)
    return progress.log


def _phase(net: nn.Module, side: str, feed: Feed, group: Group) -> Phase:
    part = net.part(side) if isinstance(net, TwoSided) else net
    objective: nn.Module = BatchLoss(part)
    tables = part.sparse_parameters() if isinstance(part, WithTables) else []
    return Phase(side, feed, part, synchronised(objective, group, tables) if group.size > 1 else objective, tables)


def _run_phase(
    net: nn.Module,
    phase: Phase,
    optimizer: LazyAdam,
    config: GradientConfig,
    group: Group,
    epoch: int,
    frozen: Sequence[nn.Parameter],
) -> tuple[dict[str, Any], int]:
    """One pass over the rows of a side; returns its figures, the loss first, and the number of rows of all ranks."""
    steps_before, total, n_rows = (epoch - 1) * phase.feed.steps, 0.0, 0
    own_ids: list[Tensor] = []
    posteriors = PosteriorSample(phase.part, phase.feed.steps)
    for place, batch in enumerate(phase.feed.epoch(epoch)):
        weight = annealed(config.annealing, steps_before + place)
        rows = to_tensors(batch.rows, group.device)
        total += _step(phase, optimizer, rows, batch, weight, config, group, (epoch, place + 1), frozen)
        n_rows += batch.total
        posteriors.add(rows, batch.total)
        if isinstance(net, TwoSided):
            net.store(phase.side, rows)
            own_ids.append(rows.ids)  # type: ignore[arg-type]
    if isinstance(net, TwoSided):
        for table in net.stored(phase.side):
            group.merge_rows(table, torch.cat(own_ids))
    used = {} if config.annealing is None else {"kl_weight": weight}
    return {"loss": total / n_rows} | used | posteriors.figures(group), n_rows


def annealed(annealing: tuple[float, int] | None, update: int) -> float:
    """The weight of the KL divergence at an update, counted from 0: rises linearly from 0 to the cap; 0 for None."""
    if annealing is None:
        return 0.0
    cap, steps = annealing
    return cap * min(1.0, update / steps) if steps else cap


def synchronised(objective: nn.Module, group: Group, tables: Sequence[nn.Parameter] = ()) -> nn.Module:
    """The objective with gradients averaged over the ranks: by nccl, by gloo, or in the memory of one machine.

    `tables` : parameters whose gradients are left as they are.
    """
    left_out = {id(table) for table in tables}
    names = [name for name, parameter in objective.named_parameters() if id(parameter) in left_out]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, names)
    if group.device.type == "cuda":
        return DistributedDataParallel(
            objective, device_ids=[group.device.index], gradient_as_bucket_view=True, forward_sync_buffers=False
        )
    averaged = (p for p in objective.parameters() if p.requires_grad and id(p) not in left_out)
    shared = shared_gradients(group, sum(p.numel() for p in averaged))
    wrapped = DistributedDataParallel(
        objective,
        gradient_as_bucket_view=True,
        forward_sync_buffers=False,  # no forward pass changes a buffer
        bucket_cap_mb=SHARED_BUCKET_MB if shared else BUCKET_MB,
    )
    if shared:
        wrapped.register_comm_hook(None, shared.hook)
    return wrapped


def _step(
    phase: Phase,
    optimizer: LazyAdam,
    rows: Rows,
    batch: Batch,
    kl_weight: float,
    config: GradientConfig,
    group: Group,
    place: tuple[int, int],
    frozen: Sequence[nn.Parameter],
) -> float:
    """One update; returns the loss summed over the rows of all ranks."""
    mixed = config.mixed_precision and group.device.type == "cuda"
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
        loss = phase.objective(rows, kl_weight)
    summed = group.summing(loss)
    (loss * (group.size / batch.total)).backward()  # DDP divides by the number of ranks
    total = summed()
    if not np.isfinite(total):
        raise TrainingError(group.first_of(_not_finite_message(float(loss.detach()), phase.side, batch, config, place)))
    average(phase.tables, group)
    for parameter in frozen:  # Adam skips parameters without a gradient; DDP needs a gradient of every parameter
        parameter.grad = None
    if config.clip_norm is not None:
        clip(phase.objective.parameters(), config.clip_norm)
    optimizer.step()
    return total


def _not_finite_message(loss: float, side: str, batch: Batch, config: GradientConfig, place: tuple[int, int]) -> str:
    """Empty where this rank's loss is finite."""
    if np.isfinite(loss):
        return ""
    ids = ", ".join(map(str, batch.rows.ids[:NAMED]))
    return (
        f"the loss is {loss} in epoch {place[0]}, step {place[1]}, whose rows begin with {side}_idx {ids}: lower "
        f"{config.section}.learning_rate, set {config.section}.clip_norm or check for huge values"
    )


def to_tensors(rows: PackedRows, device: torch.device | str) -> Rows:
    """Packed rows on a device, int64 indices and offsets."""
    arrays = (rows.indices.astype(np.int64), rows.indptr, np.array(rows.values), np.array(rows.ids))
    tensors = [torch.from_numpy(array) for array in arrays]
    if torch.device(device).type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return Rows(*tensors).to(device)


@torch.inference_mode()
def validate(net: nn.Module, parts: Iterable[tuple[PackedRows, PackedRows]], group: Group) -> float:
    """Mean NDCG@100 over the validation rows of all ranks; 0 without validation rows."""
    net.eval()
    total, count = 0.0, 0.0
    for known, heldout in parts:
        rows = to_tensors(known, group.device)
        logits = net(rows)[0].float()
        logits[rows.row_of, rows.indices] = -torch.inf
        ranked = logits.topk(min(NDCG_AT, logits.shape[1]), dim=1).indices.to("cpu", torch.int32).numpy()
        ranked = np.pad(ranked, ((0, 0), (0, NDCG_AT - ranked.shape[1])), constant_values=-1)
        names, values = ranking_measures(ranked, heldout.indptr, heldout.indices, (NDCG_AT,))
        ndcg = values[:, names.index(("ndcg_at_k", NDCG_AT))]
        total, count = total + float(np.nansum(ndcg)), count + float(np.isfinite(ndcg).sum())
    total, count = group.sum(total, count)
    return total / count if count else 0.0
