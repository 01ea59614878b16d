"""Training on the executors: one process per task of a barrier stage, one GPU each if Spark assigns GPUs to tasks.

driver ──TrainingSpec: plain values──▶ barrier stage ──▶ `run_spec` in every task ──▶ checkpoints

Without GPUs a task's Python worker trains. With GPUs TorchDistributor starts a process for each task, which gives its
GPU's memory back when the training ends; that takes some ten seconds more, because torch is imported three times.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparkcf.errors import ConfigError, SparkcfError, TrainingError
from sparkcf.training.gang import Reporter, check_slots, listening, met, worker_threads

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FOLD_IN_SHARE = 0.8  # of a validation row's entries; no key of `evaluation`, which must not change a fit
GPU_AMOUNT = "spark.task.resource.gpu.amount"
IGNORE_TLS = "pytorch.spark.distributor.ignoreSsl"


@dataclass(frozen=True)
class TrainingSpec:
    """Training specification, serialised and sent to every process.

    model : the model's name, for messages.
    factory : dotted name `module:function` of the function that builds the net from (data, params, seed).
    params_class : dotted name of the class of the model's parameters.
    params : the parameters as JSON.
    seed : of the net's initial weights and of the training.
    data : plain values about the data that the factory needs.
    id_column : column of row ids in the files.
    train : files of training rows.
    validation : files of validation rows.
    checkpoint_dir : folder or address that every process can write.
    threads : of each process.
    report_to : host, port and token of the driver's listener; None: no reports.
    item_train : files of items' rows, for a net that trains on them too.
    """

    model: str
    factory: str
    params_class: str
    params: str
    seed: int
    data: dict[str, Any]
    id_column: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    checkpoint_dir: str
    threads: int = 1
    report_to: tuple[str, int, str] | None = None
    item_train: tuple[str, ...] = ()


def class_name(instance: object) -> str:
    """Dotted name from which a process imports the instance's class."""
    kind = type(instance)
    return f"{kind.__module__}:{kind.__qualname__}"


