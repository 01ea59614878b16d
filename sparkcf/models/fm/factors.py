"""Fold a factorization machine's samples into one vector per user and per item, whose inner product is a(x).

With the user's fields U and the item's fields I, a(x) = w_0 + b_U + b_I + sum_{f in U, g in I, pair} <s_f, s_g>, where
s_f sums a field's vectors, and b_U, b_I sum the weights and interactions among the fields of one side. Fields of the
item that interact with the same fields of the user share a part, so for every sample

    user = [sum_{f paired with part 1} s_f, part 2, …, w_0 + b_U, 1] / samples
    item = [sum_{g in part 1} s_g,          part 2, …, 1,       b_I]

and the inner product of all samples' pieces side by side is the mean of a(x). So top-K is the same as for other models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from sparkcf.config.fm import FMConfig
from sparkcf.kernels.fm import fold_in_users
from sparkcf.models.fm.links import link_of
from sparkcf.models.fm.rows import WEIGHT_EXPONENTS, Field, FMPlan, make_plan
from sparkcf.training.blocks import ITEM, USER

F32 = NDArray[np.float32]
Entries = tuple[NDArray[np.int64], NDArray[np.int32], F32]


def parts_of(config: FMConfig) -> list[tuple[list[str], list[str]]]:
    """For each part of the vectors: the item's fields whose vectors are summed, and the user's fields."""
    items = [f.name for f in config.fields if f.side == "item"]
    users = [f.name for f in config.fields if f.side != "item"]
    parts: dict[tuple[str, ...], list[str]] = {}
    for item in items:
        interacting = tuple(user for user in users if config.interacting(user, item))
        if interacting:
            parts.setdefault(interacting, []).append(item)
    return [(summed, list(interacting)) for interacting, summed in parts.items()]


def sample_width(config: FMConfig) -> int:
    """Length of one sample's piece of a vector."""
    return len(parts_of(config)) * config.rank + 2


def sample_count(config: FMConfig) -> int:
    return max(1, len(config.kept_sweeps()))


def folded(
    side_is_item: bool,
    own: F32 | None,
    entries: Entries,
    w0: NDArray[np.float64],
    everywhere: F32,
    plan: FMPlan,
) -> F32:
    """Vectors of users or items, float32 (n, samples * sample_width).

    Parameters
    ----------
    own : (n, samples, k + 1), parameters of the ids; zeros for an id that was not in training; None: no field of ids.
    entries : indptr (n + 1,), feat, val of the other features, numbered from 0 over the fields held by every worker.
    w0 : (samples,).
    everywhere : (samples, m, k + 1), parameters of the fields held by every worker.
    """
    config, n = plan.config, len(entries[0]) - 1
    samples, k = len(w0), config.rank
    out = np.empty((n, samples, sample_width(config)), np.float32)
    here = [number for number, f in enumerate(plan.fields) if f.of_item == side_is_item]
    indptr, feat, val = entries
    whole = csr_matrix((val.astype(np.float64), feat, indptr), shape=(n, plan.everywhere))
    for s in range(samples):
        sums, bias = {}, np.zeros(n)
        for number in here:
            f, start = plan.fields[number], plan.starts()[number]
            if f.side is not None:
                table = np.zeros((n, k + 1)) if own is None else own[:, s].astype(np.float64)
                sums[number], weights, squares = table[:, :k], table[:, k], np.square(table[:, :k]).sum(axis=1)
            else:
                table = everywhere[s, start : start + f.size].astype(np.float64)
                part = whole[:, start : start + f.size]
                sums[number], weights = part @ table[:, :k], part @ table[:, k]
                squares = part.power(2) @ np.square(table[:, :k]).sum(axis=1)
            bias += weights
            if plan.pairs[number, number]:
                bias += 0.5 * (np.square(sums[number]).sum(axis=1) - squares)
        for at, p in enumerate(here):
            for q in here[:at]:
                if plan.pairs[p, q]:
                    bias += np.einsum("nk,nk->n", sums[p], sums[q])
        by_name = {plan.fields[number].name: total for number, total in sums.items()}
        for place, (items, users) in enumerate(parts_of(config)):
            summed = sum((by_name[name] for name in (items if side_is_item else users)), np.zeros((n, k)))
            out[:, s, place * k : (place + 1) * k] = summed
        out[:, s, -2] = 1.0 if side_is_item else w0[s] + bias
        out[:, s, -1] = bias if side_is_item else 1.0
    if not side_is_item:
        out /= samples
    return out.reshape(n, samples * sample_width(config))


def unknown_vectors(w0: NDArray[np.float64], config: FMConfig) -> tuple[F32, F32]:
    """Vectors of a user and of an item without known features, float32 (samples * sample_width,) each."""
    user, item = (np.zeros((len(w0), sample_width(config)), np.float32) for _ in range(2))
    user[:, -2], user[:, -1], item[:, -2] = w0, 1.0, 1.0
    return (user / len(w0)).reshape(-1), item.reshape(-1)


