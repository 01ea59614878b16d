"""Pack the interactions into one row per user and one row per item, for training by gradient.

    spark-submit jobs/prepare.py --config conf/sample.yaml model=multvae

Reads interactions, users, items. Writes user_rows, item_rows, runs. Optional: training packs missing rows itself.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.prepare import prepare

if __name__ == "__main__":
    main("prepare", prepare)
