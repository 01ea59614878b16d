"""What several models of a night read alike: computed once, by the first that needs it, and kept for the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pyspark.sql import DataFrame

from sparkcf.config.root import Config
from sparkcf.data.pairs import liked_pairs, popularity
from sparkcf.data.split import split
from sparkcf.jobs.recommend import seen_items
from sparkcf.lake.frames import kept
from sparkcf.models.registry import model_of
from sparkcf.ranking.evaluate import tested_users


@contextmanager
def shared_frames(events: DataFrame, nights: list[Config]) -> Iterator[None]:
    """Keep the frames that two or more nights derive from the same events, until the block ends.

    Nothing is computed here but the day at which q4 cuts. The steps build the frames anew, and Spark recognises them by
    their plans.

    Parameters
    ----------
    nights : one for each model, of one configuration, with their protocols settled.
    """
    with ExitStack() as held:
        if len(nights) > 1:
            for frame in _shared(events, nights):
                held.enter_context(kept(frame))
        yield


def _shared(events: DataFrame, nights: list[Config]) -> Iterator[DataFrame]:
    first = nights[0]
    yield popularity(liked_pairs(events, first))
    if first.topk.exclude_seen:
        yield seen_items(events)
    protocols: Counter[str] = Counter(night.evaluation.protocol for night in nights)
    groups: dict[tuple[str, str, bool], list[Config]] = defaultdict(list)
    for night in nights:
        reads = model_of(night).reads
        groups[night.evaluation.protocol, reads.pairs, reads.moments].append(night)
    for (protocol, *_), alike in groups.items():
        if protocols[protocol] > 1:
            parts = split(events, model_of(alike[0]).reads, alike[0])
            yield parts.marked
            if len(alike) > 1:
                yield from (parts.train, parts.heldout, popularity(parts.popular), tested_users(parts))
