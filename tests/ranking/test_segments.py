"""Measures by activity, popularity and category are what plain loops over users give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sparkcf.kernels.metrics import ranking_measures, summarize
from sparkcf.ranking.segments import BUCKETS, FIFTHS, Categories, Segments, bucket_of, edge, tenths

K = 3
NAMES = [("ndcg_at_k", K)]


def rows(*lists: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, lists)]).astype(np.int64), np.array([i for items in lists for i in items], np.int32)


def test_every_number_of_items_is_in_the_bucket_between_its_edges() -> None:
    items = np.arange(3000)
    found = bucket_of(items)
    assert found.max() < BUCKETS
    assert all(edge(b) <= n < edge(b + 1) for n, b in zip(items.tolist(), found.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_tenths_cover_all_users_once_and_hold_at_least_a_tenth(seed: int) -> None:
    users = np.random.default_rng(seed).integers(0, 50, BUCKETS).astype(float)
    groups = tenths(users)
    covered = [b for first, last in groups for b in range(first, last + 1)]
    assert len(groups) <= 10 and covered == sorted(set(covered))
    assert set(np.flatnonzero(users).tolist()) <= set(covered)
    assert all(users[first : last + 1].sum() >= users.sum() / 10 - 1e-9 for first, last in groups)


def test_no_users_make_no_groups() -> None:
    assert tenths(np.zeros(BUCKETS)) == []


def test_items_are_grouped_by_fifths_of_the_pairs() -> None:
    found = Segments.of(NAMES, NAMES[0], np.array([1, 5, 2, 2, 0], np.float32), None)
    assert found.group.tolist() == [4, 0, 2, 3, FIFTHS]


class Items:
    """A table of items, as far as `Categories.of` uses one."""

    def __init__(self, *categories: list[str | None]) -> None:
        places = range(len(categories))
        self.frame = pd.DataFrame({"item_idx": places, "categories": [np.array(c, object) for c in categories]})

    def select(self, *names: str) -> Items:
        return self

    where = select

    def toPandas(self) -> pd.DataFrame:
        return self.frame


def test_the_most_common_categories_are_kept_in_their_order() -> None:
    items = Items(["b", "a"], ["b"], [], ["a", "b", None], ["z"], ["b"])
    found = Categories.of(items, 5)
    assert found.names == ("b", "a", "z")  # of the item that came after the fit, only the count
    assert found.member.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert Categories.of(Items(), 5).names == ()


def test_figures_by_segment_equal_loops_over_users() -> None:
    seen, heldout = rows([0], [0, 1, 2, 3, 4], [1]), rows([1, 2], [5], [0, 3, 5])
    ranked = np.array([[1, 4, 3, 2], [0, 1, 2, 5], [5, 3, -1, -1]], np.int32)
    member = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 1], [1, 0]], bool)
    popularity = np.array([5, 3, 1, 1, 0, 0], np.float32)
    segments = Segments.of(NAMES, NAMES[0], popularity, Categories(("A", "B"), member))
    names, values = ranking_measures(ranked, *heldout, [K])
    column = names.index(NAMES[0])
    columns = segments.columns(values[:, column : column + 1], seen, heldout, ranked)
    summary = summarize(np.column_stack([np.ones(3), columns]), np.arange(3), 7, 20)
    found = {f.segment: f for f in segments.figures("model", summary, 1)}

    held = [(u, int(i)) for u in range(3) for i in heldout[1][heldout[0][u] : heldout[0][u + 1]]]
    hit = {(u, i): i in ranked[u, :K].tolist() for u, i in held}
    for name, inside in (
        ("category A", lambda i: member[i, 0]),
        ("category B", lambda i: member[i, 1]),
        ("popularity 1 fifth 1, 1 items", lambda i: i == 0),
        ("popularity 6 no pairs, 2 items", lambda i: popularity[i] == 0),
    ):
        wanted = [hit[pair] for pair in held if inside(pair[1])]
        assert (found[name].value, found[name].users) == (pytest.approx(np.mean(wanted)), len(wanted))
        assert (found[name].metric, found[name].k) == ("found_at_k", K)
        assert found[name].lower <= found[name].value <= found[name].upper
    few = [f for name, f in found.items() if name.startswith("activity 1")]
    assert [f.users for f in few] == [2] and few[0].value == pytest.approx(values[[0, 2], column].mean())
    many = next(f for name, f in found.items() if name.startswith("activity 2"))
    assert many.value == pytest.approx(values[1, column]) and many.segment == "activity 2 5-6 items"
