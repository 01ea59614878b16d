"""A file of Airflow DAGs, one for each entry of `nights.json` beside it: arguments of `nightly_dag`."""

import json
from datetime import timedelta
from pathlib import Path

import pendulum
from sparkcf_nightly import nightly_dag

FIRST, LAST = (pendulum.datetime(2024, month, 1, tz="UTC") for month in (5, 7))  # the scheduler finds no night to run
for name, arguments in json.loads(Path(__file__).with_name("nights.json").read_text()).items():
    at_once = {"retries": 2, "retry_delay": timedelta(0)}
    globals()[name] = nightly_dag(
        dag_id=name, start_date=FIRST, end_date=LAST, default_args=at_once, catchup=False, **arguments
    )
