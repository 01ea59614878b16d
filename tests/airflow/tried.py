"""Runs in Airflow's environment: runs DAGs of a file, one run after the other, and writes how each ended.

    python tried.py DAG_FILE RUNS.json PLAN.json CALLS.jsonl OUTPUT.json

A run has a `dag`, and may have a `date` (else it has no logical date), a `conf`, and a `plan` for the stub.
"""

import json
import runpy
import sys
from datetime import datetime
from pathlib import Path

dag_file, runs, plan, calls, output = map(Path, sys.argv[1:])
told = []
for run in json.loads(runs.read_text()):
    plan.write_text(json.dumps(run.get("plan", {})))
    calls.write_text("")
    date = datetime.fromisoformat(run["date"]) if "date" in run else None
    dag = runpy.run_path(str(dag_file))[run["dag"]]  # anew: a run in this process renders the fields of the tasks
    done = dag.test(logical_date=date, run_conf=run.get("conf"))
    states = {ti.task_id: [str(ti.state), ti.try_number] for ti in done.get_task_instances()}
    made = [json.loads(line) for line in calls.read_text().splitlines()]
    told.append({"state": str(done.state), "run_id": done.run_id, "tasks": states, "calls": made})
output.write_text(json.dumps(told))
