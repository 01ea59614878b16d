"""Spark for benchmarks, and MLlib on it as a peer: its iterations' times, its BLAS, a model of given factors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.synthetic import Interactions

MODULES = "--add-modules=jdk.incubator.vector"  # lets MLlib's BLAS use vector instructions
BLOCKS = 4  # of users and of items: two for each thread; as fast a sweep as MLlib's own 10, and a faster fit
FILES = 4  # a table of arrays is read by several tasks


@contextmanager
def session(master: str = "local[2]", memory: str = "8g") -> Iterator[Any]:
    """A session with Delta for this process, stopped at the end; the one that the process has, if it has one."""
    from pyspark.sql import SparkSession

    if (running := SparkSession.getActiveSession()) is not None:
        yield running
        return
    settings = {
        "spark.driver.extraJavaOptions": MODULES,
        "spark.executor.extraJavaOptions": MODULES,
        "spark.executor.memory": "4g",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.default.parallelism": "2",
        "spark.scheduler.minRegisteredResourcesRatio": "1",  # a gang must not begin before its workers are there
    }
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    options = " ".join(f'--conf "{key}={value}"' for key, value in settings.items())
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--master {master} --driver-memory {memory} {options} pyspark-shell"
    from sparkcf.jobs.session import open_session, stop_session

    spark, _ = open_session()
    try:
        yield spark
    finally:
        stop_session(spark)


def blas_in_use(spark: Any) -> str:
    """What MLlib multiplies with in this session: native where a library loads, else the best in Java."""
    packages = spark._jvm.dev.ludovic.netlib
    try:
        return packages.blas.NativeBLAS.getInstance().getClass().getSimpleName()
    except Exception:
        return f"{packages.blas.JavaBLAS.getInstance().getClass().getSimpleName()}, no native library"


def pairs_frame(spark: Any, folder: Path, data: Interactions) -> Any:
    """The pairs as a frame (user_idx, item_idx, value) over files."""
    columns = {"user_idx": pa.array(data.users), "item_idx": pa.array(data.items), "value": pa.array(data.values)}
    return table_frame(spark, folder, columns)


def table_frame(spark: Any, folder: Path, columns: dict[str, Any]) -> Any:
    """Arrow columns as a frame over Parquet files."""
    table = pa.table(columns)
    folder.mkdir(parents=True)
    step = -(-len(table) // FILES)
    for first in range(0, len(table), step):
        pq.write_table(table.slice(first, step), folder / f"{first:09}.parquet")
    return spark.read.parquet(str(folder))


def vector_column(vectors: np.ndarray) -> pa.ListArray:
    """Vectors (n, k) as an Arrow list column."""
    n, k = vectors.shape
    return pa.ListArray.from_arrays(np.arange(0, n * k + 1, k, dtype=np.int32), vectors.reshape(-1))


def als(rank: int, iterations: int, **settings: Any) -> Any:
    """MLlib's implicit ALS on user_idx, item_idx, value."""
    from pyspark.ml.recommendation import ALS

    columns = {"userCol": "user_idx", "itemCol": "item_idx", "ratingCol": "value"}
    blocks = {"numUserBlocks": BLOCKS, "numItemBlocks": BLOCKS}
    return ALS(rank=rank, maxIter=iterations, implicitPrefs=True, seed=1, **columns, **blocks, **settings)


def fit_timed(spark: Any, frame: Any, estimator: Any) -> tuple[Any, list[float]]:
    """Fit; the model and the seconds of all iterations but the last.

    Every half-sweep ends in a job that sums a Gramian, and Spark's status store knows when each ended: from the end of
    one iteration's first such job to that of the next is an iteration. So reading and blocking do not count.
    """
    context = spark.sparkContext
    group = f"mllib-{time.monotonic_ns()}"
    context.setJobGroup(group, "MLlib ALS")
    try:
        model = estimator.fit(frame)
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)
    ends = []
    jobs = context._jsc.sc().statusStore().jobsList(None)
    for number in range(jobs.size()):
        job = jobs.apply(number)
        if job.jobGroup().isDefined() and job.jobGroup().get() == group and job.name().startswith("aggregate at ALS"):
            ends.append(job.completionTime().get().getTime() / 1000)
    if len(ends) != 2 * estimator.getMaxIter():
        raise RuntimeError(f"{len(ends)} Gramian jobs in {estimator.getMaxIter()} iterations: MLlib has changed")
    return model, np.diff(sorted(ends)[::2]).tolist()


def factors_array(frame: Any, n: int, rank: int) -> np.ndarray:
    """A frame (index, vector) of factors, ours or MLlib's, as an array (n, rank); absent rows are zero."""
    index, vector = frame.columns[:2]
    rows = frame.select(index, vector).toPandas()
    factors = np.zeros((n, rank), np.float32)
    factors[rows[index]] = np.stack(rows[vector])
    return factors


def model_of(spark: Any, folder: Path, user_factors: np.ndarray, item_factors: np.ndarray) -> Any:
    """A model of MLlib that has the factors given, in memory: a small fitted one, saved, with other factors in it."""
    from pyspark.ml.recommendation import ALSModel

    tiny = spark.createDataFrame([(0, 0, 1.0)], "user_idx int, item_idx int, value float")
    saved = folder / "model"
    als(rank=user_factors.shape[1], iterations=1).fit(tiny).write().overwrite().save(str(saved))
    for name, factors in (("userFactors", user_factors), ("itemFactors", item_factors)):
        columns = {"id": pa.array(np.arange(len(factors), dtype=np.int32)), "features": vector_column(factors)}
        table_frame(spark, folder / name, columns).write.mode("overwrite").parquet(str(saved / name))
    model = ALSModel.load(str(saved))
    for frame in (model.userFactors, model.itemFactors):
        frame.persist().count()  # as they are after a fit
    return model
