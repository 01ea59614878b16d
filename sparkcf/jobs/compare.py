"""The compare job: train and measure several models on one snapshot, with the same split and the same users.

compare.files ──▶ comparisons, all waiting ──each: split, fit, measure, lists──▶ comparisons, metrics, runs

A model that was measured before with the same snapshot, settings and code version is not measured again.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.compare import compared
from sparkcf.config.root import Config
from sparkcf.data.dictionary import register_texts
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.data.pairs import liked_pairs, popularity
from sparkcf.data.split import chosen_protocol
from sparkcf.errors import ConfigError, SparkcfError, TrainingError, first_line, interruption
from sparkcf.jobs.base import packing_of, training_data
from sparkcf.jobs.memory import PeakMemory
from sparkcf.jobs.recommend import banned_items, rankable, wanted_users
from sparkcf.jobs.train import progress_of, write_fitted
from sparkcf.lake.comparisons import Row, measured_before, write_compared, write_comparison
from sparkcf.lake.figures import Figure
from sparkcf.lake.folder import Folder
from sparkcf.lake.frames import one_row
from sparkcf.lake.metrics import write_figures
from sparkcf.lake.roots import absolute
from sparkcf.lake.runs import Run, recorded_run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract import Model
from sparkcf.models.contract_data import FitRun, Fitted, TrainingData
from sparkcf.models.registry import model_of
from sparkcf.progress import say, step
from sparkcf.ranking.evaluate import check_protocol, measured, persisted_split, settings_of
from sparkcf.ranking.scorers import share_fitted
from sparkcf.ranking.topk import Catalogue, ranked_lists, share_ranker
from sparkcf.version import __version__

READ = ("interactions", "users", "items", "features")  # tables that a comparison pins


def compare_models(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Train and measure every model of `compare.files` on the interactions up to `config.ds`; publish nothing.

    A model that fails does not stop the others: its reason is in `comparisons`, and the job ends with the error of the
    first failure.

    Raises
    ------
    ConfigError
        A model's file is not usable, or the protocol cannot measure one of the models.
    LakeError
        There are no interactions up to the day.
    """
    configs = compared(config)
    for one in configs.values():
        check_protocol(model_of(one), one)
    inputs = _pinned(LakeTables(spark, config.lake.root), configs)
    events = inputs.events(config.ds)
    wanted_users(inputs.read("users"), config)  # raises for a user who does not exist, before anything is written
    configs = _with_protocol(events, configs)
    rows = planned(inputs, configs)
    write_comparison(inputs.tables, rows[0]["comparison_id"], rows)
    _start_workers(spark)
    failed: dict[str, Exception] = {}
    kept = [row["name"] for row in rows if row["state"] == "measured"]
    for row in rows:
        name = row["name"]
        if name in kept:
            say(f"{name}: kept from run {row['run_id']}, measured {row['measured_at']:%Y-%m-%d %H:%M}")
            continue
        heldout = next((r["heldout"] for r in rows if r["state"] == "measured"), None)
        try:
            row |= _measure(inputs, events, configs[name], name, heldout) | {"state": "measured"}
        except Exception as error:  # any error of one model: go on with the others
            if stop := interruption(error):
                raise stop from None
            say(f"  {name}: {first_line(error)}", "error")
            failed[name] = error
            row |= {"state": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"[:500]}
        write_compared(inputs.tables, row)
    say(f"sparkcf compare --lake {config.lake.root} shows the comparison")
    if failed:
        _raise_first(failed, [row["name"] for row in rows if row["state"] == "measured"])
    return {
        "comparison_id": rows[0]["comparison_id"],
        "protocol": rows[0]["protocol"],
        "kept": kept,
        "models": {row["name"]: row["run_id"] for row in rows},
        "lake": config.lake.root,
    }


def _raise_first(failed: Mapping[str, Exception], done: list[str]) -> None:
    first = next(iter(failed.values()))
    kind = type(first) if isinstance(first, SparkcfError) else SparkcfError
    told = f"models {', '.join(failed)} failed, measured: {', '.join(done) or 'none'}"
    raise kind(f"{told}; the first error: {first_line(first)}") from first


def _pinned(tables: LakeTables, configs: Mapping[str, Config]) -> Inputs:
    """The newest versions of the input tables, with the texts of all models numbered."""
    newest = Inputs(tables, newest_versions(tables))
    newest.events(next(iter(configs.values())).ds)  # raises if there is nothing to read, before anything is written
    texts = [text for one in configs.values() for text in model_of(one).reads.texts]
    if texts:
        register_texts(tables, tuple(dict.fromkeys(texts)))
        newest = Inputs(tables, newest_versions(tables))
    return Inputs(tables, {name: newest.versions[name] for name in READ})


def _with_protocol(events: DataFrame, configs: Mapping[str, Config]) -> dict[str, Config]:
    """Replace the protocol `auto` by the one that suits the events, the same for all models."""
    first = next(iter(configs.values()))
    protocol: str = first.evaluation.protocol
    if protocol == "auto":
        protocol, why = chosen_protocol(events, first)
        say(f"  comparison by {protocol}: {why}")
    return {name: one.with_protocol(protocol) for name, one in configs.items()}


def planned(inputs: Inputs, configs: Mapping[str, Config]) -> list[Row]:
    """The rows of the comparison, those measured before with their results, the others waiting."""
    first = next(iter(configs.values()))
    snapshot = _snapshot(inputs, first)
    fits = {name: json.dumps(one.shaping(), sort_keys=True) for name, one in configs.items()}
    comparison_id = f"{first.ds:%Y%m%d}-{_digest([snapshot, *fits.items()])}"
    before, (metric, at) = measured_before(inputs.tables, snapshot), first.gate_measure()
    rows = []
    for position, (name, settings) in enumerate(fits.items(), 1):
        same = [row for row in before if row["settings"] == settings]
        found = max(same, key=lambda row: (row["name"] == name, row["measured_at"]), default={"state": "waiting"})
        row: Row = dict(found)
        row |= {"comparison_id": comparison_id, "position": position, "name": name, "model": configs[name].model}
        row |= {"ds": first.ds, "compared_at": _now(), "snapshot": snapshot, "settings": settings}
        row |= {"inputs": dict(inputs.versions), "code_version": __version__}
        rows.append(row | {"protocol": first.evaluation.protocol, "metric": metric, "at": at})
    return rows


def _snapshot(inputs: Inputs, config: Config) -> str:
    """Digest of everything but the model that decides the figures."""
    kept = config.model_dump(mode="json", include={"seed", "preference", "evaluation", "topk"})
    return _digest([str(config.ds), dict(inputs.versions), config.input.events, kept, __version__])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _measure(inputs: Inputs, events: DataFrame, config: Config, name: str, heldout: str | None) -> Row:
    """Fit, measure and list one model as a run of its own; returns columns of `comparisons`.

    Parameters
    ----------
    heldout : digest of the held-out pairs of the other models; None: this model is the first.
    """
    spark, model = inputs.tables.spark, model_of(config)
    with recorded_run(inputs.tables, "compare", config, inputs.versions) as run:
        packing = packing_of(model, inputs, config, f"compare-{_digest(config.evaluation.model_dump())}")
        data = training_data(model, inputs, events, config, packing)
        try:
            with scratch_folder(run, config) as scratch, persisted_split(events, model, config) as parts:
                found = _heldout_digest(parts.heldout)
                if heldout not in (None, found):
                    raise TrainingError(_OTHER_TEST.format(config.evaluation.protocol))
                data = replace(data, pairs=parts.train)
                row: Row = {"run_id": run.run_id, "heldout": found, "pairs": parts.train.count()}
                with PeakMemory(spark) as memory:
                    fitted, row["train_seconds"] = _fit(model, data, name, scratch)
                    try:
                        figures = measured(parts, model, data, fitted, config)
                        row |= _lists(model, fitted, data, inputs, events, config)
                        row["stored_bytes"] = _stored(inputs, model, fitted, run, scratch)
                    finally:
                        fitted.release()
                row["peak_bytes"] = memory.peak
        finally:
            packing.drop()
        row |= {"slots": spark.sparkContext.defaultParallelism, "measured_at": _now(), "reason": None}
        write_figures(inputs.tables, run.run_id, config.evaluation.protocol, settings_of(config), figures)
        run.update("compared", counts={"pairs": row["pairs"], "list_users": row["list_users"]})
    say(f"{name}: {_headline(figures, config)}, trained in {row['train_seconds']:.1f} s")
    return row


_OTHER_TEST = (
    "it is tested on other pairs than the models before it: by evaluation.protocol={} the held-out pairs depend on "
    "what a model reads; compare it with models that read the same, or by q2 or q4"
)


def _fit(model: Model[Any], data: TrainingData, name: str, scratch: str | None) -> tuple[Fitted, float]:
    """A fit whose factors are all computed, and its seconds."""
    with step("train", what=name) as progress:
        begin = time.monotonic()
        fitted = model.fit(data, FitRun(None, progress_of(progress, model.rounds), scratch and f"{scratch}/progress"))
        try:
            users, items = fitted.user_factors.count(), fitted.item_factors.count()  # computes them
        except BaseException:
            fitted.release()
            raise
        seconds = time.monotonic() - begin
        progress.note = f"{users:,} users, {items:,} items"
    return fitted, seconds


def _lists(
    model: Model[Any], fitted: Fitted, data: TrainingData, inputs: Inputs, events: DataFrame, config: Config
) -> Row:
    """Make the lists of all users, as `recommend` does, and throw them away; columns of `comparisons`."""
    spark = inputs.tables.spark
    with step("recommend", spark, f"top {config.topk.k}"):
        begin = time.monotonic()
        users = wanted_users(inputs.read("users"), config).select("user_idx")
        banned = banned_items(spark, inputs.read("items"), config)
        catalogue = Catalogue.of(popularity(liked_pairs(events, config)), data.n_items, banned)
        ranker = share_ranker(spark, share_fitted(spark, model, fitted, data.n_items), catalogue)
        known = rankable(users, model, fitted, data, events, config)
        lists = ranked_lists(known, ranker, model.width, config.topk.k)
        listed = one_row(lists.agg(F.count(F.lit(1)), F.sum(F.size("items"))))[0]  # computes every list
        return {"list_users": int(listed), "list_k": config.topk.k, "list_seconds": time.monotonic() - begin}


def _stored(inputs: Inputs, model: Model[Any], fitted: Fitted, run: Run, scratch: str | None) -> int | None:
    """Bytes of the files of the fit, written to a lake of their own as `train` writes them."""
    if scratch is None:
        return None
    folder = f"{scratch}/lake"
    write_fitted(inputs, model, fitted, Run(LakeTables(inputs.tables.spark, folder), run.row))
    return Folder(folder).total(".parquet", ".safetensors")


@contextmanager
def scratch_folder(run: Run, config: Config) -> Iterator[str | None]:
    """A folder for the run's checkpoints and stored fit, removed afterwards.

    None, with a note, if the place is one that only Spark can write.
    """
    root = absolute(config.train.progress) if config.train.progress else f"{run.tables.root}/_progress"
    address = f"{root}/compare-{run.run_id}"
    try:
        folder = Folder(address)
    except ConfigError as error:
        say(f"  note: the stored bytes are not measured: {error}; set train.progress to such a place")
        yield None
        return
    try:
        yield address
    finally:
        folder.delete()


def _heldout_digest(heldout: DataFrame) -> str:
    """Number of the held-out pairs and a digest that does not depend on their order."""
    pair = F.xxhash64("user_idx", "item_idx").cast("decimal(20,0)")
    count, total = one_row(heldout.agg(F.count(F.lit(1)), F.sum(pair)))
    return f"{count} pairs, {_digest(str(total))}"


def _headline(figures: Iterable[Figure], config: Config) -> str:
    metric, k = config.gate_measure()
    value = next(f.value for f in figures if (f.system, f.metric, f.k, f.segment) == ("model", metric, k, None))
    return f"{metric.replace('_at_k', f'@{k}')} {value:.4f}"


def _start_workers(spark: SparkSession) -> None:
    """Start the Python workers, so that the first model's time does not include that."""
    slots = spark.sparkContext.defaultParallelism
    spark.range(slots, numPartitions=slots).mapInArrow(lambda batches: batches, "id bigint").count()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(tzinfo=None)
