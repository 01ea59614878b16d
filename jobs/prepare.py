"""Pack the interactions into one row per user (bivae: and per item), for training by gradient.

    spark-submit jobs/prepare.py --config conf/sample.yaml model=multvae

Reads interactions, users, items. Writes user_rows, item_rows, runs. Optional: training packs missing rows itself.
Exit code 5: none of the models reads packed rows.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.prepare import packing_models, prepare

if __name__ == "__main__":
    main("prepare", prepare, __doc__, check=packing_models)
