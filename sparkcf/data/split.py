"""Train and held-out parts by four protocols: by hash or by time, so the rows are the same in every run and cluster.

Q1 strong generalisation: whole users are held out; most of their items are folded in, the rest are ranked.
   Liang et al. (2018), "Variational autoencoders for collaborative filtering", section 4.1.
Q2 weak generalisation: a share of each user's items is held out.
Q3 ratings: a share of all pairs is held out.
Q4 by time: events from a day on are held out.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from sparkcf.config.root import Config
from sparkcf.data.pairs import Reads, is_positive, latest_values, liked_pairs, pairs, positives, with_previous
from sparkcf.errors import GateRefused
from sparkcf.spark import Column, DataFrame, F, Window

PAIR = ("user_idx", "item_idx")
DAYS, USERS = 7, 100  # minima of the held-out part by time, for evaluation.protocol=auto


@dataclass(frozen=True)
class Split:
    """A split: frames of pairs with user_idx, item_idx and further columns.

    marked : the events that all other frames derive from, for the caller to persist.
    train : pairs to fit on, as the model reads them.
    rows : the tested users' pairs, as the model reads them, that are folded in (q1) or scored.
    seen : all pairs of the tested users up to the split, liked or not; lists exclude them, as published lists do.
    popular : liked pairs of the training part, for the popularity baseline.
    heldout : pairs to rank, or (q3) to predict, with `value`.
    note : description of the cut.
    """

    marked: DataFrame
    train: DataFrame
    rows: DataFrame
    seen: DataFrame
    popular: DataFrame
    heldout: DataFrame
    note: str


def split(events: DataFrame, reads: Reads, config: Config) -> Split:
    """Split indexed events by `config.evaluation.protocol`: q1, q2, q3 or q4."""
    protocols = {"q1": _strong, "q2": _weak, "q3": _ratings, "q4": _by_time}
    return protocols[config.evaluation.protocol](events, reads, config)


def training_events(events: DataFrame, config: Config) -> DataFrame:
    """The events that `split` does not hold out, for a second split within them. For q1: of the users who train."""
    evaluation, seed = config.evaluation, config.seed
    if evaluation.protocol == "q1":
        return _of_users(events, config).where("NOT test").drop("test")
    if evaluation.protocol == "q2":
        return _last_held(events, config).where("NOT held").drop("held")
    if evaluation.protocol == "q3":
        return events.where(uniform(seed, "q3", *map(F.col, PAIR)) >= evaluation.holdout_share)
    return at_cut(events, time_cut(events, evaluation.holdout_share))[0]


def _strong(events: DataFrame, reads: Reads, config: Config) -> Split:
    evaluation, marked = config.evaluation, _of_users(events, config)
    trained, tested = marked.where("NOT test").drop("test"), marked.where("test").drop("test")
    fitted = pairs(trained, reads, config)
    items = fitted.select("item_idx").distinct()
    to_find = liked_pairs(tested, config).join(items, on="item_idx", how="left_semi")
    heldout = _all_but_share(to_find, evaluation.foldin_share, config.seed, "q1-item")
    rest = _without(tested, heldout)
    rows = pairs(rest, reads, config).join(items, on="item_idx", how="left_semi")
    note = f"{evaluation.holdout_share:.0%} of users held out"
    return Split(marked, fitted, rows, _seen(rest), liked_pairs(trained, config), heldout, note)


def _weak(events: DataFrame, reads: Reads, config: Config) -> Split:
    marked = _last_held(events, config)
    heldout, rest = liked_pairs(marked.where("held"), config), marked.where("NOT held").drop("held")
    note = f"{config.evaluation.holdout_share:.0%} of each user's items held out"
    return _of_rest(marked, rest, heldout, note, reads, config)


def _ratings(events: DataFrame, reads: Reads, config: Config) -> Split:
    share = config.evaluation.holdout_share
    is_test = uniform(config.seed, "q3", *map(F.col, PAIR)) < share
    rated = pairs(events, reads, config) if reads.pairs == "values" else latest_values(events)
    heldout, rest = rated.where(is_test), events.where(~is_test)
    if reads.moments:
        heldout = with_previous(heldout.drop("previous"), rest)
    return _of_rest(events, rest, heldout, f"{share:.0%} of ratings held out", reads, config)


def _by_time(events: DataFrame, reads: Reads, config: Config) -> Split:
    at = time_cut(events, config.evaluation.holdout_share)
    before, after = at_cut(events, at)
    heldout = _without(liked_pairs(after, config), before)
    at_that_time = config.model_copy(update={"ds": at - dt.timedelta(days=1)})  # for the window and the decay
    return _of_rest(events, before, heldout, f"held out from {at} on", reads, at_that_time)


def _of_rest(marked: DataFrame, rest: DataFrame, heldout: DataFrame, note: str, reads: Reads, config: Config) -> Split:
    """The split that trains on all events that are not held out.

    Where the fit has all pairs, or all liked ones, these are what is seen, or popular: the caller persists them.
    """
    fitted, preference = pairs(rest, reads, config), config.preference
    likes = reads.pairs == "positives"
    whole = config.train.window_days is None
    has_all = whole and (not likes or preference.positive_from is None)
    seen = fitted.select(*PAIR) if has_all else _seen(rest)
    has_liked = whole and (likes or preference.positive_from is None)
    popular = fitted.select(*PAIR, F.lit(1.0).alias("value")) if has_liked else liked_pairs(rest, config)
    return Split(marked, fitted, fitted, seen, popular, heldout, note)


def _seen(events: DataFrame) -> DataFrame:
    return events.select(*PAIR).distinct()


def _without(rows: DataFrame, heldout: DataFrame) -> DataFrame:
    return rows.join(heldout, on=list(PAIR), how="left_anti")


def at_cut(events: DataFrame, day: dt.date) -> tuple[DataFrame, DataFrame]:
    """The events before a day (UTC), and those from that day on."""
    cut = F.lit(day.isoformat() + "T00:00:00Z").cast("timestamp")
    return events.where(F.col("ts") < cut), events.where(F.col("ts") >= cut)


def chosen_protocol(events: DataFrame, config: Config) -> tuple[str, str]:
    """q4 if its held-out part has `DAYS` days with events and `USERS` users with earlier events, else q2.

    Returns the protocol and the reason for it.
    """
    share = config.evaluation.holdout_share
    days = _days(events)
    if len(days) < 2:
        return "q2", "all events are of one day"
    at = _cut(days, share)
    held = sum(day >= at for day, _ in days)
    if held < DAYS:
        return "q2", f"the last {share:.0%} of the events are of {held} days, a split by time needs {DAYS}"
    before, after = at_cut(positives(events, config), at)
    users = after.select("user_idx").distinct().join(before.select("user_idx"), on="user_idx", how="left_semi").count()
    if users < USERS:
        return "q2", f"{users:,} users have events before and in the last {share:.0%}, a split by time needs {USERS}"
    return "q4", f"the last {share:.0%} of the events are of {held} days and {users:,} users with earlier events"


def time_cut(events: DataFrame, share: float) -> dt.date:
    """The first day (UTC) from which on at most `share` of all events follow; the last day at the latest.

    Raises GateRefused if all events are of one day: nothing would be left to train on.
    """
    return _cut(_days(events), share)


def _days(events: DataFrame) -> list[tuple[dt.date, int]]:
    """The days (UTC) with events, in order, and their numbers of events."""
    days = events.groupBy(F.to_date("ts").alias("day")).count().orderBy("day").collect()
    return [(row["day"], row["count"]) for row in days]


def _cut(days: list[tuple[dt.date, int]], share: float) -> dt.date:
    if len(days) < 2:
        raise GateRefused("evaluation.protocol=q4 needs events of two days or more: use evaluation.protocol=q2")
    total, after = sum(count for _, count in days), 0
    cut = days[-1][0]
    for day, count in reversed(days[1:]):
        after += count
        if after > share * total:
            break
        cut = day
    return cut


def uniform(seed: int, salt: str, *columns: Column) -> Column:
    """A pseudo-random number in [0, 1): a hash of seed, salt and the columns' values."""
    return F.pmod(F.xxhash64(F.lit(seed), F.lit(salt), *columns), F.lit(2**40)) / F.lit(float(2**40))


