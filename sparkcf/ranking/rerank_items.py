"""The item side of re-ranking, collected from the table of items and the events, and shared with the executors."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.rerank import RerankConfig
from sparkcf.config.root import Config
from sparkcf.data.shared import SharedArrays, share
from sparkcf.errors import ConfigError, NotFoundError
from sparkcf.kernels.vectors import unit_rows
from sparkcf.models.contract import Scorer
from sparkcf.models.contract_data import F32
from sparkcf.ranking.rerank import ItemSide, Reranker, Rules
from sparkcf.spark import Column, DataFrame, F, SparkSession

CATEGORIES, FIRST_EVENT = "categories", "first_event"


@dataclass(frozen=True)
class SharedReranker:
    """Handle of a Reranker that every executor can open."""

    rules: Rules
    items: SharedArrays

    def open(self) -> Reranker:
        return Reranker(self.rules, ItemSide(*self.items.open()))


def share_reranker(
    spark: SparkSession, config: Config, items: DataFrame, events: DataFrame, n_items: int, scorer: Scorer
) -> SharedReranker | None:
    """Collect and share what the rules need; None without rules.

    Parameters
    ----------
    items : the lake's table.
    events : item_idx, ts.
    scorer : whose item vectors say how similar items are.

    Raises
    ------
    ConfigError
        The model has no item vectors, and `rerank.similarity` is vectors.
    NotFoundError
        No item has an attribute, or a value of it, that a rule names.
    """
    rerank = config.rerank
    if not rerank.active:
        return None
    check_attributes(items, rerank)
    side = item_side(items, events, config, n_items, scorer)
    day, share_ = config.ds.toordinal(), {f.name: getattr(side, f.name) for f in fields(ItemSide)}
    rules = Rules(rerank.factor, rerank.diversity, rerank.calibration, rerank.exploration, config.seed, day)
    return SharedReranker(rules, share(spark, **share_))


def texts_of(name: str) -> Column:
    """The texts of an item by the name of a rule: its categories, or its attribute of the name; never null."""
    none = F.array().cast("array<string>")
    if name == CATEGORIES:
        return F.coalesce(F.col(CATEGORIES), none)
    return F.coalesce(F.array_compact(F.array(F.col("attributes")[name])), none)


def check_attributes(items: DataFrame, rerank: RerankConfig) -> None:
    """Raise NotFoundError for an attribute that no item has, or a value of `exclude` or `boosts` that none has."""
    named = rerank.named()
    if not named and rerank.fresh_from == FIRST_EVENT:
        return
    for key, name in named:
        if items.where(F.size(texts_of(name)) > 0).isEmpty():
            raise NotFoundError(f"{key}={name}: no item has it: {_known(items)}")
    wanted = [
        (f"rerank.exclude[{n}]", rule.by, value) for n, rule in enumerate(rerank.exclude) for value in rule.values
    ]
    wanted += [(f"rerank.boosts[{n}]", rule.by, rule.value) for n, rule in enumerate(rerank.boosts)]
    for key, name, value in wanted:
        if items.where(F.array_contains(texts_of(name), value)).isEmpty():
            some = items.select(F.explode(texts_of(name)).alias("value")).distinct().orderBy("value").limit(30)
            there = ", ".join(row["value"] for row in some.collect())
            raise NotFoundError(f"{key}: no item has {name} {value!r}: there are {there}")
    if rerank.fresh_from != FIRST_EVENT and items.where(_seconds(rerank.fresh_from).isNotNull()).isEmpty():
        raise NotFoundError(
            f"rerank.fresh_from={rerank.fresh_from}: no item has such a time or number: {_known(items)}"
        )


def excluded_items(items: DataFrame, rerank: RerankConfig) -> list[DataFrame]:
    """The items that each rule of `rerank.exclude` excludes."""
    return [
        items.where(F.arrays_overlap(texts_of(rule.by), F.array(*map(F.lit, rule.values)))) for rule in rerank.exclude
    ]


def _known(items: DataFrame) -> str:
    keys = items.select(F.explode(F.map_keys("attributes")).alias("name")).distinct().orderBy("name").limit(30)
    names = [row["name"] for row in keys.collect()]
    return f"input.items.columns brought {', '.join(names) or 'no attributes'}"


def _seconds(name: str) -> Column:
    """The time of an attribute in seconds since 1970; null where it is none."""
    text = F.try_to_timestamp(F.col("attributes")[name])
    return F.coalesce(F.col("numbers")[name], text.cast("double"))


def item_side(items: DataFrame, events: DataFrame, config: Config, n_items: int, scorer: Scorer) -> ItemSide:
    """The arrays of the rules."""
    rerank = config.rerank
    names = sorted({CATEGORIES, *(name for _, name in rerank.named())})
    columns = [texts_of(name).alias(f"text{n}") for n, name in enumerate(names)]
    age = F.lit(None).cast("double")
    if rerank.half_life_days is not None and rerank.fresh_from != FIRST_EVENT:
        age = _seconds(rerank.fresh_from)
    read = items.where(F.col("item_idx") < n_items).select("item_idx", age.alias("since"), *columns).toPandas()
    idx = read["item_idx"].to_numpy(np.int64)
    texts = {name: _by_item(idx, read[f"text{n}"], n_items) for n, name in enumerate(names)}
    since = np.full(n_items, np.nan)
    since[idx] = read["since"].to_numpy(np.float64)
    if rerank.half_life_days is not None and rerank.fresh_from == FIRST_EVENT:
        first = events.groupBy("item_idx").agg(F.min("ts").cast("double").alias("since")).toPandas()
        since[first["item_idx"].to_numpy(np.int64)] = first["since"].to_numpy(np.float64)
    return build_side(rerank, config.ds, texts, since, _vectors(rerank, texts[CATEGORIES], scorer))


def _by_item(idx: NDArray[np.int64], listed: Iterable[Any], n_items: int) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(n_items)]
    for item, values in zip(idx, listed, strict=True):
        found[item] = sorted({str(value) for value in values})
    return found


def _vectors(rerank: RerankConfig, categories: list[list[str]], scorer: Scorer) -> F32:
    """Unit vectors whose cosine is the similarity of items."""
    if rerank.similarity == "categories":
        return unit_rows(indicators(categories))
    if not scorer.has_likeness:
        if rerank.diversity:
            raise ConfigError(
                "rerank.similarity=vectors: the model has no item vectors: set rerank.similarity=categories"
            )
        return unit_rows(indicators(categories))
    return unit_rows(np.asarray(scorer.likeness(), np.float32))


def indicators(categories: list[list[str]]) -> F32:
    """1 where an item has a category, float32 (m, G); at least one column."""
    place = {name: n for n, name in enumerate(sorted({name for own in categories for name in own}))}
    out = np.zeros((len(categories), max(len(place), 1)), np.float32)
    for item, own in enumerate(categories):
        out[item, [place[name] for name in own]] = 1.0
    return out


def build_side(
    rerank: RerankConfig, ds: dt.date, texts: dict[str, list[list[str]]], since: NDArray[np.float64], vectors: F32
) -> ItemSide:
    """The arrays of the rules from plain values.

    Parameters
    ----------
    texts : the texts of every item by the name of an attribute; has `categories`.
    since : (m,), seconds since 1970 from which items age; NaN: they do not.
    vectors : (m, d) of unit length.
    """
    m = len(since)
    multiply, add = np.ones(m, np.float32), np.zeros(m, np.float32)
    for rule in rerank.boosts:
        has = np.array([rule.value in own for own in texts[rule.by]], bool)
        multiply[has] *= np.float32(rule.multiply)
        add[has] += np.float32(rule.add)
    fresh = np.ones(m, np.float32)
    if rerank.half_life_days is not None:
        end = dt.datetime.combine(ds + dt.timedelta(days=1), dt.time(), dt.UTC).timestamp()
        days = np.maximum(end - np.where(np.isnan(since), end, since), 0.0) / 86_400
        fresh = (2.0 ** (-days / rerank.half_life_days)).astype(np.float32)
    mix = indicators(texts[CATEGORIES])
    mix /= np.maximum(mix.sum(axis=1, keepdims=True), 1)
    place: dict[tuple[int, str], int] = {}
    labels = [
        [
            place.setdefault((number, text), len(place))
            for number, cap in enumerate(rerank.caps)
            for text in texts[cap.by][i]
        ]
        for i in range(m)
    ]
    most = np.array([rerank.caps[number].most for number, _ in place], np.int32)
    ptr = np.concatenate([[0], np.cumsum([len(own) for own in labels])]).astype(np.int64)
    flat = np.array([label for own in labels for label in own], np.int32)
    return ItemSide(multiply, add, fresh, vectors, mix, ptr, flat, most)