def launch(
    spark: SparkSession, spec: TrainingSpec, workers: int, on_progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Train in `workers` processes; returns the log of the epochs. The weights are in `checkpoint_dir`.

    An interrupted training resumes from its last epoch when launched again.

    Raises
    ------
    TrainingError
        A loss was not finite, a snapshot's file is missing, or a process died.
    """
    with listening(spark, on_progress) as report_to, _quiet_output() as printed:
        spec_json = json.dumps(asdict(spec) | {"report_to": report_to, "threads": worker_threads(spark)})
        try:
            result = _run(spark, workers, spec_json)
        except Exception as error:
            raise TrainingError(
                f"training of {spec.model} failed: {_cause(error, printed)}; run it again to resume after the last "
                "saved epoch"
            ) from error
    if "error" in result:
        raise TrainingError(str(result["error"]))
    return list(result["log"])


def _run(spark: SparkSession, workers: int, spec_json: str) -> Any:
    """The result of `run_spec` on the first rank."""
    if gpus_a_task(spark) > 0:
        from pyspark.ml.torch.distributor import TorchDistributor

        distributor = TorchDistributor(num_processes=workers, local_mode=False, use_gpu=True)
        distributor.logger.setLevel(logging.ERROR)
        return distributor.run(_entry(), spec_json)

    def task(ranks: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield next(iter(ranks)), run_spec(spec_json, workers)

    trained = spark.sparkContext.parallelize(range(workers), workers).barrier().mapPartitions(task)
    # Spark retries a failed barrier stage, which then resumes from its last epoch, only if a shuffle follows it.
    return dict(trained.partitionBy(1).collect())[0]


def check_launch(spark: SparkSession, workers: int | None, section: str) -> int:
    """The number of processes: `workers`, or one per task slot.

    Raises ConfigError for settings of Spark that TorchDistributor refuses late or fails on.
    """
    conf = spark.sparkContext.getConf()
    secured = conf.get("spark.ssl.enabled", "false").lower() == "true"
    if secured and conf.get(IGNORE_TLS, "false").lower() != "true":
        raise ConfigError(
            f"spark.ssl.enabled=true, and torch's processes communicate without encryption: set {IGNORE_TLS}=true "
            "where the network is trusted, or spark.ssl.enabled=false"
        )
    gpus_a_task(spark)
    return check_slots(spark, workers, section)


def gpus_a_task(spark: SparkSession) -> int:
    """GPUs per task, 0 or 1. Raises ConfigError for any other amount."""
    given = spark.sparkContext.getConf().get(GPU_AMOUNT, "0")
    try:
        amount = float(given)
    except ValueError:
        amount = -1.0
    if amount not in (0.0, 1.0):
        raise ConfigError(f"{GPU_AMOUNT}={given}: every process uses one whole GPU: set it to 1, or leave it out")
    return int(amount)


def _entry() -> Callable[[str], dict[str, Any]]:
    """A self-contained function for TorchDistributor, whose processes cannot import this package yet."""
    from pyspark import SparkFiles

    root = SparkFiles.getRootDirectory()

    def entry(spec_json: str) -> dict[str, Any]:
        import atexit
        import glob
        import os
        import sys

        for folder in (root, os.getcwd()):  # where Spark puts the files of --py-files
            for kind in ("whl", "zip", "egg"):
                sys.path.extend(glob.glob(f"{folder}/*.{kind}"))
        from sparkcf.training.launch import run_spec

        result = run_spec(spec_json)
        # Once in a few dozen exits a thread of Arrow aborts a Python that cleans up, and the job fails with it.
        atexit.register(os._exit, 0)
        return result

    entry.__module__ = "__main__"
    return entry


def run_spec(spec_json: str, tasks: int | None = None) -> dict[str, Any]:
    """Train in a process of the group; returns {"log": …}, or {"error": …} that all ranks raised.

    Parameters
    ----------
    tasks : size of the barrier stage of whose tasks this is one, on the CPU; None: torchrun has started this process.
    """
    import torch

    from sparkcf.training.group import from_environment, joined_group

    spec = TrainingSpec(**json.loads(spec_json))
    params = _import_object(spec.params_class).model_validate_json(spec.params)
    timeout_s = params.gradient.timeout_s
    meeting, device = (met(tasks, timeout_s), torch.device("cpu")) if tasks else from_environment()
    with joined_group(meeting, device, timeout_s, spec.threads) as group:
        reporter = Reporter(*spec.report_to) if spec.report_to and group.is_main else None
        on_progress = reporter.send if reporter else lambda entry: None
        try:
            return {"log": _train(spec, params, group, on_progress)}
        except SparkcfError as error:
            if spec.report_to and not group.is_main:  # which may see no more of it than that this rank left
                Reporter(*spec.report_to).send({"note": f"process {group.rank}: {error}"})
            return {"error": str(error)}


def _train(
    spec: TrainingSpec, params: Any, group: Any, on_progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    from sparkcf.data.packed import PackedRows, fold_in_and_heldout
    from sparkcf.training.checkpoint import Checkpoints
    from sparkcf.training.feed import PetastormFeed
    from sparkcf.training.loop import train

    config = params.gradient

    def open_feed(files: Sequence[str], repeats: bool = False, id_column: str = spec.id_column) -> PetastormFeed:
        batch = -(-config.batch_size // group.size)
        feed = PetastormFeed(files, id_column, batch, spec.seed, group.rank, group.size, repeats)
        open_feeds.callback(feed.close)
        return feed

    def validation() -> Iterator[tuple[PackedRows, PackedRows]]:
        return (fold_in_and_heldout(b.rows, FOLD_IN_SHARE, spec.seed) for b in heldout.epoch(0) if len(b.rows))

    with contextlib.ExitStack() as open_feeds:
        users, heldout = open_feed(spec.train), open_feed(spec.validation, repeats=True)
        items = open_feed(spec.item_train, id_column="item_idx") if spec.item_train else None
        net = _import_object(spec.factory)(spec.data, params, spec.seed)
        checkpoints = Checkpoints(spec.checkpoint_dir)
        measured = validation if spec.validation else None
        return train(net, users, config, spec.seed, group, measured, checkpoints, on_progress, items)


def _import_object(name: str) -> Any:
    """The object of a dotted name `module:name`."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@contextlib.contextmanager
def _quiet_output() -> Iterator[io.StringIO]:
    """Capture what TorchDistributor prints: the last line of our standard output is the job's JSON result."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield printed


def _cause(error: BaseException, printed: io.StringIO) -> str:
    """The most informative line of the processes' output, else of the error."""
    lines = [line.strip() for line in f"{error}\n{printed.getvalue()}".splitlines()]
    informative = [line for line in lines if "Error: " in line or "Signal " in line or "exited unexpectedly" in line]
    return (informative or [line for line in lines if line] or [type(error).__name__])[-1][:300]
