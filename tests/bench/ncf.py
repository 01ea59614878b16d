"""NCF: seconds of epochs by kind and objective, and quality beside ALS.

    python -m tests.bench.ncf [--only epoch,quality] [--rounds N] [--quick]

Trained on the fixed q1 splits of ml-100k and ml-1m, where ../shared/data is; users of the test part are folded in.
`--quick`: epochs on small synthetic pairs, one round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.bench import quality
from tests.bench.report import Goal, print_table, run
from tests.bench.timing import Times, interleaved
from tests.bench.training import MEASURES_SHOWN, SEEDS, datasets, seconds, test_measures, trained

SPLITS = ("ml-100k-q1", "ml-1m-q1")
AUTHORS: dict[str, Any] = {"latent_dim": 8, "hidden": (64, 32, 16, 8), "negatives": 4, "batch_size": 20}
TIMED: dict[str, dict[str, Any]] = {
    "GMF": {"kind": "gmf"},
    "MLP": {"kind": "mlp"},
    "NeuMF": {"kind": "neumf"},
    "NeuMF, softmax": {"kind": "neumf", "objective": "softmax"},
}
TUNED: dict[str, Any] = {"latent_dim": 8, "learning_rate": 0.005, "batch_size": 20, "epochs": 60, "patience": 8}
MEASURED: dict[str, dict[str, Any]] = {
    "GMF": TUNED | {"kind": "gmf", "latent_dim": 32},
    "GMF, softmax": TUNED | {"kind": "gmf", "latent_dim": 32, "objective": "softmax", "batch_size": 100},
    "MLP": TUNED | {"kind": "mlp"},
    "NeuMF": TUNED,  # conf/models/ncf.yaml
    "NeuMF from GMF and MLP": TUNED | {"pretrain_epochs": 15},
    "NeuMF, softmax": TUNED | {"objective": "softmax"},
}
ALS = {"ml-100k-q1": 0.4661, "ml-1m-q1": 0.4305}  # NDCG@100 of our ALS, for reference


def epochs(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    torch.set_num_threads(1)
    for name, data in datasets(SPLITS, quick).items():
        systems = {
            kind: lambda data=data, given=given: seconds("ncf", data, **AUTHORS, **given)
            for kind, given in TIMED.items()
        }
        times: dict[str, Times] = interleaved(systems, rounds)
        for kind, time in times.items():
            table.append((name, kind, time, f"{data.n_users / time.median:,.0f}"))
            goals.append(Goal(f"{name}, {kind}: seconds an epoch", time.median, 1e9, at_least=False))
    print("\nan epoch, GMF of 8, MLP [64, 32, 16, 8], 4 negatives, batch 20, one thread")
    print_table(("data", "kind", "seconds: median (least–greatest)", "users/s"), table)


def qualities(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """Means over seeds; `--rounds` 1: one seed."""
    torch.set_num_threads(2)
    table = []
    for split in SPLITS:
        for kind, given in MEASURED.items():
            found = [test_measures(split, trained(split, "ncf", given, seed)[0]) for seed in SEEDS[:rounds]]
            means = [float(np.mean([each[measure] for each in found])) for measure in MEASURES_SHOWN]
            spread = np.std([each[MEASURES_SHOWN[0]] for each in found])
            table.append((split, kind, f"{means[0]:.4f} ± {spread:.4f}", *(f"{mean:.4f}" for mean in means[1:])))
        table.append((split, "sparkcf ALS", f"{ALS[split]:.4f}", "", ""))
    print("\nquality on the test parts")
    print_table(("split", "kind", "NDCG@100", "NDCG@20", "Recall@20"), table)


MEASURES = {"epoch": epochs, "quality": qualities}
QUICKLY = ("epoch",)

if __name__ == "__main__":
    run("ncf", MEASURES, QUICKLY, __doc__, quality.SPLITS.is_dir())
