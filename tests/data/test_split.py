"""Splits: what is trained, known and held out by each protocol, the same on every run and any partitioning."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.load import load_config
from sparkcf.config.root import Config
from sparkcf.data.pairs import indexed, pairs
from sparkcf.data.split import Split, chosen_protocol, split, time_cut, uniform
from sparkcf.errors import GateRefused
from sparkcf.models.registry import model_of
from tests.data.shuffles import shuffled_into

SCHEMA = "user_idx int, item_idx int, event string, value double, ts timestamp"
PROTOCOLS = ("q1", "q2", "q3", "q4")
PARTS = ("train", "rows", "seen", "popular", "heldout")
DAYS = 10
OTHER = ("seed=7", "evaluation.foldin_share=0.6")
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
Parts = dict[str, dict[tuple[int, int], float]]


class Event(NamedTuple):
    user: int
    item: int
    event: str
    value: float
    ts: dt.datetime


def settings(*overrides: str) -> Config:
    return load_config((), ["ds=2024-01-31", "input.path=none", *overrides])


def parts_of(events: DataFrame, config: Config) -> Split:
    return split(events, model_of(config).reads, config)


def make_events() -> list[Event]:
    """80 users with 3 to 25 ratings of 40 items over ten days; some rate an item twice."""
    rng = np.random.default_rng(1)
    made = []
    for user in range(80):
        items = rng.choice(40, rng.integers(3, 26), replace=False).tolist()
        for item in [*items, items[0]] if user % 3 else items:
            at = START + dt.timedelta(seconds=int(rng.integers(0, DAYS * 86_400)))
            made.append(Event(user, item, "rating", float(rng.integers(1, 6)), at))
    return made


EVENTS = make_events()


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> Callable[[int], DataFrame]:
    rows = spark.createDataFrame(EVENTS, SCHEMA).cache()
    rows.count()  # fills the cache
    yield lambda partitions: rows.repartition(partitions)
    rows.unpersist()


@pytest.fixture(scope="module")
def splits(spark: SparkSession, events: Callable[[int], DataFrame]) -> Callable[..., Parts]:
    """The parts of a split as {(user, item): value}; the same question is answered once."""
    known: dict[tuple, Parts] = {}

    def ask(protocol: str, *overrides: str, partitions: int = 2) -> Parts:
        key = (protocol, overrides, partitions)
        if key not in known:
            base = ("preference.positive_from=3", "evaluation.holdout_share=0.2", f"evaluation.protocol={protocol}")
            with shuffled_into(spark, partitions):
                found = parts_of(events(partitions), settings(*base, *overrides))
                named = [getattr(found, name).withColumn("part", F.lit(name)) for name in PARTS]
                whole = reduce(lambda a, b: a.unionByName(b, allowMissingColumns=True), named).collect()
            counts = Counter((row["part"], row["user_idx"], row["item_idx"]) for row in whole)
            assert set(counts.values()) == {1}  # no pair stands twice in a part
            parts: Parts = {name: {} for name in PARTS}
            for row in whole:
                parts[row["part"]][row["user_idx"], row["item_idx"]] = row["value"]
            known[key] = parts
        return known[key]

    return ask


def liked() -> dict[int, set[int]]:
    """Items by user with a value of 3 or more, for users with five or more of them."""
    found = defaultdict(set)
    for event in EVENTS:
        if event.value >= 3:
            found[event.user].add(event.item)
    return {user: items for user, items in found.items() if len(items) >= 5}


def had(until: dt.date | None = None) -> set[tuple[int, int]]:
    """Every pair, whatever the user thought of it."""
    return {(e.user, e.item) for e in EVENTS if until is None or e.ts.date() < until}


def by_user(part: dict[tuple[int, int], float]) -> dict[int, set[int]]:
    found = defaultdict(set)
    for user, item in part:
        found[user].add(item)
    return dict(found)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_split_is_the_same_for_any_partitioning(splits: Callable[..., Parts], protocol: str) -> None:
    one = splits(protocol, partitions=1)
    assert all(one.values())
    assert splits(protocol, partitions=2) == one
    assert splits(protocol, partitions=7) == one


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_split_changes_with_the_seed_unless_it_is_by_time(splits: Callable[..., Parts], protocol: str) -> None:
    one, other = splits(protocol), splits(protocol, *OTHER)
    assert (one["train"] == other["train"]) == (protocol == "q4")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_masked_and_what_is_popular_does_not_depend_on_the_model(
    splits: Callable[..., Parts], protocol: str
) -> None:
    """Lists leave out what a user had, liked or not; the baseline counts what users liked, whatever a model reads."""
    explicit = splits(protocol, "als.mode=explicit")
    implicit = splits(protocol)
    assert explicit["train"] != implicit["train"] or protocol == "q3"
    for name in ("seen", "popular"):
        assert explicit[name].keys() == implicit[name].keys()
    pairs = had(time_cut_of_all() if protocol == "q4" else None)
    if protocol == "q1":
        tested = by_user(implicit["seen"]).keys()
        pairs = {pair for pair in pairs if pair[0] in tested}
        assert explicit["popular"].keys() == implicit["train"].keys()
    else:
        until = time_cut_of_all() if protocol == "q4" else dt.date.max
        yes = {(e.user, e.item) for e in EVENTS if e.value >= 3 and e.ts.date() < until}
        assert explicit["popular"].keys() == yes & explicit["seen"].keys()
    assert implicit["seen"].keys() == pairs - implicit["heldout"].keys()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_held_out_pairs_train_nothing_and_are_not_known(splits: Callable[..., Parts], protocol: str) -> None:
    parts = splits(protocol)
    assert parts["heldout"]
    for other in ("rows", "seen", "popular"):
        assert not parts["heldout"].keys() & parts[other].keys()
    assert not parts["heldout"].keys() & parts["train"].keys()


def test_q1_holds_out_whole_users(splits: Callable[..., Parts]) -> None:
    parts = splits("q1")
    trained, tested = by_user(parts["train"]), by_user(parts["rows"])
    assert not trained.keys() & tested.keys()
    assert trained.keys() | tested.keys() == liked().keys()
    assert by_user(parts["heldout"]).keys() <= tested.keys()
    assert 0.1 < len(tested) / len(liked()) < 0.3


def test_q1_folds_in_a_share_of_the_items_that_training_users_have(splits: Callable[..., Parts]) -> None:
    parts = splits("q1", *OTHER)
    items = {item for _, item in parts["train"]}
    known, heldout = by_user(parts["rows"]), by_user(parts["heldout"])
    for user in known:
        testable = liked()[user] & items
        assert known[user] | heldout.get(user, set()) == testable
        assert len(known[user]) == np.floor(0.6 * len(testable) + 0.5)


def test_q2_holds_out_a_share_of_each_users_items(splits: Callable[..., Parts]) -> None:
    parts = splits("q2")
    heldout, trained = (by_user(parts[name]) for name in ("heldout", "train"))
    assert heldout.keys() == liked().keys() and parts["rows"] == parts["train"]
    for user, items in liked().items():
        assert trained[user] | heldout[user] == items
        assert len(trained[user]) == np.floor(0.8 * len(items) + 0.5)
    few = trained.keys() - heldout.keys()
    assert few  # users of too few items still train


def test_q3_holds_out_a_share_of_the_latest_ratings(splits: Callable[..., Parts]) -> None:
    parts = splits("q3", "als.mode=explicit")
    latest = {(e.user, e.item): e.value for e in sorted(EVENTS, key=lambda e: (e.ts, e.value))}
    assert parts["train"] | parts["heldout"] == latest
    assert parts["rows"] == parts["train"]
    assert 0.16 < len(parts["heldout"]) / len(latest) < 0.24


def test_q4_holds_out_what_comes_after_a_day(splits: Callable[..., Parts], events: Callable[[int], DataFrame]) -> None:
    parts = splits("q4")
    cut = time_cut_of_all()
    assert time_cut(events(2), 0.2) == cut
    before = {(e.user, e.item) for e in EVENTS if e.value >= 3 and e.ts.date() < cut}
    later = {(e.user, e.item) for e in EVENTS if e.value >= 3 and e.ts.date() >= cut}
    assert parts["train"].keys() == parts["rows"].keys() == before
    assert parts["heldout"].keys() == later - had(cut)
    assert later & had(cut) - before  # a pair that comes back could not be listed: it is not held out


def time_cut_of_all() -> dt.date:
    days = Counter(event.ts.date() for event in EVENTS)
    after = {day: sum(n for other, n in days.items() if other >= day) for day in sorted(days)}
    return min(day for day, n in after.items() if n <= 0.2 * len(EVENTS))


def test_the_item_before_is_one_that_trains(spark: SparkSession) -> None:
    """`previous` of a pair is the item of the user's last pair before it that is not held out, on either side."""
    config = settings(
        "model=fm",
        "fm.fields=[{name: user, of: user}, {name: item, of: item}, {name: before, of: previous}]",
        "evaluation.protocol=q3",
        "evaluation.holdout_share=0.4",
    )
    rows = [(u, i, "rating", 1.0 + i, START + dt.timedelta(hours=i), None) for u in range(8) for i in range(9)]
    found = parts_of(spark.createDataFrame(rows, SCHEMA + ", context map<string,string>"), config)
    train, heldout = ({(r[0], r[1]): r["previous"] for r in part.collect()} for part in (found.train, found.heldout))
    assert len(train) + len(heldout) == 72 and len(heldout) > 10
    for (user, item), previous in [*train.items(), *heldout.items()]:
        before = [i for i in range(item) if (user, i) in train]
        assert previous == (before[-1] if before else None)
    assert any((user, item - 1) in heldout for user, item in train if item)  # a leak would show


