"""Builds nets by their names in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sparkcf.config.nets import BiVAEConfig, DisenGCNConfig, MacridVAEConfig, MultDAEConfig, MultVAEConfig, NCFConfig
from sparkcf.models.nets.bivae import BiVAE, BiVAESettings, SideVAE
from sparkcf.models.nets.disengcn import DisenGCN, UserAggregation
from sparkcf.models.nets.encoders import DenseEncoder, MLPEncoder
from sparkcf.models.nets.exponential import FAMILIES
from sparkcf.models.nets.layers import initialize
from sparkcf.models.nets.macridvae import MacridVAE
from sparkcf.models.nets.multvae import MultVAE
from sparkcf.models.nets.ncf import NCF, Content, Embeddings
from sparkcf.training.graph import graph_of, read_rows
from sparkcf.training.side_features import item_content, item_counts, side_features

Configured = MultVAEConfig | MultDAEConfig | MacridVAEConfig | BiVAEConfig | NCFConfig | DisenGCNConfig


def _multvae(data: Mapping[str, Any], config: MultVAEConfig, trains: bool) -> nn.Module:
    n_items, latent = int(data["n_items"]), 2 * config.latent_dim
    encoder = (
        DenseEncoder(n_items, config.hidden[0], config.dense_layers, latent)
        if config.encoder == "dense"
        else MLPEncoder(n_items, [*config.hidden, latent])
    )
    sizes = (n_items, encoder, config.decoder, config.latent_dim, config.dropout, config.likelihood)
    composite = trains and config.prior == "composite"
    return MultVAE(*sizes, True, composite, config.kl_per_item, config.encoder_epochs)


def _multdae(data: Mapping[str, Any], config: MultDAEConfig, trains: bool) -> nn.Module:
    n_items = int(data["n_items"])
    encoder = MLPEncoder(n_items, [*config.hidden, config.latent_dim])
    return MultVAE(n_items, encoder, config.decoder, config.latent_dim, config.dropout, config.likelihood, False)


def _macridvae(data: Mapping[str, Any], config: MacridVAEConfig, trains: bool) -> nn.Module:
    sizes = (int(data["n_items"]), config.concepts, config.hidden, config.latent_dim)
    return MacridVAE(*sizes, config.dropout, config.temperature, config.deviation, config.assignment == "gumbel")


def _bivae(data: Mapping[str, Any], config: BiVAEConfig, trains: bool) -> nn.Module:
    family = FAMILIES[config.likelihood, config.link]
    stored_samples = config.other_side == "samples"
    settings = BiVAESettings(family, config.dropout, config.binary, config.sampled_rows, stored_samples)
    features = side_features(data) if trains else {}

    def side(n_others: int, name: str) -> SideVAE:
        has, n_features = features.get(name, (None, 0))
        return SideVAE(n_others, config.hidden, config.latent_dim, settings, has, n_features, trains)

    return BiVAE(side(int(data["n_items"]), "user"), side(int(data["n_users"]), "item"))


def _ncf(data: Mapping[str, Any], config: NCFConfig, trains: bool) -> nn.Module:
    """Served, it has the users' features and what all users and all items share; stored vectors replace the rest."""
    n_items, n_fields = int(data["n_items"]), len(config.user_features)
    if not trains:
        users = Embeddings(0, config.width, int(data.get("n_user_features", 0)), n_fields=n_fields)
        return NCF(users, Embeddings(0, config.width), config, torch.zeros(n_items, dtype=torch.int64))
    features, content, sides = side_features(data), item_content(data), {}
    for side, fields in (("user", config.user_features), ("item", config.item_features)):
        rows, n_features = features.get(side, (None, 0))
        layers = Content(*content, [*config.content_layers, config.width]) if side == "item" and content else None
        sizes = (int(data[f"n_{side}s"]), config.width, n_features)
        sides[side] = Embeddings(*sizes, rows, len(fields), layers, config.sparse_embeddings)
        if fields:
            sides[side].scales.copy_(torch.tensor(data["scales"][side], dtype=torch.float64))
    counts = item_counts(data)
    mass = torch.ones(n_items, dtype=torch.int64) if counts is None else counts
    if config.negative_distribution == "uniform":
        mass = (mass > 0).long()
    return NCF(sides["user"], sides["item"], config, mass, float(data.get("average", 0.0)))


def _disengcn(data: Mapping[str, Any], config: DisenGCNConfig, trains: bool) -> nn.Module:
    """The graph is that of `rows`, PackedRows of users, or of the `files` of a snapshot of these."""
    n_users, n_items = int(data.get("n_users", 0)), int(data["n_items"])
    if not trains:
        return UserAggregation(n_items, n_users, config)
    rows = data["rows"] if "rows" in data else read_rows(data["files"])
    return DisenGCN(graph_of(rows, n_users, n_items, config.section), config)


NETS: dict[str, Callable[[Mapping[str, Any], Any, bool], nn.Module]] = {
    "multvae": _multvae,
    "multdae": _multdae,
    "macridvae": _macridvae,
    "bivae": _bivae,
    "ncf": _ncf,
    "disengcn": _disengcn,
}


def net_of(data: Mapping[str, Any], config: Configured, seed: int) -> nn.Module:
    """The net to train. `data` : the values of `NetModel.net_data`."""
    return build_net(data, config, seed)


def build_net(data: Mapping[str, Any], config: Configured, seed: int, trains: bool = True) -> nn.Module:
    """The net with its initial weights, which depend only on the seed.

    Parameters
    ----------
    data : n_items, n_users, and what the net's model adds in `NetModel.net_data`.
    trains : include the parts that only training needs, such as the copy of the encoder in the composite prior.
    """
    generator = torch.Generator().manual_seed(seed)
    net = NETS[config.section](data, config, trains)
    initialize(net, generator)
    if isinstance(net, BiVAE | NCF | DisenGCN) and trains:
        net.begin(generator)
    return net
