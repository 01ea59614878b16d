"""Neural collaborative filtering: GMF, MLP and NeuMF over embeddings of users, items and their side features.

He, Liao, Zhang, Nie, Hu, Chua (2017), "Neural collaborative filtering", WWW.

    user ──▶ [p, x] ─┐  GMF: a · (p * q)                                ─┐
                     ├                                                   ├──▶ score
    item ──▶ [q, y] ─┘  MLP: h · z_L, z_1 = relu(W [x, y] + c), …       ─┘

A user's vector [p, x] is the sum of an embedding that all users share, those of the user's side features, and the
user's own; an item's vector likewise, with one more part from dense layers over a precomputed vector of its content (an
image, a text). A user or item without events has no own embedding and is scored by the rest.
In the paper's terms the shared embedding and the features are further one-hot inputs; with none of them, and a shared
embedding of 0 (its initial value), the net is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparkcf.config.nets import NCFConfig
from sparkcf.models.nets.layers import by_row, entries, sparse_product
from sparkcf.models.nets.negatives import draw_negatives
from sparkcf.training.batch import Rows

PAIRS = 1 << 18  # pairs of user and item whose layers are in memory at once


class Content(nn.Module):
    """Dense layers over precomputed vectors of items: their part of an item's vector, 0 for an item without one.

    Parameters
    ----------
    vectors : (n, d), standardised.
    has : (n,), 1 for items that have a vector, else 0.
    widths : of the layers; the last one is the length of an item's vector.
    """

    vectors: Tensor
    has: Tensor

    def __init__(self, vectors: Tensor, has: Tensor, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([vectors.shape[1], *widths]))
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("has", has, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, widths[-1]) of items by their ids."""
        z = self.vectors.index_select(0, ids)
        for number, layer in enumerate(self.layers):
            z = layer(F.relu(z) if number else z)
        return z * self.has.index_select(0, ids)[:, None]


