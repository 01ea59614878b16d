"""Operations on dense vectors, a row each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def unit_rows(vectors: F32) -> F32:
    """Rows divided by their lengths; a row of zeros stays."""
    norms = np.sqrt(np.einsum("nk,nk->n", vectors, vectors, dtype=np.float64))[:, None]
    unit: F32 = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0, casting="same_kind")
    return unit
