"""The interface between jobs and models; jobs use a model only through it.

    TrainingData, FitRun ──Model.fit──▶ Fitted ──stored, read back──▶ Saved ──Model.open──▶ Scorer
    LocalData, LocalRun ──Model.fit_local──▶ LocalFit, with its Saved ────────┘

`Fitted` is the result of a fit, fresh or read back from the lake: frames and arrays. A `Scorer` is opened from its
arrays in any process, without Spark. There are two kinds: an `InnerProduct` of user and item vectors, which the fused
top-K kernel ranks, and any other scorer, which scores blocks of users against all items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.section import ModelSection
from sparkcf.errors import ConfigError
from sparkcf.kernels.mixture import Mixture
from sparkcf.kernels.vectors import unit_rows
from sparkcf.lake.arrays import Shapes
from sparkcf.models.contract_data import (
    F32,
    F64,
    I32,
    Described,
    Features,
    FitFigure,
    FitRun,
    Fitted,
    LocalData,
    LocalFit,
    LocalRun,
    Rows,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.explanation import Explanation, nearest, nearest_had

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from sparkcf.data.packing import Snapshot
    from sparkcf.data.pairs import Reads

Params = TypeVar("Params", bound=ModelSection)


class Scorer(ABC):
    """A fitted model in one process: numpy in, numpy out.

    known_items : bool (m,), the items that it can score.
    item_fold_users : `fold_in_items` reads the entries of users below it; None: it folds no items in.
    """

    known_items: NDArray[np.bool_]
    item_fold_users: int | None = None

    @property
    def fold_items(self) -> NDArray[np.bool_]:
        """The items whose entries `fold_in` reads, bool (m,); default: the known ones."""
        return self.known_items

    @abstractmethod
    def score_block(self, users: UserBlock) -> F32:
        """Scores (n, m) of every item, comparable within a row, in memory that the caller may write to."""

    @abstractmethod
    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        """Vectors (n, width) and biases (n,) of users not in training, with everything else fixed.

        Parameters
        ----------
        rows : over `fold_items`.
        """

    def fold_in_items(self, rows: Rows) -> F32:
        """Vectors (n, item_width) of items not in training, from their rows over users below `item_fold_users`."""
        raise NotImplementedError

    def similar_block(self, items: I32) -> F32:
        """Similarity (n, m) of items to all items; default: the cosine of `likeness`."""
        return self._unit_items[items] @ self._unit_items.T

    def concepts(self, users: UserBlock, items: I32) -> I32 | None:
        """The concept that contributes most to each score (n, k); None for a model without concepts.

        Parameters
        ----------
        items : (n, k), -1 for none.
        """
        return None

    @property
    def has_concepts(self) -> bool:
        """Whether it names concepts as reasons."""
        return type(self).concepts is not Scorer.concepts

    @property
    def has_likeness(self) -> bool:
        """Whether items have vectors to compare."""
        return type(self).likeness is not Scorer.likeness

    def likeness(self) -> F32:
        """Vectors (m, any) whose cosine is the similarity of items. A model without them overrides `similar_block`."""
        raise NotImplementedError

    def predict(self, users: UserBlock, items: I32) -> tuple[F64, F64 | None]:
        """Values or probabilities (n,) of pairs, and their spread if the model has one.

        Parameters
        ----------
        users : a row per pair.
        items : (n,); -1 is not in the catalogue.
        """
        raise NotImplementedError

    def mixture(self, users: UserBlock, items: I32) -> Mixture | None:
        """The distribution of each pair's value, as a mixture of Gaussians; None for a model without one.

        Parameters
        ----------
        users, items : see `predict`.
        """
        return None

    def component_names(self) -> tuple[str, ...]:
        """Names of the components of `mixture`."""
        return ()

    def explain(self, user: UserBlock, item: int) -> Explanation:
        """What the score of one user and an item is made of; default: the user's items nearest to the item.

        Parameters
        ----------
        user : a block of one known user, with its rows.
        """
        assert user.rows is not None
        had = user.rows[1]
        cosines = self.similar_block(np.array([item], np.int32))[0][had]
        return nearest(float(self.score_block(user)[0, item]), had, cosines)

    def explain_described(self, user: UserBlock, item: int, described: Described) -> Explanation:
        """`explain`, for a model that can say more where it knows the attributes of the user and the item."""
        return self.explain(user, item)

    def because(self, users: UserBlock, items: I32) -> I32 | None:
        """The item of each user's rows that is the strongest reason for each listed item, (n, k).

        -1 where there is none; None for a model that cannot name any.

        Parameters
        ----------
        users : with their rows.
        items : (n, k), -1 for none.
        """
        if not self.has_likeness:
            return None
        assert users.rows is not None
        return nearest_had(*users.rows[:2], items, self._unit_items)

    @cached_property
    def _unit_items(self) -> F32:
        return unit_rows(self.likeness())


def check_unweighted(pairs: DataFrame, model: str) -> None:
    """Raise ConfigError if the ratings have weights, for a model that weighs all of them alike."""
    if "weight" in pairs.columns:
        raise ConfigError(
            f"preference.weight=event or preference.half_life_days: {model} weighs every rating 1; set "
            "preference.weight=one and leave half_life_days out"
        )


class InnerProduct(Scorer):
    """score = user vector · item vector + item bias; a predicted value adds the user's bias and the mean.

    cold_value : prediction if the user or the item is unknown; None: an unknown one contributes 0.
    """

    def __init__(self, saved: Saved, cold_value: float | None = None) -> None:
        self.item_vectors, self.item_bias = saved.item_vectors, saved.item_bias
        self.known_items, self.mean, self.cold_value = saved.item_known, saved.mean, cold_value

    @cached_property
    def n_known_items(self) -> int:
        return int(self.known_items.sum())

    def score_block(self, users: UserBlock) -> F32:
        scores: F32 = users.vectors @ self.item_vectors.T
        if self.item_bias.any():
            scores += self.item_bias
        return scores

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        raise NotImplementedError

    def likeness(self) -> F32:
        return self.item_vectors

    def predict(self, users: UserBlock, items: I32) -> tuple[F64, F64 | None]:
        known = self.knows(items)
        at = np.where(known, items, 0)
        products = np.einsum("nk,nk->n", users.vectors, self.item_vectors[at], dtype=np.float64)
        value = np.where(known, products + self.item_bias[at], 0.0) + users.bias + self.mean
        if self.cold_value is not None:
            value = np.where(known & users.known, value, self.cold_value)
        return value, None

    def knows(self, items: I32) -> NDArray[np.bool_]:
        """Whether the model knows each item, bool (n,); -1 is unknown."""
        inside = (items >= 0) & (items < len(self.known_items))
        known: NDArray[np.bool_] = inside & self.known_items[np.where(inside, items, 0)]
        return known


class Model(ABC, Generic[Params]):
    """A model with its parameters: everything that differs between models.

    section : class of its parameters.
    packs_rows : its fit reads the rows that `pack` writes.
    scores_rows : its scorer needs the users' pairs.
    fits_locally : it has `fit_local`.
    fits_in_parts : `fit_local` can run some of its `rounds`, and go on from an earlier fit; a model of one round may
        ignore both.
    tables : tables that it stores besides the factors.
    item_tables : those of `tables` without users; folding in users leaves them unchanged.
    validation_share : share of user rows kept from training, for early stopping.
    """

    section: ClassVar[type[ModelSection]]
    packs_rows: ClassVar[bool] = False
    scores_rows: ClassVar[bool] = False
    fits_locally: ClassVar[bool] = False
    fits_in_parts: ClassVar[bool] = False
    tables: ClassVar[tuple[str, ...]] = ()
    item_tables: ClassVar[tuple[str, ...]] = ()
    validation_share: float = 0.0

    def __init__(self, params: Params, seed: int) -> None:
        self.params, self.seed = params, seed

    @property
    def name(self) -> str:
        return self.section.section

    @property
    @abstractmethod
    def reads(self) -> Reads:
        """The interactions and other tables that it reads."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of a user's vector; 0 where scores do not come from vectors."""

    @property
    def item_width(self) -> int:
        """Length of an item's vector."""
        return self.width

    @property
    def rounds(self) -> int:
        """Most sweeps or epochs of a fit."""
        return 1

    def check_settings(self, pairs: DataFrame) -> None:
        """Raise ConfigError for settings, also of Spark, with which `fit` would fail for any data.

        A night calls it before its first step.

        Parameters
        ----------
        pairs : a frame with the columns of `TrainingData.pairs`; its rows are not read.
        """

    @abstractmethod
    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """Train on Spark.

        Raises
        ------
        ConfigError
            Settings that do not fit the data or each other.
        TrainingError
            The numbers are not finite, or the data do not suit the model.
        """

    def fit_local(self, data: LocalData, run: LocalRun) -> LocalFit:
        """Train in this process, without Spark, on the same objective as `fit`; only with `fits_locally`.

        Raises
        ------
        ConfigError
            Settings that do not fit the data or each other, or that need tables which only Spark reads.
        TrainingError
            The numbers are not finite, or the data do not suit the model.
        """
        raise NotImplementedError

    @abstractmethod
    def open(self, saved: Saved) -> Scorer:
        """The scorer of a fit, in this process."""

    def shapes(self, data: TrainingData) -> Shapes:
        """Names and shapes of `Fitted.arrays` for such data; only these are read back."""
        return {}

    def readable(self, fitted: Fitted) -> Mapping[str, DataFrame]:
        """Tables that show in named columns what users' and items' vectors hold, by table name; default: none."""
        return {}

    def user_figures(self, pairs: DataFrame, fitted: Fitted) -> list[FitFigure]:
        """Figures of a fit that depend on its users, for a run whose users were folded in; default: none.

        Parameters
        ----------
        pairs : the users' pairs now.
        """
        return []

    def packed_by(self) -> dict[str, Any]:
        """Parameters that shape packed rows."""
        return {}

    def pack(self, data: TrainingData) -> dict[str, Snapshot]:
        """Pack the rows that a fit reads, unless they are packed, and return their snapshots by side."""
        return {}

    def user_features(self, data: TrainingData, fitted: Fitted) -> DataFrame | None:
        """user_idx, features: current side features of users, for fold-in; None: the model uses none."""
        return None

    def in_context(self, pairs: DataFrame, data: TrainingData, fitted: Fitted) -> DataFrame | None:
        """Pairs with the vector of their user in the context of the pair; None: context changes no vector.

        Adds factor, bias, known_user, and unknown: the number of context values that were not in training.

        Parameters
        ----------
        pairs : user_idx, ts, context, and columns that are passed on.
        data : the training data of the fit.
        """
        return None
