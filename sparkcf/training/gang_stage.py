"""Run a gang as one barrier stage and read its messages on the driver.

A result frame begins with the columns `kind` and `text`: rows with a text are messages to the driver (the log, or an
error), the others are values that stay on the executors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sparkcf.errors import TrainingError
from sparkcf.spark import DataFrame, StorageLevel
from sparkcf.training.gang import Gang, joined, listening

ERROR = "error"
Work = Callable[[Iterable[Any], Gang], Iterator[Any]]


@contextmanager
def gang_result(
    shuffled: DataFrame,
    work: Work,
    schema: str,
    workers: int,
    timeout_s: int,
    on_progress: Callable[[dict[str, Any]], None],
    without_rows: str,
) -> Iterator[tuple[DataFrame, list[tuple[str, str]]]]:
    """Run `work` in every worker of a gang; yields the persisted result and its (kind, text) messages.

    The caller owns the persisted frame once the block has ended; if the block raises, the frame is released.

    Parameters
    ----------
    shuffled : one partition per worker.
    work : (Arrow batches of a worker, its gang) -> batches of `schema`.
    without_rows : message of the TrainingError for an input without rows.

    Raises
    ------
    TrainingError
        Raised by all workers together, or the input has no row.
    """

    def task(batches: Iterable[Any]) -> Iterator[Any]:
        with joined(workers, timeout_s, report_to) as gang:
            try:
                yield from work(batches, gang)
            except TrainingError as error:  # raised by all workers at once; a retry would end the same way
                if gang.rank == 0:
                    yield text_rows(schema, ERROR, [str(error)])

    with listening(shuffled.sparkSession, on_progress) as report_to:
        trained = shuffled.mapInArrow(task, schema, barrier=True)
        # Spark retries a failed barrier stage only if a shuffle follows it.
        cached = trained.repartition(max(workers, 1), "idx").persist(StorageLevel.MEMORY_AND_DISK)
        try:
            # Runs the training and fills the cache. Spark starts no worker for an input that it knows to be empty.
            rows = cached.where("text IS NOT NULL").select("kind", "text").collect()
            messages = [(row["kind"], row["text"]) for row in rows] or [(ERROR, without_rows)]
            for kind, text in messages:
                if kind == ERROR:
                    raise TrainingError(text)
        except BaseException:
            cached.unpersist()
            raise
    try:
        yield cached, messages
    except BaseException:
        cached.unpersist()
        raise


def text_rows(schema: str, kind: str, texts: list[str]) -> Any:
    """Texts for the driver as an Arrow batch of the schema."""
    import pyarrow as pa

    n = len(texts)
    rest = [pa.nulls(n, _arrow_type(column.split(" ", 1)[1])) for column in schema.split(", ")[2:]]
    return pa.RecordBatch.from_arrays([pa.array([kind] * n), pa.array(texts), *rest], names=_names(schema))


def value_rows(schema: str, kind: str, *columns: Any) -> Any:
    """Values as an Arrow batch of the schema, without texts."""
    import pyarrow as pa

    n = len(columns[0])
    return pa.RecordBatch.from_arrays([pa.array([kind] * n), pa.nulls(n, pa.string()), *columns], names=_names(schema))


def _names(schema: str) -> list[str]:
    return [column.split(" ", 1)[0] for column in schema.split(", ")]


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    return {"int": pa.int32(), "float": pa.float32(), "array<float>": pa.list_(pa.float32())}[name]
