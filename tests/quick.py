"""Settings of Spark for tests: tiny data in a process that lives for seconds, so what a query costs is its planning."""

# The quick compiler, room for all that it compiles (48 MB fill up, then it starts anew), a plain collector.
JAVA = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"
SETTINGS = (
    "spark.ui.enabled=false",
    "spark.sql.shuffle.partitions=2",
    "spark.default.parallelism=2",
    "spark.sql.codegen.wholeStage=false",
    "spark.sql.codegen.factoryMode=NO_CODEGEN",
    "spark.databricks.delta.snapshotPartitions=1",
)
OPTIONS = ("--driver-java-options", JAVA, *(word for setting in SETTINGS for word in ("--conf", setting)))
