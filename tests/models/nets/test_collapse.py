"""The note about a collapsed posterior names what the model's settings leave to change."""

from __future__ import annotations

from typing import Any

import pytest

from sparkcf.config.nets import BiVAEConfig, MacridVAEConfig, MultVAEConfig
from sparkcf.models.nets.concepts import MacridVAEModel
from sparkcf.models.nets.fit import MultVAEModel, NetModel, collapse_warning
from sparkcf.models.nets.two_sided import BiVAEModel

PRIOR = ({"of": "attribute", "column": "kind"},)


def entry(epoch: int, users: int, items: int | None = None, **more: Any) -> dict[str, Any]:
    """The log of an epoch with so many active units of four."""
    of_items = {} if items is None else {"item_active_units": items, "item_kl_by_dimension": [0.0] * 4}
    return {"epoch": epoch, "active_units": users, "kl_by_dimension": [0.0] * 4} | of_items | more


@pytest.mark.parametrize(
    ("model", "log", "said"),
    [
        (
            MultVAEModel(MultVAEConfig(), 1),
            [entry(1, 1)],
            "1 of 4 latent dimensions of users are active (posterior collapse): "
            "lower multvae.anneal_cap or multvae.latent_dim, or raise multvae.anneal_steps",
        ),
        (
            MultVAEModel(MultVAEConfig(kl_per_item=0.005), 1),
            [entry(1, 0)],
            "0 of 4 latent dimensions of users are active (posterior collapse): "
            "lower multvae.kl_per_item or multvae.latent_dim",
        ),
        (
            MacridVAEModel(MacridVAEConfig(), 1),
            [entry(1, 0)],
            "0 of 4 latent dimensions of users are active (posterior collapse): "
            "lower macridvae.anneal_cap or macridvae.latent_dim, or raise macridvae.anneal_steps",
        ),
        (
            BiVAEModel(BiVAEConfig(user_prior=PRIOR), 1),
            [entry(1, 4, 1)],
            "1 of 4 latent dimensions of items are active (posterior collapse): lower bivae.anneal_cap or "
            "bivae.latent_dim, or raise bivae.anneal_steps, or set bivae.item_prior to side features",
        ),
        (
            BiVAEModel(BiVAEConfig(user_prior=PRIOR), 1),
            [entry(1, 0, 4)],
            "0 of 4 latent dimensions of users are active (posterior collapse): "
            "lower bivae.anneal_cap or bivae.latent_dim, or raise bivae.anneal_steps",
        ),
    ],
)
def test_the_cure_is_one_that_the_model_has(model: NetModel[Any], log: list[dict[str, Any]], said: str) -> None:
    assert collapse_warning(log, model.collapse_cure) == said


def test_half_of_the_units_in_the_best_epoch_are_enough() -> None:
    cure = MultVAEModel(MultVAEConfig(), 1).collapse_cure
    assert collapse_warning([entry(1, 0), entry(2, 2)], cure) is None
    kept = [entry(1, 4, ndcg_at_100=0.5), entry(2, 0, ndcg_at_100=0.4)]
    assert collapse_warning(kept, cure) is None
    assert collapse_warning(kept[::-1], cure) is None
    assert collapse_warning([{"epoch": 1, "loss": 2.0}], cure) is None
    assert collapse_warning([], cure) is None
