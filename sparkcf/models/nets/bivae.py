"""BiVAE: a variational autoencoder of users' rows and one of items' rows, which train in turns.

Truong, Salah, Lauw (2021), "Bilateral variational autoencoder for collaborative filtering", WSDM.

    user's row ──▶ tanh layers ──▶ mu, sigma ──▶ theta ─┐
                                                        ├─▶ theta · beta ──link──▶ p(x_ui)
    item's row ──▶ tanh layers ──▶ mu, sigma ──▶ beta ──┘

A phase trains the autoencoder of one side with the vectors of the other side fixed:

    loss of a row = kl_weight KL(q(theta | x) || N(prior mean, I)) - sum_i log p(x_i | theta · beta_i)

The prior's mean is 0, or a linear function of the row's side features: the constrained adaptive prior (CAP, section
3.3), which keeps the posterior from collapsing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.models.nets.blocks import sum_over_blocks
from sparkcf.models.nets.encoders import MLPEncoder
from sparkcf.models.nets.exponential import Family
from sparkcf.models.nets.layers import SparseLinear, by_row
from sparkcf.models.nets.multvae import divergences
from sparkcf.training.batch import Rows

OTHER = {"user": "item", "item": "user"}
BETA_SD = 0.01  # of the items' initial vectors; the users' are uniform over ±1 / sqrt(k)


@dataclass(frozen=True)
class BiVAESettings:
    """Settings of both sides.

    family : likelihood of an entry.
    dropout : share of a row's entries dropped while training.
    binary : entries count as 1 whatever their value.
    sampled : number of random rows of the other side that estimate the sum of log-partitions; None: all rows.
    stored_samples : the other side trains against samples of the vectors, else means.
    """

    family: Family
    dropout: float = 0.0
    binary: bool = False
    sampled: int | None = None
    stored_samples: bool = True


class SideVAE(nn.Module):
    """The autoencoder of one side's rows.

    Parameters
    ----------
    n_others : columns of a row.
    hidden : widths of the encoder's layers.
    features : side features of the side's rows, by id; None: the prior's mean is 0.
    n_features : number of distinct side features.
    trains : include the other side's vectors.
    """

    others: Tensor  # (n_others, latent_dim), the other side's vectors

    def __init__(
        self,
        n_others: int,
        hidden: Sequence[int],
        latent_dim: int,
        settings: BiVAESettings,
        features: Rows | None = None,
        n_features: int = 0,
        trains: bool = True,
    ) -> None:
        super().__init__()
        self.settings, self.latent_dim = settings, latent_dim
        self.encoder = MLPEncoder(n_others, [*hidden, 2 * latent_dim])
        self.prior = SparseLinear(n_features, latent_dim) if features is not None else None
        for name in ("indices", "offsets", "values"):
            self.register_buffer(f"feature_{name}", getattr(features, name, None), persistent=False)
        self.register_buffer("others", torch.zeros(n_others, latent_dim) if trains else None)

    def encode(self, rows: Rows, drops: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, latent_dim); the deviation is below 1. `drops` : drop entries of the rows."""
        values = torch.ones_like(rows.values) if self.settings.binary else rows.values
        values = F.dropout(values, self.settings.dropout, drops)
        mean, deviation = self.encoder(rows.with_values(values)).float().chunk(2, dim=1)
        return mean, 2.0 * F.logsigmoid(deviation)

    def loss(self, rows: Rows, kl_weight: float) -> Tensor:
        """The negative evidence lower bound of every row, (B,)."""
        mean, log_variance = self.encode(rows, drops=self.training)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = self._divergence(rows, mean, log_variance).sum(dim=1)
        return kl_weight * kl - self.log_likelihood(z, rows)

    def log_likelihood(self, z: Tensor, rows: Rows) -> Tensor:
        """sum_j T(x_j) eta(f_j) - A(eta(f_j)) with f_j = z · v_j over all rows v_j of the other side, (B,)."""
        family, settings = self.settings.family, self.settings
        f = (z.index_select(0, rows.row_of) * self.others.index_select(0, rows.indices)).sum(dim=1)  # (nnz,)
        values = torch.ones_like(rows.values) if settings.binary else rows.values
        observed = by_row(values * family.eta(f), rows)
        others, scale = self.others, 1.0
        if settings.sampled is not None and settings.sampled < len(others):
            chosen = torch.randint(len(others), (settings.sampled,), device=others.device)
            scale = len(others) / settings.sampled
            others = others[chosen]

        def partitions(block: Tensor) -> Tensor:
            return family.partition(z @ block.T).sum(dim=1)

        return observed - scale * sum_over_blocks(partitions, len(z), others)

    def posterior(self, rows: Rows) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encode(rows)
        return mean, self._divergence(rows, mean, log_variance)

    def _divergence(self, rows: Rows, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL(q || N(prior mean, I)) by dimension, (B, latent_dim)."""
        return divergences(mean if self.prior is None else mean - self.prior_mean(rows), log_variance)

    def prior_mean(self, rows: Rows) -> Tensor:
        """The prior's mean (B, latent_dim) from the rows' side features."""
        assert self.prior is not None and rows.ids is not None
        features = Rows(self.feature_indices, self.feature_offsets, self.feature_values)  # type: ignore[arg-type]
        mean: Tensor = self.prior(features.take(rows.ids)).float()
        return mean


class BiVAE(nn.Module):
    """The two autoencoders. `item_means` : (n_items, latent_dim), means of the items' rows when last stored."""

    item_means: Tensor

    def __init__(self, user: SideVAE, item: SideVAE) -> None:
        super().__init__()
        self.user, self.item = user, item
        trains = user.others is not None
        self.register_buffer("item_means", torch.zeros_like(user.others) if trains else None)

    def begin(self, generator: torch.Generator) -> None:
        """Draw the initial vectors that the first phases train against."""
        bound = self.user.latent_dim**-0.5
        self.item.others.uniform_(-bound, bound, generator=generator)
        self.user.others.normal_(0.0, BETA_SD, generator=generator)

    def part(self, side: str) -> SideVAE:
        return self.user if side == "user" else self.item

    @torch.no_grad()
    def store(self, side: str, rows: Rows) -> None:
        """Store the vectors of the rows, whole, after an update of their encoder."""
        assert rows.ids is not None
        part, other = self.part(side), self.part(OTHER[side])
        mean, log_variance = part.encode(rows)
        drawn = mean
        if part.settings.stored_samples:
            drawn = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        other.others[rows.ids] = drawn
        if side == "item":
            self.item_means[rows.ids] = mean

    def stored(self, side: str) -> list[Tensor]:
        return [self.user.others, self.item_means] if side == "item" else [self.item.others]

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Scores (B, n_items) of users' rows by the means, and the users' means."""
        mean, _ = self.user.encode(rows)
        return mean @ self.item_means.T, mean

    def factors(self, rows: Rows) -> tuple[Tensor]:
        """Means (B, latent_dim) of users' rows."""
        return (self.user.encode(rows)[0],)

    def item_factors(self, rows: Rows) -> tuple[Tensor]:
        """Means (B, latent_dim) of items' rows."""
        return (self.item.encode(rows)[0],)
