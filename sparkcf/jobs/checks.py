"""What a night checks before its first step: settings that a later step would refuse whatever the data."""

from __future__ import annotations

import os
from typing import Any

from pyspark.sql import SparkSession

from sparkcf.config.root import Config
from sparkcf.data.ingest import read_listing
from sparkcf.data.pairs import pairs
from sparkcf.errors import ConfigError, first_line
from sparkcf.jobs.space import scratch_folders
from sparkcf.jobs.train import progress_root
from sparkcf.lake.folder import Folder
from sparkcf.lake.roots import FREE, little_space, local_folder, resolve_root
from sparkcf.models.contract import Model
from sparkcf.models.registry import model_of
from sparkcf.progress import say
from sparkcf.ranking.evaluate import check_protocol

EVENTS = "user_idx int, item_idx int, event string, value double, ts timestamp, context map<string,string>"


def check_settings(spark: SparkSession, nights: list[Config]) -> None:
    """Check the nights of all models; little free space is only warned of.

    Raises
    ------
    ConfigError
        A protocol that cannot measure a model, diversity by vectors that a model lacks, a model's own settings, too few
        task slots, dynamic allocation for a worker group, a folder of `train.progress` that cannot be written.
    InputError
        `topk.ineligible` cannot be read.
    """
    events = spark.createDataFrame([], EVENTS)  # the columns of a day's events
    for night in nights:
        model = model_of(night)
        check_protocol(model, night)
        _check_similarity(model, night)
        if night.night == "train":
            model.check_settings(pairs(events, model.reads, night))
    if path := nights[0].topk.ineligible:
        read_listing(spark, "topk.ineligible", path, ("item_id",))
    if nights[0].train.progress:
        _check_progress(nights[0])
    _warn_of_little_space(spark, nights[0])


def _check_similarity(model: Model[Any], config: Config) -> None:
    """Raise ConfigError for diversity by item vectors with a model that has none."""
    if config.rerank.diversity and config.rerank.similarity == "vectors" and not model.item_width:
        raise ConfigError(
            f"rerank.similarity=vectors: model={model.name} has no item vectors: set rerank.similarity=categories"
        )


def _check_progress(config: Config) -> None:
    """Raise ConfigError unless a file can be written to `train.progress`."""
    folder, probe = Folder(progress_root(config, "")), f".sparkcf-probe-{os.getpid()}"
    try:
        folder.write(probe, b"")
        folder.delete(probe)
    except OSError as error:
        raise ConfigError(
            f"train.progress={config.train.progress} cannot be written ({first_line(error)}): change its rights or "
            "name another folder"
        ) from None


def _warn_of_little_space(spark: Any, config: Config) -> None:
    """Warn of little space on this machine for the lake and for Spark's temporary files."""
    scratch = scratch_folders(dict(spark.sparkContext.getConf().getAll()))
    lake = local_folder(resolve_root(config.lake.root))
    for place, free in little_space([*([lake] if lake else []), *scratch]):
        say(
            f"  warning: {free / 2**30:.1f} GiB free at {place}: a night may need more than {FREE / 2**30:.0f} GiB",
            "warning",
        )
