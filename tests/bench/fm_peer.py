"""myFM's end: run by its environment, knows nothing of sparkcf. See peers.py and peer.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import myfm
import numpy as np
from peer import serve
from scipy.sparse import csr_matrix


class Worker:
    """The commands are the public methods."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _read(self, name: str) -> np.ndarray:
        return np.load(self._folder / f"{name}.npy", allow_pickle=False)

    def _rows(self, part: str, width: int) -> csr_matrix:
        ptr = self._read(f"{part}_ptr")
        triple = (self._read(f"{part}_val").astype(np.float64), self._read(f"{part}_feat"), ptr)
        return csr_matrix(triple, shape=(len(ptr) - 1, width))

    def fm(self, shapes: list[int], rank: int, iterations: int, burn_in: int, seed: int, task: str) -> dict[str, Any]:
        """MCMC on the rows `train_*`; leaves `predicted`, the mean over the samples, of the rows `test_*`."""
        train, test = (self._rows(part, sum(shapes)) for part in ("train", "test"))
        y = self._read("train_y").astype(np.float64)
        regression = task == "regression"
        model = (myfm.MyFMRegressor if regression else myfm.MyFMClassifier)(rank=rank, random_seed=seed)
        times: list[float] = []

        def after_sweep(*_: Any) -> tuple[bool, str]:
            times.append(time.perf_counter())
            return False, ""

        kept = {"n_iter": iterations, "n_kept_samples": iterations - burn_in, "group_shapes": shapes}
        model.fit(train, y if regression else y > 0, callback=after_sweep, **kept)
        predicted = model.predict(test) if regression else model.predict_proba(test)
        np.save(self._folder / "predicted.npy", np.asarray(predicted, np.float64), allow_pickle=False)
        return {"seconds": np.diff(times).tolist()}


if __name__ == "__main__":
    serve(Worker(Path(sys.argv[1])))
