"""Small lakes of a night with any number of models, written without Spark."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

UTC = dt.UTC
TIME = pa.timestamp("us", tz="UTC")
COUNTS, SECONDS = pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.float64())
YESTERDAY, TODAY = dt.date(2024, 5, 1), dt.date(2024, 5, 2)
USERS, ITEMS, RANK, K, REPLICATES = 40, 60, 5, 6, 50
MARKUP = '<script>alert("x")</script> & <b>bold</b> $x_{1}$'
ARABIC, EMOJI, OVERRIDE = "فيلم عن البحر", "🎬 Film 👩‍👩‍👧", "abc\u202edef\x1b[31m\x00"
HOSTILE = (MARKUP, ARABIC, EMOJI, OVERRIDE)
CATEGORIES = ("Drama", "<i>Comedy</i>", "درама", "$_x^", "_under")
SEGMENTS = (
    *(f"activity {n} {10 * n}-{10 * n + 9} items" for n in range(1, 11)),
    *(f"popularity {n} fifth {n}, {n} items" for n in range(1, 7)),
    *(f"category {name}" for name in (*CATEGORIES, *"abcdefg")),
)
METRICS = ("ndcg_at_k", "recall_at_k", "map_at_k")


def write(root: Path, name: str, columns: dict[str, Any], partition_by: list[str] | None = None) -> None:
    write_deltalake(str(root / name), pa.table(columns), partition_by=partition_by, mode="append")


def at(day: dt.date, hour: int, minute: int = 0) -> dt.datetime:
    return dt.datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)


def write_night(
    root: Path,
    models: int,
    users: int = USERS,
    items: int = ITEMS,
    events: int = 600,
    refused: bool = True,
    points: int = RANK,
    days: tuple[dt.date, ...] = (YESTERDAY, TODAY),
    new_items: int = 0,
) -> Path:
    """Two days: yesterday every model was published; today the second one (of more than one) is refused.

    new_items : items more, whose first event is today's.
    """
    user_ids = pa.array([f"u{n}" for n in range(users)])
    item_ids = pa.array([f"i{n}" for n in range(items)])
    write_catalogue(root, user_ids, item_ids, new_items)
    spread = events // 2
    for day in days:
        draw = np.random.default_rng(day.day)
        moments = np.datetime64(day, "us") - draw.integers(0, 30 * 86_400, spread).astype("timedelta64[s]")
        columns = {
            "user_id": user_ids.take(pa.array(draw.integers(0, users, spread))),
            "item_id": item_ids.take(pa.array((items * draw.random(spread) ** 2).astype(int))),
            "event": pa.array(["rating"] * spread),
            "value": draw.integers(1, 6, spread).astype(float),
            "ts": pa.array(moments, pa.timestamp("us")).cast(TIME),
            "source": pa.array(["a.csv"] * spread),
            "ds": pa.array([day] * spread),
        }
        write(root, "interactions", columns, ["ds"])
    counts = {"read": spread + 9, "clean": spread, "exact_duplicates": 4, "superseded": 0, "quarantined": 5}
    if TODAY in days:
        write_run(root, "clean-2", "clean", None, TODAY, "cleaned", 1, counts | {"reason:missing_user_id": 5})
    names = ["als"] + [f"model{n}" for n in range(2, models + 1)]
    for place, model in enumerate(names):
        for number, day in enumerate(days, 1):
            draw = np.random.default_rng([day.day, place])
            run_id = f"{model}-{number}"
            fails = refused and place == 1 and day == TODAY
            state, reason = ("refused", f"{MARKUP} is worse") if fails else ("published", None)
            counts = {"users": users, "users_model": users - 1, "users_fallback": 1, "nan_scores": 0}
            write_run(root, run_id, "train", model, day, state, 2 + place, counts, reason)
            write_measures(root, run_id, draw, 0.3 - 0.01 * place)
            write_lists(root, model, run_id, day, user_ids, item_ids, draw)
            write_vectors(root, model, run_id, item_ids, draw.normal(size=(items, points)))
            if not fails:
                write_published(root, model, run_id, day, 2 + place)
    return root


def write_catalogue(root: Path, user_ids: pa.Array, item_ids: pa.Array, new_items: int = 0) -> None:
    known = len(item_ids)
    item_ids = pa.array([*item_ids.to_pylist(), *(f"new{k}" for k in range(new_items))])
    n = known + new_items
    titles = [HOSTILE[k % len(HOSTILE)] if k < 20 else f"Film {k}" for k in range(n)]
    titles[min(21, n - 1)] = None
    categories = [[CATEGORIES[k % len(CATEGORIES)], CATEGORIES[(k // 3) % len(CATEGORIES)]] for k in range(n)]
    columns = {
        "item_id": item_ids,
        "item_idx": pa.array(range(n), pa.int32()),
        "first_seen": pa.array([None] * known + [dt.datetime.combine(TODAY, dt.time(), dt.UTC)] * new_items, TIME),
        "title": pa.array(titles, pa.string()),
        "categories": pa.array(categories, pa.list_(pa.string())),
    }
    write(root, "items", columns)
    n = len(user_ids)
    users = {"user_id": user_ids, "user_idx": pa.array(range(n), pa.int32()), "first_seen": pa.nulls(n, TIME)}
    write(root, "users", users)


def write_run(
    root: Path,
    run_id: str,
    job: str,
    model: str | None,
    ds: dt.date,
    state: str,
    hour: int,
    counts: dict[str, int],
    reason: str | None = None,
) -> None:
    config = {"gate": {"at": 10, "metric": "auto", "max_fall": 0.1, "min_user_coverage": 0.5}, "seed": 42}
    config |= {name: {"rank": ds.day, "temperature": 0.1} for name in ("als", model or "als")}
    config |= {"evaluation": {"protocol": "q2"}}
    config |= {"rerank": {"diversity": 0.3 if model == "als" else 0.0}}
    columns = {
        "run_id": [run_id],
        "job": [job],
        "model": pa.array([model], pa.string()),
        "ds": [ds],
        "state": [state],
        "reason": pa.array([reason], pa.string()),
        "config": [json.dumps(config)],
        "code_version": ["0.1.0"],
        "inputs": pa.array([[("interactions", ds.day)]], COUNTS),
        "seed": [42],
        "started_at": pa.array([at(ds, hour)], TIME),
        "updated_at": pa.array([at(ds, hour, 30)], TIME),
        "counts": pa.array([list(counts.items())], COUNTS),
        "ended_at": pa.array([at(ds, hour, 30)], TIME),
        "seconds": pa.array([[("train", 12.5), ("train/inner", 3.0), ("evaluate", 4.25)]], SECONDS),
        "peak_bytes": [2**30],
        "application_id": pa.array(["local-1"], pa.string()),
    }
    write(root, "runs", columns)


def write_measures(root: Path, run_id: str, draw: np.random.Generator, level: float) -> None:
    rows: list[tuple[Any, ...]] = []
    for system, value in (("model", level), ("popularity", 0.2)):
        for metric in METRICS:
            for segment in (None, "warm", "cold", *SEGMENTS):
                drawn = (value + 0.01 * draw.normal(size=REPLICATES)).tolist()
                rows.append((system, "q2", metric, 10, value, value - 0.02, value + 0.02, 40, segment, drawn))
    rows += [("model", "fit", "objective", n, 100 / n, None, None, None, None, None) for n in range(1, 9)]
    names = ("system", "protocol", "metric", "k", "value", "lower", "upper", "users", "segment", "replicates")
    types = [pa.string(), pa.string(), pa.string(), pa.int32(), *[pa.float64()] * 3, pa.int64(), pa.string()]
    columns = {
        n: pa.array(v, t)
        for n, v, t in zip(names, zip(*rows, strict=True), [*types, pa.list_(pa.float64())], strict=True)
    }
    settings = pa.array([json.dumps({"seed": 42, "bootstrap": REPLICATES})] * len(rows))
    write(root, "metrics", {"run_id": [run_id] * len(rows), **columns, "settings": settings})


def write_lists(
    root: Path, model: str, run_id: str, ds: dt.date, user_ids: pa.Array, item_ids: pa.Array, draw: np.random.Generator
) -> None:
    n, m = len(user_ids), len(item_ids)
    start = draw.integers(0, m, n)
    places = (start[:, None] + np.arange(K) * 7) % m
    columns = {
        "ds": pa.array([ds] * (n * K)),
        "user_id": user_ids.take(pa.array(np.repeat(np.arange(n), K))),
        "position": pa.array(np.tile(np.arange(1, K + 1), n), pa.int32()),
        "item_id": item_ids.take(pa.array(places.ravel())),
        "score": pa.array(np.ones(n * K), pa.float32()),
        "reason": pa.array(["model" if k % 3 else "because you had <Alien>" for k in range(n * K)]),
        "model": pa.array([model] * (n * K)),
        "run_id": pa.array([run_id] * (n * K)),
    }
    write(root, "recommendations", columns, ["model", "run_id"])


def write_vectors(root: Path, model: str, run_id: str, item_ids: pa.Array, vectors: np.ndarray) -> None:
    n, rank = vectors.shape
    offsets = pa.array(np.arange(0, (n + 1) * rank, rank), pa.int32())
    columns = {
        "item_idx": pa.array(range(n), pa.int32()),
        "item_id": item_ids,
        "factor": pa.ListArray.from_arrays(offsets, pa.array(vectors.astype(np.float32).ravel())),
        "bias": pa.array(np.zeros(n), pa.float32()),
        "model": pa.array([model] * n),
        "run_id": pa.array([run_id] * n),
    }
    write(root, "item_factors", columns, ["model", "run_id"])


def write_published(root: Path, model: str, run_id: str, ds: dt.date, hour: int) -> None:
    columns = {
        "model": [model],
        "ds": [ds],
        "sequence": [1],
        "run_id": [run_id],
        "action": ["publish"],
        "published_by": ["tester"],
        "published_at": pa.array([at(ds, hour, 20)], TIME),
        "versions": pa.array([[("recommendations", 1)]], COUNTS),
    }
    write(root, "published", columns)


def write_predictions(root: Path, model: str, run_id: str, n: int = 50) -> None:
    draw = np.random.default_rng(1)
    value, sd = draw.normal(3.5, 0.5, n), draw.uniform(0.5, 1.0, n)
    quantile = pa.list_(pa.struct([("level", pa.float64()), ("value", pa.float64())]))
    rows = [[{"level": 0.9, "value": v + s}, {"level": 0.1, "value": v - s}] for v, s in zip(value, sd, strict=True)]
    columns = {
        "user_id": ["u1"] * n,
        "item_id": ["i1"] * n,
        "value": value,
        "sd": sd,
        "quantiles": pa.array(rows, quantile),
        "model": [model] * n,
        "run_id": [run_id] * n,
    }
    write(root, "predictions", columns, ["model", "run_id"])


def write_concepts(root: Path, model: str, run_id: str, items: int = ITEMS) -> None:
    """Two concepts: that of the even and that of the odd items."""
    number = np.tile([0, 1], items)
    item = np.repeat(np.arange(items), 2)
    columns = {
        "item_idx": pa.array(item, pa.int32()),
        "item_id": [f"i{k}" for k in item],
        "concept": pa.array(number, pa.int32()),
        "probability": pa.array(np.where(item % 2 == number, 0.9, 0.1), pa.float32()),
        "users": pa.array(items - item, pa.int32()),
        "model": [model] * (2 * items),
        "run_id": [run_id] * (2 * items),
    }
    write(root, "item_concepts", columns, ["model", "run_id"])


def write_reranked(root: Path, run_id: str, gained: float = 0.1) -> None:
    """Measures before and after rules: NDCG falls by 0.05 for every user, diversity rises by `gained`."""
    draw = np.random.default_rng(3).normal(0, 0.02, REPLICATES)
    rows: list[tuple[Any, ...]] = []
    for system, ndcg, diversity, coverage in (("plain", 0.3, 0.4, 0.5), ("reranked", 0.25, 0.4 + gained, 0.75)):
        for metric, value in (("ndcg_at_k", ndcg), ("intra_list_diversity_at_k", diversity)):
            for k in (5, 10):
                drawn = (value + draw).tolist()
                rows.append((system, metric, k, value, value - 0.04, value + 0.04, drawn))
        rows.append((system, "coverage_at_k", 10, coverage, None, None, None))
    names = ("system", "metric", "k", "value", "lower", "upper", "replicates")
    types = (pa.string(), pa.string(), pa.int32(), *[pa.float64()] * 3, pa.list_(pa.float64()))
    columns = {n: pa.array(v, t) for n, v, t in zip(names, zip(*rows, strict=True), types, strict=True)}
    n = len(rows)
    about = {"run_id": [run_id] * n, "protocol": ["q2"] * n, "users": pa.array([40] * n, pa.int64())}
    settings = [json.dumps({"seed": 42, "bootstrap": REPLICATES})] * n
    write(root, "metrics", {**about, **columns, "segment": pa.nulls(n, pa.string()), "settings": settings})


def write_study(path: Path, **changes: Any) -> Path:
    """A study of six trials as jobs/tune.py writes it: the fourth is best, the fifth was stopped, the last failed."""
    values, states = (0.2, 0.25, 0.22, 0.31, 0.9, None), (*["complete"] * 4, "pruned", "failed")
    trials = [
        {
            "number": number,
            "state": states[number],
            "value": value,
            "seconds": 1.5,
            "reason": "",
            "params": {"als.rank": 16 * (number + 1), "als.regularization": 0.01 * number, "als.solver": "cg"},
            "steps": {},
        }
        for number, value in enumerate(values)
    ]
    test = {"number": 3, "run_id": "tune-1", "protocol": "q2", "metric": "ndcg_at_k", "k": 10, "value": 0.29}
    study = {"study": "als-0123", "model": "als", "measure": "ndcg@10", "protocol": "q2", "best": 3, "test": test}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**study, "trials": trials} | changes), encoding="utf-8")
    return path
