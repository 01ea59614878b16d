"""Solve the vectors of new and changed users with a run's items fixed, as a new run, without training.

    spark-submit jobs/fold_in.py --config conf/sample.yaml ds=2018-09-26

Reads runs, published, metrics, interactions, users, items and the run's factors (`run_id=…`; else the published run).
Writes user_factors, item_factors, metrics, runs. Run evaluate, recommend and publish next, as after train.
"""

from sparkcf.jobs.fold_in import fold_in_users
from sparkcf.jobs.frame import main

if __name__ == "__main__":
    main("fold_in", fold_in_users, __doc__)
