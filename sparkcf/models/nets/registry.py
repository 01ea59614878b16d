"""Nets by their names in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sparkcf.config.models import MultDAEConfig, MultVAEConfig
from sparkcf.models.nets.layers import initialize
from sparkcf.models.nets.multvae import MultVAE

Configured = MultVAEConfig | MultDAEConfig


def _multvae(n_items: int, config: Configured, variational: bool) -> nn.Module:
    return MultVAE(n_items, config.hidden, config.latent_dim, config.dropout, config.likelihood, variational)


NETS: dict[str, Callable[[int, Configured], nn.Module]] = {
    "multvae": lambda n_items, config: _multvae(n_items, config, True),
    "multdae": lambda n_items, config: _multvae(n_items, config, False),
}


def net_of(data: Mapping[str, Any], config: Configured, seed: int) -> nn.Module:
    """The net for what is known of the data: `n_items`."""
    return build_net(int(data["n_items"]), config, seed)


def build_net(n_items: int, config: Configured, seed: int) -> nn.Module:
    """The net with its initial weights, which depend on the seed alone."""
    net = NETS[config.section](n_items, config)
    initialize(net, torch.Generator().manual_seed(seed))
    return net
