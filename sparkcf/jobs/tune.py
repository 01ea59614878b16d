"""The tune job: search a model's parameters on a validation split, and measure the best once on the test split.

    events ──split──▶ test: touched once, by the winner
              └─▶ train ──split──▶ validation: every trial is fitted on the rest and measured on it

Models that fit arrays do so in one task each, on one shared set of arrays, several trials at once. Others are fitted
one after the other as `train` fits them, on a cached split and shared packed rows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql import DataFrame, SparkSession

from sparkcf.config.load import merge, nest
from sparkcf.config.root import Config
from sparkcf.config.tune import Range, search_space, with_values
from sparkcf.data.dictionary import register_texts
from sparkcf.data.inputs import Inputs, newest_versions
from sparkcf.data.packing import Packing
from sparkcf.data.split import Split, training_events
from sparkcf.errors import ConfigError, SparkcfError, TrainingError, first_line, interruption
from sparkcf.jobs.base import packing_of, training_data
from sparkcf.jobs.evaluate import headline, with_protocol
from sparkcf.jobs.study import COMPLETE, FAILED, PRUNED, Study, check_optuna
from sparkcf.jobs.train import progress_folder, progress_of
from sparkcf.lake.folder import Folder
from sparkcf.lake.metrics import write_figures
from sparkcf.lake.roots import local_folder
from sparkcf.lake.runs import Run, recorded_run
from sparkcf.lake.tables import LakeTables
from sparkcf.models.contract_data import FitRun
from sparkcf.models.registry import model_of
from sparkcf.progress import say, step
from sparkcf.ranking.evaluate import check_protocol, evaluate, measured, persisted_split, settings_of
from sparkcf.ranking.trials import TrialPart, TrialResult, run_parts, share_split
from sparkcf.version import __version__

RATING = ("rmse", "mae")  # lower is better
RUNGS = (0.25, 0.5, 1.0)  # shares of a fit's sweeps after which a trial is measured


def check_tune(config: Config) -> tuple[Range, ...]:
    """The search space. Raises ConfigError for anything that can be known to be wrong before Spark starts."""
    check_optuna()
    space = search_space(config)
    model = model_of(config)
    check_protocol(model, config)
    for found in space:
        for value in found.probes():
            try:
                other = model_of(with_values(config, {found.key: value}))
            except ConfigError:  # valid with other values of the space only
                continue
            if other.reads != model.reads:
                raise ConfigError(
                    f"tune.space: {config.tune.space}: {found.key}={value} reads other data than the rest: trials "
                    "would not be measured alike; set it in a --config file and tune each apart"
                )
    folder, file = local_folder(config.tune.folder), winner_file(config)
    if folder is None:
        raise ConfigError(f"tune.folder={config.tune.folder}: SQLite needs a local folder")
    if file.exists() and not config.tune.overwrite:
        raise ConfigError(f"tune.winner: {file} exists: name another file, or set tune.overwrite=true")
    if not file.parent.is_dir():
        raise ConfigError(f"tune.winner: there is no folder {file.parent}: make it, or name another file")
    return space


def winner_file(config: Config) -> Path:
    return Path(config.tune.winner or f"tuned-{config.model}.yaml")


def tune(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Run or continue the study, write the winner's parameters, and measure it on the test split.

    Raises
    ------
    ConfigError
        See `check_tune`.
    GateRefused
        A part of a split is empty.
    TrainingError
        No trial has a result.
    """
    space = check_tune(config)
    tables, model = LakeTables(spark, config.lake.root), model_of(config)
    register_texts(tables, model.reads.texts)
    with recorded_run(tables, "tune", config, newest_versions(tables)) as run:
        inputs = Inputs(tables, run.row["inputs"])
        events = inputs.events(config.ds)
        config = with_protocol(tables, events, config)
        study = _study(inputs, config, space)
        say(f"study {study.name} in {study.file}: {len(study.rows())} of {config.tune.trials} trials are done")
        if study.batch():
            _search(inputs, events, config, study)
        best = study.best()
        if best is None:
            reasons = [row["reason"] for row in study.rows() if row["reason"]]
            raise TrainingError(f"none of {config.tune.trials} trials has a result; the first: {(*reasons, '?')[0]}")
        show_study(study, config)
        test = _tested(inputs, events, config, study, best, run)
        _write_winner(study, best, config, test)
        run.update("tuned", counts={"trials": len(study.rows())})
    rows = study.rows()
    _write_report(study, config, rows, best, test)
    return {"run_id": run.run_id, "study": str(study.file), "winner": str(winner_file(config)), "test": test} | {
        "trials": len(rows),
        "best": next(row for row in rows if row["number"] == best),
    }


