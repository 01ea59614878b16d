"""The night as a DAG of Airflow (3.2 or later): each job of sparkcf is a task that calls spark-submit.

    clean ▶ for each model: prepare ▶ train ▶ evaluate ▶ recommend ▶ publish ▶ maintain ▶ night

Put this file into Airflow's folder of DAGs and edit the call at its end, or import `nightly_dag` from a file of your
own. It needs Airflow alone: sparkcf and Spark are where the jobs run. docs/operations.md says more.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, BaseOperator, CronDataIntervalTimetable, Param, TaskGroup
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

NOTHING_NEW = 5  # a skip
FINAL = {
    2: "bad configuration or input: the job's message names the key or the file",
    3: "a gate refused: readers keep the lists that they have",
}  # exit codes that a retry would only repeat; any other is retried
# Where SparkSubmitOperator's error has the exit code of the job, by the kind of cluster, the surest first.
EXIT_CODES = tuple(
    re.compile(pattern)
    for pattern in (
        r"User application exited with status (\d+)",  # YARN
        r"Kubernetes spark exit code is: (\d+)",  # Kubernetes, spark-submit waits
        r"phase=Failed exit_code=(\d+)",  # Kubernetes, its API is asked
        r"Error code is: (\d+)",  # spark-submit's own, in client mode
    )
)
PARAMS = {
    "day": Param(
        None,
        type=["null", "string"],
        format="date",
        title="Day",
        description="The logical date, such as 2024-05-31. Empty: the day on which the run's data interval begins.",
    ),
    "overrides": Param(
        [],
        type="array",
        items={"type": "string", "pattern": r"^[a-z_][^=]*="},
        title="Overrides",
        description="Settings for this run alone, key=value, one a line: als.rank=128",
    ),
}


class BashJob(BashOperator):
    """A job by a command of this machine. Exit code 5 is a skip, 2 and 3 are not retried."""

    def execute(self, context: Any) -> Any:
        try:
            return super().execute(context)
        except AirflowException as error:
            process = self.subprocess_hook.sub_process  # None: it was not started
            if process and process.returncode in FINAL:
                raise AirflowFailException(FINAL[process.returncode]) from error
            raise


def cluster_job(**arguments: Any) -> BaseOperator:
    """A job whose driver runs on the cluster. Exit codes as for `BashJob`. Needs Airflow's provider for Spark."""
    from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

    class ClusterJob(SparkSubmitOperator):
        def execute(self, context: Any) -> None:
            try:
                super().execute(context)
            except Exception as error:  # the provider raises RuntimeError too
                code = exit_code(str(error))
                if code == NOTHING_NEW:
                    raise AirflowSkipException("nothing new to do") from error
                if code in FINAL:
                    raise AirflowFailException(FINAL[code]) from error
                raise

    return ClusterJob(**arguments)


def exit_code(error: str) -> int | None:
    """The job's exit code in a message of SparkSubmitOperator; None: there is none."""
    found = next(filter(None, (pattern.search(error) for pattern in EXIT_CODES)), None)
    return int(found[1]) if found else None


def arguments_of_run(context: Mapping[str, Any]) -> list[str]:
    """A run's own arguments: its overrides and its day, which is never taken from the clock."""
    params, begins = context["params"], context.get("data_interval_start")
    if not (params["day"] or begins):
        raise AirflowFailException('this run has no data interval, so it needs a day: {"day": "2024-05-31"}')
    return [*params["overrides"], f"ds={params['day'] or begins.strftime('%Y-%m-%d')}"]


def nightly_dag(
    config: Sequence[str],
    models: Sequence[str],
    *,
    home: str,
    command: Sequence[str] = ("spark-submit",),
    connection: str | None = None,
    options: Mapping[str, Any] | None = None,
    pool: str = "default_pool",
    **settings: Any,
) -> DAG:
    """Build the DAG of a night.

    Parameters
    ----------
    config : the `--config` files, as the driver sees them.
    models : trained, measured and published independently of each other.
    home : folder or address of `jobs/`; with `command` also the working folder.
    command : spark-submit and its options; used unless there is a `connection`.
    connection : a Spark connection of Airflow. The jobs are then submitted by SparkSubmitOperator, and their drivers
        run on the cluster.
    options : further arguments of SparkSubmitOperator, such as py_files, archives, conf.
    pool : its slots bound how many models train and are evaluated at once, for example one slot for each GPU.
    settings : arguments of the DAG, such as start_date, schedule, default_args.
    """
    # The DAG's limit of one run does not hold for a back-fill; this one does: of each job one runs at a time.
    of_tasks = {"retries": 2, "retry_delay": timedelta(minutes=5), "max_active_tis_per_dag": 1}
    files = [word for file in config for word in ("--config", file)]

    def job(name: str, *words: str, **more: Any) -> BaseOperator:
        application = f"{home}/jobs/{name}.py"

        def arguments(context: Any, jinja_env: Any) -> list[str]:
            return [*files, *arguments_of_run(context), *words]

        def line(context: Any, jinja_env: Any) -> str:
            return shlex.join([*command, application, *arguments(context, jinja_env)])

        if connection is None:
            more |= {"bash_command": line, "append_env": True, "cwd": home, "skip_on_exit_code": [NOTHING_NEW]}
            return BashJob(task_id=name, **more)
        more |= {"deploy_mode": "cluster", "name": f"sparkcf-{name}"} | dict(options or {})
        return cluster_job(
            task_id=name, application=application, application_args=arguments, conn_id=connection, **more
        )

    defaults = {
        "dag_id": "sparkcf_nightly",
        "schedule": CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),  # a day ends in UTC
        "catchup": True,  # a night that was missed has a day whose input is not loaded yet
        "max_active_runs": 1,
        "params": PARAMS,
        "default_args": of_tasks | settings.pop("default_args", {}),
        "auto_register": False,  # of the file that imports this one too
        "doc_md": __doc__,
    }
    with DAG(**defaults | settings) as dag:
        cleaned = job("clean")
        maintain = job("maintain", trigger_rule="all_done")
        night = EmptyOperator(task_id="night", trigger_rule="none_failed")  # else a run would end as maintain does
        for model in models:
            with TaskGroup(model):
                of_model = f"model={model}"
                published = job("publish", of_model, outlets=[Asset(f"sparkcf_published_{model}")])
                # Most models read no packed rows, so that prepare is skipped; training follows all the same.
                prepared = job("prepare", of_model, "models=[]", trigger_rule="none_failed")
                trained = job("train", of_model, trigger_rule="none_failed", pool=pool)
                evaluated = job("evaluate", of_model, pool=pool)
                listed = job("recommend", of_model)
                cleaned >> prepared >> trained >> evaluated >> listed >> published >> [maintain, night]
        maintain >> night
    return dag


dag = nightly_dag(
    config=("conf/nightly.yaml", "mine.yaml"),
    models=("als", "popularity"),
    home="/opt/sparkcf",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),  # your first night: those since then are caught up
)
