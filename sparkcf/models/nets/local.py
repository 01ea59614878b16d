"""Nets in this process: the training loop of the jobs over rows in memory, then all users encoded in blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.data.packed import PackedRows, fold_in_and_heldout
from sparkcf.errors import TrainingError
from sparkcf.kernels.csr import build_csr
from sparkcf.kernels.random import uniform_rows
from sparkcf.models.contract_data import F32, LocalData, LocalFit, Saved, UserBlock
from sparkcf.training.checkpoint import arrays_of
from sparkcf.training.feed import MemoryFeed
from sparkcf.training.group import Group, device_of
from sparkcf.training.launch import FOLD_IN_SHARE
from sparkcf.training.loop import train

BLOCK = 2_000  # rows encoded at once
VALIDATION = 1  # stream of the draws of validation users


def fit_net(model: Any, data: LocalData, on_progress: Callable[[dict[str, Any]], None]) -> LocalFit:
    """Train a `NetModel` on rows in memory. `model` : see its methods whose names begin with `local_`.

    Raises
    ------
    ConfigError
        The parameters need tables that only Spark reads.
    TrainingError
        A loss is not finite, or a value is excluded by the parameters.
    """
    model.local_check(data)
    config, seed = model.params.gradient, model.seed
    rows = rows_of(data.users, data.items, data.values, data.n_users, data.n_items)
    held = validation_rows(rows, model.validation_share, seed)
    trained_on, kept = rows.take(np.flatnonzero(~held)), rows.take(np.flatnonzero(held))
    items = None
    if model.local_two_sided:
        out = np.isin(data.users, kept.ids)
        items = rows_of(data.items[~out], data.users[~out], data.values[~out], data.n_items, data.n_users)
    with tempfile.TemporaryDirectory(prefix="sparkcf-fit-") as folder:
        net = model.net_to_train(model.local_net_data(data, trained_on, folder))

    def validation() -> Iterator[tuple[PackedRows, PackedRows]]:
        for first in range(0, len(kept), config.batch_size):
            yield fold_in_and_heldout(kept.take(slice(first, first + config.batch_size)), FOLD_IN_SHARE, seed)

    feeds = [None if part is None else MemoryFeed(part, config.batch_size, seed) for part in (trained_on, items)]
    if feeds[0] is None or not feeds[0].steps:
        raise TrainingError("there is no row to train on: is preference.positive_from too high?")
    group = Group(0, 1, device_of(0))
    measured = validation if len(kept) else None
    log = train(net, feeds[0], config, seed, group, measured, None, on_progress, feeds[1])
    state = model.learned(net.to("cpu"), arrays_of(net), data)
    stored = {name: state[name] for name in model.shapes(data)}
    item_vectors, item_bias = model.local_items(state, items)
    saved = Saved(item_vectors, item_bias, data.present()[1], stored)
    vectors = np.zeros((data.n_users, model.width), np.float32)
    vectors[rows.ids] = model.local_users(state, rows, held)
    return LocalFit(saved, UserBlock(vectors, np.zeros(data.n_users, np.float32), data.present()[0]), log)


def rows_of(own: Any, others: Any, values: F32, n: int, n_others: int) -> PackedRows:
    """The rows of one side that have an entry."""
    indptr, indices, values = build_csr(own, others, values, n, n_others)
    present = np.flatnonzero(np.diff(indptr))
    return PackedRows(np.arange(n), indptr, indices, values).take(present)


def validation_rows(rows: PackedRows, share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are kept for validation, bool (n,): a share of those of two and more entries, by index."""
    drawn: NDArray[np.bool_] = uniform_rows(seed, VALIDATION, rows.ids) < share
    return drawn & (np.diff(rows.indptr) > 1)


def encoded(encoder: Callable[[PackedRows], tuple[F32, ...]], rows: PackedRows, width: int) -> F32:
    """Vectors of rows, float32 (n, width), encoded in blocks."""
    out = np.zeros((len(rows), width), np.float32)
    for first in range(0, len(rows), BLOCK):
        part = slice(first, first + BLOCK)
        out[part] = encoder(rows.take(part))[0]
    return out
