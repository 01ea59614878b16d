"""Parameters of the models, a section for each; `SECTIONS` lists them."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from sparkcf.config.section import ModelSection, NonNegative, Positive, Section


class FactorizationConfig(ModelSection):
    """Parameters of ALS and HALS."""

    mode: Literal["implicit", "explicit"] = "implicit"
    form: Literal["ials", "hu_koren", "implicit", "frobenius"] = "ials"  # implicit: models/als/objective.py
    rank: Annotated[int, Field(ge=1, le=4096)] = 64
    iterations: Positive = 16
    regularization: NonNegative = 0.003
    regularization_exponent: NonNegative = 1.0
    unobserved_weight: NonNegative = 0.1  # alpha0, form ials
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # forms hu_koren and implicit
    biases: bool = False  # explicit only
    nonnegative: bool = False  # factors >= 0: als with solver=cholesky (each row exactly) or hals
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # entries ~ N(0, init_sd / sqrt(rank))
    tolerance: NonNegative = 0.0  # stop when the objective falls by a smaller share in a sweep; 0: never
    save_every: Annotated[int, Field(ge=0)] = 5  # sweeps between checkpoints; 0: none
    workers: Positive | None = None  # size of the gang; None: all task slots
    timeout_s: Positive = 60  # seconds; a peer silent for longer counts as dead

    @model_validator(mode="after")
    def _consistent(self) -> FactorizationConfig:
        if self.biases and self.mode == "implicit":
            raise ValueError("biases go with mode explicit: set biases to false or mode to explicit")
        if self.biases and self.nonnegative:
            raise ValueError("biases may be negative: set biases or nonnegative to false")
        return self

    @property
    def width(self) -> int:
        """Columns of a stored row: the vector and, if there is one, the bias."""
        return self.rank + self.biases


class ALSConfig(FactorizationConfig):
    """Alternating least squares, implicit or explicit."""

    section: ClassVar[str] = "als"
    implementation: ClassVar[str] = "sparkcf.models.als.fit:ALS"

    solver: Literal["cg", "cholesky", "subspace"] = "cg"  # cg: fastest to a given objective: tests/bench/als.py
    cg_steps: Positive = 3
    subspace_size: Positive = 64  # subspace: dimensions solved at a time

    @model_validator(mode="after")
    def _solvable(self) -> ALSConfig:
        if self.nonnegative and self.solver != "cholesky":
            raise ValueError(f"nonnegative goes with solver=cholesky, not {self.solver}, or with model=hals")
        return self

    @property
    def steps(self) -> int:
        """Steps of conjugate gradient, or dimensions in a block of the subspace solver."""
        return self.cg_steps if self.solver == "cg" else min(self.subspace_size, self.width)


class HALSConfig(FactorizationConfig):
    """The objectives of ALS, solved one dimension at a time."""

    section: ClassVar[str] = "hals"
    implementation: ClassVar[str] = "sparkcf.models.als.fit:HALS"

    passes: Positive = 1  # over all dimensions of a row in a half-sweep

    @property
    def solver(self) -> str:
        return "hals"

    @property
    def steps(self) -> int:
        return self.passes


class GradientConfig(ModelSection):
    """Training by gradient: Adam over mini-batches."""

    epochs: Positive = 100
    batch_size: Positive = 500  # rows in a step of all workers together
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    weight_decay: NonNegative = 0.0  # Adam's: adds weight_decay x parameter to its gradient, biases included
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # of a gradient; None: no clipping
    # Training ends after this many epochs without a better validation; 0: never.
    patience: Annotated[int, Field(ge=0)] = 10
    mixed_precision: bool = True  # on CUDA: bfloat16 where it is safe
    workers: Positive | None = None  # processes; None: all task slots
    timeout_s: Positive = 50  # seconds; a peer silent for longer counts as dead

    @property
    def annealing(self) -> tuple[float, int]:
        """Final weight of the KL divergence, and the number of updates in which it rises to that from 0."""
        return 0.0, 0


class NetConfig(GradientConfig):
    """Parameters of the nets over users' rows."""

    hidden: tuple[Positive, ...] = (600,)  # widths between a row and the latent vector; the decoder has them reversed
    latent_dim: Positive = 200
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # share of a row's entries dropped while training
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of users, kept from training; 0: last epoch is kept

    @property
    def gradient(self) -> GradientConfig:
        return self

    @property
    def decoder(self) -> tuple[int, ...]:
        """Widths between the latent vector and the items."""
        return tuple(reversed(self.hidden))