def _of_users(events: DataFrame, config: Config) -> DataFrame:
    """The events of users with enough liked pairs, and `test`: whether the user is held out."""
    evaluation = config.evaluation
    is_test = uniform(config.seed, "q1-user", F.col("user_idx")) < evaluation.holdout_share
    counted = _placed(events, config, "q1-item").where(F.col("n") >= evaluation.min_user_items)
    return counted.drop("liked", "place", "n").withColumn("test", is_test)


def _last_held(events: DataFrame, config: Config) -> DataFrame:
    """The events, and `held`: whether their pair is one of the last of its user's liked pairs, in a hashed order."""
    evaluation = config.evaluation
    placed = _placed(events, config, "q2-item")
    kept = F.round(F.col("n") * (1 - evaluation.holdout_share))
    held = F.col("liked") & (F.col("n") >= evaluation.min_user_items) & (F.col("place") > kept)
    return placed.withColumn("held", held).drop("liked", "place", "n")


def _placed(events: DataFrame, config: Config, salt: str) -> DataFrame:
    """The events, and of each whether its pair is `liked`, its `place` among the user's pairs, and their number `n`.

    Only liked pairs are counted; places of others come after theirs. Windows instead of joins: they need all events of
    a user in one partition, as `indexed` gives them, and read them once.
    """
    pair = Window.partitionBy(*PAIR)
    liked = F.max(is_positive(config)).over(pair) if config.preference.positive_from is not None else F.lit(True)
    hashed = uniform(config.seed, salt, *map(F.col, PAIR))
    order = Window.partitionBy("user_idx").orderBy(F.desc("liked"), hashed, "item_idx")
    whole = Window.partitionBy("user_idx").rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    placed = events.withColumn("liked", liked).withColumn("place", F.dense_rank().over(order))
    n = F.coalesce(F.max(F.when(F.col("liked"), F.col("place"))).over(whole), F.lit(0))
    return placed.withColumn("n", n)


def _all_but_share(liked: DataFrame, share: float, seed: int, salt: str) -> DataFrame:
    """Each user's items but for a rounded share of them, the first in a hashed order."""
    order = Window.partitionBy("user_idx").orderBy(uniform(seed, salt, *map(F.col, PAIR)), "item_idx")
    whole = Window.partitionBy("user_idx").rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    first = F.row_number().over(order) <= F.round(F.count(F.lit(1)).over(whole) * share)
    return liked.withColumn("first", first).where("NOT first").drop("first")
