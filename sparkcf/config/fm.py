"""Parameters of factorization machines."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sparkcf.config.nets import GradientConfig
from sparkcf.config.section import ModelSection, NonNegative, Positive, Section


class FMField(Section):
    """A group of features of a factorization machine; see `sparkcf/models/fm/features.py`."""

    name: str = Field(..., pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$")
    # user, item: the id; categories: of the item; attribute: a text, number: a number, of `table`; history: the user's
    # items; hour, weekday: of the timestamp, UTC; previous: the user's previous item
    of: Literal["user", "item", "categories", "attribute", "number", "history", "hour", "weekday", "previous"]
    column: str | None = None  # attribute, number: name of the column
    table: Literal["users", "items", "interactions"] = "items"  # attribute, number: table of the column
    # categories, history: value of each of a row's m features. one: 1; sqrt: 1 / sqrt(m) (Koren 2008, SVD++); mean:
    # 1 / m (Rendle 2010, fig. 1); None: one for categories, sqrt for history
    weight: Literal["one", "sqrt", "mean"] | None = None
    regularization: NonNegative | None = None  # of this field's vectors; None: fm.regularization
    linear_regularization: NonNegative | None = None  # of this field's weights; None: fm.linear_regularization

    @model_validator(mode="after")
    def _complete(self) -> FMField:
        if (self.of in ("attribute", "number")) != (self.column is not None):
            raise ValueError("column goes with of: attribute or number, and these with it")
        if self.weight is not None and not self.several:
            raise ValueError(f"weight={self.weight} goes with of: categories or history, not {self.of}: leave it out")
        return self

    @property
    def several(self) -> bool:
        """Whether a row may have several of the field's features."""
        return self.of in ("categories", "history")

    @property
    def own_weight(self) -> Literal["one", "sqrt", "mean"]:
        """The setting `weight`, or its default."""
        return self.weight or ("sqrt" if self.of == "history" else "one")

    @property
    def side(self) -> Literal["user", "item", "context"]:
        """What the features describe: the user, the item, or the context of the interaction."""
        if self.of in ("attribute", "number"):
            sides: dict[str, Literal["user", "item", "context"]]
            sides = {"users": "user", "items": "item", "interactions": "context"}
            return sides[self.table]
        if self.of in ("user", "history"):
            return "user"
        return "item" if self.of in ("item", "categories") else "context"

    @property
    def dictionary(self) -> str | None:
        """Name of the field's texts in the dictionary; None: it has no texts."""
        if self.of == "categories":
            return "categories"
        return f"{self.table}.{self.column}" if self.of == "attribute" else None

    @property
    def whose(self) -> str:
        """The entity that a row of `table` describes."""
        return {"users": "user", "items": "item", "interactions": "event"}[self.table]

    @property
    def source_key(self) -> str:
        """The configuration key that reads the field into the lake."""
        if self.of == "categories":
            return "input.items.columns.categories"
        if self.table == "interactions":
            return "input.columns.context"
        return f"input.{self.table}.columns.{'numbers' if self.of == 'number' else 'attributes'}"


class SGDConfig(GradientConfig):
    """A factorization machine trained by gradient; the penalties are those of `fm`."""

    section: ClassVar[str] = "fm.sgd"

    epochs: Positive = 20
    batch_size: Positive = 1000
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.003


