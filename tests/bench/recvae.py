"""RecVAE: what each of its parts brings, alone and together, beside Mult-VAE; NDCG@100 on the test users.

    python -m tests.bench.recvae [--split ml-1m-q1] [--seeds 3]

The base is Mult-VAE as it was picked on validation for the split (tests/bench/nets.py); a part changes that one thing.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from tests.bench.nets import CHOSEN, SIZES
from tests.bench.report import Goal, finish, print_table
from tests.bench.training import figure

ALTERNATING = {"encoder_epochs": 3, "patience": 40}  # epochs of either side count
DENSE = {"encoder": "dense", "hidden": (600,), "latent_dim": 200}
PARTS: dict[str, dict[str, Any]] = {
    "Mult-VAE": {},
    "dense encoder": DENSE,
    "composite prior": {"prior": "composite"},
    "weight by the row": {"kl_per_item": 0.005},
    "encoder and decoder in turns": ALTERNATING,
    # Picked on validation NDCG@100 of one seed, of seven trials.
    "all together (RecVAE)": {
        **(DENSE | ALTERNATING | {"prior": "composite", "kl_per_item": 0.005}),
        **{"dense_layers": 3, "dropout": 0.5, "batch_size": 200, "epochs": 240},
    },
}
AIM = {"ml-100k-q1": 0.4479, "ml-1m-q1": 0.4151}  # of Mult-VAE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=AIM, default="ml-1m-q1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS)
    given = parser.parse_args()
    torch.set_num_threads(2)
    table, goals = [], []
    for name, changes in PARTS.items():
        if given.only and name != given.only:
            continue
        chosen = SIZES["multvae"] | CHOSEN[given.split, "multvae"] | changes
        figures = [figure(given.split, "multvae", chosen, seed) for seed in range(1, given.seeds + 1)]
        table.append((name, f"{np.mean(figures):.4f} ± {np.std(figures):.4f}"))
        print(*table[-1], flush=True)
        if name.startswith("all"):
            goals.append(
                Goal(f"{given.split} RecVAE NDCG@100 above Mult-VAE's", float(np.mean(figures)), AIM[given.split])
            )
    print_table(("parts", "NDCG@100"), table)
    finish("recvae", given.split, goals)


if __name__ == "__main__":
    main()
