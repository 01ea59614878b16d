"""DisenGCN on the user–item graph: vectors of users and items in K channels, routed from their neighbours.

Ma, Cui, Kuang, Wang, Zhu (2019), "Disentangled graph convolutional networks", ICML; on the user–item graph as in Wang,
Jin, Zhang, He, Xu, Chua (2020), "Disentangled graph collaborative filtering", SIGIR.

    embeddings ──▶ z^0 ──route──▶ c^1 ──relu, dropout──▶ z^1 ──route──▶ c^2 …

    score of user u and item i = e^s c_u · c_i + b_i

`route` takes in the neighbours' vectors (`sparkcf.models.nets.routing`): a user's are the user's items, an item's its
users. The last layer has no ReLU, because its vectors end in the inner product, whose scale e^s is learned. A
mini-batch of users needs the vectors of some items, these some neighbours and so on: at most `neighbours` of each node,
drawn anew in every step.

A user who is not in the graph has z = 0, so that the vector is the routed mean of the items' vectors: fold-in. Training
drops the z of some nodes too (`own_dropout`), and so prepares for that.

Not as in the paper: z enters a layer with the length that it has, and only the products of the routing are of unit
vectors, unless `unit_vectors` is set; embeddings stand in place of the projected features of a node.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.config.nets import DisenGCNConfig
from sparkcf.models.nets.layers import by_row, entries
from sparkcf.models.nets.negatives import draw_negatives
from sparkcf.models.nets.routing import route, unit
from sparkcf.training.batch import Rows
from sparkcf.training.graph import Neighbours, sampled

OTHER = {"user": "item", "item": "user"}


class Tables(NamedTuple):
    """Vectors of all users and all items.

    users : (n_users, K, d), z that enter the last layer; 0 for users without edges.
    items : (n_items, K, d), likewise.
    item_vectors : (n_items, K, d), c of the last layer.
    """

    users: Tensor
    items: Tensor
    item_vectors: Tensor


class DisenGCN(nn.Module):
    """The net to train.

    Parameters
    ----------
    graph : the neighbours of users and of items, by side.
    """

    def __init__(self, graph: dict[str, Neighbours], config: DisenGCNConfig) -> None:
        super().__init__()
        self.config = config
        self.graph = nn.ModuleDict(graph)
        sizes = {side: len(each.degrees) for side, each in graph.items()}
        self.own = nn.ParameterDict(
            {side: nn.Parameter(torch.empty(n, config.latent_dim)) for side, n in sizes.items()}
        )
        self.item_bias = nn.Parameter(torch.zeros(sizes["item"]))
        self.log_scale = nn.Parameter(torch.full((1,), math.log(config.scale)))
        self._tables: Tables | None = None

    def begin(self, generator: torch.Generator) -> None:
        """Draw the initial embeddings; biases are the logarithms of the items' numbers of edges over their mean."""
        with torch.no_grad():
            for table in self.own.values():
                table.normal_(0.0, self.config.init_sd, generator=generator)
            counts = self.neighbours("item").degrees.double() + 1.0
            self.item_bias.copy_((counts / counts.mean()).log())
            self.log_scale.fill_(math.log(self.config.scale))

    def neighbours(self, side: str) -> Neighbours:
        found = self.graph[side]
        assert isinstance(found, Neighbours)
        return found

    def train(self, mode: bool = True) -> DisenGCN:
        self._tables = None  # of the weights before
        return super().train(mode)

    # Training: some nodes and samples of their neighbours.

    def loss(self, rows: Rows, kl_weight: float) -> Tensor:
        """The loss of every row, summed over its items among the candidates, (B,)."""
        assert rows.ids is not None
        candidates = self.candidates(rows)
        first, last = rows.offsets[:-1], rows.offsets[1:]
        edges = sampled(rows.indices, first, last, self.config.neighbours)
        users = self._convolved("user", rows.ids, edges, self.config.layers)
        item_edges = self.neighbours("item").sample(candidates, self.config.neighbours)
        items = self._convolved("item", candidates, item_edges, self.config.layers)
        placed = among(rows, candidates, len(self.item_bias))
        scores = self.log_scale.exp() * (users.flatten(1) @ items.flatten(1).T).float()  # (B, C)
        scores = scores + self.item_bias[candidates]
        return self._softmax(placed, scores) if self.config.loss == "softmax" else self._bpr(placed, scores)

    def candidates(self, rows: Rows) -> Tensor:
        """The items that are scored in a step, int64 (C,), in order: `candidates` of those with edges, or all.

        The batch's own come first; among these, and among the others, the choice is random.
        """
        present = self.neighbours("item").degrees > 0
        known = present.nonzero()[:, 0]
        if len(known) <= self.config.candidates:
            return known
        keys = torch.rand(len(present), device=known.device)
        keys[rows.indices] += 1.0
        keys[~present] = -1.0
        return keys.topk(self.config.candidates).indices.sort().values

    def _softmax(self, rows: Rows, scores: Tensor) -> Tensor:
        """-sum_i x_i log softmax(s)_i, the softmax over the candidates."""
        return -by_row(rows.values * entries(scores.log_softmax(dim=1), rows), rows)

    def _bpr(self, rows: Rows, scores: Tensor) -> Tensor:
        """-sum_i x_i log sigmoid(s_i - s_j), a j for each i drawn of the candidates that the user does not have."""
        mass = torch.ones(scores.shape[1], dtype=torch.int64, device=scores.device)
        negatives, drawn = draw_negatives(rows, mass, 1)
        lower = entries(scores, Rows(negatives[:, 0], rows.offsets, rows.values))
        return by_row(rows.values * drawn * F.softplus(lower - entries(scores, rows)), rows)

    def _convolved(self, side: str, ids: Tensor, edges: Rows, layer: int) -> Tensor:
        """c (n, K, d) of nodes by a layer, from 1, and edges to their neighbours."""
        others, places = distinct(edges.indices, len(self.own[OTHER[side]]))
        placed = Rows(places, edges.offsets, edges.values)
        placed.__dict__["row_of"] = edges.row_of
        own, sources = self._entering(side, ids, layer), self._entering(OTHER[side], others, layer)
        if self.training and self.config.own_dropout:
            own = own * (torch.rand(len(own), 1, 1, device=own.device) >= self.config.own_dropout)
        vectors = route(own, sources, placed, self.config.rounds, sum_weights(edges, self.config))
        return F.dropout(vectors, self.config.dropout, self.training)

    def _entering(self, side: str, ids: Tensor, layer: int) -> Tensor:
        """z (n, K, d) of nodes that enters a layer."""
        if layer == 1:
            return self._channels(self.own[side].index_select(0, ids))
        edges = self.neighbours(side).sample(ids, self.config.neighbours)
        return self._normalised(F.relu(self._convolved(side, ids, edges, layer - 1)))

    def _channels(self, vectors: Tensor) -> Tensor:
        """z^0 (n, K, d) of embeddings (n, K d)."""
        return self._normalised(vectors.unflatten(1, (self.config.channels, self.config.channel_dim)))

    def _normalised(self, vectors: Tensor) -> Tensor:
        return unit(vectors) if self.config.unit_vectors else vectors

    # Serving: all nodes, and all of their neighbours.

    @torch.no_grad()
    def tables(self) -> Tables:
        """The vectors of all nodes, layer by layer; kept until the mode changes or the net trains on."""
        if self._tables is None:
            z = {side: self._channels(table.detach()) for side, table in self.own.items()}
            z["user"] = z["user"] * (self.neighbours("user").degrees > 0)[:, None, None]
            for _ in range(self.config.layers - 1):
                z = {side: self._normalised(F.relu(self._whole(side, z))) for side in z}
            self._tables = Tables(z["user"], z["item"], self._whole("item", z))
        return self._tables

    def _whole(self, side: str, z: dict[str, Tensor]) -> Tensor:
        edges = self.neighbours(side).all()
        return route(z[side], z[OTHER[side]], edges, self.config.rounds, sum_weights(edges, self.config))

    @torch.no_grad()
    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Scores (B, n_items) of users' rows, and their vectors (B, K d). A user without edges is folded in."""
        assert rows.ids is not None
        tables = self.tables()
        edges = Rows(rows.indices, rows.offsets, rows.values)
        users = route(tables.users[rows.ids], tables.items, edges, self.config.rounds, sum_weights(rows, self.config))
        vectors = self.log_scale.exp() * users.flatten(1)
        return vectors @ tables.item_vectors.flatten(1).T + self.item_bias, vectors


