"""Search a model's parameters on a validation split, write the best ones to a YAML file, and test them once.

    spark-submit jobs/tune.py --config conf/sample.yaml tune.space=conf/tune/als.yaml tune.trials=20

Reads interactions, users, items. Writes runs, metrics, the study under `tune.folder` and the file `tune.winner`. Run it
again to go on with an interrupted study, or with more trials. Needs optuna: pip install 'sparkcf[tune]'.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.tune import check_tune, tune

if __name__ == "__main__":
    main("tune", tune, __doc__, check=check_tune)
