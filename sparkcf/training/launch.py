"""Training on the executors by TorchDistributor: a process a task, a GPU each where Spark gives tasks one.

driver ──Job: what to train, plain values──▶ TorchDistributor ──▶ `run_job` in every process ──▶ checkpoints
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sparkcf.errors import ConfigError, SparkcfError, TrainingError
from sparkcf.training.gang import Reporter, check_slots, listening, worker_threads

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FOLD_IN_SHARE = 0.8  # of a validation row's entries
GPU_AMOUNT = "spark.task.resource.gpu.amount"
IGNORE_TLS = "pytorch.spark.distributor.ignoreSsl"


@dataclass(frozen=True)
class Job:
    """What every process is told. `config` is the model's section as JSON, `data` what `net_of` must know of the data,
    `train` and `validation` lists of files."""

    model: str
    config: str
    seed: int
    data: dict[str, Any]
    id_column: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    saved: str
    threads: int = 1
    report_to: tuple[str, int, str] | None = None


def launch(
    spark: SparkSession, job: Job, workers: int, heard: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Train in `workers` processes; returns the log of the epochs. The weights lie in the job's folder.

    A job that was cut short goes on from its last epoch when it is launched again.

    Raises
    ------
    TrainingError
        A loss was not finite, a snapshot's file is gone, or a process died.
    """
    from pyspark.ml.torch.distributor import TorchDistributor

    distributor = TorchDistributor(num_processes=workers, local_mode=False, use_gpu=gpus_a_task(spark) > 0)
    distributor.logger.setLevel(logging.ERROR)
    with listening(spark, heard) as report_to, _quiet_output() as printed:
        told = asdict(job) | {"report_to": report_to, "threads": worker_threads(spark)}
        try:
            answer: Any = distributor.run(_entry(), json.dumps(told))
        except Exception as error:
            raise TrainingError(
                f"training of {job.model} broke off: {_cause(error, printed)}; run it again: it goes on after the last "
                "epoch that was saved"
            ) from error
    if "error" in answer:
        raise TrainingError(str(answer["error"]))
    return list(answer["log"])


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


def _entry() -> Callable[[str], dict[str, Any]]:
    """The function that TorchDistributor sends: pickled whole, since its process does not know our package yet."""
    from pyspark import SparkFiles

    root = SparkFiles.getRootDirectory()

    def entry(told: str) -> dict[str, Any]:
        import atexit
        import glob
        import os
        import sys

        for folder in (root, os.getcwd()):  # where Spark lays what came by --py-files
            for kind in ("whl", "zip", "egg"):
                sys.path.extend(glob.glob(f"{folder}/*.{kind}"))
        from sparkcf.training.launch import run_job

        answer = run_job(told)
        # Once in some dozens of exits a thread of Arrow's aborts a Python that unloads itself, and the job with it.
        atexit.register(os._exit, 0)
        return answer

    entry.__module__ = "__main__"
    return entry


def run_job(told: str) -> dict[str, Any]:
    """In a process of the group: train, and say how it went. What the others must know is raised by all at once."""
    from sparkcf.training.group import joined_from_environment

    job = Job(**json.loads(told))
    section = _section(job)
    with joined_from_environment(section.gradient.timeout_s, job.threads) as group:
        reporter = Reporter(*job.report_to) if job.report_to and group.is_main else None
        heard = reporter.send if reporter else lambda entry: None
        try:
            return {"log": _train(job, section, group, heard)}
        except SparkcfError as error:
            return {"error": str(error)}


def _train(job: Job, section: Any, group: Any, heard: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    from sparkcf.data.packed import PackedRows, fold_in_and_heldout
    from sparkcf.models.nets.registry import net_of
    from sparkcf.training.checkpoint import Checkpoints
    from sparkcf.training.feed import PetastormFeed
    from sparkcf.training.loop import train

    config = section.gradient

    def feed(files: Sequence[str], repeats: bool) -> PetastormFeed:
        batch = -(-config.batch_size // group.size)
        made = PetastormFeed(files, job.id_column, batch, job.seed, group.rank, group.size, repeats)
        open_feeds.callback(made.close)
        return made

    def validation() -> Iterator[tuple[PackedRows, PackedRows]]:
        return (fold_in_and_heldout(b.rows, FOLD_IN_SHARE, job.seed) for b in held.epoch(0) if len(b.rows))

    with contextlib.ExitStack() as open_feeds:
        fed, held = feed(job.train, repeats=False), feed(job.validation, repeats=True)
        net = net_of(job.data, section, job.seed)
        measured = validation if job.validation else None
        return train(net, fed, config, job.seed, group, measured, Checkpoints(job.saved), heard)


def _section(job: Job) -> Any:
    """The model's parameters, checked again: they came as text."""
    from sparkcf.config.root import Config

    return Config.model_fields[job.model].annotation.model_validate_json(job.config)  # type: ignore[union-attr]


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
