"""Parameters of training by gradient, and of the nets."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sparkcf.config.section import ModelSection, NonNegative, Positive, Section


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
    def annealing(self) -> tuple[float, int] | None:
        """Final weight of the KL divergence, and the number of updates in which it rises to that from 0.

        None: there is no divergence, or its weight is another one for every row.
        """
        return None


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
    def annealing(self) -> tuple[float, int] | None:
        return (self.anneal_cap, self.anneal_steps) if self.kl_per_item is None else None


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
    """A group of side features of users or items; see `sparkcf/models/nets/side_fields.py`."""

    # categories: of the item; attribute: a text, number: a number, of the side's own table
    of: Literal["categories", "attribute", "number"]
    column: str | None = None  # attribute, number: name of the column
    separator: str | None = Field(None, min_length=1)  # attribute: stands between a row's values; None: one value a row

    @model_validator(mode="after")
    def _complete(self) -> SideField:
        if (self.of == "categories") != (self.column is None):
            raise ValueError("column goes with of: attribute or number, and these with it")
        if self.separator is not None and self.of != "attribute":
            raise ValueError(f"separator={self.separator!r} goes with of: attribute, not {self.of}: leave it out")
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
            raise ValueError("user_prior names categories, which only items have: use of: attribute with a separator")
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
    # A step exchanges and moves only the embeddings of its users and items (lazy Adam); the others rest, and so does
    # their weight decay. For many users or items. False: Adam moves all embeddings in every step.
    sparse_embeddings: bool = False
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
            raise ValueError(
                "user_features names categories, which only items have: use of: attribute with a separator"
            )
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