@pytest.mark.parametrize(
    ("days", "users", "protocol", "why"),
    [
        (1, 150, "q2", "all events are of one day"),
        (20, 150, "q2", "the last 10% of the events are of 2 days, a split by time needs 7"),
        (100, 99, "q2", "99 users have events before and in the last 10%, a split by time needs 100"),
        (100, 120, "q4", "the last 10% of the events are of 10 days and 120 users with earlier events"),
    ],
)
def test_the_protocol_looks_at_the_data(spark: SparkSession, days: int, users: int, protocol: str, why: str) -> None:
    at = F.timestamp_seconds(F.lit(1_700_000_000) + F.col("day") * 86_400)
    pairs = spark.range(days).select(F.col("id").alias("day")).crossJoin(spark.range(users).toDF("user_idx"))
    rows = pairs.select("user_idx", F.lit(5.0).alias("value"), at.alias("ts"))
    assert chosen_protocol(rows, settings("evaluation.holdout_share=0.1")) == (protocol, why)


def daily(spark: SparkSession, *days: tuple[str, int]) -> DataFrame:
    rows = [(n, n, "rating", 5.0, dt.datetime.fromisoformat(at + "+00:00")) for at, times in days for n in range(times)]
    return spark.createDataFrame(rows, SCHEMA)


