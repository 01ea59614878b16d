"""A factorization machine fitted in this process, for notebooks, tests and small data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.fm import FMConfig
from sparkcf.kernels.fm import predict_rows
from sparkcf.kernels.threads import in_threads
from sparkcf.models.fm.links import answers
from sparkcf.models.fm.rows import Field, FMData, FMPlan, FMRows, make_plan, part_starts
from sparkcf.models.fm.samples import Sample
from sparkcf.models.fm.sweeps import train_fm
from sparkcf.training.gang import Alone
from sparkcf.training.saved_sweeps import SavedSweeps

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class FMFit:
    """A factorization machine fitted in this process.

    samples : w_0 and the table of all features, field after field, float32 (m, k + 1), a row [v_j, w_j] each.
    log : one entry per sweep or epoch.
    """

    plan: FMPlan
    samples: list[tuple[float, F32]]
    log: list[dict[str, Any]]

    def predict(self, data: FMData) -> tuple[F64, F64]:
        """Values or probabilities of rows, and their standard deviation over the samples; float64 (n,).

        Unknown features, with an index below 0 or from the field's size on, contribute 0.
        """
        return predicted(self.samples, *entries_of(data, self.plan), self.plan)

    def scorer(self, candidates: Callable[[slice], FMData]) -> Callable[[slice], F32]:
        """A `score_block` for `kernels.topk.rank_scores`, for contexts that differ from item to item.

        Parameters
        ----------
        candidates : (slice of users) -> their rows with every item, user after user.
        """

        def score_block(users: slice) -> F32:
            values, _ = self.predict(candidates(users))
            return values.astype(np.float32).reshape(users.stop - users.start, -1)

        return score_block


def fit_fm_arrays(
    data: FMData,
    fields: tuple[Field, ...],
    n_users: int,
    n_items: int,
    config: FMConfig,
    seed: int,
    threads: int = 1,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    checkpoint_dir: str | None = None,
) -> FMFit:
    """Fit in this process.

    Parameters
    ----------
    fields : all fields in the order of their tables; fields with a `side` read their features from users and items.
    checkpoint_dir : folder of this fit alone, from whose sweeps it goes on; removed when it is done.
    """
    plan = make_plan(config, fields, n_users, n_items, seed, threads)
    if config.learner == "sgd":
        return _descended(data, plan, on_progress)
    key = np.arange(len(data.y), dtype=np.int64)
    rest = (data.y, key, data.ptr, data.feat, data.val)
    rows = [FMRows(data.users, data.items, *rest), FMRows(data.items, data.users, *rest)]
    saved = SavedSweeps(checkpoint_dir) if checkpoint_dir and config.save_every else None
    samples, log = train_fm(rows, plan, Alone(on_progress), saved)
    if saved:
        saved.clear()
    return FMFit(plan, [(sample.w0, whole_table(sample, plan)) for sample in samples], log)


def _descended(data: FMData, plan: FMPlan, on_progress: Callable[[dict[str, Any]], None] | None) -> FMFit:
    from sparkcf.models.fm.sgd import descend, examples_of

    w0, table, log = descend(examples_of(data, plan), plan, on_progress or (lambda entry: None))
    users, items = part_starts(plan)
    own = [table[start : start + size] for start, size in zip((users, items), plan.sizes, strict=True)]
    sample = Sample(w0, 1.0, [*own], table[:users], [])
    return FMFit(plan, [(w0, whole_table(sample, plan))], log)


def whole_table(sample: Sample, plan: FMPlan) -> F32:
    """The table of all features, field after field, of a sample of a gang of one worker."""
    parts = []
    for f, start in zip(plan.fields, plan.starts(), strict=True):
        own = None if f.side is None else sample.own[f.side]
        parts.append(sample.everywhere[start : start + f.size] if own is None else own)
    return np.concatenate(parts)


def entries_of(data: FMData, plan: FMPlan) -> tuple[tuple[I64, I32, F32], NDArray[np.int16]]:
    """Rows as `rowptr`, `feat`, `val` over the table of all features, and the field of each feature, int16 (m,)."""
    n, begin = len(data.y), 0
    fields = np.concatenate([np.full(f.size, number, np.int16) for number, f in enumerate(plan.fields)])
    rows, feats, vals = [], [], []
    everywhere = np.zeros(plan.everywhere + 1, np.int32)
    for f, start in zip(plan.fields, plan.starts(), strict=True):
        if f.side is None:
            everywhere[start : start + f.size] = np.arange(begin, begin + f.size)
        else:
            index = (data.users, data.items)[f.side]
            known = np.flatnonzero((index >= 0) & (index < f.size))
            rows.append(known)
            feats.append(begin + index[known])
            vals.append(np.ones(len(known), np.float32))
        begin += f.size
    seen = np.flatnonzero((data.feat >= 0) & (data.feat < plan.everywhere))
    rows.append((np.searchsorted(data.ptr, seen, side="right") - 1).astype(np.int64))
    feats.append(everywhere[data.feat[seen]])
    vals.append(data.val[seen])
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    rowptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))]).astype(np.int64)
    return (rowptr, np.concatenate(feats)[order].astype(np.int32), np.concatenate(vals)[order]), fields


def predicted(
    samples: Sequence[tuple[float, F32]], entries: tuple[I64, I32, F32], fields: NDArray[np.int16], plan: FMPlan
) -> tuple[F64, F64]:
    """Mean and standard deviation over the samples of predicted values (regression) or probabilities, float64 (n,).

    Parameters
    ----------
    samples : w_0 and the table of all features, field after field, float32 (m, k + 1), of each sample.
    entries : rowptr, feat, val of the rows.
    fields : int16 (m,), field of each feature.
    """
    n = len(entries[0]) - 1
    total, squares, out = np.zeros(n), np.zeros(n), np.empty(n)
    for w0, table in samples:

        def share(thread: int, table: F32 = table, w0: float = w0) -> None:
            predict_rows(*entries, table, fields, plan.pairs, w0, thread, plan.threads, out)

        in_threads(plan.threads, share)
        values = answers(out, plan.config)
        total += values
        squares += values**2
    mean = total / len(samples)
    return mean, np.sqrt(np.maximum(squares / len(samples) - mean**2, 0.0))
