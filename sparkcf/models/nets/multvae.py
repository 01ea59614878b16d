"""Mult-VAE, Mult-DAE and RecVAE: autoencoders of users' rows.

Liang, Krishnan, Hoffman, Jebara (2018), "Variational autoencoders for collaborative filtering", WWW. Shenbin, Alekseev,
Tutubalina, Malykh, Nikolenko (2020), "RecVAE: a new variational autoencoder for top-N recommendations", WSDM.

    x ──L2 norm, dropout──▶ tanh layers ──▶ mu, log sigma^2 ──z = mu + sigma noise──▶ tanh layers ──▶ h ──W, b──▶ logits

The last layer is linear, so a user's scores are h W^T + b: h is the user's factor, the rows of W are the items'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.models.nets.encoders import frozen_copy
from sparkcf.models.nets.likelihoods import LIKELIHOODS
from sparkcf.training.batch import Rows

LOG_WIDE = 10.0  # log-variance of the composite prior's widest part
SHARES = (0.15, 0.75, 0.1)  # of the composite prior: N(0, I), the previous encoder, N(0, e^10 I)


class Encoded(NamedTuple):
    """(B, latent_dim) each; log_variance is None if the net is not variational."""

    mean: Tensor
    log_variance: Tensor | None


class MultVAE(nn.Module):
    """An autoencoder [n_items, encoder, latent_dim, hidden, n_items].

    Parameters
    ----------
    encoder : returns 2 latent_dim numbers per row, means and log-variances; if not variational, latent_dim means.
    hidden : widths of the decoder's layers between z and the items; empty: the decoder is linear.
    variational : z is sampled and the loss has its divergence from the prior; else (Mult-DAE) z is the mean.
    composite : the prior is the mixture of RecVAE (Shenbin et al. 2020, equation 7) instead of N(0, I).
    kl_per_item : the weight of a row's divergence is this times the sum of its values (equation 8); None: `kl_weight`.
    encoder_epochs : this many epochs train the encoder alone, then one the decoder alone, without dropout (section
        3.4); 0: every epoch trains both.
    """

    def __init__(
        self,
        n_items: int,
        encoder: nn.Module,
        hidden: Sequence[int],
        latent_dim: int,
        dropout: float,
        likelihood: str = "multinomial",
        variational: bool = True,
        composite: bool = False,
        kl_per_item: float | None = None,
        encoder_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.dropout, self.variational, self.log_likelihood = dropout, variational, LIKELIHOODS[likelihood]
        self.kl_per_item, self.encoder_epochs = kl_per_item, encoder_epochs
        self.encoder = encoder
        self.old_encoder = frozen_copy(encoder) if composite else None
        back = [latent_dim, *hidden]
        self.decoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(back))
        self.output = nn.Linear(back[-1], n_items)
        self._trains_decoder_alone = False

    def begin_epoch(self, number: int) -> list[nn.Parameter]:
        """Prepare for an epoch, from 1; returns the parameters that are not trained in the epoch.

        The composite prior copies the current encoder: every epoch, or before the decoder's where the two alternate.
        """
        alone = self.encoder_epochs and (number - 1) % (self.encoder_epochs + 1) == self.encoder_epochs
        self._trains_decoder_alone = bool(alone)
        if self.old_encoder is not None and (number == 1 or alone or not self.encoder_epochs):
            self.old_encoder.load_state_dict(self.encoder.state_dict())
        if not self.encoder_epochs:
            return []
        frozen = [self.encoder] if alone else [self.decoder, self.output]
        return [parameter for module in frozen for parameter in module.parameters()]

    def encode(self, rows: Rows) -> Encoded:
        unit = rows.unit()
        drops = self.training and not self._trains_decoder_alone
        return self._encoded(self.encoder, unit.with_values(F.dropout(unit.values, self.dropout, drops)))

    def _encoded(self, encoder: nn.Module, rows: Rows) -> Encoded:
        h = encoder(rows)
        if not self.variational:
            return Encoded(torch.tanh(h), None)
        mean, log_variance = h.chunk(2, dim=1)
        return Encoded(mean, log_variance)

    def decode(self, z: Tensor) -> Tensor:
        """The last hidden layer, (B, hidden[-1] or latent_dim): the input of the output layer."""
        for layer in self.decoder:
            z = torch.tanh(layer(z))
        return z

    def forward(self, rows: Rows) -> tuple[Tensor, Encoded]:
        """Logits (B, n_items) and the encoded rows. Draws noise while training only."""
        encoded = self.encode(rows)
        return self.output(self.decode(self._drawn(encoded))), encoded

    def _drawn(self, encoded: Encoded) -> Tensor:
        if encoded.log_variance is None or not self.training:
            return encoded.mean
        return encoded.mean + torch.exp(0.5 * encoded.log_variance) * torch.randn_like(encoded.mean)

    def loss(self, rows: Rows, kl_weight: float) -> Tensor:
        """-log p(x | z) + weight KL(q(z | x) || prior) of every row, (B,), with `kl_weight` or the row's own weight."""
        encoded = self.encode(rows)
        z = self._drawn(encoded)
        negative = -self.log_likelihood(self.output(self.decode(z)), rows)
        if encoded.log_variance is None:
            return negative
        if self.old_encoder is None:
            kl = divergence(encoded.mean, encoded.log_variance)
        else:
            kl = self._composite_divergence(rows, encoded, z)
        return negative + (kl_weight if self.kl_per_item is None else self.kl_per_item * rows.sums()) * kl

    def _composite_divergence(self, rows: Rows, encoded: Encoded, z: Tensor) -> Tensor:
        """log q(z | x) - log prior(z | x) at the drawn z, (B,): an unbiased estimate of the divergence."""
        assert self.old_encoder is not None and encoded.log_variance is not None
        with torch.no_grad():
            old = self._encoded(self.old_encoder, rows.unit())
        assert old.log_variance is not None
        zero = torch.zeros_like(z)
        parts = [
            log_density(z, zero, zero),
            log_density(z, old.mean, old.log_variance),
            log_density(z, zero, zero + LOG_WIDE),
        ]
        mixed = torch.stack([part + math.log(share) for part, share in zip(parts, SHARES, strict=True)])
        return (log_density(z, encoded.mean, encoded.log_variance) - mixed.logsumexp(dim=0)).sum(dim=1)

    def posterior(self, rows: Rows) -> tuple[Tensor, Tensor] | None:
        """Means and divergences from N(0, I), (B, latent_dim) each; None if the net is not variational."""
        mean, log_variance = self.encode(rows)
        return None if log_variance is None else (mean, divergences(mean, log_variance))

    def factors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Users' factors (B, width) for the inner product with the output layer, and their means (B, latent_dim)."""
        mean = self.encode(rows).mean
        return self.decode(mean), mean


def log_density(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, exp(log_variance)), elementwise."""
    z, mean, log_variance = z.float(), mean.float(), log_variance.float()
    return -0.5 * (math.log(2 * math.pi) + log_variance + (z - mean).square() / log_variance.exp())


def divergences(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), elementwise."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The sum of `divergences` over a row, (B,)."""
    return divergences(mean, log_variance).sum(dim=1)