def _study(inputs: Inputs, config: Config, space: tuple[Range, ...]) -> Study:
    """The study of these settings and data; its name changes with whatever changes a trial or its measure."""
    tune = config.tune.model_dump(include={"parallel", "sampler", "pruner", "max_pairs"})
    read = {name: version for name, version in inputs.versions.items() if name != "published"}
    evaluation = config.evaluation.model_dump(mode="json")
    ranges = [(r.key, r.kind, r.values, r.step) for r in space]
    shaping = [config.shaping(), read, str(config.ds), tune, evaluation, config.gate_measure(), ranges, __version__]
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]
    file = Path(str(local_folder(config.tune.folder))) / f"{config.model}-{digest}.db"
    higher = config.gate_measure()[0] not in RATING
    return Study(file, f"{config.model}-{digest}", space, config.tune, config.seed, higher)


def _search(inputs: Inputs, events: DataFrame, config: Config, study: Study) -> None:
    """Run the trials that have no result yet."""
    model, spark = model_of(config), inputs.tables.spark
    rest = training_events(events, config)
    apart = config.model_copy(update={"seed": (config.seed + 1) % 2**31})  # q1: the test's users are those of the seed
    with persisted_split(rest, model, apart) as parts:
        metric, k = config.gate_measure()
        pairs = parts.train.count()
        if model.fits_in_parts and k is not None and pairs <= config.tune.max_pairs:
            with step("share", what=f"{pairs:,} pairs"):
                folded = config.evaluation.protocol == "q1"
                data = share_split(spark, parts, inputs.sizes, folded)
            threads = int(spark.sparkContext.getConf().get("spark.task.cpus", "1"))

            def run(waiting: list[TrialPart]) -> dict[int, TrialResult]:
                return run_parts(spark, data, waiting, (metric, k), threads)

            while batch := study.batch():
                _run_batch(study, batch, config, run)
        else:
            packings: dict[str, Packing] = {}  # by name: trials that pack rows alike share theirs
            saves = progress_folder(inputs, config) is not None
            try:
                while batch := study.batch():
                    for number in batch:
                        _run_on_spark(study, number, inputs, events, parts, config, packings, saves)
            finally:
                for packing in packings.values():
                    packing.drop()


def _run_batch(study: Study, batch: list[int], config: Config, run: Any) -> None:
    """Run the trials of a batch together, rung by rung; the pruner may stop some after each."""
    alive: dict[int, tuple[Config, list[int], Mapping[str, Any] | None]] = {}
    seconds = dict.fromkeys(batch, 0.0)
    for number in batch:
        try:
            own = with_values(config, study.values(number))
        except ConfigError as error:  # values that do not go together
            _finish(study, number, FAILED, None, 0.0, str(error))
            continue
        alive[number] = own, rungs(model_of(own).rounds), None
    while alive:
        waiting = []
        for number, (own, ends, start) in alive.items():
            sweeps = ends[0] if start is None else ends[0] - int(start["sweeps"][0])
            given = start and {name: array for name, array in start.items() if name != "sweeps"}
            waiting.append(TrialPart(number, model_of(own), sweeps, len(ends) == 1, given))
        for number, result in sorted(run(waiting).items()):
            own, ends, _ = alive.pop(number)
            seconds[number] += result.seconds
            if result.value is None:
                _finish(study, number, FAILED, None, seconds[number], result.reason)
            elif len(ends) == 1:
                _finish(study, number, COMPLETE, result.value, seconds[number])
            elif study.report(number, ends[0], result.value):
                _finish(study, number, PRUNED, None, seconds[number], f"stopped after {ends[0]} sweeps")
            else:
                assert result.fit is not None
                alive[number] = own, ends[1:], {**result.fit, "sweeps": [ends[0]]}


def rungs(rounds: int) -> list[int]:
    """The sweeps after which a trial is measured, the last one all of them: 16 gives 4, 8, 16."""
    return sorted({max(1, round(rounds * share)) for share in RUNGS})


def _run_on_spark(
    study: Study,
    number: int,
    inputs: Inputs,
    events: DataFrame,
    parts: Split,
    config: Config,
    packings: dict[str, Packing],
    saves: bool,
) -> None:
    """Run one trial by the ordinary fit and evaluation.

    Parameters
    ----------
    packings : those of the study, to which the trial's own is added.
    saves : save checkpoints; those of a trial that failed are removed, for it is not tried again.
    """
    begin, folder = time.monotonic(), None
    try:
        own, part = with_values(config, study.values(number)), _part(study, "validation")
        packing = packing_of(model_of(own), inputs, own, part)
        packing = packings.setdefault(packing.name, packing)
        with step("train", what=f"trial {number}") as progress:
            folder = progress_folder(inputs, own, split=part) if saves else None
            fit_run = FitRun(on_progress=progress_of(progress, model_of(own).rounds), checkpoint_dir=folder)
            value = _fitted_value(inputs, events, parts, own, packing, fit_run)
    except SparkcfError as error:
        if stop := interruption(error):
            raise stop from None
        if folder is not None:
            Folder(folder).delete()
        _finish(study, number, FAILED, None, time.monotonic() - begin, first_line(error))
        return
    _finish(study, number, COMPLETE, value, time.monotonic() - begin)


