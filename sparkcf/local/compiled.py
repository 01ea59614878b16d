"""Compile the kernels of a night by ALS into numba's cache, so that the first night finds them.

    python -m sparkcf.local.compiled

`make setup` runs it.
"""

from __future__ import annotations

import numpy as np

from sparkcf.local.recommender import fit


def compile_kernels() -> None:
    """Fit, rank and measure a few made-up pairs by the functions that the jobs call, whose kernels are then cached."""
    rng = np.random.default_rng(0)
    users, items = np.divmod(np.unique(rng.integers(0, 60 * 40, 900)), 40)
    model = fit("als", (users, items), rank=8)
    model.recommend([0], k=5)
    model.similar([0], k=5)
    model.evaluate("q2", ks=(5,))


if __name__ == "__main__":
    compile_kernels()
