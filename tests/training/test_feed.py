"""The feed: every row once an epoch, equally many steps at every rank, whatever does not divide."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkcf.data.packed import PackedRows
from sparkcf.errors import LakeError
from sparkcf.training.feed import Batch, MemoryFeed, PetastormFeed, local_path, step_counts

RANKS = (1, 2, 3)


def write_file(path: Path, ids: Sequence[int], row_group: int | None = None) -> str:
    """A file of packed rows: row u has items u and u + 1 (row 3 only one) with values u / 2."""
    items = [np.array([u] if u == 3 else [u, u + 1], np.int32) for u in ids]
    table = {
        "user_idx": pa.array(ids, pa.int32()),
        "items": pa.array([i.tobytes() for i in items], pa.binary()),
        "values": pa.array([(i * 0 + u / 2).astype(np.float32).tobytes() for u, i in zip(ids, items, strict=True)]),
        "count": pa.array([len(i) for i in items], pa.int32()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=row_group or max(len(ids), 1))
    return path.as_uri()


def files_of(folder: Path, *sizes: int) -> list[str]:
    ends = np.cumsum([0, *sizes])
    return [write_file(folder / f"part-{i}.parquet", range(*ends[i : i + 2])) for i in range(len(sizes))]


def epochs(files: list[str], size: int, batch: int, number: int = 1, seed: int = 5) -> list[list[Batch]]:
    feeds = [PetastormFeed(files, "user_idx", batch, seed, rank, size) for rank in range(size)]
    try:
        return [list(feed.epoch(number)) for feed in feeds]
    finally:
        for feed in feeds:
            feed.close()


def ids(ranks: list[list[Batch]]) -> list[int]:
    return [int(u) for batches in ranks for batch in batches for u in batch.rows.ids]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 9))
def test_steps_take_every_row_and_no_more_than_a_batch(sizes: list[int], batch: int) -> None:
    counts = step_counts(sizes, batch)
    assert counts.sum(axis=1).tolist() == sizes
    assert counts.shape == (len(sizes), -(-max(sizes) // batch))
    if counts.size:
        assert counts.max() <= batch and (counts.max(axis=1) - counts.min(axis=1)).max() <= 1


def test_the_example_of_three_ranks() -> None:
    assert step_counts([5, 4, 0], 2).tolist() == [[1, 2, 2], [1, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("sizes", [(20,), (7, 7, 7), (11, 0, 3, 9, 1), (5, 5, 5, 5, 5, 5, 4)])
def test_every_row_comes_once_an_epoch_and_ranks_take_equally_many_steps(
    tmp_path: Path, size: int, sizes: tuple[int, ...]
) -> None:
    ranks = epochs(files_of(tmp_path, *sizes), size, batch=4)
    assert sorted(ids(ranks)) == list(range(sum(sizes)))
    assert len({len(batches) for batches in ranks}) == 1
    for step in zip(*ranks, strict=True):
        assert {batch.total for batch in step} == {sum(len(batch.rows) for batch in step)}


def test_rows_come_with_their_own_entries(tmp_path: Path) -> None:
    for batches in epochs(files_of(tmp_path, 9, 4), 2, batch=3):
        for batch in batches:
            for place, user in enumerate(batch.rows.ids):
                here = slice(batch.rows.indptr[place], batch.rows.indptr[place + 1])
                assert batch.rows.indices[here].tolist() == ([3] if user == 3 else [user, user + 1])
                assert set(batch.rows.values[here].tolist()) == {user / 2}


def test_fewer_files_than_ranks_leave_a_rank_with_empty_batches(tmp_path: Path) -> None:
    ranks = epochs(files_of(tmp_path, 6), 3, batch=4)
    assert [sum(len(b.rows) for b in batches) for batches in ranks] == [6, 0, 0]
    assert [len(batches) for batches in ranks] == [2, 2, 2]


def test_no_row_at_all_is_no_step(tmp_path: Path) -> None:
    assert epochs(files_of(tmp_path, 0), 2, batch=4) == [[], []]
    assert epochs([], 1, batch=4) == [[]]


def test_the_order_is_by_seed_and_epoch_and_the_same_again(tmp_path: Path) -> None:
    files = files_of(tmp_path, *[10] * 6)
    first = ids(epochs(files, 1, 7))
    assert first == ids(epochs(files, 1, 7))
    assert first != ids(epochs(files, 1, 7, number=2)) != first
    assert first != ids(epochs(files, 1, 7, seed=6)) != first
    assert sorted(first[:7]) != list(range(7))


def test_more_rows_than_the_pool_come_once_each(tmp_path: Path) -> None:
    assert sorted(ids(epochs(files_of(tmp_path, *[13] * 9), 2, batch=2))) == list(range(117))


def test_files_of_several_row_groups_are_read_whole(tmp_path: Path) -> None:
    file = write_file(tmp_path / "many.parquet", range(25), row_group=4)
    assert sorted(ids(epochs([file], 1, 6))) == list(range(25))


def test_only_the_listed_files_are_read_and_no_planted_pickle_runs(tmp_path: Path) -> None:
    files = files_of(tmp_path, 5, 5)
    write_file(tmp_path / "dead.parquet", range(100, 110))
    ran = tmp_path / "ran"

    class Planted:
        def __reduce__(self) -> tuple:
            return (Path.touch, (ran,))

    schema = pq.read_schema(local_path(files[0]))
    pq.write_metadata(
        schema.with_metadata({b"dataset-toolkit.unischema.v1": pickle.dumps(Planted())}), tmp_path / "_common_metadata"
    )
    assert sorted(ids(epochs(files, 1, 4))) == list(range(10))
    assert not ran.exists()


def test_a_file_that_is_gone_or_damaged_is_named(tmp_path: Path) -> None:
    files = files_of(tmp_path, 5, 5)
    Path(local_path(files[1])).unlink()
    with pytest.raises(LakeError, match=r"part-1\.parquet cannot be read: .*train again"):
        PetastormFeed(files, "user_idx", 4, 1)
    Path(local_path(files[1])).write_bytes(b"PAR1 no")
    with pytest.raises(LakeError, match=r"part-1\.parquet cannot be read"):
        PetastormFeed(files, "user_idx", 4, 1)


@pytest.mark.parametrize("name", ["a b%20c", "a?b#c;d"])
def test_files_in_folders_of_any_name_are_read(tmp_path: Path, name: str) -> None:
    file = write_file(tmp_path / name / "ü.parquet", range(4))
    assert sorted(ids(epochs([file], 1, 4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", RANKS)
def test_the_feed_from_memory_keeps_the_same_promises(size: int) -> None:
    n = 23
    rows = PackedRows(np.arange(n), np.arange(n + 1), np.arange(n, dtype=np.int32), np.ones(n, np.float32))
    ranks = [list(MemoryFeed(rows, 4, 1, rank, size).epoch(1)) for rank in range(size)]
    assert sorted(ids(ranks)) == list(range(n)) and len({len(r) for r in ranks}) == 1
    assert ids(ranks) != ids([list(MemoryFeed(rows, 4, 1, rank, size).epoch(2)) for rank in range(size)])


def test_files_are_dealt_so_that_no_rank_waits_for_another(tmp_path: Path) -> None:
    """8, 4 and 4 rows: 8 for each of two ranks, so two steps of 4; all files at one rank would take four."""
    dealt = epochs(files_of(tmp_path, 4, 8, 4), size=2, batch=4)
    assert [[len(batch.rows.ids) for batch in batches] for batches in dealt] == [[4, 4], [4, 4]]
