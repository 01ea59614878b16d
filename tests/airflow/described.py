"""Runs in Airflow's environment: imports a DAG file by its path and prints the DAG as JSON."""

import json
import runpy
import sys

dag = runpy.run_path(sys.argv[1])["dag"]
foreign = sorted({name.partition(".")[0] for name in sys.modules} & {"sparkcf", "pyspark", "torch", "delta"})
tasks = {
    task.task_id: {
        "upstream": sorted(task.upstream_task_ids),
        "kind": type(task).__name__,
        "trigger_rule": task.trigger_rule.value,
        "retries": task.retries,
        "pool": task.pool,
        "at_once": task.max_active_tis_per_dag,
        "outlets": [asset.name for asset in task.outlets],
    }
    for task in dag.tasks
}
told = {
    "dag_id": dag.dag_id,
    "timetable": type(dag.timetable).__name__,
    "expression": dag.timetable.expression,
    "catchup": dag.catchup,
    "max_active_runs": dag.max_active_runs,
    "params": sorted(dag.params),
    "foreign": foreign,
    "tasks": tasks,
}
print(json.dumps(told))