class FMConfig(ModelSection):
    """Factorization machine: ALS solves each feature's (v, w), MCMC samples it, SGD follows the gradient.

    ALS and SGD minimise, over all rows and features,

        regression:      sum (y - a(x))^2      + sum_j (regularization |v_j|^2 + linear_regularization w_j^2)
        classification:  2 sum -log P(y | x)   + the same, P by probit (als) or the logistic function (sgd)

    A penalty of log-loss + lambda' |theta|^2 is therefore the setting 2 lambda'. w_0 has no penalty; for MCMC its prior
    is flat.
    """

    section: ClassVar[str] = "fm"
    implementation: ClassVar[str] = "sparkcf.models.fm.fit:FM"

    fields: Annotated[tuple[FMField, ...], Field(min_length=1)] = (
        FMField(name="user", of="user"),
        FMField(name="item", of="item"),
    )
    pairs: tuple[tuple[str, str], ...] | None = None  # names of fields that interact; None: all, also with themselves
    task: Literal["regression", "classification"] = "regression"  # classification: yes or no; probit, sgd: logistic
    learner: Literal["mcmc", "als", "sgd"] = "mcmc"
    rank: Annotated[int, Field(ge=1, le=1024)] = 32
    iterations: Positive = 120
    burn_in: Annotated[int, Field(ge=0)] = 20  # mcmc: sweeps before the first sample
    # mcmc: samples that are kept, evenly thinned; predictions are their mean. A user's and an item's vector hold them
    # side by side, so the size of the factors and the time of top-K grow with samples x rank.
    samples: Positive = 40
    regularization: NonNegative = 1.0  # als, sgd: of vectors
    linear_regularization: NonNegative = 1.0  # als, sgd: of weights
    # Fit w_0, without a penalty. false: it keeps its initial value, the mean value; for classification the link of the
    # share of yes.
    intercept: bool = True
    # Context that vectors, and so lists, are made for: by field, a text, a number or an hour; previous is every user's
    # last item. A context field that is not named contributes 0.
    context: dict[str, str | float] = Field(default_factory=dict)
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    tolerance: NonNegative = 0.0  # als: stop when the objective falls by a smaller share in a sweep; 0: never
    # als, mcmc: sweeps between checkpoints, which also hold the samples kept so far; 0: none
    save_every: Annotated[int, Field(ge=0)] = 20
    workers: Positive | None = None  # size of the gang; None: all task slots
    timeout_s: Positive = 60  # seconds; a peer silent for longer counts as dead
    sgd: SGDConfig = SGDConfig()

    @property
    def gradient(self) -> GradientConfig:
        return self.sgd

    @model_validator(mode="after")
    def _consistent(self) -> FMConfig:
        names = [f.name for f in self.fields]
        if len(set(names)) < len(names):
            raise ValueError(f"fields {names} repeat a name: name each once")
        for name in (name for pair in self.pairs or () for name in pair):
            if name not in names:
                raise ValueError(f"pairs name {name!r}, which is none of the fields {names}")
        for name, value in self.context.items():
            field = next((f for f in self.fields if f.name == name), None)
            if field is None or field.side != "context" or field.of == "previous":
                raise ValueError(f"context names {name!r}, which is no context field: leave it out")
            least, size = {"number": (-math.inf, math.inf), "hour": (0, 24), "weekday": (0, 7)}.get(field.of, (0, 0))
            if size and not (isinstance(value, float) and least <= value < size):
                raise ValueError(
                    f"context gives {value!r} for {name}, a field of {field.of}: give a number in its range"
                )
        if self.learner == "mcmc" and self.burn_in >= self.iterations:
            raise ValueError(f"burn_in={self.burn_in} leaves no sample of {self.iterations} iterations: lower it")
        return self

    def interacting(self, one: str, other: str) -> bool:
        """Whether two fields interact, by their names."""
        return self.pairs is None or (one, other) in self.pairs or (other, one) in self.pairs

    @property
    def contextual(self) -> bool:
        """Whether any field is of the context."""
        return any(f.side == "context" for f in self.fields)

    def kept_sweeps(self) -> list[int]:
        """Numbers of the sweeps, from 1, whose samples are kept: evenly spaced to the last one."""
        if self.learner != "mcmc":
            return []
        n = self.iterations - self.burn_in
        count = min(self.samples, n)
        return [self.burn_in + (place + 1) * n // count for place in range(count)]

    def regularization_of(self, name: str) -> float:
        own = next((f.regularization for f in self.fields if f.name == name), None)
        return self.regularization if own is None else own

    def linear_regularization_of(self, name: str) -> float:
        own = next((f.linear_regularization for f in self.fields if f.name == name), None)
        return self.linear_regularization if own is None else own