class MultVAEConfig(NetConfig):
    """Mult-VAE (Liang et al. 2018): a variational autoencoder of users' rows."""

    section: ClassVar[str] = "multvae"
    implementation: ClassVar[str] = "sparkcf.models.nets.fit:MultVAEModel"

    likelihood: Literal["multinomial", "gaussian", "logistic"] = "multinomial"
    anneal_cap: NonNegative = 0.2  # the largest beta, the weight of the divergence
    # Updates in which beta rises from 0 to anneal_cap; 0: it is the cap from the start. Liang et al. give the updates
    # in which it would rise to 1: their total_anneal_steps is anneal_steps / anneal_cap.
    anneal_steps: Annotated[int, Field(ge=0)] = 20_000
    # RecVAE (Shenbin et al. 2020): each of these may be set alone; conf/models/multvae-recvae.yaml sets them all.
    encoder: Literal["mlp", "dense"] = "mlp"  # dense: layers of width hidden[0] with skips; the decoder is linear then
    dense_layers: Positive = 5
    prior: Literal["normal", "composite"] = "normal"  # composite: a mixture with the encoder's output an epoch before
    kl_per_item: NonNegative | None = None  # beta of a row: this times the sum of its values; None: anneal_cap
    encoder_epochs: Annotated[int, Field(ge=0)] = 0  # epochs of the encoder alone before one of the decoder; 0: both

    @model_validator(mode="after")
    def _dense_has_a_width(self) -> MultVAEConfig:
        if self.encoder == "dense" and not self.hidden:
            raise ValueError("encoder=dense needs hidden: its first number is the width of the layers")
        return self

    @property
    def decoder(self) -> tuple[int, ...]:
        return () if self.encoder == "dense" else super().decoder

    @property
    def annealing(self) -> tuple[float, int]:
        return self.anneal_cap, self.anneal_steps


class MultDAEConfig(NetConfig):
    """Mult-DAE (Liang et al. 2018): a denoising autoencoder of users' rows."""

    section: ClassVar[str] = "multdae"
    implementation: ClassVar[str] = "sparkcf.models.nets.fit:MultDAEModel"

    likelihood: Literal["multinomial", "gaussian", "logistic"] = "multinomial"
    hidden: tuple[Positive, ...] = ()
    # The penalty is weight_decay / 2 times the squares of all parameters. In Liang et al. (2018) it is lambda times the
    # squares of the weights alone, not of the biases: lambda = weight_decay / 2.
    weight_decay: NonNegative = 0.00002


class MacridVAEConfig(NetConfig):
    """MacridVAE (Ma et al. 2019): a latent vector for each of several concepts of items."""

    section: ClassVar[str] = "macridvae"
    implementation: ClassVar[str] = "sparkcf.models.nets.concepts:MacridVAEModel"

    concepts: Annotated[int, Field(ge=1, le=100)] = 7  # K, number of concepts
    hidden: tuple[Positive, ...] = (100,)  # widths between a row and the latent vectors; all concepts share them
    latent_dim: Positive = 100  # length of a concept's vector
    temperature: Annotated[float, Field(ge=0.02, le=10)] = 0.1  # tau: cosines are divided by it
    deviation: Annotated[float, Field(gt=0, le=10)] = 0.075  # sigma_0, standard deviation of the prior
    assignment: Literal["gumbel", "softmax"] = "gumbel"  # of items to concepts while training; serving uses the softmax
    anneal_cap: NonNegative = 0.2  # the largest beta, the weight of the divergence
    anneal_steps: Annotated[int, Field(ge=0)] = 100  # updates in which beta rises from 0 to anneal_cap; 0: at once
    # Further trainings with other seeds, to compare their concepts with this one's: the figure concept_stability is the
    # mean normalised mutual information. 0: not measured.
    stability_seeds: Annotated[int, Field(ge=0, le=20)] = 0

    @property
    def annealing(self) -> tuple[float, int]:
        return self.anneal_cap, self.anneal_steps


class SideField(Section):
    """A group of side features of users or items; see `sparkcf/data/features.py`."""

    # categories: of the item; attribute: a text, number: a number, of the side's own table
    of: Literal["categories", "attribute", "number"]
    column: str | None = None  # attribute, number: name of the column

    @model_validator(mode="after")
    def _complete(self) -> SideField:
        if (self.of == "categories") != (self.column is None):
            raise ValueError("column goes with of: attribute or number, and these with it")
        return self


