"""`implicit` and our ALS reach the same objective with the equivalent parameters of docs/migration.md."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import sparkcf

PEERS = Path(__file__).resolve().parents[2] / ".bench-peers" / "bin" / "python"
RANK, REGULARIZATION, ALPHA = 3, 0.5, 4.0
SCRIPT = """
import json, sys
import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
users, items, values, rank, regularization, alpha = json.load(sys.stdin)
rows = csr_matrix((np.array(values, np.float32), (users, items)))
found = []
for seed in range(6):
    model = AlternatingLeastSquares(
        rank, regularization, alpha, iterations=100, use_cg=False, random_state=seed, num_threads=1
    )
    model.fit(rows, show_progress=False)
    found.append([np.asarray(side).tolist() for side in (model.user_factors, model.item_factors)])
print(json.dumps(found))
"""


def objective(values: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    """sum c (1[r > 0] - p q)^2 + lambda (|p|^2 + |q|^2), c = alpha r on observed pairs and 1 elsewhere."""
    confidence = np.where(values > 0, ALPHA * values, 1.0)
    return float((confidence * ((values > 0) - p @ q.T) ** 2).sum() + REGULARIZATION * ((p**2).sum() + (q**2).sum()))


def test_implicit_reaches_the_same_objective() -> None:
    if not PEERS.is_file():
        pytest.skip("make bench-peers has not been run: no .bench-peers with implicit")
    rng = np.random.default_rng(5)
    strength = rng.gamma(1.0, 1.0, (40, 2)) @ rng.gamma(1.0, 1.0, (2, 30))
    values = np.where(strength > np.quantile(strength, 0.6), np.ceil(strength), 0.0)
    values[0, :] = values[:, 0] = 1.0  # every user and every item has an entry
    users, items = np.nonzero(values)
    entries = [users.tolist(), items.tolist(), values[users, items].tolist()]
    given = json.dumps([*entries, RANK, REGULARIZATION, ALPHA])
    done = subprocess.run(
        [str(PEERS), "-c", SCRIPT], input=given, capture_output=True, text=True, timeout=120, check=True
    )
    theirs = min(objective(values, *map(np.array, both)) for both in json.loads(done.stdout.splitlines()[-1]))
    reached = []
    for seed in range(6):  # there are several minima: the best of a few starts on both sides
        model = sparkcf.fit(
            "als",
            tuple(entries),
            seed=seed,
            preference={"weight": "value"},
            form="implicit",
            rank=RANK,
            regularization=REGULARIZATION,
            regularization_exponent=0.0,
            alpha=ALPHA,
            solver="cholesky",
            iterations=100,
        )
        reached.append(objective(values, model.factors("user").to_numpy(), model.factors("item").to_numpy()))
        assert model.log[-1]["objective"] == pytest.approx(reached[-1], rel=1e-4)
    assert min(reached) == pytest.approx(theirs, rel=1e-2)
