"""cornac's end: the training of its BiVAECF, an epoch a command. See peers.py, and peer.py for the protocol.

BiVAECF.fit is run as it is, in a thread of its own. Only its progress bar is replaced: the one here lets an epoch
begin when it is asked for. So the sides take turns as in cornac (items, then users), with one Adam a side throughout.
What cornac adds to the work itself, and any comparison must name:

- every batch is made dense over the whole other side, by slices of rows from a matrix in column order for items;
- a second forward pass a batch, after the step, stores the vectors that the other side trains against;
- the ids of both sides are collected anew from all pairs in every epoch, by a Python set;
- the decoder has a sigmoid whatever the likelihood; rows keep their order, nothing is shuffled.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cornac.data import Dataset
from cornac.models import BiVAECF
from cornac.models.bivaecf import bivae
from peer import best, serve

ROWS = 500  # scored at a time


class Turns:
    """A progress bar that waits for `next` before every epoch, in the thread of the training."""

    def __init__(self) -> None:
        self._asked: queue.Queue[bool] = queue.Queue()
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._losses: dict[str, float] = {}

    def run(self, model: BiVAECF, data: Dataset, threads: int) -> None:
        """Start the thread of the training and wait until its first epoch could begin."""
        bivae.trange = lambda *_, **__: self

        def fit() -> None:
            torch.set_num_threads(threads)
            try:
                model.fit(data)
            except Exception:
                self._answers.put({"error": traceback.format_exc()})

        self._thread = threading.Thread(target=fit, daemon=True)
        self._thread.start()
        self._answer()

    def next(self) -> dict[str, Any]:
        """Train one epoch."""
        self._asked.put(True)
        return self._answer()

    def end(self) -> None:
        """Let the training end: its last inference draws random numbers, which must not fall into the next one's."""
        self._asked.put(False)
        self._thread.join()

    def _answer(self) -> dict[str, Any]:
        answer = self._answers.get()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def __iter__(self) -> Iterator[None]:
        self._answers.put({})
        while self._asked.get():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            yield None
            spent = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
            self._answers.put(spent | self._losses)

    def set_postfix(self, **losses: float) -> None:
        """What cornac's loop shows after every batch of users: the losses of the epoch so far."""
        self._losses = losses


class Worker:
    """The commands are the public methods."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turns: Turns | None = None

    def _read(self, name: str) -> np.ndarray:
        return np.load(self._folder / f"{name}.npy", allow_pickle=False)

    def model(
        self,
        n_users: int,
        n_items: int,
        k: int = 10,
        encoder_structure: list[int] | None = None,
        act_fn: str = "tanh",
        likelihood: str = "pois",
        batch_size: int = 100,
        learning_rate: float = 1e-3,
        beta_kl: float = 1.0,
        threads: int = 1,
        seed: int = 1,
    ) -> dict[str, Any]:
        """A BiVAECF on the arrays users, items; settings and defaults are cornac's, `encoder_structure` None: [20]."""
        if self._turns:
            self._turns.end()
        torch.set_num_threads(threads)
        users, items = self._read("users").astype(np.int64), self._read("items").astype(np.int64)
        ids = ({number: number for number in range(n)} for n in (n_users, n_items))
        self._data = Dataset(n_users, n_items, *ids, (users, items, np.ones(len(users))), seed=seed)
        self._model = BiVAECF(
            k=k,
            encoder_structure=[20] if encoder_structure is None else encoder_structure,
            act_fn=act_fn,
            likelihood=likelihood,
            batch_size=batch_size,
            learning_rate=learning_rate,
            beta_kl=beta_kl,
            seed=seed,
            use_gpu=False,
        )
        self._turns = Turns()
        self._turns.run(self._model, self._data, threads)
        return {"parameters": sum(p.numel() for p in self._model.bivae.parameters())}

    def epoch(self) -> dict[str, Any]:
        """One epoch of cornac's loop; `loss_i`, `loss_u`: the sums of the batches' mean losses, by row."""
        return self._turns.next()  # type: ignore[union-attr]

    def lists(self, k: int) -> dict[str, Any]:
        """Leave `ranked`, lists of all users; items in the rows (seen_ptr, seen_items) or of no pair are not listed.

        The means are those that cornac infers when its training ends: of the encoders as they are now.
        """
        net, matrix = self._model.bivae, self._data.matrix
        ptr, seen = self._read("seen_ptr"), self._read("seen_items")
        with torch.no_grad():
            beta = _means(net.encode_item, matrix.T.tocsr())
            theta = _means(net.encode_user, matrix)
        beta, theta = beta.numpy(), theta.numpy()
        missing = matrix.getnnz(axis=0) == 0
        parts = []
        for first in range(0, len(theta), ROWS):
            scores = theta[first : first + ROWS] @ beta.T
            scores[:, missing] = -np.inf
            parts.append(best(scores, ptr[first : first + ROWS + 1], seen, k))
        np.save(self._folder / "ranked.npy", np.concatenate(parts), allow_pickle=False)
        return {}


def _means(encode: Any, rows: Any) -> torch.Tensor:
    parts = [rows[first : first + ROWS].toarray() for first in range(0, rows.shape[0], ROWS)]
    return torch.cat([encode(torch.tensor(part, dtype=torch.float32))[0] for part in parts])


if __name__ == "__main__":
    serve(Worker(Path(sys.argv[1])))