class UserAggregation(nn.Module):
    """What makes users' vectors of their rows when a fit is served.

    Parameters
    ----------
    n_items : number of items.
    n_users : number of users who may have a vector of their own; 0: all are folded in.
    """

    items: Tensor  # (n_items, K d), z that enter the last layer
    scale: Tensor  # (1,)
    users: Tensor | None  # (n_users, K d)

    def __init__(self, n_items: int, n_users: int, config: DisenGCNConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("items", torch.zeros(n_items, config.latent_dim))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("users", torch.zeros(n_users, config.latent_dim) if n_users else None)

    def factors(self, rows: Rows) -> tuple[Tensor]:
        """Vectors (B, K d) of users by their rows; of those with a vector of their own by `ids`, routed around it."""
        channels = (self.config.channels, self.config.channel_dim)
        own = self.items.new_zeros(len(rows), *channels)
        if self.users is not None and rows.ids is not None:
            own = self.users[rows.ids].unflatten(1, channels)
        sources, weights = self.items.unflatten(1, channels), sum_weights(rows, self.config)
        vectors = route(own, sources, rows, self.config.rounds, weights)
        return (self.scale * vectors.flatten(1),)


def sum_weights(edges: Rows, config: DisenGCNConfig) -> Tensor:
    """Of the sums over n neighbours: neighbour_weight K / n, (n,). Then equal shares, 1 / K, give means."""
    return config.neighbour_weight * config.channels / edges.offsets.diff().clamp_min(1)


def distinct(indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The distinct ones of indices below n, in order, and the place of every index in them. No sort."""
    present = torch.zeros(n, dtype=torch.bool, device=indices.device)
    present[indices] = True
    return present.nonzero()[:, 0], (present.cumsum(0) - 1)[indices]


def among(rows: Rows, candidates: Tensor, n_items: int) -> Rows:
    """The entries of the rows whose item is a candidate, with its place among the candidates as index."""
    place = torch.full((n_items,), -1, device=candidates.device)
    place[candidates] = torch.arange(len(candidates), device=candidates.device)
    places = place[rows.indices]
    kept = places >= 0
    counts = torch.zeros(len(rows), dtype=torch.int64, device=places.device).index_add_(0, rows.row_of, kept.long())
    return Rows(places[kept], torch.cat([counts.new_zeros(1), counts.cumsum(0)]), rows.values[kept], rows.ids)
