"""A run's user encoder as a TorchScript file, with the ids of the items that its columns stand for.

encoder.pt          see `sparkcf.models.nets.exported`: rows of users in, vectors and scores out
item_ids.parquet    columns id and known: row i is of column i of a user's row; known: the run gives it a score

The file is written for others. It is read back once, to compare it with the model; nothing else in sparkcf reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparkcf.errors import ConfigError, LakeError
from sparkcf.export.lists import Run
from sparkcf.lake.query import Lake
from sparkcf.models.contract import Scorer
from sparkcf.models.contract_data import Rows, UserBlock
from sparkcf.ranking.opened import OpenedModel, open_model

FILE = "encoder.pt"
COMPARED = 200  # rows whose vectors and scores are compared
LONGEST = 50  # entries of such a row
CLOSE = 1e-5  # largest difference to the model, relative to the largest absolute number where that is above 1


class UserEncoder(Protocol):
    """A model's encoder of users' rows, as a file for others."""

    n_items: int

    def write(self, path: Path) -> None: ...

    def read_back(self, path: Path) -> UserEncoder: ...

    def __call__(self, indptr: Any, indices: Any, values: Any) -> tuple[Any, Any]:
        """Vectors (n, width) and scores (n, n_items); -inf for items without a score."""


@runtime_checkable
class HasUserEncoder(Protocol):
    """A scorer whose users' vectors come from an encoder."""

    def user_encoder(self) -> UserEncoder: ...


def open_encoder(lake: Lake, run: Run) -> OpenedModel:
    """Open a run whose model has an encoder.

    Raises
    ------
    ConfigError
        It has none.
    NotFoundError, LakeError
        The run's factors or weights are missing or damaged.
    """
    opened = open_model(lake, run)
    if not isinstance(opened.scorer, HasUserEncoder):
        raise ConfigError(
            f"--to encoder: model {run.model} has no encoder of users' rows: export a run of multvae, multdae, "
            "macridvae or bivae, or --to vectors"
        )
    return opened


def write_encoder(opened: OpenedModel, folder: Path) -> dict[str, Any]:
    """Write the encoder and the items' ids; returns facts for the manifest.

    Raises LakeError if what was read back gives other numbers than the model.
    """
    scorer = opened.scorer
    assert isinstance(scorer, HasUserEncoder)
    encoder = scorer.user_encoder()
    encoder.write(folder / FILE)
    apart = largest_difference(encoder.read_back(folder / FILE), scorer, opened.run.run_id)
    if not apart <= CLOSE:
        raise LakeError(
            f"the export was not switched to: the encoder that was read back is {apart:.2g} apart from the model, more "
            f"than {CLOSE:g}: check the target's disk or memory and export again"
        )
    known = _write_ids(opened, encoder.n_items, folder / "item_ids.parquet")
    return {"items": encoder.n_items, "known_items": known, "compared": COMPARED, "largest_difference": apart}


def largest_difference(encoder: UserEncoder, scorer: Scorer, seed_of: str) -> float:
    """The largest difference of vectors and scores between an encoder and the model that it came from.

    Relative where numbers are larger than 1. The rows are drawn: of 0 to LONGEST known items each.
    """
    rows = drawn_rows(np.flatnonzero(scorer.fold_items), np.random.default_rng(list(seed_of.encode())))
    vectors, scores = encoder(*rows[:3])
    expected, bias = scorer.fold_in(rows)
    known = _of_length(scorer.known_items, scores.shape[1])
    if not np.isneginf(scores[:, ~known]).all():
        return float("inf")
    wanted = scorer.score_block(UserBlock(expected, bias, np.ones(len(expected), bool), rows))
    return max(_apart(vectors, expected), _apart(scores[:, known], wanted[:, np.flatnonzero(known)]))


def drawn_rows(items: NDArray[np.int64], generator: np.random.Generator) -> Rows:
    """COMPARED rows of items with the value 1; the first is empty."""
    lengths = np.minimum(np.arange(COMPARED) % (LONGEST + 1), len(items))
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    chosen = [np.sort(generator.choice(items, length, replace=False)) for length in lengths]
    indices = np.concatenate(chosen).astype(np.int32)
    ones = np.ones(len(indices), np.float32)
    return indptr, indices, ones, ones


def _of_length(known: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """Which of the encoder's n columns the model knows: it may have fewer items, or more that were folded in."""
    own = known[:n]
    return np.concatenate([own, np.zeros(n - len(own), bool)])


def _apart(found: Any, expected: Any) -> float:
    """NaN where one of them is no number."""
    return float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max(initial=0.0))


def _write_ids(opened: OpenedModel, n_items: int, path: Path) -> int:
    """Write the ids of the columns; returns how many of them have a score."""
    names = opened.ids(list(range(n_items)))
    known = _of_length(opened.scorer.known_items, n_items)
    pq.write_table(
        pa.table({"id": pa.array([names.get(i) for i in range(n_items)], pa.string()), "known": known}), path
    )
    return int(known.sum())
