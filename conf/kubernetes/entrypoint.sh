#!/usr/bin/env bash
# Starts what Spark asks a container for: a driver, an executor, or any other command.
set -euo pipefail

java_options=()
while IFS='=' read -r name value; do
    [[ $name == SPARK_JAVA_OPT_* ]] && java_options+=("$value")
done < <(env)

class_path="$SPARK_HOME/jars/*:${SPARK_EXTRA_CLASSPATH:-}"
case "${1:-}" in
    driver)
        shift
        exec "$SPARK_HOME/bin/spark-submit" --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" \
            --deploy-mode client "$@"
        ;;
    executor)
        shift
        exec java ${java_options[@]+"${java_options[@]}"} \
            "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" -cp "$class_path" \
            org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
            --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
            --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
            --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
        ;;
    *)
        exec "$@"
        ;;
esac