@pytest.mark.parametrize(
    ("share", "cut"), [(0.1, "2024-03-05"), (0.25, "2024-03-03"), (0.01, "2024-03-05"), (0.99, "2024-03-02")]
)
def test_time_cut_takes_no_more_than_the_share_but_at_least_the_last_day(
    spark: SparkSession, share: float, cut: str
) -> None:
    days = (("2024-03-01T23:59:59", 10), ("2024-03-02T00:00:00", 5), ("2024-03-03T12:00:00", 3))
    rows = daily(spark, *days, ("2024-03-05T00:00:00", 2))
    assert time_cut(rows, share) == dt.date.fromisoformat(cut)


def test_q4_cuts_between_the_last_second_of_a_utc_day_and_the_first_of_the_next(spark: SparkSession) -> None:
    rows = daily(spark, ("2024-03-01T23:59:59.999999", 3), ("2024-03-02T00:00:00", 4))
    parts = parts_of(rows, settings("evaluation.protocol=q4", "evaluation.holdout_share=0.9"))
    assert parts.note == "held out from 2024-03-02 on"
    assert (parts.train.count(), parts.heldout.count()) == (3, 1)  # three of the four are known


def test_the_window_and_the_decay_of_q4_end_where_it_cuts(spark: SparkSession) -> None:
    """Events of days 0 to 9: the last one is held out, so the window of two days is days 7 and 8."""
    rows = [(user, day, "view", 1.0, START + dt.timedelta(days=day)) for day in range(10) for user in (0, 1)]
    given = ("evaluation.protocol=q4", "evaluation.holdout_share=0.1", "train.window_days=2")
    frame = spark.createDataFrame(rows, SCHEMA)
    train = parts_of(frame, settings(*given, "preference.half_life_days=1")).train.collect()
    weights = {row["item_idx"]: row["value"] for row in train}
    assert weights == {7: pytest.approx(0.25), 8: pytest.approx(0.5)}  # two days and one before the cut