class BiVAEConfig(NetConfig):
    """BiVAE (Truong et al. 2021): an autoencoder of users' rows and one of items' rows, trained in turns."""

    section: ClassVar[str] = "bivae"
    implementation: ClassVar[str] = "sparkcf.models.nets.two_sided:BiVAEModel"

    likelihood: Literal["poisson", "bernoulli", "gaussian"] = "poisson"
    link: Literal["sigmoid", "exp", "softplus", "identity"] = "sigmoid"  # the likelihood's parameter from theta · beta
    binary: bool = True  # an interaction counts as 1; false: as its value, which the likelihood must allow
    hidden: tuple[Positive, ...] = (40,)  # widths between a row and the latent vector, of both sides
    latent_dim: Positive = 20
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of a row's entries dropped while training
    batch_size: Positive = 128
    anneal_cap: NonNegative = 1.0  # the largest weight of the divergence
    anneal_steps: Annotated[int, Field(ge=0)] = 0  # updates of a side in which it rises from 0; 0: at once
    other_side: Literal["samples", "means"] = "samples"  # vectors of the other side that a side trains against
    sampled_rows: Positive | None = None  # random rows that estimate a step's sum over the other side; None: all
    user_prior: tuple[SideField, ...] = ()  # side features that give a user's prior mean (CAP); empty: mean 0
    item_prior: tuple[SideField, ...] = ()  # side features that give an item's prior mean; empty: mean 0

    @property
    def annealing(self) -> tuple[float, int]:
        return self.anneal_cap, self.anneal_steps

    @model_validator(mode="after")
    def _has_a_link(self) -> BiVAEConfig:
        links = {
            "poisson": ("sigmoid", "exp", "softplus"),
            "bernoulli": ("sigmoid",),
            "gaussian": ("identity", "sigmoid"),
        }
        if self.link not in links[self.likelihood]:
            known = " or ".join(links[self.likelihood])
            raise ValueError(f"link={self.link} does not go with likelihood={self.likelihood}: set link={known}")
        if any(f.of == "categories" for f in self.user_prior):
            raise ValueError("user_prior names categories, which only items have: use of: attribute")
        return self


