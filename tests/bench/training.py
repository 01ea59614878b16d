"""Trainings of nets for the benchmarks: seconds of epochs, alone and in processes, and quality on the fixed splits."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sparkcf.config.models import SECTIONS
from sparkcf.config.nets import NetConfig
from sparkcf.data.packed import PackedRows
from sparkcf.data.packing import EVEN_FILES, LEAST_ROWS
from sparkcf.models.nets.registry import build_net
from sparkcf.training.feed import Feed, MemoryFeed
from sparkcf.training.group import Group, from_environment, joined_group
from sparkcf.training.loop import to_tensors, train
from tests.bench import quality
from tests.bench.synthetic import QUICK, Interactions, interactions

ALONE = Group(0, 1, torch.device("cpu"))
EPOCHS = 4  # a turn, of which the first is left out: it warms up
SEEDS = (1, 2, 3)
MEASURES_SHOWN = (("ndcg_at_k", 100), ("ndcg_at_k", 20), ("recall_at_k", 20))
ITEM_COUNTS = (20_000, 200_000)  # of the memory's measure
TWO_SIDED = {"bivae"}  # nets that train on the rows of items too
ON_GRAPH = {"disengcn"}  # nets that hold all rows of users


def section(model: str, **changes: Any) -> NetConfig:
    """The parameters of a net, without early stopping."""
    made = SECTIONS[model](**({"epochs": EPOCHS, "patience": 0, "batch_size": 500} | changes))
    assert isinstance(made, NetConfig)
    return made


def packed(data: Interactions, side: str = "user") -> PackedRows:
    """The rows of users, or of the items that have any."""
    columns, sizes = [data.users, data.items], [data.n_users, data.n_items]
    if side == "item":
        columns, sizes = columns[::-1], sizes[::-1]
    rows = quality.rows(np.column_stack(columns), *sizes)
    whole = PackedRows(np.arange(sizes[0]), *rows)
    return whole if side == "user" else whole.take(np.flatnonzero(np.diff(whole.indptr)))


def write_files(rows: PackedRows, folder: Path) -> list[str]:
    """The rows as the prepare job lays them down: dealt by index to files of one row group."""
    written, files = [], min(-(-len(rows) // LEAST_ROWS), EVEN_FILES)
    for number in range(files):
        part = rows.take(np.arange(number, len(rows), files))
        ends = part.indptr
        columns = {
            "user_idx": pa.array(part.ids.astype(np.int32)),
            "items": [part.indices[a:b].tobytes() for a, b in pairwise(ends)],
            "values": [part.values[a:b].tobytes() for a, b in pairwise(ends)],
        }
        path = folder / f"part-{number:03}.parquet"
        pq.write_table(pa.table(columns), path)
        written.append(path.as_uri())
    return written


def pairs_of(split: str) -> Interactions:
    """The training pairs of a split."""
    archive = quality.load(split)
    users, items = (archive["train"][:, column].astype(np.int32) for column in (0, 1))
    return Interactions(users, items, quality.n_users(archive), int(archive["n_items"]))


def datasets(splits: Sequence[str], quick: bool) -> dict[str, Interactions]:
    """The training parts of splits, by name; quickly, small synthetic pairs."""
    return {"synthetic": interactions(QUICK)} if quick else {split: pairs_of(split) for split in splits}


def catalogue(n_items: int) -> Interactions:
    """500 users of 100 items each, of so many."""
    random = np.random.default_rng(1)
    users = np.repeat(np.arange(500, dtype=np.int32), min(100, n_items // 2))
    items = np.concatenate([random.choice(n_items, len(users) // 500, replace=False) for _ in range(500)])
    return Interactions(users, items.astype(np.int32), 500, n_items)


def known_of(model: str, data: Interactions) -> dict[str, Any]:
    """What a net of the model is built from."""
    sizes = {"n_users": data.n_users, "n_items": data.n_items}
    return sizes | ({"rows": packed(data)} if model in ON_GRAPH else {})


def seconds_from(model: str, feed: Feed, n_items: int, group: Group = ALONE, **changes: Any) -> list[float]:
    """Of the epochs of one training from a feed of users' rows, without the first."""
    config = section(model, **changes)
    log = train(build_net({"n_items": n_items}, config, 1), feed, config, 1, group)
    return [entry["seconds"] for entry in log[1:]]


