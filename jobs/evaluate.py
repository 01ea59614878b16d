"""Measure a trained run and the popularity baseline by one of the protocols q1 to q4.

    spark-submit jobs/evaluate.py --config conf/sample.yaml evaluation.protocol=q4

Reads interactions, users, items at the run's versions. Writes metrics. `run_id=…` names the run; default: the newest.
"""

from sparkcf.jobs.evaluate import evaluate_run
from sparkcf.jobs.frame import main

if __name__ == "__main__":
    main("evaluate", evaluate_run, __doc__)
