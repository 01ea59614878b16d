"""Nets by their names in the configuration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sparkcf.config import MultDAEConfig, MultVAEConfig
from sparkcf.nets.multvae import MultVAE
from sparkcf.nets.parts import initialize

Configured = MultVAEConfig | MultDAEConfig


def _multvae(n_items: int, config: Configured, variational: bool) -> nn.Module:
    return MultVAE(n_items, config.hidden, config.latent_dim, config.dropout, config.likelihood, variational)


NETS: dict[str, Callable[[int, Configured], nn.Module]] = {
    "multvae": lambda n_items, config: _multvae(n_items, config, True),
    "multdae": lambda n_items, config: _multvae(n_items, config, False),
}


def build_net(n_items: int, config: Configured, seed: int) -> nn.Module:
    """The net with its initial weights, which depend on the seed alone."""
    net = NETS[config.section](n_items, config)
    initialize(net, torch.Generator().manual_seed(seed))
    return net