class Embeddings(nn.Module):
    """Vectors of the users or of the items, of length `width`.

    Parameters
    ----------
    n : number of users or items; 0: own embeddings are left out, as for serving.
    n_features : number of distinct side features.
    features : side features of every user or item, by id; None: there are none.
    n_fields : number of fields of side features, whose scales are stored.
    content : part of the vectors that comes from content; None: there is none.
    sparse : the own embeddings have sparse gradients.
    """

    feature_indices: Tensor
    feature_offsets: Tensor
    feature_values: Tensor
    scales: Tensor

    def __init__(
        self,
        n: int,
        width: int,
        n_features: int = 0,
        features: Rows | None = None,
        n_fields: int = 0,
        content: Content | None = None,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.content, self.sparse = content, sparse
        self.shared = nn.Parameter(torch.zeros(width))
        self.own = nn.Parameter(torch.empty(n, width)) if n else None
        self.of_features = nn.Parameter(torch.empty(n_features, width)) if n_fields else None
        self.register_buffer("scales", torch.zeros(n_fields, 2, dtype=torch.float64) if n_fields else None)
        for name in ("indices", "offsets", "values"):
            self.register_buffer(f"feature_{name}", getattr(features, name, None), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (n, width) of those that were in training, by their ids, int64 (n,)."""
        assert self.own is not None
        own = F.embedding(ids, self.own, sparse=True) if self.sparse else self.own.index_select(0, ids)
        return self.cold(ids) + own

    def cold(self, ids: Tensor) -> Tensor:
        """Vectors (n, width) without the own embeddings."""
        vectors = self.shared.expand(len(ids), -1)
        if self.of_features is not None:
            rows = Rows(self.feature_indices, self.feature_offsets, self.feature_values).take(ids)
            vectors = self.from_features(rows)
        return vectors if self.content is None else vectors + self.content(ids)

    def from_features(self, features: Rows) -> Tensor:
        """Vectors (n, width) of rows of side features."""
        if self.of_features is None:
            return self.shared.expand(len(features), -1)
        if not len(features):  # embedding_bag refuses an empty batch
            return self.shared + self.of_features[:1].sum(dim=0).expand(0, -1)
        return self.shared + sparse_product(self.of_features, features)


class Interaction(nn.Module):
    """The score of a user's and an item's vector.

    Parameters
    ----------
    gmf_width : length of the part of GMF; 0: no GMF.
    tower : widths of the MLP, the first of both parts side by side; empty: no MLP.
    dropout : share of a layer's units dropped while training.
    """

    share: Tensor  # (1,), 1/2 while the parts of NeuMF train apart and the score is their mean, else 1

    def __init__(self, gmf_width: int, tower: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.gmf_width, self.dropout = gmf_width, dropout
        self.gmf = nn.Linear(gmf_width, 1) if gmf_width else None
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(tower))
        self.mlp = nn.Linear(tower[-1], 1) if tower else None
        self.register_buffer("share", torch.ones(1))

    @property
    def heads(self) -> list[nn.Linear]:
        """The output layers of the parts: of GMF, of the MLP."""
        return [head for head in (self.gmf, self.mlp) if head is not None]

    def pairs(self, users: Tensor, items: Tensor, user_of: Tensor, item_of: Tensor) -> list[Tensor]:
        """The scores (E,) of some pairs by each part.

        Parameters
        ----------
        users : (B, width) vectors.
        items : (U, width) vectors.
        user_of, item_of : int64 (E,), the pairs' places in them.
        """
        scores = []
        if self.gmf is not None:
            p, q = users[:, : self.gmf_width], items[:, : self.gmf_width]
            product = p.index_select(0, user_of) * q.index_select(0, item_of)  # (E, d_g)
            scores.append(self.gmf(product).squeeze(1))
        if self.mlp is not None:
            first, second = self._first(users, items)
            scores.append(self._last(first.index_select(0, user_of) + second.index_select(0, item_of)))
        return scores

    def blocks(self, users: Tensor, items: Tensor) -> list[Tensor]:
        """The scores (B, U) of all pairs by each part. The layers are computed in blocks of items of PAIRS pairs.

        With gradients, the layers of several blocks are computed again in the backward pass instead of being stored.
        """
        scores = []
        if self.gmf is not None:
            p, q = users[:, : self.gmf_width], items[:, : self.gmf_width]
            scores.append((p * self.gmf.weight) @ q.T + self.gmf.bias)
        if self.mlp is not None:
            first, second = self._first(users, items)
            height = max(PAIRS // max(len(users), 1), 1)
            parts = second.split(height)
            if len(parts) > 1 and torch.is_grad_enabled():
                computed = [checkpoint(self._block, first, part, use_reentrant=False) for part in parts]
            else:
                computed = [self._block(first, part) for part in parts]
            scores.append(torch.cat(computed, dim=1))
        return scores

    def scores(self, parts: list[Tensor]) -> Tensor:
        """The score from those of the parts."""
        return self.share * sum(parts[1:], parts[0])

    def halve(self) -> None:
        """Join the parts of NeuMF: each output layer is halved, so that the sum is the mean of the parts."""
        with torch.no_grad():
            for head in self.heads:
                head.weight.mul_(0.5)
                head.bias.mul_(0.5)
            self.share.fill_(1.0)

    def _first(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer before its ReLU, split into the users' part (B, h_1) and the items' (U, h_1)."""
        layer = self.layers[0]
        assert isinstance(layer, nn.Linear)
        half = layer.in_features // 2
        x, y = users[:, self.gmf_width :], items[:, self.gmf_width :]
        return F.linear(x, layer.weight[:, :half]), F.linear(y, layer.weight[:, half:], layer.bias)

    def _block(self, first: Tensor, second: Tensor) -> Tensor:
        return self._last((first[:, None] + second[None]).flatten(0, 1)).view(len(first), len(second))

    def _last(self, z: Tensor) -> Tensor:
        """The MLP's score (E,) from the first layer before its ReLU, (E, h_1)."""
        assert self.mlp is not None
        z = F.dropout(F.relu(z), self.dropout, self.training)
        for layer in self.layers[1:]:
            z = F.dropout(F.relu(layer(z)), self.dropout, self.training)
        return self.mlp(z).squeeze(1)


class NCF(nn.Module):
    """The net: embeddings of both sides, the score, and the objective of the configuration.

    Parameters
    ----------
    mass : int64 (n_items,), by which negatives are drawn; 0 for items without events.
    average : mean of the values, the initial output of objective=rating.
    """

    mass: Tensor

    def __init__(
        self, users: Embeddings, items: Embeddings, config: NCFConfig, mass: Tensor, average: float = 0.0
    ) -> None:
        super().__init__()
        self.users, self.items, self.config = users, items, config
        self.interaction = Interaction(config.gmf_width, config.tower, config.dropout)
        self.register_buffer("mass", mass)
        self._average = average if config.objective == "rating" else 0.0
        self._apart = False
        self._items: Tensor | None = None  # vectors of all items, while they do not change

    def train(self, mode: bool = True) -> NCF:
        self._items = None
        super().train(mode)
        return self

    def begin(self, generator: torch.Generator) -> None:
        """Draw the initial embeddings, and set the output to the mean value."""
        with torch.no_grad():
            for side in (self.users, self.items):
                for table in (side.own, side.of_features):
                    if table is not None:
                        table.normal_(0.0, self.config.init_sd, generator=generator)
            apart = self.config.pretrain_epochs > 0
            for number, head in enumerate(self.interaction.heads):
                head.bias.fill_(self._average if apart or not number else 0.0)
            self.interaction.share.fill_(0.5 if apart else 1.0)

    def begin_epoch(self, number: int) -> list[nn.Parameter]:
        """Join GMF and MLP after the last epoch that trains them apart. Every parameter is trained in every epoch."""
        self._apart = number <= self.config.pretrain_epochs
        if number == self.config.pretrain_epochs + 1 and number > 1:
            self.interaction.halve()
        return []

    def sparse_parameters(self) -> list[nn.Parameter]:
        """The own embeddings, where their gradients are sparse."""
        return [side.own for side in (self.users, self.items) if side.sparse and side.own is not None]

    def loss(self, rows: Rows, kl_weight: float) -> Tensor:
        """The objective of every row, summed over its items, (B,)."""
        assert rows.ids is not None
        of_objective = {"cross_entropy": self._cross_entropy, "softmax": self._softmax, "rating": self._rating}
        return of_objective[self.config.objective](rows, self.users(rows.ids))

    def _answers(self, parts: list[Tensor]) -> list[Tensor]:
        """The scores to train: of each part while they train apart, else their sum."""
        return [part.float() for part in parts] if self._apart else [self.interaction.scores(parts).float()]

    def _cross_entropy(self, rows: Rows, users: Tensor) -> Tensor:
        """sum_i x_i softplus(-s_i) + sum over the negatives of softplus(s_j)."""
        count, n = self.config.negatives, len(rows.indices)
        negatives, drawn = draw_negatives(rows, self.mass, count, self.config.negatives_seen)
        unique, places = torch.cat([rows.indices, negatives.flatten()]).unique(return_inverse=True)
        user_of = torch.cat([rows.row_of, rows.row_of.repeat_interleave(count)])
        losses = []
        for scores in self._answers(self.interaction.pairs(users, self.items(unique), user_of, places)):
            own, drawn_scores = scores[:n], scores[n:].view(n, count)
            negative = F.softplus(drawn_scores).sum(dim=1) * drawn
            losses.append(by_row(rows.values * F.softplus(-own) + negative, rows))
        return torch.stack(losses).mean(dim=0)

    def _softmax(self, rows: Rows, users: Tensor) -> Tensor:
        """-sum_i x_i log softmax(s)_i, the softmax over all items of the batch."""
        unique, places = rows.indices.unique(return_inverse=True)
        placed = Rows(places, rows.offsets, rows.values)
        losses = []
        for scores in self._answers(self.interaction.blocks(users, self.items(unique))):
            observed = entries(scores.log_softmax(dim=1), placed)
            losses.append(-by_row(rows.values * observed, rows))
        return torch.stack(losses).mean(dim=0)

    def _rating(self, rows: Rows, users: Tensor) -> Tensor:
        """sum_i (x_i - s_i)^2."""
        unique, places = rows.indices.unique(return_inverse=True)
        scored = self._answers(self.interaction.pairs(users, self.items(unique), rows.row_of, places))
        return torch.stack([by_row((rows.values - scores).square(), rows) for scores in scored]).mean(dim=0)

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Scores (B, n_items) of users who are not in training, and their vectors (B, width), which are folded in."""
        assert rows.ids is not None
        if self._items is None:
            self._items = self.item_vectors()
        items = self._items
        vectors = self.fold_in(rows, self.users.cold(rows.ids), items)
        return self.interaction.scores(self.interaction.blocks(vectors, items)), vectors

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """Vectors (n_items, width) of all items; an item without events has no own embedding."""
        assert self.items.own is not None
        own = self.items.own * (self.mass > 0)[:, None]
        ids = torch.arange(len(own), device=own.device)
        return torch.cat([self.items.cold(part) for part in ids.split(PAIRS)]) + own

    def fold_in(self, rows: Rows, start: Tensor, items: Tensor) -> Tensor:
        """Vectors (B, width) of users by gradient steps on their rows, with everything else fixed.

        The objective is that of training, but its negatives are not drawn: `fold_in_items` items, the same for all
        users, stand for all items that the user does not have. So a user's vector does not depend on who else is
        folded in. A user without items keeps the vector of `start`.

        Parameters
        ----------
        start : (B, width), vectors before the first step.
        items : (m, width), vectors of all items.
        """
        with torch.inference_mode(False):  # which does not allow gradients
            rows = Rows(*(t.clone() for t in (rows.indices, rows.offsets, rows.values)))
            start, items = start.detach().float().clone(), items.detach().float().clone()
            at = self._representatives()
            costs = (rows.offsets.diff() + len(at)).cumsum(0)
            groups = (costs // PAIRS).unique_consecutive(return_counts=True)[1].tolist()
            folded = []
            for ids in torch.arange(len(rows), device=start.device).split(groups):
                folded.append(self._folded(rows.take(ids), start[ids], items, at))
            return torch.cat(folded) if folded else start

    def _representatives(self) -> Tensor:
        """Items that stand for all in fold-in: all with events, or a random choice of `fold_in_items` of them."""
        known = self.mass.nonzero()[:, 0]
        if len(known) <= self.config.fold_in_items:
            return known
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0)).to(known.device)
        return known[order[: self.config.fold_in_items].sort().values]

    def _folded(self, rows: Rows, start: Tensor, items: Tensor, at: Tensor) -> Tensor:
        vectors = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([vectors], self.config.fold_in_learning_rate)
        own, unique = rows.indices.unique(return_inverse=True)
        chosen, of_own = items[at], items[own]
        weights = self._weights(rows, at)
        device_type = vectors.device.type
        with torch.enable_grad(), torch.autocast(device_type, enabled=False):
            for _ in range(self.config.fold_in_steps):
                scores = self.interaction.scores(self.interaction.pairs(vectors, of_own, rows.row_of, unique))
                loss = self._fold_in_loss(rows, scores, vectors, chosen, weights)
                (vectors.grad,) = torch.autograd.grad(loss.sum(), vectors)
                optimizer.step()
        return vectors.detach()

    def _weights(self, rows: Rows, at: Tensor) -> Tensor:
        """Weights (B, len(at)) of the chosen items for each row, which sum to 1; 0 for the row's own items."""
        softmax = self.config.objective == "softmax"
        weights = (torch.ones_like(at) if softmax else self.mass[at]).double().repeat(len(rows), 1)
        if softmax or not self.config.negatives_seen:
            place = torch.full_like(self.mass, -1)
            place[at] = torch.arange(len(at), device=at.device)
            places = place[rows.indices]
            weights[rows.row_of[places >= 0], places[places >= 0]] = 0.0
        return (weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0)).float()

    def _fold_in_loss(self, rows: Rows, own: Tensor, vectors: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The objective of every row, (B,), from the scores of its items (nnz,) and the chosen items' vectors."""
        if self.config.objective == "rating":
            return by_row((rows.values - own).square(), rows)
        others = self.interaction.scores(self.interaction.blocks(vectors, chosen))  # (B, chosen)
        if self.config.objective == "cross_entropy":
            expected = (weights * F.softplus(others)).sum(dim=1)
            count = self.config.negatives * rows.offsets.diff()
            return by_row(rows.values * F.softplus(-own), rows) + count * expected
        highest = others.detach().amax(dim=1).scatter_reduce(0, rows.row_of, own.detach(), "amax")
        unseen = int((self.mass > 0).sum()) - rows.offsets.diff()  # items for which the chosen ones stand
        of_others = unseen * (weights * (others - highest[:, None]).exp()).sum(dim=1)
        mass = by_row((own - highest[rows.row_of]).exp(), rows) + of_others
        return rows.sums() * (mass.log() + highest) - by_row(rows.values * own, rows)
