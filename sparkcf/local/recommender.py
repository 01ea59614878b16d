"""Fit, use and measure a model on a pandas frame, without Spark: the models, kernels and formulas of the jobs.

    frame ──▶ Events ──pairs_of──▶ LocalData ──Model.fit_local──▶ LocalFit ──Model.open──▶ Scorer, Ranker

See docs/python.md.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparkcf.config.load import model_names, parse_config
from sparkcf.config.root import Config, EvaluationConfig
from sparkcf.errors import ConfigError, NotFoundError
from sparkcf.kernels.csr import take_rows
from sparkcf.local.events import (
    DAY_S,
    Data,
    Events,
    Ids,
    checked_frame,
    events_of,
    liked_pairs,
    pairs_of,
)
from sparkcf.local.fitted import FittedModel, compressed, taken
from sparkcf.local.measure import Evaluation, ranking_figures, rating_figures
from sparkcf.local.split import LocalSplit, split_events
from sparkcf.models.contract_data import I32, I64, LocalRun
from sparkcf.models.registry import implementation, model_of
from sparkcf.ranking.scorers import known_entries

BLOCK = 2_000  # users ranked at once
PROTOCOLS = ("q1", "q2", "q3", "q4")
OnProgress = Callable[[dict[str, Any]], None]


def fit(
    model: str,
    data: Data,
    *,
    columns: Mapping[str, str] | None = None,
    preference: Mapping[str, Any] | None = None,
    events: Mapping[str, float] | None = None,
    seed: int = 42,
    threads: int | None = None,
    on_progress: OnProgress = lambda entry: None,
    **params: Any,
) -> Recommender:
    """Fit a model in this process.

    Parameters
    ----------
    model : name of a model: als, ease, multvae, …; a model without a fit in this process is refused.
    data : frame with user_id, item_id and optionally value, ts and event; or (users, items) or (users, items, values).
    columns : names of the frame's columns by ours, such as {"user_id": "userId"}.
    preference : how interactions become weights, such as {"positive_from": 4}: the section `preference` of the jobs.
    events : allowed events and their weights: `input.events` of the jobs.
    threads : threads of the kernels; None: all processors.
    on_progress : called with the log entry of every sweep or epoch.
    **params : parameters of the model, such as rank=64: the model's section of the jobs.

    Raises
    ------
    ConfigError
        An unknown model or parameter, or a value out of range.
    InputError
        A missing column, no row, an id that is null, infinite or beyond int64, or a value or time out of range.
    TrainingError
        The numbers are not finite, or the data do not suit the model.
    """
    frame = checked_frame(data, columns)
    last = dt.date(1970, 1, 1)
    if "ts" in frame:
        last = dt.datetime.fromtimestamp(float(frame["ts"].max()) // DAY_S * DAY_S, dt.UTC).date()
    given = {"path": "frame"} | ({"events": dict(events)} if events is not None else {})
    sections = {"input": given, "preference": dict(preference or {}), str(model): params}
    config = parse_config({"ds": last, "model": model, "seed": seed} | sections)
    if config.preference.half_life_days is not None and "ts" not in frame:
        raise ConfigError("preference.half_life_days needs times: give the data a column ts")
    users, items = Ids.of(frame["user_id"]), Ids.of(frame["item_id"])
    all_events = events_of(frame, users.index(frame["user_id"]), items.index(frame["item_id"]), config)
    return fit_events(all_events, users, items, config, threads or os.cpu_count() or 1, on_progress)


def fit_events(
    events: Events, users: Ids, items: Ids, config: Config, threads: int, on_progress: OnProgress = lambda entry: None
) -> Recommender:
    """Fit the configured model on events."""
    made = model_of(config)
    if not made.fits_locally:
        able = [name for name in model_names() if implementation(name).fits_locally]
        raise ConfigError(f"model={made.name} is fitted by the train job only; without Spark: {', '.join(able)}")
    data = pairs_of(events, made.reads, config, len(users), len(items), threads)
    return Recommender(config, users, items, events, made.fit_local(data, LocalRun(on_progress)), threads)


class Recommender(FittedModel):
    """A fitted model that is asked, and answers, by external ids and frames.

    config : the configuration as the jobs have it.
    users, items : the ids by dense index.
    events : the interactions that it was fitted on.
    fitted : vectors, arrays and the log of the training.
    threads : of the kernels, in `evaluate` by a protocol.
    """

    def factors(self, side: str) -> pd.DataFrame:
        """The vectors of users or of items that the model knows, a row each, by id. `side` : "user" or "item"."""
        saved, users = self.fitted.saved, self.fitted.users
        if side not in ("user", "item"):
            raise ConfigError(f"side={side!r}: give user or item")
        ids, vectors, known = (
            (self.users, users.vectors, users.known)
            if side == "user"
            else (self.items, saved.item_vectors, saved.item_known)
        )
        return pd.DataFrame(vectors[known], index=pd.Index(ids.values[known], name=f"{side}_id"))

    def recommend(
        self, users: Any = None, k: int = 10, *, exclude_seen: bool = True, history: Data | None = None
    ) -> pd.DataFrame:
        """Lists of k items.

        Parameters
        ----------
        users : an id or several; None: all users of `history`, else of the training.
        history : interactions of users, also of users who were not in training: these users are folded in, and the
            history takes the place of what the model knows of them.

        Returns
        -------
        DataFrame
            user_id, position (from 1), item_id, score, reason: "model", or "fallback" (popularity) for a user of whom
            the model knows nothing.
        """
        _check_length(k)
        asked = self._asked(users, history)
        if not len(asked):
            none = _listed("user_id", asked, "item_id", self.items.values, *_no_lists())
            return none.assign(reason=np.zeros(0, object))
        block, seen = self._block(asked, history)
        if not exclude_seen:
            seen = (np.zeros(len(block) + 1, np.int64), np.zeros(0, np.int32))
        parts = []
        for first in range(0, len(block), BLOCK):
            at = np.arange(first, min(first + BLOCK, len(block)))
            indptr, entries = take_rows(seen[0], at)
            parts.append(self.ranker.rank(block.take(at), (indptr, seen[1][entries]), int(k)))
        ranked, scores = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        listed = _listed("user_id", np.asarray(asked), "item_id", self.items.values, ranked, scores)
        by_model = np.repeat(block.known, (ranked >= 0).sum(axis=1))
        return listed.assign(reason=np.where(by_model, "model", "fallback"))

    def similar(self, items: Any = None, k: int = 10) -> pd.DataFrame:
        """The k nearest items: item_id, position (from 1), similar_item_id, score.

        Parameters
        ----------
        items : an id or several; None: all that the model knows.

        Raises
        ------
        ConfigError
            `k` is no whole number from 1.
        NotFoundError
            An item that the model does not know.
        """
        _check_length(k)
        known = self.scorer.known_items
        idx = np.flatnonzero(known) if items is None else self._known_items(_several(items))
        ranked, scores = self.ranker.similar(idx.astype(np.int32), int(k))
        return _listed("item_id", self.items.values[idx], "similar_item_id", self.items.values, ranked, scores)

    def explain(self, user: Any, item: Any, *, history: Data | None = None) -> pd.DataFrame:
        """What a user's score of an item is made of.

        Returns
        -------
        DataFrame
            kind, label, item_id (of a part of the history), contribution, the largest first. Its `attrs` have the
            score, whether the parts sum to it (`exact`), and what they are shares of (`scale`): see `Explanation`.

        Raises
        ------
        NotFoundError
            An item that the model does not know, or a user without interactions.
        """
        idx = int(self._known_items([item])[0])
        asked = self._asked([user], history)
        rows = known_entries(self._rows(asked, history), self.scorer.known_items)
        if not len(rows[1]):
            raise NotFoundError(f"user {user!r} has no interaction with an item of the model: pass history=")
        block, _ = self._block(asked, history)
        found = self.scorer.explain(replace(block, rows=rows), idx)
        parts = sorted(found.parts, key=lambda part: -abs(part.value))
        had = [None if part.item is None else self.items.values[part.item] for part in parts]
        columns = {"kind": [p.kind for p in parts], "label": [p.label for p in parts], "item_id": had}
        frame = pd.DataFrame(columns | {"contribution": [part.value for part in parts]})
        frame.attrs |= {"score": found.score, "exact": found.exact, "scale": found.scale}
        return frame

    def predict(self, pairs: Data, *, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Predicted values of pairs: user_id, item_id, predicted, sd (where the model has one), known_user, known_item.

        Raises
        ------
        ConfigError
            The model predicts no values, such as als with mode="implicit".
        """
        self._check_predicts()
        frame = checked_frame(pairs, columns, "pairs")
        users, items = self.users.index(frame["user_id"]), self.items.index(frame["item_id"]).astype(np.int32)
        value, sd, known = self._predicted(users, items)
        columns_out = {"user_id": frame["user_id"], "item_id": frame["item_id"], "predicted": value}
        known_item = (items >= 0) & self.scorer.known_items[np.maximum(items, 0)]
        spread = {} if sd is None else {"sd": sd}
        return pd.DataFrame(columns_out | spread | {"known_user": known, "known_item": known_item})

    def evaluate(
        self,
        test: Data | str,
        *,
        columns: Mapping[str, str] | None = None,
        history: Data | None = None,
        ks: Sequence[int] = (10, 20, 50, 100),
        **settings: Any,
    ) -> Evaluation:
        """Measure the model and the popularity baseline.

        Parameters
        ----------
        test : interactions that were kept from the training, of which the liked ones are ranked (a model that predicts
            values predicts all of them too); or a protocol, q1 to q4, by which the data of the training are split and
            the model is fitted anew on one part with the same parameters.
        history : as in `recommend`, for tested users who were not in training.
        **settings : of the section `evaluation` of the jobs: holdout_share, foldin_share, min_user_items, bootstrap.

        Raises
        ------
        ConfigError
            An unknown protocol or setting, or q3 with a model that predicts no values.
        GateRefused
            A part of the split is empty.
        """
        if isinstance(test, str):
            if test not in PROTOCOLS:
                raise ConfigError(f"evaluate({test!r}): give a frame, or one of {', '.join(PROTOCOLS)}")
            return self._by_protocol(self._evaluation(test, ks, settings))
        evaluation = self._evaluation("auto", ks, settings)
        frame = checked_frame(test, columns, "test")
        users = Ids.of(frame["user_id"])
        at, place = self.items.index(frame["item_id"]), users.index(frame["user_id"])
        new = Ids.of(frame["item_id"][at < 0]) if (at < 0).any() else Ids(np.zeros(0, np.int64))
        if len(new):  # items of no training: each a miss
            at = np.where(at < 0, len(self.items) + np.maximum(new.index(frame["item_id"]), 0), at)
        events = events_of(frame, place, at, self.config)
        block, seen = self._block(users.values, history)
        own = np.repeat(np.arange(len(users), dtype=np.int64), np.diff(seen[0])) << 32 | seen[1]
        events = events.where(~np.isin(events.keys, own))
        heldout = compressed(*liked_pairs(events, self.config), len(users), len(self.items) + len(new))
        ids = self.users.index(users.values)
        ids = np.where(ids < 0, len(self.users) + np.arange(len(users)), ids)
        n_trained = len(np.unique(self.data.users))
        figures = ranking_figures(self.ranker, block, ids, seen, heldout, n_trained, evaluation, self.config.seed)
        if self.model.reads.predicts:
            trained = self.users.index(users.values)[events.users]
            items = np.where(events.items < len(self.items), events.items, -1).astype(np.int32)
            figures += self._rating_figures(trained, items, events.values, evaluation)
        return Evaluation("test", f"{len(heldout[1]):,} pairs of {len(users):,} users", figures)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model, its data and its ids into a folder: arrays (safetensors) and JSON, no pickle.

        Raises LakeError if the folder cannot be written.
        """
        from sparkcf.local.storage import save

        save(os.fspath(folder), self.config, self.users, self.items, self.events, self.fitted)

    def _evaluation(self, protocol: str, ks: Sequence[int], settings: Mapping[str, Any]) -> EvaluationConfig:
        stated: dict[str, Any] = {"ks": tuple(ks), **settings, "protocol": protocol}
        at = self.config.gate.at if self.config.gate.at in stated["ks"] else (stated["ks"] or (1,))[0]
        known = {"ds": self.config.ds, "input": {"path": "frame"}, "gate": {"at": at}}
        return parse_config(known | {"evaluation": stated}).evaluation

    def _by_protocol(self, evaluation: EvaluationConfig) -> Evaluation:
        if evaluation.protocol == "q3":
            self._check_predicts()
        config = self.config.model_copy(update={"evaluation": evaluation})
        parts = split_events(self.events, self.model.reads, config)
        if parts.cut is not None:  # ages count from the day before, as in the jobs
            config = config.model_copy(update={"ds": dt.date(1970, 1, 1) + dt.timedelta(days=parts.cut - 1)})
        part = fit_events(parts.train, self.users, self.items, config, self.threads)
        if evaluation.protocol == "q3":
            figures = part._rating_figures(parts.users, parts.items, parts.values, evaluation)
        else:
            figures = part._ranking_figures(parts, evaluation)
        return Evaluation(evaluation.protocol, parts.note, figures)

    def _ranking_figures(self, parts: LocalSplit, evaluation: EvaluationConfig) -> list[Any]:
        tested = np.unique(parts.users).astype(np.int64)
        n = (len(self.users), len(self.items))
        rows = pairs_of(parts.rows, self.model.reads, self.config, *n).rows()
        block = self.fitted.users.take(tested)
        if evaluation.protocol == "q1":
            block = self._folded(known_entries(taken(rows, tested), self.scorer.known_items))
            block = replace(block, known=np.ones(len(block), bool))
        elif self.model.scores_rows:
            block = replace(block, rows=taken(rows, tested))
        whole_seen = compressed(parts.rows.users, parts.rows.items, *n)
        indptr, entries = take_rows(whole_seen[0], tested)
        held = compressed(parts.users, parts.items, *n)
        of_tested, places = take_rows(held[0], tested)
        n_trained = len(np.unique(self.data.users))
        seen, heldout = (indptr, whole_seen[1][entries]), (of_tested, held[1][places])
        return ranking_figures(self.ranker, block, tested, seen, heldout, n_trained, evaluation, self.config.seed)

    def _rating_figures(self, users: NDArray[Any], items: I32, values: Any, evaluation: EvaluationConfig) -> list[Any]:
        predicted = self._predicted(users, items)[0]
        average = float(self.data.values.mean(dtype=np.float64))
        ids = np.where(users < 0, len(self.users), users).astype(np.int64)
        return rating_figures(predicted, values, average, ids, self.config.seed, evaluation.bootstrap)

    def _check_predicts(self) -> None:
        if not self.model.reads.predicts:
            raise ConfigError(f"model={self.model.name} predicts no values: fit als with mode='explicit', or mpma")

    def _asked(self, users: Any, history: Data | None) -> NDArray[Any]:
        if users is not None:
            return Ids.in_order(_several(users)).values
        if history is not None:
            return Ids.of(checked_frame(history, None, "history")["user_id"]).values
        return self.users.values

    def _known_items(self, items: Sequence[Any]) -> I64:
        idx = self.items.index(items)
        known = (idx >= 0) & self.scorer.known_items[np.maximum(idx, 0)]
        if not known.all():
            raise NotFoundError(f"item {np.asarray(items)[~known][0]!s} is not known to the model")
        return idx


def load(folder: str | os.PathLike[str]) -> Recommender:
    """Read a model that `Recommender.save` wrote. Raises LakeError if it is missing, damaged or of another format."""
    from sparkcf.local.storage import load as read

    return Recommender(*read(os.fspath(folder)))


def _check_length(k: Any) -> None:
    if not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"k={k!r}: a whole number from 1 is needed")


def _no_lists() -> tuple[I32, NDArray[np.float32]]:
    return np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)


def _several(ids: Any) -> list[Any]:
    return [ids] if isinstance(ids, str) or not hasattr(ids, "__iter__") else list(ids)


def _listed(own: str, ids: NDArray[Any], other: str, others: NDArray[Any], ranked: I32, scores: Any) -> pd.DataFrame:
    full = ranked >= 0
    position = np.broadcast_to(np.arange(1, ranked.shape[1] + 1), ranked.shape)
    columns = {own: np.repeat(ids, full.sum(axis=1)), "position": position[full], other: others[ranked[full]]}
    return pd.DataFrame(columns | {"score": scores[full]})
