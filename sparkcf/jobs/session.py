"""The Spark session: the settings that the library needs; settings given to spark-submit are kept."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sparkcf.config.root import SparkConfig
from sparkcf.errors import ConfigError, SparkcfError, first_line
from sparkcf.jobs.space import check_scratch
from sparkcf.lake.sizing import size_queries
from sparkcf.runtime import java_problem

DELTA_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"

# Set unless spark-submit or spark-defaults.conf set them.
DEFAULTS = {
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
    "spark.sql.adaptive.enabled": "true",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.inMemoryColumnarStorage.compressed": "false",  # encoding persisted rows takes longer than it saves
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.debug.maxToStringFields": "200",
}
# Always set, since results depend on them: days begin and end in UTC on every host.
REQUIRED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "false",
    "spark.sql.legacy.timeParserPolicy": "CORRECTED",
}


def open_session(config: SparkConfig | None = None, run_name: str = "") -> tuple[Any, bool]:
    """Get or create the session, with Delta and with the driver's Python for the workers.

    Returns
    -------
    (SparkSession, bool)
        The session, and whether it was started here: only then may the caller stop it.

    Raises
    ------
    ConfigError
        There is no Java that runs Spark, or Delta's jars are not on the class path.
    """
    config = config or SparkConfig()
    if problem := java_problem():
        raise ConfigError(problem)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for name in ("py4j", "pyspark"):
        logging.getLogger(name).setLevel(logging.ERROR)

    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    started = SparkContext._active_spark_context is None
    if ".whl" not in SparkContext.PACKAGE_EXTENSIONS:  # else executors do not import wheels of --py-files
        SparkContext.PACKAGE_EXTENSIONS = (*SparkContext.PACKAGE_EXTENSIONS, ".whl")
    builder = SparkSession.builder
    if started:
        builder = _configured(builder, f"{config.app_name} {run_name}".strip())
    try:
        spark = builder.getOrCreate()
    except Exception as error:
        raise ConfigError(f"Spark does not start: {first_line(error)}") from error
    spark.sparkContext.setLogLevel(config.log_level)
    _quiet(spark, config.log_level)
    for key, value in REQUIRED.items():
        spark.conf.set(key, value)
    size_queries(spark)
    _check_delta(spark)
    return spark, started


def _configured(builder: Any, app_name: str) -> Any:
    from pyspark import SparkConf
    from pyspark.java_gateway import launch_gateway

    by_submit = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit has started the JVM already
    if by_submit:
        from pyspark import SparkContext

        SparkContext._ensure_initialized(gateway=launch_gateway())
        submitted = dict(SparkConf().getAll())
    else:
        submitted = {}
    check_scratch(submitted)
    for key, value in DEFAULTS.items():
        if key not in submitted:
            builder = builder.config(key, value)
    if "spark.app.name" not in submitted or submitted["spark.app.name"].endswith(".py"):
        builder = builder.appName(app_name)
    extensions = [e for e in submitted.get("spark.sql.extensions", "").split(",") if e]
    if DELTA_EXTENSION not in extensions:
        builder = builder.config("spark.sql.extensions", ",".join([*extensions, DELTA_EXTENSION]))
    if "spark.sql.catalog.spark_catalog" not in submitted:
        builder = builder.config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
    if not by_submit and not delta_is_installed():
        from delta import configure_spark_with_delta_pip

        builder = configure_spark_with_delta_pip(builder)
    return builder


def delta_is_installed() -> bool:
    """Whether Delta's jars are in Spark's own folder of jars, so that no download is needed."""
    return any((spark_home() / "jars").glob("delta-spark_*.jar"))


def spark_home() -> Path:
    from pyspark.find_spark_home import _find_spark_home

    return Path(_find_spark_home())


def install_jars(packages: Sequence[str] = ()) -> None:
    """Download Delta's jars through Ivy and copy them into Spark's folder of jars (part of `make setup`).

    Jars that Spark has already are left as they are. The jars come from Maven Central or, with the environment variable
    DEFAULT_ARTIFACT_REPOSITORY, from a mirror of it; through the proxy in HTTPS_PROXY or HTTP_PROXY, if there is one.
    What Ivy prints is shown only if it fails.

    Parameters
    ----------
    packages : further packages of Maven, such as the connector of an object store, whose jars are needed too.

    Raises
    ------
    ConfigError
        The jars cannot be downloaded.
    """
    if delta_is_installed() and not packages:
        return
    from delta import configure_spark_with_delta_pip
    from pyspark.sql import SparkSession

    os.environ.setdefault("SPARK_SUBMIT_OPTS", " ".join(proxy_options(os.environ)))
    with tempfile.TemporaryDirectory() as ivy:
        builder = configure_spark_with_delta_pip(SparkSession.builder.master("local[1]"), list(packages))
        try:
            with _shown_on_failure():
                spark = builder.config("spark.jars.ivy", ivy).config("spark.ui.enabled", "false").getOrCreate()
                spark.stop()
        except Exception as error:
            wanted = ["Delta's jars", *packages]
            raise ConfigError(
                f"{' and '.join(wanted)} cannot be downloaded: {first_line(error)}: name a mirror of Maven Central by "
                "DEFAULT_ARTIFACT_REPOSITORY=https://…, or a proxy by HTTPS_PROXY=http://host:port"
            ) from None
        jars = spark_home() / "jars"
        for jar in Path(ivy, "jars").glob("*.jar"):
            name = jar.name.partition("_")[2]  # Ivy puts the group before it
            if not (jars / name).exists():
                shutil.copy(jar, jars / name)


def proxy_options(environment: Mapping[str, str]) -> list[str]:
    """Java's options for the proxies that the environment names, which Java itself does not read."""
    options = []
    for scheme in ("http", "https"):
        address = environment.get(f"{scheme}_proxy") or environment.get(f"{scheme.upper()}_PROXY") or ""
        parts = urlsplit(address if "//" in address else f"//{address}")
        if parts.hostname:
            options += [f"-D{scheme}.proxyHost={parts.hostname}", f"-D{scheme}.proxyPort={parts.port or 80}"]
    return options