def seconds(model: str, data: Interactions, group: Group = ALONE, **changes: Any) -> list[float]:
    """Of the epochs of one training from memory, without the first; `batch_size` is of each rank."""
    config = section(model, **changes)
    sides = ("user", "item") if model in TWO_SIDED else ("user",)
    feeds = [MemoryFeed(packed(data, side), config.batch_size, 1, group.rank, group.size) for side in sides]
    net = build_net(known_of(model, data), config, 1)
    log = train(net, feeds[0], config, 1, group, item_feed=feeds[1] if len(feeds) > 1 else None)
    return [entry["seconds"] for entry in log[1:]]


def in_processes(size: int, model: str, data: Interactions, **changes: Any) -> list[float]:
    """Seconds of epochs that so many processes train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    members = [
        context.Process(target=_member, args=(rank, size, port, answers, model, data, changes)) for rank in range(size)
    ]
    for member in members:
        member.start()
    found = [answers.get(timeout=600) for _ in members]
    for member in members:
        member.join(30)
    return found[0]


def _member(rank: int, size: int, port: int, answers: Any, model: str, data: Interactions, changes: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined_group(*from_environment(), 60, 1) as group:
        answers.put(seconds(model, data, group, **changes))


def peak_memory(model: str, data: Interactions, **changes: Any) -> float:
    """MiB of a process that trains two epochs, above what it has with torch loaded and the data in memory."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_peak, args=(answers, model, data, changes))
    process.start()
    found: float = answers.get(timeout=900)
    process.join(30)
    return found


def _peak(answers: Any, model: str, data: Interactions, changes: Any) -> None:
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of receiving the data
    before = _kib("VmRSS")
    seconds(model, data, **({"epochs": 2} | changes))
    answers.put((_kib("VmHWM") - before) / 1024)


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def trained(split: str, model: str, chosen: dict[str, Any], seed: int, **data: Any) -> tuple[torch.nn.Module, float]:
    """A net with the weights of the epoch that validation likes best, and that NDCG@100; "patience": 0 trains on."""
    archive = quality.load(split)
    config = section(model, **({"epochs": 200, "patience": 15} | chosen))
    pairs = pairs_of(split)
    feeds = [MemoryFeed(packed(pairs, side), config.batch_size, seed) for side in ("user", "item")]
    net = build_net(known_of(model, pairs) | data, config, seed)

    def validation() -> Iterator[tuple[PackedRows, PackedRows]]:
        yield part(archive, "valid")

    item_feed = feeds[1] if model in TWO_SIDED else None
    log = train(net, feeds[0], config, seed, ALONE, validation, item_feed=item_feed)
    return net, max(entry["ndcg_at_100"] for entry in log)


def part(archive: dict[str, np.ndarray], name: str) -> tuple[PackedRows, PackedRows]:
    """Rows that are seen and rows that are held out, of the users of a part."""
    seen, heldout = quality.parts(archive, name)
    ids = np.arange(len(seen[0]) - 1)
    return PackedRows(ids, *seen), PackedRows(ids, *heldout)


def test_measures(split: str, net: torch.nn.Module) -> dict[tuple[str, int], float]:
    """Measures of the test users, what they have masked; on a q2 split the net is given their training rows."""
    archive = quality.load(split)
    seen, heldout = part(archive, "test")
    given = part(archive, "valid")[0] if "users" in archive else seen
    masked = to_tensors(seen, "cpu")
    with torch.inference_mode():
        scores = net.eval()(to_tensors(given, "cpu"))[0]
        scores[masked.row_of, masked.indices] = -torch.inf
        ranked = scores.topk(100, dim=1).indices.int().numpy()
    return quality.measure_lists(ranked, (heldout.indptr, heldout.indices, heldout.values))


def figure(split: str, model: str, chosen: dict[str, Any], seed: int) -> float:
    """NDCG@100 of the test users."""
    return test_measures(split, trained(split, model, chosen, seed)[0])[("ndcg_at_k", 100)]
