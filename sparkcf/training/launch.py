"""Training on the executors by TorchDistributor: a process a task, a GPU each where Spark gives tasks one.

driver ──TrainingSpec: plain values──▶ TorchDistributor ──▶ `run_spec` in every process ──▶ checkpoints
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparkcf.errors import ConfigError, SparkcfError, TrainingError
from sparkcf.training.gang import Reporter, check_slots, listening, worker_threads

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FOLD_IN_SHARE = 0.8  # of a validation row's entries
GPU_AMOUNT = "spark.task.resource.gpu.amount"
IGNORE_TLS = "pytorch.spark.distributor.ignoreSsl"


@dataclass(frozen=True)
class TrainingSpec:
    """Training specification, serialised and sent to every process.

    factory : dotted name `module:function` of what builds the net from (data, params, seed).
    params_class, params : the class of the model's parameters by its dotted name, and they as JSON.
    data : plain values that the factory needs to know of the data. train, validation : files of rows.
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
    """The dotted name by which a process finds the instance's class again."""
    kind = type(instance)
    return f"{kind.__module__}:{kind.__qualname__}"


def launch(
    spark: SparkSession, spec: TrainingSpec, workers: int, on_progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Train in `workers` processes; returns the log of the epochs. The weights are in `checkpoint_dir`.

    A job that was cut short goes on from its last epoch when it is launched again.

    Raises
    ------
    TrainingError
        A loss was not finite, a snapshot's file is gone, or a process died.
    """
    with listening(spark, on_progress) as report_to, _quiet_output() as printed:
        sent = json.dumps(asdict(spec) | {"report_to": report_to, "threads": worker_threads(spark)})
        try:
            answer = _run(spark, workers, sent)
        except Exception as error:
            raise TrainingError(
                f"training of {spec.model} broke off: {_cause(error, printed)}; run it again: it goes on after the "
                "last epoch that was saved"
            ) from error
    if "error" in answer:
        raise TrainingError(str(answer["error"]))
    return list(answer["log"])


def _run(spark: SparkSession, workers: int, sent: str) -> Any:
    """The result of `run_spec` on the first rank.

    One process without a GPU is an ordinary Spark task: TorchDistributor would start three Pythons for it, each of
    which imports torch.
    """
    use_gpu = gpus_a_task(spark) > 0
    if workers == 1 and not use_gpu:
        return spark.sparkContext.parallelize([sent], 1).map(_entry(ends_process=False)).collect()[0]
    from pyspark.ml.torch.distributor import TorchDistributor

    distributor = TorchDistributor(num_processes=workers, local_mode=False, use_gpu=use_gpu)
    distributor.logger.setLevel(logging.ERROR)
    return distributor.run(_entry(ends_process=True), sent)


def check_launch(spark: SparkSession, workers: int | None, section: str) -> int:
    """The number of processes: as asked, or every task slot.

    Raises ConfigError for settings of Spark that TorchDistributor refuses late or breaks on.
    """
    conf = spark.sparkContext.getConf()
    secured = conf.get("spark.ssl.enabled", "false").lower() == "true"
    if secured and conf.get(IGNORE_TLS, "false").lower() != "true":
        raise ConfigError(
            f"spark.ssl.enabled=true, and torch's processes talk in clear: set {IGNORE_TLS}=true where the network is "
            "trusted, or spark.ssl.enabled=false"
        )
    gpus_a_task(spark)
    return check_slots(spark, workers, section)


def gpus_a_task(spark: SparkSession) -> int:
    """0 or 1. Raises ConfigError for any other amount."""
    given = spark.sparkContext.getConf().get(GPU_AMOUNT, "0")
    try:
        amount = float(given)
    except ValueError:
        amount = -1.0
    if amount not in (0.0, 1.0):
        raise ConfigError(f"{GPU_AMOUNT}={given}: training takes one whole GPU a process: set it to 1, or leave it out")
    return int(amount)


def _entry(ends_process: bool) -> Callable[[str], dict[str, Any]]:
    """A self-contained function for TorchDistributor, whose processes cannot import this package yet.

    Parameters
    ----------
    ends_process : nothing else runs in its process, which may end without unloading.
    """
    from pyspark import SparkFiles

    root = SparkFiles.getRootDirectory()

    def entry(sent: str) -> dict[str, Any]:
        import atexit
        import glob
        import os
        import sys

        for folder in (root, os.getcwd()):  # where Spark lays what came by --py-files
            for kind in ("whl", "zip", "egg"):
                sys.path.extend(glob.glob(f"{folder}/*.{kind}"))
        from sparkcf.training.launch import run_spec

        answer = run_spec(sent)
        if ends_process:
            # Once in some dozens of exits a thread of Arrow's aborts a Python that unloads itself, and the job with it.
            atexit.register(os._exit, 0)
        return answer

    entry.__module__ = "__main__"
    return entry


def run_spec(sent: str) -> dict[str, Any]:
    """In a process of the group: train, and return the log, or the error that all ranks raised."""
    from sparkcf.training.group import joined_from_environment

    spec = TrainingSpec(**json.loads(sent))
    params = _found(spec.params_class).model_validate_json(spec.params)
    with joined_from_environment(params.gradient.timeout_s, spec.threads) as group:
        reporter = Reporter(*spec.report_to) if spec.report_to and group.is_main else None
        on_progress = reporter.send if reporter else lambda entry: None
        try:
            return {"log": _train(spec, params, group, on_progress)}
        except SparkcfError as error:
            return {"error": str(error)}


def _train(
    spec: TrainingSpec, params: Any, group: Any, on_progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    from sparkcf.data.packed import PackedRows, fold_in_and_heldout
    from sparkcf.training.checkpoint import Checkpoints
    from sparkcf.training.feed import PetastormFeed
    from sparkcf.training.loop import train

    config = params.gradient

    def feed(files: Sequence[str], repeats: bool = False, id_column: str = spec.id_column) -> PetastormFeed:
        batch = -(-config.batch_size // group.size)
        made = PetastormFeed(files, id_column, batch, spec.seed, group.rank, group.size, repeats)
        open_feeds.callback(made.close)
        return made

    def validation() -> Iterator[tuple[PackedRows, PackedRows]]:
        return (fold_in_and_heldout(b.rows, FOLD_IN_SHARE, spec.seed) for b in held.epoch(0) if len(b.rows))

    with contextlib.ExitStack() as open_feeds:
        users, held = feed(spec.train), feed(spec.validation, repeats=True)
        items = feed(spec.item_train, id_column="item_idx") if spec.item_train else None
        net = _found(spec.factory)(spec.data, params, spec.seed)
        measured = validation if spec.validation else None
        saved = Checkpoints(spec.checkpoint_dir)
        return train(net, users, config, spec.seed, group, measured, saved, on_progress, items)


def _found(name: str) -> Any:
    """The object of a dotted name `module:name`."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@contextlib.contextmanager
def _quiet_output() -> Iterator[io.StringIO]:
    """TorchDistributor prints its processes' output to ours, whose last line is an answer."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield printed


def _cause(error: BaseException, printed: io.StringIO) -> str:
    """The line that says most of what the processes printed, else of the error itself."""
    lines = [line.strip() for line in f"{error}\n{printed.getvalue()}".splitlines()]
    telling = [line for line in lines if "Error: " in line or "Signal " in line]
    return (telling or [line for line in lines if line] or [type(error).__name__])[-1][:300]