def terms(user: F32, item: F32, config: FMConfig) -> list[tuple[str, float]]:
    """The terms of a user's and an item's a(x) by name, means over the samples; they sum to the inner product.

    A pair of fields is a term of its own where no other field of the same side interacts with the same fields of the
    other side; else the fields of a side are stored as one sum, and are one term. The weights of a side's fields, and
    the interactions among them, are a term too; w_0 is among the user's.

    Parameters
    ----------
    user, item : (samples * sample_width,).
    """
    samples, width = sample_count(config), sample_width(config)
    products = (user.astype(np.float64) * item).reshape(samples, width).sum(axis=0)
    of_user = [f.name for f in config.fields if f.side != "item"]
    of_item = [f.name for f in config.fields if f.side == "item"]
    found = [
        (f"{' + '.join(users)} × {' + '.join(items)}", float(products[p * config.rank : (p + 1) * config.rank].sum()))
        for p, (items, users) in enumerate(parts_of(config))
    ]
    found.append((f"w_0, linear: {' + '.join(of_user)}", float(products[-2])))
    return [*found, (f"linear: {' + '.join(of_item)}", float(products[-1]))]


def without_biases(vectors: F32, config: FMConfig) -> F32:
    """Vectors (n, samples * sample_width) without their bias entries, for the similarity of items."""
    n, samples, width = len(vectors), sample_count(config), sample_width(config)
    pieces = vectors.reshape(n, samples, width)[:, :, :-2]
    return np.ascontiguousarray(pieces).reshape(n, samples * (width - 2))


def fold_in_fm(
    rows: Entries, items: F32, state: dict[str, NDArray[Any]], config: FMConfig, features: Entries | None = None
) -> F32:
    """Vectors of users who were not in training, float32 (n, samples * sample_width), with every sample's items fixed.

    In every sample the (v, w) of a user's id is the mode of its posterior given the user's rows, see
    `kernels.fm.fold_in_users`; for regression that is the mean of the Gaussian conditional.

    Parameters
    ----------
    rows : indptr, indices, values over the items.
    items : (m, samples * sample_width).
    state : see `frames.Learned`.
    features : indptr, feat, val of the users' features other than their ids; None: their histories.
    """
    indptr, indices, values = rows
    n, k, samples = len(indptr) - 1, config.rank, len(state["w0"])
    plan = plan_of(state, config, len(items))
    entries = features or _histories(indptr, indices, plan)
    everywhere = state["everywhere"].astype(np.float32)
    own = np.zeros((n, samples, k + 1), np.float32)
    name = next((f.name for f in config.fields if f.of == "user"), None)
    if name is not None:
        without_ids = folded(False, own, entries, state["w0"], everywhere, plan)
        rest = without_ids.reshape(n, samples, sample_width(config)) * samples
        contexts = _own_side(name, entries, everywhere, plan)
        interacting = [place for place, (_, users) in enumerate(parts_of(config)) if name in users]
        by_sample = items.reshape(len(items), samples, -1)
        theta = np.empty((n, k + 1))
        for s in range(samples):
            pieces = np.ascontiguousarray(by_sample[:, s])
            parts = pieces[:, :-2].reshape(len(items), -1, k)[:, interacting].sum(axis=1, dtype=np.float64)
            fixed = (pieces, np.ascontiguousarray(rest[:, s]), parts, np.ascontiguousarray(contexts[:, s]))
            prior = (float(state["noise_precision"][s]), state["precision"][s], state["mean"][s])
            fold_in_users(indptr, indices, values, *fixed, prior, link_of(config), theta)
            own[:, s] = theta
    return folded(False, own, entries, state["w0"], everywhere, plan)


def fm_state_shapes(fields: tuple[Field, ...], config: FMConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a fit's state, see `frames.Learned`."""
    samples, width = sample_count(config), config.rank + 1
    everywhere = sum(f.size for f in fields if f.side is None)
    one, prior = (samples,), (samples, width)
    common = {"w0": one, "noise_precision": one, "precision": prior, "mean": prior}
    of_fields = {"sizes": (len(fields),), "scales": (len(fields), 2)}
    return common | of_fields | {"everywhere": (samples, everywhere, width)}


def plan_of(state: dict[str, NDArray[Any]], config: FMConfig, n_items: int) -> FMPlan:
    fields = tuple(
        Field(f.name, int(size), side={"user": USER, "item": ITEM}.get(f.of), of_item=f.side == "item")
        for f, size in zip(config.fields, state["sizes"], strict=True)
    )
    return make_plan(config, fields, 0, n_items, 0, 1)


def _histories(indptr: NDArray[np.int64], indices: NDArray[np.int32], plan: FMPlan) -> Any:
    """The users' histories as features, built like those of `features.features_of`."""
    listed = [(f, start) for f, start in zip(plan.config.fields, plan.starts(), strict=True) if f.of == "history"]
    if not listed:
        return np.zeros(len(indptr), np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
    field, start = listed[0]
    counts = np.diff(indptr)
    weights = np.maximum(counts, 1).astype(np.float64) ** WEIGHT_EXPONENTS[field.own_weight]
    return indptr, (indices + start).astype(np.int32), np.repeat(weights, counts).astype(np.float32)


def _own_side(name: str, entries: Any, everywhere: F32, plan: FMPlan) -> NDArray[np.float64]:
    """Sum of the vectors of the user's own fields that interact with the user's id, (n, samples, k)."""
    indptr, feat, val = entries
    n, (samples, m, width) = len(indptr) - 1, everywhere.shape
    whole = csr_matrix((np.asarray(val, np.float64), feat, indptr), shape=(n, m))
    out = np.zeros((n, samples, width - 1))
    for f, start in zip(plan.fields, plan.starts(), strict=True):
        if f.side is None and not f.of_item and plan.config.interacting(name, f.name):
            for s in range(samples):
                out[:, s] += whole[:, start : start + f.size] @ everywhere[s, start : start + f.size, :-1]
    return out
