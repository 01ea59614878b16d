"""Load a day's raw log into the lake.

    spark-submit jobs/clean.py --config conf/nightly.yaml ds=2024-05-31 input.path='logs/{ds}/*.csv.gz'

Reads the input and, if configured, attributes of users and items. Writes users, items, quarantine, interactions, runs.
"""

from sparkcf.jobs.clean import clean_day
from sparkcf.jobs.frame import main

if __name__ == "__main__":
    main("clean", clean_day, __doc__)
