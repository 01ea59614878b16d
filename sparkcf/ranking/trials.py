"""Trials on arrays: a fit of the train part of a split in one task, measured on the held-out part.

The split's pairs are collected once and shared with the executors. The lists and the measure are those of
`ranking.evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparkcf.data.pairs import popularity
from sparkcf.data.shared import SharedState, share_state
from sparkcf.data.split import Split
from sparkcf.errors import SparkcfError, first_line
from sparkcf.kernels.csr import build_csr
from sparkcf.kernels.metrics import ranking_measures
from sparkcf.models.contract import Model
from sparkcf.models.contract_data import LocalData, LocalFit, LocalRun, UserBlock
from sparkcf.ranking.topk import Catalogue, Ranker
from sparkcf.spark import DataFrame, F, SparkSession

RESULT = "number int, value double, seconds double, reason string, names array<string>, arrays array<binary>"
BLOCK_USERS = 2000  # ranked at a time
Array = NDArray[Any]


@dataclass(frozen=True)
class TrialResult:
    """value: the measure; None: the fit failed, for `reason`. fit: where the trial goes on; empty unless asked for."""

    value: float | None
    seconds: float
    reason: str = ""
    fit: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class TrialPart:
    """A trial's next sweeps, on from `start` if it has begun."""

    number: int
    model: Model[Any]
    sweeps: int
    last: bool
    start: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class TrialData:
    """A split that every executor can open. folded: the tested users are not in training, but folded in."""

    state: SharedState
    n_users: int
    n_items: int
    folded: bool


def share_split(spark: SparkSession, parts: Split, sizes: tuple[int, int], folded: bool) -> TrialData:
    """Collect a split's pairs and share them with the executors. `sizes` : numbers of users and items."""
    train = _columns(parts.train)
    arrays = {f"train_{name}": column for name, column in train.items()}
    tested = np.unique(_columns(parts.heldout)["user_idx"])
    arrays["tested"] = tested
    for name in ("heldout", "seen", "rows"):
        columns = _columns(
            getattr(parts, name).join(F.broadcast(parts.heldout.select("user_idx").distinct()), "user_idx")
        )
        ones = np.ones(len(columns["user_idx"]), np.float32)
        place = np.searchsorted(tested, columns["user_idx"]).astype(np.int32)
        own = {"values": ones}
        if name == "rows":
            own = {"values": columns.get("value", ones), "weights": columns.get("weight", ones)}
        for part, numbers in own.items():
            indptr, indices, data = build_csr(place, columns["item_idx"], numbers, len(tested), sizes[1])
            arrays |= {f"{name}_indptr": indptr, f"{name}_indices": indices, f"{name}_{part}": data}
    arrays["popularity"] = Catalogue.of(popularity(parts.popular), sizes[1]).popularity
    return TrialData(share_state(spark, arrays), *sizes, folded)


def run_parts(
    spark: SparkSession, data: TrialData, parts: list[TrialPart], measure: tuple[str, int], threads: int
) -> dict[int, TrialResult]:
    """Run the next sweeps of several trials, a task each; results by the trials' numbers.

    A fit that raises an error of ours has that as its reason, other errors end the stage.
    """
    by_place = spark.sparkContext.broadcast(parts)
    try:

        def work(batches: Iterable[Any]) -> Iterator[Any]:
            import pyarrow as pa

            for batch in batches:
                for place in batch.column("id").to_pylist():
                    part = by_place.value[place]
                    result = _run(data, part, measure, threads)
                    kept = {} if result.fit is None else result.fit
                    packed = [_packed(array) for array in kept.values()]
                    row = (part.number, result.value, result.seconds, result.reason, list(kept), packed)
                    columns = [[value] for value in row]
                    types = [pa.int32(), pa.float64(), pa.float64(), pa.string()]
                    types += [pa.list_(pa.string()), pa.list_(pa.binary())]
                    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
                    yield pa.RecordBatch.from_arrays(arrays, names=[field.split()[0] for field in RESULT.split(", ")])

        rows = spark.range(0, len(parts), 1, len(parts)).mapInArrow(work, RESULT).collect()
    finally:
        by_place.destroy()
    return {
        row["number"]: TrialResult(
            row["value"],
            row["seconds"],
            row["reason"],
            {name: _unpacked(data) for name, data in zip(row["names"], row["arrays"], strict=True)} or None,
        )
        for row in rows
    }