class NCFConfig(NetConfig):
    """Neural collaborative filtering (He et al. 2017): embeddings of users and items, scored by a net."""

    section: ClassVar[str] = "ncf"
    implementation: ClassVar[str] = "sparkcf.models.nets.collaborative:NCFModel"

    # gmf: weighted inner product; mlp: layers over both embeddings; neumf: the sum of both, each with own embeddings
    kind: Literal["gmf", "mlp", "neumf"] = "neumf"
    # cross_entropy: against sampled negatives; softmax: over the items of the batch; rating: squared error of values
    objective: Literal["cross_entropy", "softmax", "rating"] = "cross_entropy"
    latent_dim: Annotated[int, Field(ge=1, le=4096)] = 8  # gmf, neumf: length of the embeddings of GMF
    # mlp, neumf: widths from the user's and the item's embedding side by side to the last layer
    hidden: tuple[Positive, ...] = (64, 32, 16, 8)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # mlp, neumf: share of a layer's units dropped while training
    batch_size: Positive = 20  # users in a step of all workers together, each with all items
    epochs: Positive = 50  # passes over the training rows, at most
    negatives: Annotated[int, Field(ge=1, le=1000)] = 4  # cross_entropy: drawn for each positive, anew every epoch
    negative_distribution: Literal["uniform", "popularity"] = "uniform"  # popularity: by the number of an item's users
    negatives_seen: bool = False  # a negative may be an item that the user has
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01  # of the initial embeddings
    pretrain_epochs: Annotated[int, Field(ge=0)] = 0  # neumf: first epochs, which train GMF and MLP apart; 0: none
    user_features: tuple[SideField, ...] = ()  # side features of users, each with an embedding
    item_features: tuple[SideField, ...] = ()  # side features of items, each with an embedding
    item_content: str | None = None  # name of a precomputed vector of items, an input of dense layers; null: none
    content_layers: tuple[Positive, ...] = (64,)  # item_content: widths of these layers before the item's vector
    fold_in_steps: Positive = 20  # gradient steps that fit the embedding of a user not in training
    fold_in_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # of these steps
    fold_in_items: Positive = 500  # items that stand for all negatives in these steps

    @model_validator(mode="after")
    def _consistent(self) -> NCFConfig:
        if self.kind != "gmf" and (len(self.hidden) < 2 or self.hidden[0] % 2):
            raise ValueError(
                f"hidden={list(self.hidden)} begins with both embeddings side by side: give an even number and the "
                "width of at least one layer, such as [64, 32]"
            )
        if self.pretrain_epochs and self.kind != "neumf":
            raise ValueError(f"pretrain_epochs goes with kind=neumf, not {self.kind}: set it to 0")
        if self.pretrain_epochs >= self.epochs:
            raise ValueError(
                f"pretrain_epochs={self.pretrain_epochs} leaves none of {self.epochs} epochs for NeuMF: raise epochs"
            )
        if any(f.of == "categories" for f in self.user_features):
            raise ValueError("user_features names categories, which only items have: use of: attribute")
        return self

    @property
    def gmf_width(self) -> int:
        """Length of an embedding of GMF; 0 without GMF."""
        return 0 if self.kind == "mlp" else self.latent_dim

    @property
    def tower(self) -> tuple[int, ...]:
        """Widths of the MLP, the first of both embeddings side by side; empty without MLP."""
        return () if self.kind == "gmf" else self.hidden

    @property
    def width(self) -> int:
        """Length of a user's and of an item's vector: the embeddings of GMF and MLP side by side."""
        return self.gmf_width + (self.tower[0] // 2 if self.tower else 0)


class DisenGCNConfig(NetConfig):
    """DisenGCN (Ma et al. 2019) on the user–item graph: vectors in channels, routed from sampled neighbours."""

    section: ClassVar[str] = "disengcn"
    implementation: ClassVar[str] = "sparkcf.models.nets.disentangled:DisenGCNModel"

    channels: Annotated[int, Field(ge=1, le=100)] = 4  # K, parts of a vector; 1: a plain graph convolution
    rounds: Annotated[int, Field(ge=1, le=20)] = 3  # T, of the routing in a layer; 1: equal shares of all channels
    layers: Annotated[int, Field(ge=1, le=4)] = 1  # L, distance from which a vector takes in others
    neighbours: Positive = 30  # most neighbours of a node in a step of the training, drawn anew; serving takes all
    neighbour_weight: NonNegative = 1.0  # of the neighbours' mean beside a node's own vector
    unit_vectors: bool = False  # a node's channels enter a layer with unit length, as in the paper
    loss: Literal["softmax", "bpr"] = "softmax"  # softmax: over the candidates; bpr: against one of them for each pair
    candidates: Positive = 4096  # most items that are scored in a step, those of the batch first
    scale: Annotated[float, Field(gt=0, le=1000)] = 5.0  # of the scores, before training; it is learned
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01  # of the initial embeddings
    hidden: Annotated[tuple[Positive, ...], Field(max_length=0)] = ()  # empty: the layers have no weights
    latent_dim: Annotated[int, Field(ge=1, le=4096)] = 64  # length of a vector, of all channels together
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # share of the numbers of a layer's vectors, while training
    own_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # share of nodes that take in neighbours alone in a step
    batch_size: Positive = 200  # users in a step of all workers together
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01

    @model_validator(mode="after")
    def _divides(self) -> DisenGCNConfig:
        if self.latent_dim % self.channels:
            raise ValueError(
                f"channels={self.channels} does not divide latent_dim={self.latent_dim}: set latent_dim to a multiple"
            )
        if self.unit_vectors and self.channels == self.latent_dim:
            raise ValueError("unit_vectors with channels=latent_dim leaves signs of numbers: lower channels")
        return self

    @property
    def channel_dim(self) -> int:
        """Length of a channel of a vector."""
        return self.latent_dim // self.channels


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


class PopularityConfig(ModelSection):
    """The items with the most users, the same list for all."""

    section: ClassVar[str] = "popularity"
    implementation: ClassVar[str] = "sparkcf.models.popularity:Popularity"

    by: Literal["users", "weight"] = "users"  # users: distinct users; weight: sum of the pairs' weights


class EASEConfig(ModelSection):
    """Exact linear model of items; see `sparkcf/models/ease.py`."""

    section: ClassVar[str] = "ease"
    implementation: ClassVar[str] = "sparkcf.models.ease:EASE"

    regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 500.0  # lambda
    user_exponent: Annotated[float, Field(ge=0, le=1)] = 0.0  # b: a user's weight is n^-b: heavy users less
    item_exponent: Annotated[float, Field(ge=0, le=1)] = 0.0  # a: scales B_ij by (n_i / n_j)^a: popular items less
    denoising: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of a row that a denoising autoencoder drops
    max_items: Positive = 20_000  # more are an error: the driver holds 12 bytes for every pair of items
    max_history: Positive = 5_000  # most pairs of a user; of more, those with the smallest hash


class MRFConfig(ModelSection):
    """Sparse linear model of items; see `sparkcf/models/mrf/fit.py`."""

    section: ClassVar[str] = "mrf"
    implementation: ClassVar[str] = "sparkcf.models.mrf.fit:MRF"

    regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0  # lambda
    max_neighbours: Annotated[int, Field(ge=1, le=4000)] = 300  # items that an item's scores come from, at most
    # Pairs of items whose correlation is smaller count as 0. It decides what the sparse matrix of pairs holds.
    min_correlation: Annotated[float, Field(ge=0, lt=1)] = 0.02
    centred: bool = False  # correlations around the items' means (Pearson's); false: around 0 (cosines)
    scale_exponent: Annotated[float, Field(ge=0, le=1)] = 0.0  # variances become their power 1 - this
    user_exponent: Annotated[float, Field(ge=0, le=1)] = 0.3  # b: a user's weight is n^-b: heavy users less
    item_exponent: Annotated[float, Field(ge=0, le=1)] = 0.35  # a: scales B_ij by (n_i / n_j)^a: popular items less
    denoising: Annotated[float, Field(ge=0, lt=1)] = 0.3  # share of a row that a denoising autoencoder drops
    max_entries: Positive = 500_000_000  # pairs above min_correlation; more are an error: 8 bytes each on the driver
    max_history: Positive = 5_000  # most pairs of a user; of more, those with the smallest hash


class MPMAConfig(ModelSection):
    """Mixture of a global and two local matrix factorizations; see `sparkcf/models/mpma/train.py`."""

    section: ClassVar[str] = "mpma"
    implementation: ClassVar[str] = "sparkcf.models.mpma.fit:MPMA"

    components: Annotated[tuple[Literal["global", "user_local", "item_local"], ...], Field(min_length=1)] = (
        "global",
        "user_local",
        "item_local",
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = 20
    base_iterations: Positive = 12  # sweeps of each component on the whole matrix, before rows are split by group
    iterations: Positive = 4  # EM iterations
    refit_iterations: Annotated[int, Field(ge=0)] = 3  # last sweeps, with the held-out ratings
    factors: Literal["solve", "sgd"] = "solve"  # solve: each row exactly; sgd: weighted gradient steps
    sgd_steps: Positive = 3  # sgd: passes over the entries of a row in a half-sweep
    sgd_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.005
    regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.1
    regularization_exponent: NonNegative = 0.5  # nu: a row of n ratings has the penalty regularization x n^nu
    bias_share: Annotated[float, Field(gt=0, le=1)] = 0.25  # penalty of a bias, as a share of that of a vector
    local_regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0  # pulls local rows to shared ones
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # entries ~ N(0, init_sd / sqrt(rank))
    user_groups: Positive = 4
    item_groups: Positive = 4
    user_group_column: str | None = None  # attribute of users that gives the groups; None: k-means on factors
    item_group_column: str | None = None  # attribute of items that gives the groups; None: k-means on factors
    min_group: Positive = 20  # rows of a smaller group have no local component
    # What weighs a rating in the factors. plain: responsibilities; tempered: those to the power 1 / temperature;
    # held_out: all alike, and held-out ratings give weights and variances; auto: the best on held-out ratings
    responsibilities: Literal["plain", "tempered", "held_out", "auto"] = "held_out"
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    # equal: no fit; global: one for each component; group: for user group x item group; user_item: user's x item's
    weights: Literal["equal", "global", "group", "user_item", "auto"] = "auto"
    weight_prior: NonNegative = 50.0  # group, user_item: ratings that the global weights count for
    min_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05  # floor of a component's standard deviation
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of ratings, that give weights and standard deviations
    rank_by: Literal["mean", "lower_bound", "chance"] = "mean"  # order of lists; chance: of a rating >= threshold
    lower_bound_sds: NonNegative = 1.0  # lower_bound: standard deviations below the mean
    threshold: Annotated[float, Field(allow_inf_nan=False)] = 4.0  # chance
    save_every: Annotated[int, Field(ge=0)] = 5  # sweeps between checkpoints; 0: none
    workers: Positive | None = None  # size of the gang; None: all task slots
    timeout_s: Positive = 60  # seconds; a peer silent for longer counts as dead

    @model_validator(mode="after")
    def _consistent(self) -> MPMAConfig:
        if len(set(self.components)) < len(self.components):
            raise ValueError(f"components {list(self.components)} repeat a name: name each once")
        if len(self.components) > 1 and "global" not in self.components:
            raise ValueError("components leave out global, which ratings without a group need: add it")
        if not self.heldout_share and (self.responsibilities in ("held_out", "auto") or self.weights == "auto"):
            raise ValueError(
                "heldout_share=0 leaves no ratings for responsibilities=held_out or auto, or weights=auto: raise it, "
                "or set responsibilities to plain or tempered and weights to global, group, user_item or equal"
            )
        return self

    @property
    def bias_constant(self) -> float:
        """What stands in the other side's vectors for the bias: its penalty is divided by the square."""
        return self.bias_share**-0.5

    def blocks(self, side: Literal["user", "item"]) -> list[int]:
        """Vectors of a row in each component: 1, or where the component splits the side, one for each group."""
        counts = {"user_local": ("item", self.user_groups), "item_local": ("user", self.item_groups)}
        splits = (counts.get(name, ("", 1)) for name in self.components)
        return [groups if split == side else 1 for split, groups in splits]

    def split(self, side: Literal["user", "item"]) -> list[bool]:
        """Whether each component splits the rows of a side by the other side's groups."""
        splitting = {"user": "item_local", "item": "user_local"}[side]
        return [name == splitting for name in self.components]

    def width_of(self, side: Literal["user", "item"]) -> int:
        """Length of a stored row: the vectors with their biases, the shared ones, mixture weights, the group."""
        vectors = sum(self.blocks(side)) + sum(self.split(side))
        return vectors * (self.rank + 1) + len(self.components) + 1


class BlendMember(Section):
    """A model whose lists a blend merges."""

    model: str  # a model that reads positives and no attributes
    params: dict[str, Any] = Field(default_factory=dict)  # its parameters, without its name before them

    @property
    def section(self) -> ModelSection:
        """The member's parameters. Raises ValueError for an unknown model, or parameters that it does not take."""
        if self.model not in SECTIONS or self.model == BlendConfig.section:
            known = ", ".join(name for name in SECTIONS if name != BlendConfig.section)
            raise ValueError(f"model={self.model!r}: a blend merges the lists of {known}")
        return SECTIONS[self.model].model_validate(self.params)


class BlendConfig(ModelSection):
    """Reciprocal rank fusion of other models' lists; see `sparkcf/models/blend.py`."""

    section: ClassVar[str] = "blend"
    implementation: ClassVar[str] = "sparkcf.models.blend:Blend"

    members: Annotated[tuple[BlendMember, ...], Field(min_length=2)] = (
        BlendMember(model="als"),
        BlendMember(model="ease"),
    )
    # Of the members, in their order. None: learned on a validation part, for which every member is fitted once more
    weights: tuple[NonNegative, ...] | None = None
    rank_constant: Annotated[float, Field(gt=0, allow_inf_nan=False)] = (
        60.0  # c: the larger, the less the first ranks count
    )
    depth: Positive = 1_000  # best items of each member that count
    validation_users: Positive = 5_000  # most users whose items are held out to learn the weights
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of their items that is held out

    @model_validator(mode="after")
    def _consistent(self) -> BlendConfig:
        for at, member in enumerate(self.members):
            try:
                member.section  # noqa: B018 (checks the parameters)
            except ValueError as error:
                raise ValueError(f"members[{at}]: {' '.join(str(error).split())}") from None
        if self.weights is not None and (len(self.weights) != len(self.members) or not sum(self.weights)):
            raise ValueError(
                f"weights={list(self.weights)} of {len(self.members)} members: give one for each, not all of them 0"
            )
        return self


SECTIONS: dict[str, type[ModelSection]] = {
    params.section: params
    for params in (
        ALSConfig,
        HALSConfig,
        FMConfig,
        MultVAEConfig,
        MultDAEConfig,
        MacridVAEConfig,
        BiVAEConfig,
        NCFConfig,
        DisenGCNConfig,
        MPMAConfig,
        EASEConfig,
        MRFConfig,
        PopularityConfig,
        BlendConfig,
    )
}
