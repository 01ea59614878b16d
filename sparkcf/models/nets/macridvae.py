"""MacridVAE: an autoencoder of users' rows with a latent vector for each of K concepts of items.

Ma, Zhou, Cui, Yang, Zhu (2019), "Learning disentangled representations for recommendation", NeurIPS.

    item h_i, prototypes m_k ──cosine / tau──▶ c_i: how much item i belongs to each concept
    x masked by c_.k ──L2 norm, dropout──▶ tanh layer ──▶ mu_k (unit length), s_k ──▶ z_k, for every concept k
    logit_i = log sum_k c_ik exp(cos(z_k, h_i) / tau)

One table of item vectors serves the assignment and the decoder. The prior of z_k is a normal distribution of deviation
sigma_0 around a point of the unit sphere; q has the deviation sigma_0 exp(s_k / 2), so that

    KL_k = 1/2 sum (-s_k + exp(s_k) - 1)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.models.nets.blocks import sum_over_blocks
from sparkcf.models.nets.encoders import MLPEncoder
from sparkcf.training.batch import Rows

TINY = 1e-30  # smaller assignments are set to it before the logarithm


class MacridVAE(nn.Module):
    """The net. Sizes: B rows of a batch, K concepts, d = latent_dim, M items.

    Parameters
    ----------
    hidden : widths of the encoder's layers.
    temperature : tau.
    deviation : sigma_0.
    gumbel : sample assignments while training (Gumbel softmax of temperature 1); else the softmax.
    """

    def __init__(
        self,
        n_items: int,
        concepts: int,
        hidden: Sequence[int],
        latent_dim: int,
        dropout: float,
        temperature: float,
        deviation: float,
        gumbel: bool,
    ) -> None:
        super().__init__()
        self.dropout, self.temperature, self.deviation, self.gumbel = dropout, temperature, deviation, gumbel
        self.items = nn.Parameter(torch.empty(n_items, latent_dim))
        self.prototypes = nn.Parameter(torch.empty(concepts, latent_dim))
        self.encoder = MLPEncoder(n_items, [*hidden, 2 * latent_dim])

    @property
    def concepts(self) -> int:
        return len(self.prototypes)

    def assignments(self) -> Tensor:
        """c (M, K), rows that sum to 1. Sampled while training if `gumbel`."""
        logits = F.normalize(self.items, dim=1) @ F.normalize(self.prototypes, dim=1).T / self.temperature
        if self.training and self.gumbel:
            return F.gumbel_softmax(logits, tau=1.0, dim=1)
        return logits.softmax(dim=1)

    def encode(self, rows: Rows, assigned: Tensor) -> tuple[Tensor, Tensor]:
        """mu (B, K, d) of unit length, and s (B, K, d)."""
        masked = rows.values * assigned[rows.indices].T  # (K, nnz)
        k, entries = masked.shape
        offsets = rows.offsets[:-1] + entries * torch.arange(k, device=rows.offsets.device)[:, None]  # (K, B)
        ends = rows.offsets.new_full((1,), entries * k)
        unit = Rows(rows.indices.repeat(k), torch.cat([offsets.flatten(), ends]), masked.flatten()).unit()
        h = self.encoder(unit.with_values(F.dropout(unit.values, self.dropout, self.training)))
        h = h.float().view(k, len(rows), h.shape[1]).transpose(0, 1)  # (K B, 2 d) -> (B, K, 2 d)
        mean, s = h.chunk(2, dim=2)
        return F.normalize(mean, dim=2), s

    def loss(self, rows: Rows, kl_weight: float) -> Tensor:
        """-log p(x | z) + kl_weight sum_k KL_k of every row, (B,)."""
        assigned = self.assignments()
        mean, s = self.encode(rows, assigned)
        z = mean + self.deviation * torch.exp(0.5 * s) * torch.randn_like(mean) if self.training else mean
        return kl_weight * divergence(s).sum(dim=(1, 2)) - self.log_likelihood(z, rows, assigned)

    def log_likelihood(self, z: Tensor, rows: Rows, assigned: Tensor) -> Tensor:
        """sum_i x_i log softmax(logits)_i, (B,), from z (B, K, d) and c (M, K)."""
        k, (row_of, indices) = self.concepts, (rows.row_of, rows.indices)
        flat = F.normalize(z, dim=2).reshape(-1, z.shape[2]) / self.temperature  # (B K, d)
        concept = torch.arange(k, device=z.device)

        def of_block(number: Tensor, items: Tensor, assigned: Tensor) -> Tensor:
            """(2, B): sum x_i logit_i over the row's items in the block, and sum exp(logit) over all items of it."""
            products, first = flat @ items.T, int(number[0])  # (B K, block)
            inside = ((indices >= first) & (indices < first + len(items))).nonzero()[:, 0]
            own, item = row_of[inside], indices[inside] - first
            places = (own[:, None] * k + concept) * len(items) + item[:, None]  # (entries, K)
            cosines = products.flatten().index_select(0, places.flatten()).view(-1, k)
            logits = (cosines + assigned[item].clamp_min(TINY).log()).logsumexp(dim=1)
            observed = torch.zeros(len(z), device=z.device).index_add_(0, own, rows.values[inside] * logits)
            mass = products.exp().view(len(z), k * len(items)) @ assigned.T.flatten()  # cosine / tau <= 1 / tau: finite
            return torch.stack([observed, mass])

        tables = (torch.arange(len(self.items), device=z.device), F.normalize(self.items, dim=1), assigned)
        observed, mass = sum_over_blocks(of_block, len(flat), *tables)
        return observed - rows.sums() * mass.log()

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Logits (B, M) by the means, and the means (B, K, d)."""
        assigned = self.assignments()
        mean, _ = self.encode(rows, assigned)
        items = F.normalize(self.items, dim=1)
        scores = torch.zeros(len(rows), len(items), device=mean.device)
        for concept in range(self.concepts):
            scores += torch.exp(mean[:, concept] @ items.T / self.temperature) * assigned[:, concept]
        return scores.log(), mean

    def factors(self, rows: Rows) -> tuple[Tensor]:
        """Means (B, K d) of users' rows, concept by concept; each concept's has unit length."""
        mean, _ = self.encode(rows, self.assignments())
        return (mean.flatten(1),)

    def posterior(self, rows: Rows) -> tuple[Tensor, Tensor]:
        mean, s = self.encode(rows, self.assignments())
        return mean.flatten(1) / self.deviation, divergence(s).flatten(1)


def divergence(s: Tensor) -> Tensor:
    """KL from the prior, elementwise."""
    return 0.5 * (s.exp() - 1.0 - s)
