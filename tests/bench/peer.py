"""The peer's end: run by the peers' environment, knows nothing of sparkcf. See peers.py.

One JSON object a line: {"do": NAME, …} is answered by one JSON object. Arrays lie as NAME.npy in the folder given.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix


class Worker:
    """The commands are the public methods."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _read(self, name: str) -> np.ndarray:
        return np.load(self._folder / f"{name}.npy", allow_pickle=False)

    def _write(self, name: str, array: np.ndarray) -> None:
        np.save(self._folder / f"{name}.npy", array, allow_pickle=False)

    def pairs(self, n_users: int, n_items: int) -> dict[str, Any]:
        """Keep users, items, values as the matrix of all later commands."""
        triple = (self._read("values").astype(np.float32), (self._read("users"), self._read("items")))
        self._matrix = csr_matrix(triple, shape=(n_users, n_items))
        return {"nnz": self._matrix.nnz}

    def als(self, rank: int, threads: int, alpha: float, regularization: float, cg_steps: int) -> dict[str, Any]:
        """A model of implicit that begins from user_factors, item_factors; cg_steps 0: Cholesky."""
        from implicit.cpu.als import AlternatingLeastSquares

        self._model = AlternatingLeastSquares(
            factors=rank,
            alpha=alpha,
            regularization=regularization,
            use_cg=cg_steps > 0,
            num_threads=threads,
            calculate_training_loss=False,
        )
        self._model.cg_steps = cg_steps
        self._model.user_factors = self._read("user_factors").astype(np.float32)
        self._model.item_factors = self._read("item_factors").astype(np.float32)
        return {}

    def sweep(self, n: int) -> dict[str, Any]:
        """n iterations more. The callback's time holds the two half-sweeps: no conversion, no loss."""
        seconds: list[float] = []
        self._model.iterations = n
        self._model.fit(self._matrix, show_progress=False, callback=lambda _, elapsed, __: seconds.append(elapsed))
        self._write("user_factors", self._model.user_factors)
        self._write("item_factors", self._model.item_factors)
        return {"seconds": seconds}

    def topk(self, k: int, batch: int) -> dict[str, Any]:
        """Lists of the users in the array `who`, their known items left out, `batch` users a call (0: all at once)."""
        who = self._read("who")
        size = batch or len(who)
        parts = [who[first : first + size] for first in range(0, len(who), size)]
        known = [self._matrix[part] for part in parts]
        begin = time.perf_counter()
        lists = [
            self._model.recommend(part, rows, N=k, filter_already_liked_items=True)
            for part, rows in zip(parts, known, strict=True)
        ]
        seconds = time.perf_counter() - begin
        self._write("indices", np.concatenate([ids for ids, _ in lists]))
        self._write("scores", np.concatenate([scores for _, scores in lists]))
        return {"seconds": seconds}

    def nmf(self, iterations: int) -> dict[str, Any]:
        """scikit-learn's coordinate descent from W (n_users, rank) and H (rank, n_items): objective against seconds.

        It has no callback, so every iteration is a call that begins where the last one ended.
        """
        from sklearn.decomposition import non_negative_factorization

        w, h = self._read("W").astype(np.float32), self._read("H").astype(np.float32)
        spent, curve = 0.0, []
        for _ in range(iterations):
            begin = time.perf_counter()
            w, h, _ = non_negative_factorization(
                self._matrix, w, h, n_components=len(h), init="custom", solver="cd", tol=0, max_iter=1
            )
            spent += time.perf_counter() - begin
            curve.append((spent, self._squared_error(w.astype(np.float64), h.astype(np.float64))))
        return {"curve": curve}

    def _squared_error(self, w: np.ndarray, h: np.ndarray) -> float:
        """|X - W H|^2 over all entries, by way of the Gramians."""
        x = self._matrix
        product = float(np.sum(np.asarray(x.astype(np.float64) @ h.T) * w))
        return float(np.square(x.data, dtype=np.float64).sum() - 2 * product + np.sum((w.T @ w) * (h @ h.T)))


def best(scores: np.ndarray, ptr: np.ndarray, seen: np.ndarray, k: int) -> np.ndarray:
    """The k best columns of every row of scores, int32, best first, ties by column.

    Row u's columns `seen[ptr[u] : ptr[u + 1]]` and those of score -inf are not listed; -1 stands where none is left.
    """
    scores[np.repeat(np.arange(len(scores)), np.diff(ptr)), seen[ptr[0] : ptr[-1]]] = -np.inf
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
    ranked[np.take_along_axis(scores, ranked, axis=1) == -np.inf] = -1
    return ranked


def serve(worker: Any) -> None:
    """Answer the commands of standard input by the worker's methods."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Worker(Path(sys.argv[1])))
