"""The evaluate job: measure a run's model on a split of the run's training data."""

from __future__ import annotations

import hashlib
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from sparkcf.config.root import Config
from sparkcf.data.split import chosen_protocol
from sparkcf.jobs.base import STATES, OpenRun, open_run, packing_of, training_data
from sparkcf.jobs.train import progress_folder, progress_of
from sparkcf.lake.metrics import measured_protocols, write_figures
from sparkcf.lake.published import published_run
from sparkcf.lake.runs import reason_recorded
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract_data import FitRun
from sparkcf.models.registry import model_of
from sparkcf.progress import say, step
from sparkcf.ranking.evaluate import SYSTEMS, Evaluation, evaluate, settings_of
from sparkcf.ranking.rerank_items import check_attributes


def evaluate_run(spark: SparkSession, config: Config, opened: OpenRun | None = None) -> dict[str, Any]:
    """Measure the run's model by `config.evaluation` on the run's input versions, and write `metrics`.

    The model is fitted again on the train part of the split, since the run's factors were trained on the held-out part
    too. Packed rows and checkpoints are kept apart for each split for the same reason.
    """
    tables = LakeTables(spark, config.lake.root)
    opened = opened or open_run(tables, config, STATES)
    with reason_recorded(opened.run):
        return _evaluate(spark, tables, opened, config)


def _evaluate(spark: SparkSession, tables: LakeTables, opened: OpenRun, config: Config) -> dict[str, Any]:
    run, inputs = opened.run, opened.inputs
    config = run.fitted_with(config)
    model = model_of(config)
    events = inputs.events(config.ds)
    config = with_protocol(tables, events, config)
    check_attributes(inputs.read("items"), config.rerank)
    with step("evaluate", spark, f"{config.model} by {config.evaluation.protocol}") as progress:
        split = hashlib.sha256(config.evaluation.model_dump_json().encode()).hexdigest()[:12]
        packing = packing_of(model, inputs, config, split)
        data = training_data(model, inputs, events, config, packing)
        folder = progress_folder(inputs, config, split=split)
        fit_run = FitRun(on_progress=progress_of(progress, model.rounds), checkpoint_dir=folder)
        try:
            result = evaluate(events, model, data, config, fit_run, inputs.read("items"))
        finally:
            packing.drop()
        progress.note = headline(result, config)
    write_figures(tables, run.run_id, result.protocol, settings_of(config), result.figures)
    if run.state == "trained":
        run.update("evaluated")
    else:
        run.record(done=True)
    figures = {
        f"{f.system}:{f.metric}" + (f"@{f.k}" if f.k else ""): round(f.value, 6)
        for f in result.figures
        if f.segment is None
    }
    return {"run_id": run.run_id, "protocol": result.protocol, "split": result.note, "figures": figures}


def with_protocol(tables: LakeTables, events: DataFrame, config: Config) -> Config:
    """The configuration with `auto` replaced by a protocol, which is printed.

    The protocol of the published run, so that the gate can compare; without one `chosen_protocol`.
    """
    if config.evaluation.protocol != "auto":
        return config
    published = published_run(tables, config.model)
    if published and (measured := measured_protocols(tables, published["run_id"])):
        protocol, why = measured[-1], f"as the published run {published['run_id']} was measured"
    else:
        protocol, why = chosen_protocol(events, config)
    say(f"  evaluation of {config.model} by {protocol}: {why}")
    return config.with_protocol(protocol)


def headline(result: Evaluation, config: Config) -> str:
    """The gate's measure of the model and of the baseline, with bounds."""
    metric, k = config.gate_measure()
    shown = []
    for f in result.figures:
        if f.system in SYSTEMS and (f.metric, f.k, f.segment) == (metric, k, None):
            bounds = "" if f.lower is None else f" [{f.lower:.4f}, {f.upper:.4f}]"
            shown.append(f"{config.model if f.system == 'model' else f.system} {f.value:.4f}{bounds}")
    name = metric.replace("_at_k", f"@{k}") if k else metric
    return f"{result.note}; {name}: " + " against ".join(shown)