def test_q4_of_a_single_day_is_refused(spark: SparkSession) -> None:
    rows = daily(spark, ("2024-03-01T00:00:00", 3), ("2024-03-01T23:59:59", 4))
    with pytest.raises(GateRefused, match=r"two days or more: use evaluation\.protocol=q2"):
        parts_of(rows, settings("evaluation.protocol=q4"))


def test_uniform_spreads_evenly_and_depends_on_seed_salt_and_values(spark: SparkSession) -> None:
    columns = [uniform(seed, salt, F.col("id")) for seed, salt in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))]
    drawn = np.array(spark.range(4000).select(*columns).collect())
    assert drawn.min() >= 0 and drawn.max() < 1
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    for column in (0, 2, 3):
        counts = np.histogram(drawn[:, column], bins=8, range=(0, 1))[0]
        assert (np.abs(counts - 500) < 110).all()  # five standard deviations
    assert (np.abs(np.corrcoef(drawn[:, [0, 2, 3]].T)[np.triu_indices(3, 1)]) < 0.08).all()


LOG = [  # user, item, event, value, second
    (0, 0, "view", 1.0, 10),
    (0, 0, "buy", 4.0, 30),
    (0, 0, "view", 2.0, 40),
    (0, 1, "view", 5.0, 10),
    (0, 1, "view", 3.0, 10),
    (1, 0, "buy", 2.5, 10),
]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {(0, 0): 1, (0, 1): 1, (1, 0): 1}),
        (("preference.positive_from=4",), {(0, 0): 1, (0, 1): 1}),
        (("preference.weight=value",), {(0, 0): 7, (0, 1): 8, (1, 0): 2.5}),
        (("preference.weight=value", "preference.positive_from=2"), {(0, 0): 6, (0, 1): 8, (1, 0): 2.5}),
        (("preference.weight=event", "input.events={view: 1, buy: 5}"), {(0, 0): 7, (0, 1): 2, (1, 0): 5}),
        (("als.mode=explicit",), {(0, 0): 2, (0, 1): 5, (1, 0): 2.5}),
        (("model=popularity", "als.mode=explicit"), {(0, 0): 1, (0, 1): 1, (1, 0): 1}),
    ],
)
def test_pairs_weigh_each_user_and_item_once(
    spark: SparkSession, overrides: tuple[str, ...], expected: dict[tuple[int, int], float]
) -> None:
    rows = [(u, i, event, value, START + dt.timedelta(seconds=second)) for u, i, event, value, second in LOG]
    config = settings(*overrides)
    found = pairs(spark.createDataFrame(rows, SCHEMA), model_of(config).reads, config).collect()
    assert len(found) == len(expected)
    assert {(row["user_idx"], row["item_idx"]): row["value"] for row in found} == expected


def test_indexed_gives_each_event_its_dense_indices(spark: SparkSession) -> None:
    at = START
    log = spark.createDataFrame(
        [("ann", "tea", "buy", 2.0, at, None), ("bob", "tea", "view", 1.0, at, {"device": "tv"})], _LOG_SCHEMA
    )
    users = spark.createDataFrame(
        [("ann", 7, at), ("bob", 3, at)], "user_id string, user_idx int, first_seen timestamp"
    )
    items = spark.createDataFrame([("tea", 5)], "item_id string, item_idx int")
    found = indexed(log, users, items)
    assert found.columns == ["user_idx", "item_idx", "event", "value", "ts", "context"]
    rows = sorted((*row[:4], row["context"]) for row in found.collect())
    assert rows == [(3, 5, "view", 1.0, {"device": "tv"}), (7, 5, "buy", 2.0, None)]


_LOG_SCHEMA = "user_id string, item_id string, event string, value double, ts timestamp, context map<string,string>"
