"""Nets by their names in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sparkcf.config.models import MultDAEConfig, MultVAEConfig
from sparkcf.models.nets.encoders import DenseEncoder, MLPEncoder
from sparkcf.models.nets.layers import initialize
from sparkcf.models.nets.multvae import MultVAE

Configured = MultVAEConfig | MultDAEConfig


def _multvae(n_items: int, config: MultVAEConfig, trains: bool) -> nn.Module:
    latent = 2 * config.latent_dim
    encoder = (
        DenseEncoder(n_items, config.hidden[0], config.dense_layers, latent)
        if config.encoder == "dense"
        else MLPEncoder(n_items, [*config.hidden, latent])
    )
    sizes = (n_items, encoder, config.decoder, config.latent_dim, config.dropout, config.likelihood)
    composite = trains and config.prior == "composite"
    return MultVAE(*sizes, True, composite, config.kl_per_item, config.encoder_epochs)


def _multdae(n_items: int, config: MultDAEConfig, trains: bool) -> nn.Module:
    encoder = MLPEncoder(n_items, [*config.hidden, config.latent_dim])
    return MultVAE(n_items, encoder, config.decoder, config.latent_dim, config.dropout, config.likelihood, False)


NETS: dict[str, Callable[[int, Any, bool], nn.Module]] = {"multvae": _multvae, "multdae": _multdae}


def net_of(data: Mapping[str, Any], config: Configured, seed: int) -> nn.Module:
    """The net for what is known of the data: `n_items`."""
    return build_net(int(data["n_items"]), config, seed)


def build_net(n_items: int, config: Configured, seed: int, trains: bool = True) -> nn.Module:
    """The net with its initial weights, which depend on the seed alone.

    Parameters
    ----------
    trains : with what only the loss needs, such as the encoder of before.
    """
    net = NETS[config.section](n_items, config, trains)
    initialize(net, torch.Generator().manual_seed(seed))
    return net
