"""The evaluate job: a run's figures, measured on a split of what the run was trained on."""

from __future__ import annotations

import hashlib
from typing import Any

from pyspark.sql import SparkSession

from sparkcf.config.root import Config
from sparkcf.data.inputs import Inputs
from sparkcf.jobs.base import STATES, packing_of, training_data
from sparkcf.jobs.train import progress_folder
from sparkcf.lake.metrics import write_figures
from sparkcf.lake.runs import find_run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract import FitRun
from sparkcf.models.registry import model_of
from sparkcf.progress import step
from sparkcf.ranking.evaluate import Evaluation, evaluate


def evaluate_run(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Measure the run's model by `config.evaluation` on its own input versions, and write `metrics`.

    The model is fitted once more on the train part of the split: the run's own factors have seen the rest. Packed rows
    and checkpoints are those of this very split: another's may have seen what is tested.
    """
    tables = LakeTables(spark, config.lake.root)
    run = find_run(tables, config, STATES)
    config = run.fitted_with(config)
    model, inputs = model_of(config), Inputs(tables, run.row["inputs"])
    with step(f"evaluate {config.model} by {config.evaluation.protocol}", spark) as shown:
        split = hashlib.sha256(config.evaluation.model_dump_json().encode()).hexdigest()[:12]
        packing = packing_of(model, inputs, config, split)
        events = inputs.events(config.ds)
        data = training_data(model, inputs, events, config, packing)
        fit_run = FitRun(checkpoint_dir=progress_folder(inputs, config, split=split))
        try:
            result = evaluate(events, model, data, config, fit_run)
        finally:
            packing.drop()
        shown.note = headline(result, config)
    write_figures(tables, run.run_id, result.protocol, result.figures)
    if run.state == "trained":
        run.update("evaluated")
    figures = {
        f"{system}:{metric}" + (f"@{k}" if k else ""): round(value, 6)
        for system, metric, k, value, *_ in result.figures
    }
    return {"run_id": run.run_id, "protocol": result.protocol, "split": result.note, "figures": figures}


def headline(result: Evaluation, config: Config) -> str:
    """The gate's measure, with its bounds, beside the baseline's."""
    metric, k = ("rmse", None) if result.protocol == "q3" else (config.gate.metric, config.gate.at)
    shown = []
    for system, name, at, value, lower, upper, _ in result.figures:
        if (name, at) == (metric, k):
            bounds = "" if lower is None else f" [{lower:.4f}, {upper:.4f}]"
            shown.append(f"{config.model if system == 'model' else system} {value:.4f}{bounds}")
    name = metric.replace("_at_k", f"@{k}") if k else metric
    return f"{result.note}; {name}: " + " against ".join(shown)