def _fitted_value(
    inputs: Inputs, events: DataFrame, parts: Split, config: Config, packing: Packing, fit_run: FitRun
) -> float:
    model = model_of(config)
    data = replace(training_data(model, inputs, events, config, packing), pairs=parts.train)
    fitted = model.fit(data, fit_run)
    try:
        quick = config.evaluation.model_copy(update={"bootstrap": 0})
        figures = measured(parts, model, data, fitted, config.model_copy(update={"evaluation": quick}))
    finally:
        fitted.release()
    wanted = ("model", *config.gate_measure(), None)
    return next(f.value for f in figures if (f.system, f.metric, f.k, f.segment) == wanted)


def _part(study: Study, name: str) -> str:
    """Name of a part's packed rows and checkpoints: of this study, so of its data, split and seed."""
    return hashlib.sha256(f"{study.name}-{name}".encode()).hexdigest()[:12]


def _finish(study: Study, number: int, state: str, value: float | None, seconds: float, reason: str = "") -> None:
    study.finish(number, state, value, seconds, reason)
    shown = ", ".join(f"{key}={_short(given)}" for key, given in study.values(number).items())
    result = f"{value:.4f}" if value is not None else f"{state}, {reason}"
    say(f"  trial {number}: {result}, {seconds:.1f} s, {shown}", "warning" if state == FAILED else "info")


def _tested(inputs: Inputs, events: DataFrame, config: Config, study: Study, best: int, run: Run) -> dict[str, Any]:
    """The winner's figure on the test split, measured once for a study and its winner."""
    if study.test is not None and study.test["number"] == best:
        say(f"  the test of trial {best} is kept from run {study.test['run_id']}")
        return study.test
    own = with_values(config, study.values(best))
    model = model_of(own)
    part = _part(study, "test")
    packing = packing_of(model, inputs, own, part)
    with step("test", what=own.model) as progress:
        try:
            data = training_data(model, inputs, events, own, packing)
            folder = progress_folder(inputs, own, split=part)
            fit_run = FitRun(on_progress=progress_of(progress, model.rounds), checkpoint_dir=folder)
            result = evaluate(events, model, data, own, fit_run)
        finally:
            packing.drop()
        progress.note = headline(result, own)
    write_figures(inputs.tables, run.run_id, result.protocol, settings_of(own), result.figures)
    metric, k = own.gate_measure()
    test = {"number": best, "run_id": run.run_id, "protocol": result.protocol, "metric": metric, "k": k}
    test["value"] = result.value(metric, k)
    study.record_test(test)
    return test


def show_study(study: Study, config: Config) -> None:
    """Print the finished trials, the best first."""
    rows, best = study.rows(), study.best()
    lower = config.gate_measure()[0] in RATING
    rows.sort(key=lambda r: (r["state"] != COMPLETE, (r["value"] or 0.0) * (1 if lower else -1), r["number"]))
    keys = list(rows[0]["params"]) if rows else []
    table = [["trial", measure_name(config), "seconds", *(key.partition(".")[2] for key in keys)]]
    for row in rows:
        value = f"{row['value']:.4f}" if row["state"] == COMPLETE else row["state"]
        mark = "*" if row["number"] == best else ""
        taken = f"{row['seconds']:.1f}" if row["seconds"] is not None else ""
        table.append([f"{row['number']}{mark}", value, taken, *(_short(row["params"].get(key)) for key in keys)])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        say("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def measure_name(config: Config) -> str:
    metric, k = config.gate_measure()
    return metric.replace("_at_k", f"@{k}") if k else metric


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_winner(study: Study, best: int, config: Config, test: Mapping[str, Any]) -> None:
    """Write the YAML file of the best trial: its values and the other parameters that differ from the defaults.

    A value that is the default is written too: the file may be laid over one that has another.
    """
    values = study.values(best)
    own = with_values(config, values)
    value = next(row["value"] for row in study.rows() if row["number"] == best)
    params = own.params.model_dump(mode="json", exclude_defaults=True)
    for key, tuned in values.items():
        merge(params, nest(key.split(".")[1:], tuned))
    name, file = measure_name(config), winner_file(config)
    text = (
        f"# The best of {len(study.rows())} trials, number {best} of study {study.name}.\n"
        f"# {name} by {config.evaluation.protocol}: {value:.4f} on validation, {test['value']:.4f} on test.\n"
    )
    text += yaml.safe_dump({"model": own.model, own.model: params}, sort_keys=False, allow_unicode=True)
    try:
        with file.open("w" if config.tune.overwrite else "x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise ConfigError(f"tune.winner: {file} cannot be written: {error.strerror or error}; name another") from None
    say(f"{file}: {name} {value:.4f} on validation, {test['value']:.4f} on test")


def _write_report(study: Study, config: Config, rows: list[dict[str, Any]], best: int, test: Mapping[str, Any]) -> None:
    """Write the study as JSON beside its SQLite file."""
    report: dict[str, Any] = {"study": study.name, "model": config.model, "measure": measure_name(config)}
    report |= {"protocol": config.evaluation.protocol, "best": best, "test": dict(test), "trials": rows}
    file = study.file.with_suffix(".json")
    try:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        say(f"  note: {file} cannot be written: {error.strerror or error}", "warning")
