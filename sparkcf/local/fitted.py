"""A fitted model with its interactions, and asked users as its scorer takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.root import Config
from sparkcf.kernels.csr import build_csr, take_rows
from sparkcf.local.events import Data, Events, Ids, checked_frame, events_of, liked_pairs, pairs_of
from sparkcf.models.contract import Model, Scorer
from sparkcf.models.contract_data import I32, I64, LocalData, LocalFit, Rows, UserBlock
from sparkcf.models.registry import model_of
from sparkcf.ranking.scorers import known_entries
from sparkcf.ranking.topk import Catalogue, Ranker


@dataclass(frozen=True)
class FittedModel:
    """A fitted model with the interactions that it was fitted on: users and items by index, not in frames.

    config : the configuration as the jobs have it.
    users, items : the ids by dense index.
    events : the interactions.
    fitted : vectors, arrays and the log.
    threads : of the kernels, in `evaluate` by a protocol.
    """

    config: Config
    users: Ids
    items: Ids
    events: Events
    fitted: LocalFit
    threads: int = 1

    @cached_property
    def model(self) -> Model[Any]:
        return model_of(self.config)

    @cached_property
    def scorer(self) -> Scorer:
        return self.model.open(self.fitted.saved)

    @property
    def log(self) -> list[dict[str, Any]]:
        """An entry per sweep or epoch."""
        return self.fitted.log

    @cached_property
    def data(self) -> LocalData:
        """The pairs that the model was fitted on."""
        return pairs_of(self.events, self.model.reads, self.config, len(self.users), len(self.items))

    @cached_property
    def ranker(self) -> Ranker:
        popular = np.bincount(liked_pairs(self.events, self.config)[1], minlength=len(self.items)).astype(np.float32)
        return Ranker(self.scorer, Catalogue(np.ones(len(self.items), bool), popular))

    def _predicted(self, users: NDArray[Any], items: I32) -> tuple[Any, Any, NDArray[np.bool_]]:
        """Values of pairs, their spread if the model has one, and which users it knows; -1 is unknown."""
        at = np.maximum(users, 0).astype(np.intp)
        block = self.fitted.users.take(at)
        known = block.known & (users >= 0)
        vectors, bias = np.where(known[:, None], block.vectors, 0), np.where(known, block.bias, 0)
        block = UserBlock(vectors.astype(np.float32), bias.astype(np.float32), known)
        if self.model.scores_rows:
            block = replace(block, rows=taken(self.data.rows(), at))
        value, sd = self.scorer.predict(block, items)
        return value, sd, known

    def _block(self, users: NDArray[Any], history: Data | None) -> tuple[UserBlock, tuple[I64, I32]]:
        """Users as the scorer takes them, and their seen items."""
        idx = self.users.index(users)
        at = np.maximum(idx, 0)
        rows = self._rows(users, history)
        usable = known_entries(rows, self.scorer.known_items)
        block = self.fitted.users.take(at)
        block = replace(block, known=block.known & (idx >= 0))
        seen = compressed(self.events.users, self.events.items, len(self.users), len(self.items))
        indptr, entries = take_rows(seen[0], at)
        own = np.repeat(idx >= 0, np.diff(indptr))
        counts = np.bincount(np.repeat(np.arange(len(users)), np.diff(indptr))[own], minlength=len(users))
        shown = (np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), seen[1][entries][own])
        if history is not None:
            told = self._history(users, history)
            n = np.bincount(told.users, minlength=len(users)) > 0
            folded = self._folded(usable)
            vectors = np.where(n[:, None], folded.vectors, block.vectors)
            known = np.where(n, np.diff(usable[0]) > 0, block.known)
            block = UserBlock(vectors, np.where(n, folded.bias, block.bias).astype(np.float32), known)
            rest = np.flatnonzero(~n[np.repeat(np.arange(len(users)), counts)])
            whose = np.concatenate([np.repeat(np.arange(len(users)), counts)[rest], told.users])
            listed = np.concatenate([shown[1][rest], told.items])
            shown = compressed(whose.astype(np.int32), listed.astype(np.int32), len(users), len(self.items))
        if self.model.scores_rows:
            block = replace(block, rows=usable, known=block.known & (np.diff(usable[0]) > 0))
        return block, shown

    def _folded(self, rows: Rows) -> UserBlock:
        vectors, bias = self.scorer.fold_in(rows)
        return UserBlock(vectors, bias, np.diff(rows[0]) > 0, rows if self.model.scores_rows else None)

    def _rows(self, users: NDArray[Any], history: Data | None) -> Rows:
        """The users' pairs over all items; of the history, for users who have one."""
        idx = self.users.index(users)
        own = self.data.rows()
        rows = taken(own, np.maximum(idx, 0))
        unknown = np.repeat(idx < 0, np.diff(rows[0]))
        whose = np.repeat(np.arange(len(users), dtype=np.int32), np.diff(rows[0]))
        parts = [column[~unknown] for column in (whose, *rows[1:])]
        if history is not None:
            told = self._history(users, history)
            read = pairs_of(told, self.model.reads, self.config, len(users), len(self.items))
            kept = ~np.isin(parts[0], told.users)
            weights = read.rows()[3]
            columns = (read.users, read.items, read.values, weights)
            parts = [np.concatenate([old[kept], new]) for old, new in zip(parts, columns, strict=True)]
        order = np.lexsort((parts[1], parts[0]))
        whose, items, values, weights = (column[order] for column in parts)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(whose, minlength=len(users)))]).astype(np.int64)
        return indptr, items.astype(np.int32), values.astype(np.float32), weights.astype(np.float32)

    def _history(self, users: NDArray[Any], history: Data) -> Events:
        """Events of the asked users, by their places, with items of the training."""
        frame = checked_frame(history, None, "history")
        asked = Ids.in_order(users)
        at = asked.index(frame["user_id"])
        frame, at = frame[at >= 0].reset_index(drop=True), at[at >= 0]
        items = self.items.index(frame["item_id"])
        inside = items >= 0
        return events_of(frame[inside].reset_index(drop=True), at[inside], items[inside], self.config)


def taken(rows: Rows, at: NDArray[Any]) -> Rows:
    """The chosen rows, in the given order."""
    indptr, entries = take_rows(rows[0], at)
    return indptr, rows[1][entries], rows[2][entries], rows[3][entries]


def compressed(users: I32, items: I32, n: int, n_items: int) -> tuple[I64, I32]:
    """Items of each of n users, as compressed rows: indptr (n + 1,), indices."""
    indptr, indices, _ = build_csr(users, items, np.ones(len(users), np.float32), n, max(n_items, 1))
    return indptr, indices