@contextlib.contextmanager
def _shown_on_failure() -> Iterator[None]:
    """Keep what this process and its children print, and write it to standard error only if the block fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    own = {stream: os.dup(stream) for stream in (1, 2)}
    with tempfile.TemporaryFile() as kept:
        for stream in own:
            os.dup2(kept.fileno(), stream)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(own[2], kept.read())
            raise
        finally:
            for stream, before in own.items():
                os.dup2(before, stream)
                os.close(before)


def _check_delta(spark: Any) -> None:
    try:
        spark._jvm.java.lang.Thread.currentThread().getContextClassLoader().loadClass(DELTA_EXTENSION)
    except Exception:
        raise ConfigError(
            "Delta's jars are not on Spark's class path: "
            "add `--packages io.delta:delta-spark_2.12:3.3.3` or `--properties-file conf/spark-defaults.conf`"
        ) from None


def _quiet(spark: Any, level: str) -> None:
    """Silence loggers that report at level ERROR failures which the jobs handle and report themselves."""
    if level in ("OFF", "ERROR"):
        log4j = spark._jvm.org.apache.logging.log4j
        off = log4j.Level.OFF
        for name in (
            "org.apache.spark.sql.execution.datasources.FileFormatWriter",
            "org.apache.spark.scheduler.TaskSetManager",
            "org.apache.spark.executor.Executor",
            "org.apache.spark.TaskContextImpl",  # a task that is cancelled while it gives back a block
            "org.apache.spark.util.Utils",
            "org.apache.spark.sql.delta.commands.MergeIntoCommand",  # a conflict: the lake merges again
        ):
            log4j.core.config.Configurator.setLevel(name, off)


def stop_session(spark: Any) -> None:
    """Stop a session, and the timer thread that would keep its JVM alive.

    A barrier stage in local mode leaves a timer thread that is no daemon; spark-submit would wait for it for ever.
    """
    jvm = spark._jvm
    spark.stop()
    barrier = getattr(jvm, "org.apache.spark.BarrierTaskContext$")
    getattr(getattr(barrier, "MODULE$"), "org$apache$spark$BarrierTaskContext$$timer")().cancel()


if __name__ == "__main__":
    try:
        install_jars(sys.argv[1:])
    except SparkcfError as error:
        print(f"sparkcf: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
