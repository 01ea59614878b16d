"""A factorization machine's score by single fields: linear terms, and a term for each pair of fields that interact.

Stored vectors hold the fields of a side as sums. With the features of a user and an item the parts of all fields but
the ids are known, and what is left of the sums is that of the ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.fm import FMConfig
from sparkcf.models.contract_data import Described, Rows
from sparkcf.models.fm.factors import parts_of
from sparkcf.models.fm.rows import WEIGHT_EXPONENTS, FMPlan

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Entries = dict[
    str, tuple[NDArray[np.int64], F64]
]  # features of each field but the ids, numbered in the field, and values
Terms = list[tuple[str, float]]


def entries_of(described: Described, rows: Rows, config: FMConfig, scales: F64) -> Entries:
    """The features of one user and one item. `scales` : see `features.Scales`."""
    found: Entries = {}
    for number, f in enumerate(config.fields):
        row, texts = described.user if f.side == "user" else described.item, described.texts.get(f.dictionary or "", {})
        feats: list[int] = []
        value = 1.0
        if f.of == "history":
            feats = rows[1].tolist()
        elif f.of == "categories":
            feats = sorted(texts[name] for name in set(row.get("categories") or ()) if name in texts)
        elif f.of == "attribute":
            text = dict(row.get("attributes") or ()).get(f.column)
            feats = [texts[text]] if text is not None and text in texts else []
        elif f.of == "number":
            number_or_none = dict(row.get("numbers") or ()).get(f.column)
            value = np.nan if number_or_none is None else float(number_or_none)
            feats = [0] if np.isfinite(value) else []
            value = (value - scales[number, 0]) / scales[number, 1]
        if f.several and feats:
            value = len(feats) ** WEIGHT_EXPONENTS[f.own_weight]
        if f.of not in ("user", "item"):
            found[f.name] = (np.array(feats, np.int64), np.full(len(feats), value))
    return found


def field_terms(user: F32, item: F32, entries: Entries, state: dict[str, Any], plan: FMPlan) -> Terms | None:
    """The terms of a(x) by name, means over the samples; they sum to the inner product of the stored vectors.

    None where an id's vector is in no stored sum, because its field interacts with no field of the other side.

    Parameters
    ----------
    user, item : (samples * sample_width,).
    """
    config, w0 = plan.config, np.asarray(state["w0"], np.float64)
    samples, k = len(w0), config.rank
    terms: Terms = [("w_0", float(w0.mean()))]
    of_side: list[dict[int, F64]] = []
    for stored, is_item in ((user.astype(np.float64) * samples, False), (item.astype(np.float64), True)):
        pieces = stored.reshape(samples, -1)
        here = [number for number, f in enumerate(plan.fields) if f.of_item == is_item]
        sums, linear, squares = {}, {}, {}
        for number in here:
            if (f := plan.fields[number]).side is None:
                feats, values = entries[f.name]
                known = feats < f.size
                table = np.asarray(state["everywhere"][:, plan.starts()[number] + feats[known]], np.float64)
                sums[number] = np.einsum("sfk,f->sk", table[:, :, :k], values[known])
                linear[number] = table[:, :, k] @ values[known]
                squares[number] = np.einsum("sfk,f->s", table[:, :, :k] ** 2, values[known] ** 2)
        ids = next((number for number in here if plan.fields[number].side is not None), None)
        if ids is not None:
            rest = _rest(plan.fields[ids].name, pieces, sums, plan, is_item)
            if rest is None:
                return None
            sums[ids], squares[ids] = rest, np.square(rest).sum(axis=1)
        within = _within(here, sums, squares, plan)
        if ids is not None:
            bias = pieces[:, -1] if is_item else pieces[:, -2] - w0
            linear[ids] = bias - sum(linear.values()) - sum(within.values())
        terms += [(f"linear: {plan.fields[number].name}", float(linear[number].mean())) for number in here]
        terms += [(name, float(value.mean())) for name, value in within.items()]
        of_side.append(sums)
    for p, left in of_side[0].items():
        for q, right in of_side[1].items():
            if plan.pairs[p, q]:
                name = f"{plan.fields[p].name} × {plan.fields[q].name}"
                terms.append((name, float(np.einsum("sk,sk->s", left, right).mean())))
    return terms


def _rest(name: str, pieces: F64, sums: dict[int, F64], plan: FMPlan, is_item: bool) -> F64 | None:
    """The ids' part (samples, k) of a stored sum that has it."""
    k, by_name = plan.config.rank, {plan.fields[number].name: own for number, own in sums.items()}
    for part, (items, users) in enumerate(parts_of(plan.config)):
        names = items if is_item else users
        if name in names:
            others = sum((by_name[other] for other in names if other != name), np.zeros((len(pieces), k)))
            rest: F64 = pieces[:, part * k : (part + 1) * k] - others
            return rest
    return None


def _within(here: list[int], sums: dict[int, F64], squares: dict[int, F64], plan: FMPlan) -> dict[str, F64]:
    """Interactions among the fields of one side, and among the features of one field, (samples,) each."""
    found = {}
    for at, p in enumerate(here):
        name = plan.fields[p].name
        if plan.pairs[p, p] and plan.config.fields[p].several:
            found[f"{name} × {name}"] = 0.5 * (np.square(sums[p]).sum(axis=1) - squares[p])
        for q in here[:at]:
            if plan.pairs[p, q]:
                found[f"{plan.fields[q].name} × {name}"] = np.einsum("sk,sk->s", sums[p], sums[q])
    return found
