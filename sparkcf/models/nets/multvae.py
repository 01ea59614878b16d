"""Mult-VAE and Mult-DAE: autoencoders of users' rows.

Liang, Krishnan, Hoffman, Jebara (2018), "Variational autoencoders for collaborative filtering", WWW.

    x ──L2 norm, dropout──▶ tanh layers ──▶ mu, log sigma^2 ──z = mu + sigma noise──▶ tanh layers ──▶ h ──W, b──▶ logits

The last layer is linear, so a user's scores are h W^T + b: h is the user's factor, the rows of W are the items'.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.models.nets.layers import SparseLinear
from sparkcf.models.nets.likelihoods import LIKELIHOODS
from sparkcf.training.batch import Rows


class Encoded(NamedTuple):
    """(B, latent_dim) each; log_variance is None where nothing is drawn."""

    mean: Tensor
    log_variance: Tensor | None


class MultVAE(nn.Module):
    """An autoencoder [n_items, hidden, latent_dim, hidden reversed, n_items].

    Parameters
    ----------
    variational : z is drawn and its divergence from N(0, I) costs; else (Mult-DAE) z is the mean.
    """

    def __init__(
        self,
        n_items: int,
        hidden: Sequence[int],
        latent_dim: int,
        dropout: float,
        likelihood: str = "multinomial",
        variational: bool = True,
    ) -> None:
        super().__init__()
        widths = [*hidden, latent_dim * (2 if variational else 1)]
        self.dropout, self.variational, self.log_likelihood = dropout, variational, LIKELIHOODS[likelihood]
        self.encoder_in = SparseLinear(n_items, widths[0])
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        back = [latent_dim, *reversed(hidden)]
        self.decoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(back))
        self.output = nn.Linear(back[-1], n_items)

    def encode(self, rows: Rows) -> Encoded:
        unit = rows.unit()
        dropped = Rows(unit.indices, unit.offsets, F.dropout(unit.values, self.dropout, self.training))
        h = self.encoder_in(dropped)  # (B, hidden[0])
        for layer in self.encoder:
            h = layer(torch.tanh(h))
        if not self.variational:
            return Encoded(torch.tanh(h), None)
        mean, log_variance = h.chunk(2, dim=1)
        return Encoded(mean, log_variance)

    def decode(self, z: Tensor) -> Tensor:
        """The last hidden layer, (B, hidden[0]): what the output layer multiplies."""
        for layer in self.decoder:
            z = torch.tanh(layer(z))
        return z

    def forward(self, rows: Rows) -> tuple[Tensor, Encoded]:
        """Logits (B, n_items), and what the rows were encoded as. Draws noise while training only."""
        encoded = self.encode(rows)
        z = encoded.mean
        if encoded.log_variance is not None and self.training:
            z = z + torch.exp(0.5 * encoded.log_variance) * torch.randn_like(z)
        return self.output(self.decode(z)), encoded

    def loss(self, rows: Rows, kl_weight: float) -> Tensor:
        """-log p(x | z) + kl_weight KL(q(z | x) || N(0, I)) of every row, (B,)."""
        logits, encoded = self(rows)
        negative = -self.log_likelihood(logits, rows)
        return negative if encoded.log_variance is None else negative + kl_weight * divergence(*encoded)

    def factors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Users' factors (B, width) for the inner product with the output layer, and their means (B, latent_dim)."""
        mean = self.encode(rows).mean
        return self.decode(mean), mean


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) of every row, (B,)."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)
