"""Settings of Spark for tests: tiny data, so what a query costs is its planning on the driver."""

COMMON = "-XX:ReservedCodeCacheSize=240m"
# Of processes that live for seconds, and of jobs that run one night: the quick compiler alone. Each test process has
# a core, and a night's planning costs 85 seconds of it instead of 120.
JAVA = f"-XX:TieredStopAtLevel=1 {COMMON} -XX:+UseSerialGC"
JOB_JAVA = f"-XX:TieredStopAtLevel=1 {COMMON} -XX:+UseParallelGC -XX:NewSize=300m"
# Of the session that all tests share, which plans thousands of queries: both compilers and a roomy young generation.
SESSION_JAVA = f"{COMMON} -XX:+UseParallelGC -XX:NewSize=300m"
SETTINGS = (
    "spark.ui.enabled=false",
    "spark.sql.shuffle.partitions=2",
    "spark.default.parallelism=2",
    "spark.sql.codegen.wholeStage=false",
    "spark.sql.codegen.factoryMode=NO_CODEGEN",
    "spark.databricks.delta.snapshotPartitions=1",
)
CONF = tuple(word for setting in SETTINGS for word in ("--conf", setting))
SESSION_OPTIONS = ("--driver-java-options", SESSION_JAVA, *CONF)
JOB_OPTIONS = ("--driver-java-options", JOB_JAVA, *CONF)