def _run(data: TrialData, part: TrialPart, measure: tuple[str, int], threads: int) -> TrialResult:
    begin = perf_counter()
    arrays = data.state.open()
    names = ("train_user_idx", "train_item_idx", "train_value")
    columns, sizes = (arrays[name] for name in names), (data.n_users, data.n_items)
    pairs = LocalData(*columns, *sizes, arrays.get("train_weight"), threads)
    try:
        start = None if part.start is None else _fit_of(part.start)
        fit = part.model.fit_local(pairs, LocalRun(rounds=part.sweeps, start=start))
        with threadpool_limits(1, user_api="blas"):
            value = measured(part.model, fit, data, arrays, measure)
    except SparkcfError as error:
        return TrialResult(None, perf_counter() - begin, first_line(error))
    return TrialResult(value, perf_counter() - begin, "", None if part.last else _arrays_of(fit))


def measured(
    model: Model[Any], fit: LocalFit, data: TrialData, arrays: Mapping[str, Array], measure: tuple[str, int]
) -> float:
    """The mean measure of the tested users' lists."""
    name, k = measure
    tested, saved = arrays["tested"], fit.saved
    ranker = Ranker(model.open(saved), Catalogue(np.ones(data.n_items, bool), arrays["popularity"]))
    total, counted = 0.0, 0
    for first in range(0, len(tested), BLOCK_USERS):
        users = slice(first, first + BLOCK_USERS)
        rows, seen, heldout = (_slice(arrays, part, users) for part in ("rows", "seen", "heldout"))
        weighted = (*rows, _slice(arrays, "rows", users, "weights")[2])
        block = replace(fit.users.take(tested[users]), rows=weighted)
        if data.folded:
            vectors, bias = ranker.scorer.fold_in(weighted)
            block = UserBlock(vectors, bias, np.ones(len(block), bool), weighted)
        ranked, _ = ranker.rank(block, (seen[0], seen[1]), k)
        names, values = ranking_measures(ranked, heldout[0], heldout[1], (k,))
        column = values[:, names.index((name, k))]
        total, counted = total + float(np.nansum(column)), counted + int(np.isfinite(column).sum())
    return total / max(counted, 1)


def _slice(arrays: Mapping[str, Array], name: str, rows: slice, data: str = "values") -> tuple[Array, Array, Array]:
    indptr = arrays[f"{name}_indptr"][rows.start : rows.stop + 1]
    here = slice(int(indptr[0]), int(indptr[-1]))
    return indptr - indptr[0], arrays[f"{name}_indices"][here], arrays[f"{name}_{data}"][here]


def _columns(frame: DataFrame) -> dict[str, Array]:
    """user_idx, item_idx, and value and weight where there are some, sorted: the same in any order of the rows."""
    names = [name for name in ("user_idx", "item_idx", "value", "weight") if name in frame.columns]
    found: Any = frame.select(*names).toPandas()
    order = np.lexsort((found["item_idx"].to_numpy(), found["user_idx"].to_numpy()))
    kinds = [np.int32, np.int32, np.float32, np.float32]
    return {
        name: np.ascontiguousarray(found[name].to_numpy(kind)[order]) for name, kind in zip(names, kinds, strict=False)
    }


def _arrays_of(fit: LocalFit) -> dict[str, Array]:
    return fit.to_arrays() | {"means": np.array([fit.saved.mean, fit.saved.average])}


def _fit_of(arrays: Mapping[str, Array]) -> LocalFit:
    mean, average = arrays["means"]
    return LocalFit.of_arrays(dict(arrays), float(mean), float(average), [])


def _packed(array: Array) -> bytes:
    """An array as the bytes of a .npy file."""
    from io import BytesIO

    file = BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _unpacked(data: bytes) -> Array:
    from io import BytesIO

    found: Array = np.load(BytesIO(bytes(data)), allow_pickle=False)
    return found
