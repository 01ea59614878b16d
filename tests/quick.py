"""Settings of Spark for tests: tiny data, so what a query costs is its planning on the driver."""

# Of processes that live for seconds: the quick compiler alone, room for all that it compiles, a plain collector.
JAVA = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"
# Of drivers, which plan hundreds of queries: a third less time with both compilers and a roomy young generation.
DRIVER_JAVA = "-XX:ReservedCodeCacheSize=240m -XX:+UseParallelGC -XX:NewSize=300m"
SETTINGS = (
    "spark.ui.enabled=false",
    "spark.sql.shuffle.partitions=2",
    "spark.default.parallelism=2",
    "spark.sql.codegen.wholeStage=false",
    "spark.sql.codegen.factoryMode=NO_CODEGEN",
    "spark.databricks.delta.snapshotPartitions=1",
)
OPTIONS = ("--driver-java-options", DRIVER_JAVA, *(word for setting in SETTINGS for word in ("--conf", setting)))
